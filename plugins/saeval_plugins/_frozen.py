"""Reads frozen runs: windows, explanations, prompts and replies of an earlier run, in one compressed file."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from saeval.plugin import InputError, Message, content_hash

OWN = "explanation"


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt as it was sent, and the reply.

    Attributes:
        messages: The conversation.
        reply: The model's full text.
        windows: Rows of the windows that the prompt lists, in its order; empty if it asks for an explanation.
        right: The correct answer for each of these windows.
        reading: Number of earlier replies to the same conversation in the file.
    """

    messages: tuple[Message, ...]
    reply: str
    windows: tuple[int, ...] = ()
    right: tuple[bool, ...] = ()
    reading: int = 0


@dataclass(frozen=True)
class Explained:
    """One explanation of a latent.

    Attributes:
        text: The explanation.
        asked: The prompt it answers; None for a baseline without a model.
    """

    text: str
    asked: RecordedPrompt | None


@dataclass
class FrozenLatent:
    """Recorded data of one latent.

    Attributes:
        facts: `firings`, `windows`, `density` and `max_activation` in the whole corpus.
        fires: [place, activation] pairs by row of the window.
        sides: Rows of the activating and non-activating windows, for `explain` and `score`.
        deciles: Rank decile by row of the window.
        explanations: Explanations by variant.
        judged: Prompts by label of the scorer and text of the explanation.
    """

    facts: Mapping[str, float]
    fires: Mapping[int, list[list[float]]]
    sides: Mapping[str, list[list[int]]]
    deciles: Mapping[int, int]
    explanations: dict[str, Explained] = field(default_factory=dict)
    judged: dict[tuple[str, str], list[RecordedPrompt]] = field(default_factory=dict)


@dataclass
class FrozenCell:
    """Recorded data of one cell.

    Attributes:
        n_latents: Width of the dictionary.
        facts: Facts from the source: hookpoint, subject, architecture.
        documents: Document of each window.
        windows: Tokens of each window, by row.
        latents: The latents, by number.
    """

    n_latents: int
    facts: Mapping[str, Any]
    documents: list[int]
    windows: list[list[str]]
    latents: dict[int, FrozenLatent] = field(default_factory=dict)


@dataclass
class FrozenRun:
    """A frozen run.

    Attributes:
        about: Where it comes from, in words.
        cells: The cells, by name.
    """

    about: Mapping[str, Any]
    cells: dict[str, FrozenCell]

    def cell(self, name: str, path: Path) -> FrozenCell:
        """Return a cell.

        Raises:
            InputError: If it is not in the file.
        """
        if name not in self.cells:
            raise InputError(f"{path}: no cell {name!r}; it has: {', '.join(self.cells)}")
        return self.cells[name]

    def replies(self) -> dict[tuple[str, int], str]:
        """Return all replies, by hash of the conversation and number of the reading."""
        latents = [latent for cell in self.cells.values() for latent in cell.latents.values()]
        asked = [a for latent in latents for lists in latent.judged.values() for a in lists]
        asked += [e.asked for latent in latents for e in latent.explanations.values() if e.asked]
        return {(conversation(a.messages), a.reading): a.reply for a in asked}


def conversation(messages: Iterable[Message]) -> str:
    """Return the hash of a conversation."""
    return content_hash([[message.role, message.content] for message in messages])


def read_frozen(path: Path) -> FrozenRun:
    """Read a frozen run; files are cached in memory.

    Raises:
        InputError: If it is missing or damaged.
    """
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InputError(
            f"frozen run {path}: cannot be read ({error.strerror}); give the path of a .jsonl.xz file"
        ) from None
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"frozen run {path}: is damaged ({type(error).__name__}); copy it again") from None


@lru_cache(maxsize=4)
def _read(path: Path, _size: int, _mtime: int) -> FrozenRun:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        about, *rows = map(json.loads, file)
    readings: Counter[str] = Counter()
    heads = [tuple(Message(role, text) for role, text in head) for head in about["prompts"]]
    frozen = FrozenRun(about["about"], {})
    for row in rows:
        if row["kind"] == "cell":
            documents, windows = [d for d, _ in row["windows"]], [tokens for _, tokens in row["windows"]]
            frozen.cells[row["cell"]] = FrozenCell(row["n_latents"], row["facts"], documents, windows)
        else:
            frozen.cells[row["cell"]].latents[row["latent"]] = _latent(row, heads, readings)
    return frozen


def _latent(row: Mapping[str, Any], heads: list[tuple[Message, ...]], readings: Counter[str]) -> FrozenLatent:
    def asked(entry: Mapping[str, Any]) -> RecordedPrompt:
        messages = (*heads[entry["prompt"]], Message("user", entry["asked"]))
        right = tuple(map(bool, entry.get("right", ())))
        reading = readings[key := conversation(messages)]
        readings[key] += 1
        return RecordedPrompt(messages, entry["reply"], tuple(entry.get("windows", ())), right, reading)

    latent = FrozenLatent(
        row["facts"],
        {int(window): pairs for window, pairs in row["fires"].items()},
        row["sides"],
        {int(window): decile for window, decile in row["deciles"].items()},
    )
    for variant, entry in row["explanations"].items():
        latent.explanations[variant] = Explained(entry["text"], asked(entry) if "asked" in entry else None)
    for entry in row["judged"]:
        latent.judged[entry["scorer"], entry["explanation"]] = [asked(one) for one in entry["lists"]]
    return latent
