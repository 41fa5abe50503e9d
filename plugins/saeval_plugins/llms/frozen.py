"""Replays the replies of a frozen run for the same conversations."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from saeval.plugin import LLM, LLMError, Reply, Request, Usage, file_sha256
from saeval_plugins._frozen import conversation, read_frozen
from saeval_plugins.task_dirs import saeval_task_dirs


class FrozenLLM(LLM):
    """Replays a real model's replies from a frozen run; results are marked `recorded`.

    `frozen/NAME` is a frozen run that ships with the tasks, `frozen/PATH.jsonl.xz` is your own. A conversation that is
    not in the file fails; saeval never invents a reply.
    """

    name = "frozen"
    recorded = True
    reproducible = False
    in_process = True

    @property
    def path(self) -> Path:
        """Path of the frozen run."""
        if self.model.endswith(".xz"):
            return Path(self.model).expanduser()
        return saeval_task_dirs()[0] / "recorded" / f"{self.model}.jsonl.xz"

    def check(self) -> None:
        """Check that the file can be read."""
        read_frozen(self.path)

    def fingerprint(self) -> JsonValue:
        """Return the hash of the file, independent of its location."""
        return [self.name, file_sha256(self.path) if self.path.is_file() else None]

    @cached_property
    def _replies(self) -> dict[tuple[str, int], str]:
        return read_frozen(self.path).replies()

    async def complete(self, request: Request) -> Reply:
        """Return the recorded reply."""
        key = conversation(request.messages), request.repeat
        if key not in self._replies:
            raise LLMError(f"frozen/{self.model}: no recorded reply to {request.messages[-1].content[:60]!r}")
        return Reply(self._replies[key], Usage(usd=0.0))
