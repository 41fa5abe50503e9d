"""Makes the calls of one role: applies its limits, retries, and counts usage."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saeval._util import LLMError, Refused
from saeval.llm.answers import asked, writable
from saeval.llm.budget import Budget, known_dollars
from saeval.llm.concurrency import AdaptiveLimiter, Limiter
from saeval.llm.pricing import Pricing
from saeval.llm.retries import Attempts, Timeout, Waits
from saeval.llm.role import Asker, RoleSettings
from saeval.llm.truncation import TruncationPolicy
from saeval.plugin.base import LLM
from saeval.records import FillReply, LogprobReply, Reply, Usage, readable

A = TypeVar("A", Reply, LogprobReply, FillReply)


@dataclass
class Question:
    """A request and the state of asking it.

    Attributes:
        request: The request.
        roomier: The same with a higher token limit (room for reasoning); None if the limit cannot be raised.
        raised: Whether the highest token limit applies.
        sent: The request as it was last sent.
        shape: Class of its answer.
        lease: Key of its lease; None if it is asked without a lease.
        leased: Whether this process holds the lease.
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
    """The total usage of all attempts at a request.

    Attributes:
        took: Their usage; its price is unknown if that of any attempt is. None if nothing was billed.
        known: Dollars of the attempts whose price is known.
    """

    took: Usage | None = None
    known: float = 0.0

    def add(self, usage: Usage) -> None:
        """Add the usage of an attempt."""
        self.took = usage if self.took is None else self.took + usage
        self.known += known_dollars(usage)


