"""Asks a language model a second time, bypassing cached answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saeval.plugin import FillReply, FillRequest, LanguageModel, LogprobReply, LogprobRequest, Reply, Request

_AGAIN = 1000  # added to the repeat number of requests, larger than any that a step uses


@dataclass
class AskedAgain(LanguageModel):
    """Wraps a language model so that requests are not answered from the first request's cache entry."""

    model: LanguageModel

    @property
    def can_score(self) -> bool:
        """Whether the wrapped model can score."""
        return self.model.can_score

    async def complete(self, request: Request) -> Reply:
        """Send the request again."""
        return await self.model.complete(self._again(request))

    def discard(self, request: Request) -> None:
        """Discard the second reply."""
        self.model.discard(self._again(request))

    def _again(self, request: Request) -> Request:
        return replace(request, repeat=request.repeat + _AGAIN)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations; this is deterministic, so the cache may be used."""
        return await self.model.logprobs(request)

    async def fill(self, request: FillRequest) -> FillReply:
        """Fill gaps; this is deterministic, so the cache may be used."""
        return await self.model.fill(request)
