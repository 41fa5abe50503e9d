"""Replays replies recorded in a file; results are marked `recorded`."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from saeval.plugin import (
    LLM,
    InputError,
    LLMError,
    ModelRef,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
    content_hash,
    file_sha256,
)


def replay_key(request: Request) -> str:
    """Return the key under which a recording stores a request."""
    return content_hash(request.content())


class Replay(LLM):
    """Replays `replay/FILE.jsonl`: one `{"key": …, "text": …}` per line, with log-probabilities if recorded.

    `saeval cache export` writes such files. A request that is not in the file fails with an error that names the
    prompt; saeval never invents a reply.
    """

    name = "replay"
    recorded = True
    reproducible = False
    in_process = True

    model: ModelRef
    """Path of the recording."""

    @property
    def follows_schemas(self) -> bool:
        """True: a request's key includes its schema."""
        return True

    def check(self) -> None:
        """Check that the recording can be read."""
        self._replies  # noqa: B018 - raises if it cannot be read

    def fingerprint(self) -> JsonValue:
        """Return the hash of the recording, independent of its location."""
        return [self.name, file_sha256(Path(self.model))]

    @cached_property
    def _replies(self) -> dict[str, Reply]:
        try:
            lines = Path(self.model).read_text(encoding="utf-8").split("\n")
            return {entry["key"]: _reply(entry) for entry in map(json.loads, filter(str.strip, lines))}
        except OSError as error:
            raise InputError(f"replay/{self.model}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f'replay/{self.model}: every line must be {{"key": …, "text": …}}') from None

    async def complete(self, request: Request) -> Reply:
        """Return the recorded reply."""
        key = replay_key(request)
        if key not in self._replies:
            raise LLMError(
                f"replay/{self.model}: no reply to request {key[:12]}, {request.messages[-1].content[:60]!r}"
            )
        return self._replies[key]


def _reply(entry: dict[str, Any]) -> Reply:
    tokens = tuple(
        TokenLogprobs(token["token"], tuple((text, float(value)) for text, value in token["top"]))
        for token in entry.get("logprobs") or ()
    )
    return Reply(entry["text"], Usage(usd=0.0), logprobs=tokens or None)
