"""Reads prompts from Markdown files, fills their slots and hashes them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from saeval.records.messages import Message

_TURN = re.compile(r"^# (system|user|assistant)\n", re.MULTILINE)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Prompt:
    """A prompt text with slots `{{like_this}}`; conversations have a heading per turn (`# system`, `# user`).

    Slots and headings in inserted text are not interpreted, so text from a corpus cannot change the prompt's structure.

    Attributes:
        name: File name, as shown in results.
        text: The file's text.

    Example:
        >>> Prompt("mine.md", "# user\\nWhat do {{windows}} share?").messages(windows="these")
        (Message(role='user', content='What do these share?'),)
    """

    name: str
    text: str

    @classmethod
    def load(cls, package: str, name: str) -> Prompt:
        """Read a prompt from a package's files."""
        return cls(name, files(package).joinpath(name).read_text(encoding="utf-8"))

    @property
    def sha(self) -> str:
        """First 12 digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def fill(self, **slots: str) -> str:
        """Return the text with every slot filled.

        Raises:
            KeyError: If a slot of the prompt is missing in `slots`.
        """
        return _SLOT.sub(lambda m: slots[m[1]], self.text)

    def messages(self, **slots: str) -> tuple[Message, ...]:
        """Return the conversation with every slot filled."""
        return tuple(
            turn if fixed else Message(turn.role, _SLOT.sub(lambda m: slots[m[1]], turn.content).strip())
            for turn, fixed in self._turns
        )

    @cached_property
    def _turns(self) -> list[tuple[Message, bool]]:
        """The turns, and whether each is without slots."""
        pieces = _TURN.split(self.text)[1:]
        turns = []
        for role, body in zip(pieces[::2], pieces[1::2], strict=True):
            fixed = not _SLOT.search(body)
            turns.append((Message(role, body.strip() if fixed else body), fixed))  # type: ignore[arg-type]
        return turns
