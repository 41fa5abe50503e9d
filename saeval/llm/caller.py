"""Makes the calls of one role: within its limits, again where that can help, and counting what they take."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saeval._util import LLMError, Refused
from saeval.llm.answers import writable
from saeval.llm.budget import Budget
from saeval.llm.concurrency import AdaptiveLimiter, Limiter
from saeval.llm.pricing import Pricing
from saeval.llm.retries import Attempts, Timeout, Waits
from saeval.llm.role import RoleSettings
from saeval.llm.truncation import TruncationPolicy
from saeval.plugin.base import LLM
from saeval.records import FillReply, LogprobReply, Reply, Usage, readable

A = TypeVar("A", Reply, LogprobReply, FillReply)


@dataclass
class Question:
    """What is asked.

    Attributes:
        request: The request.
        roomier: The same with room for reasoning; None where there is no more room to give.
        raised: Whether it has all the room there is.
        sent: The request as it was sent last.
        shape: Class of its answer.
        lease: Key of its lease; None where it is asked without a lease.
        leased: Whether the lease is ours.
    """

    request: Any
    roomier: Any = None
    raised: bool = False
    sent: Any = None
    shape: Any = None
    lease: str | None = None
    leased: bool = False


@dataclass
class Bill:
    """What the attempts at a request took."""

    took: Usage | None = None


@dataclass
class CallState:
    """A request that is being answered.

    Attributes:
        task: What answers it.
        askers: How many wait for the answer.
        in_flight: Whether a call is under way that will be paid for, answered or not.
    """

    task: asyncio.Future[Any] = field(init=False)
    askers: int = 0
    in_flight: bool = False


class Caller:
    """Asks one role's model.

    Args:
        role: Role of the spec.
        llm: The plugin that makes the calls.
        model: The model as the spec names it.
        settings: The role's settings.
        budget: The run's spending limit.
        begin: Called before each attempt that has its place; what it raises ends the question.
        tell: Where a user is told what the run waits for.
    """

    def __init__(
        self,
        role: str,
        llm: LLM,
        model: str,
        settings: RoleSettings,
        budget: Budget,
        begin: Callable[[Question], None],
        tell: Callable[[str], None],
    ):
        self._llm, self._model, self._settings = llm, model, settings
        self._budget, self._begin = budget, begin
        self._limiter = _limiter(llm, settings)
        self._timeout = Timeout(None if llm.in_process or llm.batches else settings.timeout)
        self._waits = Waits(role, llm, self._limiter, tell)
        self._room = TruncationPolicy(role, settings.max_tokens, settings.max_tokens_if_cut, tell)
        self._pricing = Pricing(llm, settings)

    def leave(self, question: Question) -> None:
        """Let others go on that waited for what this question finds out about the room that answers need."""
        self._room.leave(question)

    def end(self) -> None:
        """Stop reporting waits."""
        self._waits.end()

    async def ask(
        self, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState, tries: Attempts, bill: Bill
    ) -> A:
        """Return an answer: the first whole one, with more room for one that was cut off.

        Once that helped, all are given the room at once, unless the server has none: a limit costs nothing by itself.
        """
        cut: A | None = None
        last: LLMError | None = None
        while True:
            tries.made += 1
            try:
                answer = await self._attempt(question, ask, work)
                bill.took = self._paid(answer.usage, bill.took, question.sent, answer, cut=_is_cut(answer))
                if not _is_cut(answer):
                    self._room.note(whole=True, raised=question.raised and question.roomier is not None)
                    return answer
                cut = answer
            except LLMError as error:
                if error.usage is not None:
                    bill.took = self._paid(error.usage, bill.took, question.sent, cut=error.cut)
                if not error.cut:
                    no_room = question.roomier is not None and question.raised and _may_be_too_much(error)
                    if no_room and cut is not None:
                        return cut  # the parser reports that it was cut off
                    if no_room and self._room.needed:
                        question.roomier, self._room.needed = None, False
                        continue
                    await self._wait(error, tries, work)
                    continue
                last = error
            if not await self._has_more_room(question, work):
                if cut is not None:
                    return cut
                assert last is not None  # an attempt ends with an answer or an error
                raise last

    async def _has_more_room(self, question: Question, work: CallState) -> bool:
        """Whether a question whose answer was cut off may be asked again with more room; it then has it."""
        if question.raised:
            self._room.note(whole=False, raised=question.roomier is not None)
            return False
        work.in_flight = False
        question.raised = await self._room.turn(question)
        return question.raised

    async def _wait(self, error: LLMError, tries: Attempts, work: CallState) -> None:
        """Wait for the next attempt.

        Raises:
            LLMError: If there is none: the error.
        """
        seconds = tries.wait_after(error) if work.askers else None
        if seconds is None:
            raise error
        self._waits.tell_of(seconds, error)
        await asyncio.sleep(seconds)

    async def _attempt(self, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState) -> A:
        if question.roomier is not None and not question.raised:
            await self._room.settled()
        epoch = await self._limiter.enter()
        refused: bool | None = None
        question.raised |= self._room.needed or question.roomier is None
        request = question.request if question.roomier is None or not question.raised else question.roomier
        question.sent = request
        try:
            self._budget.check()
            self._begin(question)
            self._waits.begin()
            work.in_flight = not self._llm.in_process
            try:
                async with self._timeout.running():
                    answer = await ask(request)
            except TimeoutError:
                what = f"{self._model}: no answer within {self._settings.timeout:g} s"
                raise LLMError(what, retryable=True) from None
            self._timeout.answered()
            self._waits.heard()
            if isinstance(answer, Reply):
                answer = writable(answer)
                self._check(answer)
            refused = False
            return answer
        except LLMError as error:
            refused = error.retryable
            work.in_flight = False
            raise
        except BaseException:
            work.in_flight = False
            raise
        finally:
            self._limiter.leave(epoch, refused)

    def _check(self, reply: Reply) -> None:
        """See that a reply holds an answer.

        Raises:
            Refused: If the model declined.
            LLMError: If it was interrupted, or there is nothing beside reasoning.
        """
        if reply.finish_reason == "refusal":
            raise Refused(f"{self._model} declined", usage=reply.usage)
        again = not self._llm.in_process
        if reply.finish_reason == "other":
            raise LLMError(f"{self._model}: the answer was interrupted", retryable=again, usage=reply.usage)
        found = readable(reply)
        if not found.text.strip():
            cut = reply.finish_reason == "length"
            only = ", beside reasoning" if found.reasoning else ""
            how = "; raise the role's max_tokens or max_tokens_if_cut" if cut else ""
            what = f"{self._model}: the answer is empty{only}{how}"
            raise LLMError(what, retryable=again and not cut, usage=reply.usage, cut=cut)

    def _paid(
        self, usage: Usage, before: Usage | None, request: object, answer: object = None, *, cut: bool = False
    ) -> Usage:
        """Count what an attempt took against the budget; return it with what earlier attempts took."""
        usage = self._pricing.bill(usage, request, answer, cut=cut)
        self._budget.add(usage, self._model)
        return usage if before is None else before + usage


def _limiter(llm: LLM, settings: RoleSettings) -> Limiter:
    if llm.batches:
        return Limiter(sys.maxsize)
    if llm.in_process:
        return Limiter(1)
    return AdaptiveLimiter() if settings.concurrency == "auto" else Limiter(settings.concurrency)


def _may_be_too_much(error: LLMError) -> bool:
    """Whether a server may have failed because prompt and room together are more than its context."""
    return not (isinstance(error, Refused) or error.retryable or error.lasting or error.cut)


def _is_cut(answer: object) -> bool:
    return isinstance(answer, Reply) and answer.finish_reason == "length"
