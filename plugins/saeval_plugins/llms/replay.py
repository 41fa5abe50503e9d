"""Replies recorded in a file, played back by the content of the request; results are marked synthetic."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from saeval import LLM, InputError, LLMError, ModelRef, Reply, Request, Usage, content_hash


def replay_key(request: Request) -> str:
    """Return the key of a request in a recording."""
    return content_hash(asdict(request))


class Replay(LLM):
    """Plays back `replay/FILE.jsonl`: one `{"key": …, "text": …}` a line, as `replay_key` makes keys.

    A request that is not in the file fails, naming the prompt; no answer is ever made up.
    """

    name = "replay"
    synthetic = True
    reproducible = False
    in_process = True

    model: ModelRef
    """The recording."""

    def check(self) -> None:
        """See that the recording can be read."""
        self._replies  # noqa: B018 - reading it is the check

    @cached_property
    def _replies(self) -> dict[str, str]:
        try:
            lines = Path(self.model).read_text(encoding="utf-8").splitlines()
            return {entry["key"]: entry["text"] for entry in map(json.loads, filter(str.strip, lines))}
        except OSError as error:
            raise InputError(f"replay/{self.model}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f'replay/{self.model}: every line should be {{"key": …, "text": …}}') from None

    async def complete(self, request: Request) -> Reply:
        """Look the reply up."""
        key = replay_key(request)
        if key not in self._replies:
            raise LLMError(
                f"replay/{self.model}: no reply to request {key[:12]}, {request.messages[-1].content[:60]!r}"
            )
        return Reply(self._replies[key], Usage(usd=0.0))
