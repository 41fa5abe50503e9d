"""Asks a language model a second time, bypassing cached answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saeval.plugin import FillReply, FillRequest, LanguageModel, LogprobReply, LogprobRequest, Reply, Request

_AGAIN = 1000  # repeat number of the second asking, beyond any that a step uses


@dataclass
class AskedAgain(LanguageModel):
    """Wraps a language model so that no question is answered from the cache."""

    model: LanguageModel

    @property
    def can_score(self) -> bool:
        """Whether the model can."""
        return self.model.can_score

    async def complete(self, request: Request) -> Reply:
        """Ask again."""
        return await self.model.complete(self._again(request))

    def discard(self, request: Request) -> None:
        """Discard the second reply."""
        self.model.discard(self._again(request))

    def _again(self, request: Request) -> Request:
        return replace(request, repeat=request.repeat + _AGAIN)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations, which gives the same each time."""
        return await self.model.logprobs(request)

    async def fill(self, request: FillRequest) -> FillReply:
        """Weigh choices, which gives the same each time."""
        return await self.model.fill(request)