@dataclass
class CallState:
    """A request that is being answered.

    Attributes:
        task: The task that gets the answer.
        ended: Set once the task has ended. Callers wait for it, because one that is cancelled cancels what it awaits.
        askers: Number of callers that wait for the answer.
        in_flight: Whether a call is in flight; it is billed even if its answer is never used.
    """

    task: asyncio.Future[Any] = field(init=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    askers: int = 0
    in_flight: bool = False


class Caller:
    """Asks one role's model.

    Args:
        asker: The role with its model.
        budget: The run's spending limit.
        begin: Called before each attempt, once the limiter admits it; an exception from it ends the question.
        tell: Called with a message to the user when the run has to wait.
    """

    def __init__(
        self,
        asker: Asker,
        budget: Budget,
        begin: Callable[[Question], None],
        tell: Callable[[str], None],
    ):
        role, llm, self._model, settings = asker
        self._llm, self._settings = llm, settings
        self._budget, self._begin = budget, begin
        self._spending = budget.role(free=llm.in_process or llm.batches or _costs_nothing(settings))
        self._limiter = _limiter(llm, settings)
        self._timeout = Timeout(None if llm.in_process or llm.batches else settings.timeout)
        self._waits = Waits(role, llm, self._limiter, tell)
        self._room = TruncationPolicy(role, settings.max_tokens, settings.max_tokens_if_cut, tell)
        self._pricing = Pricing(llm, settings)

    def leave(self, question: Question) -> None:
        """Release questions that wait to see whether a higher token limit helps this one."""
        self._room.leave(question)

    def end(self) -> None:
        """Stop reporting waits."""
        self._waits.end()

    async def ask(
        self, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState, tries: Attempts, bill: Bill
    ) -> A:
        """Return the first complete answer; an answer that was cut off is asked for again with a higher token limit.

        Once the higher limit has helped, all questions get it at once (a limit by itself costs nothing), unless the
        server rejects it.
        """
        cut: A | None = None
        last: LLMError | None = None
        while True:
            tries.made += 1
            try:
                answer = await self._attempt(question, ask, work, tries, bill)
                if not _is_cut(answer):
                    self._room.note(whole=True, raised=question.raised and question.roomier is not None)
                    return answer
                cut = answer
            except LLMError as error:
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
            if not await self._has_more_room(question, work, tries):
                if cut is not None:
                    return cut
                assert last is not None  # an attempt ends with an answer or an error
                raise last

    async def _has_more_room(self, question: Question, work: CallState, tries: Attempts) -> bool:
        """Raise the token limit of a question whose answer was cut off; return whether to ask it again."""
        if question.raised:
            self._room.note(whole=False, raised=question.roomier is not None)
            return False
        work.in_flight = False
        with tries.queued():
            question.raised = await self._room.turn(question)
        return question.raised

    async def _wait(self, error: LLMError, tries: Attempts, work: CallState) -> None:
        """Wait for the next attempt.

        Raises:
            LLMError: The given error, if there is no further attempt.
        """
        seconds = tries.wait_after(error) if work.askers else None
        if seconds is None:
            raise error
        self._waits.report(seconds, error)
        await asyncio.sleep(seconds)

    async def _attempt(
        self, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState, tries: Attempts, bill: Bill
    ) -> A:
        """Ask once, as soon as the role's concurrency and the budget allow it, and bill the attempt."""
        with tries.queued():
            epoch = await self._enter(question)
        refused: bool | None = None
        try:
            with tries.queued():
                reserved = await self._spending.enter(lambda: self._pricing.most(self._chosen(question)))
            try:
                answer = await self._call(question, ask, work)
                self._pay(bill, answer.usage, question.sent, answer, cut=_is_cut(answer))
            except LLMError as error:
                if error.usage is not None:
                    self._pay(bill, error.usage, question.sent, cut=error.cut)
                refused = error.retryable
                raise
            finally:
                self._spending.leave(reserved)  # after the bill, whose dollars decide which calls may start
            refused = False
            return answer
        finally:
            self._limiter.leave(epoch, refused)

    async def _enter(self, question: Question) -> int:
        """Wait for a slot; while other questions try the higher token limit, leave the slots to them."""
        while True:
            raised = question.roomier is None or question.raised
            if not raised:
                await self._room.settled()
            epoch = await self._limiter.enter()
            if raised or self._room.is_settled:
                return epoch
            self._limiter.leave(epoch, None)  # an answer was cut off while this question waited for the slot

    async def _call(self, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState) -> A:
        request = question.sent = self._chosen(question)
        try:
            self._begin(question)
            self._waits.begin()
            work.in_flight = not self._llm.in_process
            try:
                async with self._timeout.running():
                    answer: A = await asked(self._model, ask, request, question.shape)
            except TimeoutError:
                what = f"{self._model}: no answer within {self._settings.timeout:g} s"
                raise LLMError(what, retryable=True) from None
            self._timeout.answered()
            self._waits.heard()
            if isinstance(answer, Reply):
                answer = writable(answer)
                self._check(answer)
            return answer
        except BaseException:
            work.in_flight = False
            raise

    def _chosen(self, question: Question) -> Any:
        """Return the request with the token limit that applies now."""
        question.raised |= self._room.needed or question.roomier is None
        return question.request if question.roomier is None or not question.raised else question.roomier

    def _check(self, reply: Reply) -> None:
        """Check that a reply contains an answer.

        Raises:
            Refused: If the model declined.
            LLMError: If it was interrupted, or is empty apart from reasoning.
        """
        if reply.finish_reason == "refusal":
            raise Refused(f"{self._model} declined", usage=reply.usage)
        again = not self._llm.in_process
        if reply.finish_reason == "other":
            raise LLMError(f"{self._model}: the answer was interrupted", retryable=again, usage=reply.usage)
        found = readable(reply)
        if not found.text.strip():
            cut = reply.finish_reason == "length"
            only = " apart from reasoning" if found.reasoning else ""
            how = "; raise the role's max_tokens or max_tokens_if_cut" if cut else ""
            what = f"{self._model}: the answer is empty{only}{how}"
            raise LLMError(what, retryable=again and not cut, usage=reply.usage, cut=cut)

    def _pay(self, bill: Bill, usage: Usage, request: object, answer: object = None, *, cut: bool = False) -> None:
        """Add the usage of an attempt to the bill and to the budget."""
        usage = self._pricing.bill(usage, request, answer, cut=cut)
        bill.add(usage)
        self._budget.add(usage, self._model)
        self._spending.add(usage)


def _limiter(llm: LLM, settings: RoleSettings) -> Limiter:
    if llm.batches:
        return Limiter(sys.maxsize)
    if llm.in_process:
        return Limiter(1)
    return AdaptiveLimiter() if settings.concurrency == "auto" else Limiter(settings.concurrency)


def _costs_nothing(settings: RoleSettings) -> bool:
    return settings.usd_per_million_input == 0 and settings.usd_per_million_output == 0


def _may_be_too_much(error: LLMError) -> bool:
    """Whether the server may have failed because prompt plus token limit exceed its context."""
    return not (isinstance(error, Refused) or error.retryable or error.lasting or error.cut)


def _is_cut(answer: object) -> bool:
    return isinstance(answer, Reply) and answer.finish_reason == "length"
