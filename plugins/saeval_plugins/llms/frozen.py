"""The replies of a frozen run, given to the same conversations."""

from __future__ import annotations

from functools import cached_property

from pydantic import JsonValue

from saeval.plugin import LLM, LLMError, Reply, Request, SpecPath, Usage, file_sha256
from saeval_plugins._frozen import conversation, read_frozen


class Frozen(LLM):
    """Repeats what a real model answered in a frozen run; results carry the mark `recorded`.

    A conversation that is not in the file fails; no answer is made up. The name after `frozen/` is free.
    """

    name = "frozen"
    recorded = True
    reproducible = False
    in_process = True

    path: SpecPath
    """The frozen run, `.jsonl.xz`."""

    def check(self) -> None:
        """Read the file."""
        read_frozen(self.path)

    def fingerprint(self) -> JsonValue:
        """Return the hash of the file, wherever it lies."""
        return [self.name, file_sha256(self.path)]

    @cached_property
    def _replies(self) -> dict[str, str]:
        return read_frozen(self.path).replies()

    async def complete(self, request: Request) -> Reply:
        """Look the reply up."""
        key = conversation(request.messages)
        if key not in self._replies:
            raise LLMError(f"frozen/{self.model}: no recorded reply to {request.messages[-1].content[:60]!r}")
        return Reply(self._replies[key], Usage(usd=0.0))
