"""The language model that steps use: answers from the cache, from an equal request in flight, or by a call."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

from pydantic import JsonValue

from saeval._util import BudgetExceeded, Refused, SaevalError, mark_seen, refresh_environment, without_secrets
from saeval.llm.answers import json_text, keyed, restored
from saeval.llm.bookkeeper import Bookkeeper
from saeval.llm.budget import Budget, known_dollars
from saeval.llm.cache import AnswerCache
from saeval.llm.caller import Bill, Caller, CallState, Question
from saeval.llm.ledger import Call, CallLedger
from saeval.llm.retries import Attempts
from saeval.llm.role import Asker
from saeval.llm.splitting import all_or_none, join_replies, split_request
from saeval.records import (
    FillReply,
    FillRequest,
    LanguageModel,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
    Usage,
    readable,
)

A = TypeVar("A", Reply, LogprobReply, FillReply)
S = TypeVar("S", LogprobReply, FillReply)
R = TypeVar("R")

_LEASES = 3.0  # how long to wait for another process that asks the same question, in timeouts of a call
_LOOK_AGE = 0.05  # seconds between two checks for answers of other processes, at questions that are checked again
_GRACE = 10.0  # seconds that a stopping run waits for calls in flight, which are billed anyway

log = logging.getLogger("saeval")


class Gateway(LanguageModel):
    """The language model of one role, as steps use it: adds cache, retries, budget and ledger to the plugin.

    Args:
        asker: The role with its model.
        identity: Everything besides the request that answers depend on; part of the cache key.
        calls: The cache of answers.
        log: The run's ledger.
        budget: The run's spending limit.
        tell: Called with a message to the user when the run has to wait; the message is logged, too.
        patience: Seconds to wait for a server that answers with a retry delay.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        identity: JsonValue,
        calls: AnswerCache,
        log: CallLedger,
        budget: Budget,
        tell: Callable[[str], None] = lambda text: None,
        patience: float = 0.0,
    ):
        self._role, self._llm, self._model, self._settings = asker
        self._identity = json_text(identity)
        self._calls, self._log = calls, log
        self._books = Bookkeeper(calls, log, asker.model)
        self._asking: dict[str, CallState] = {}
        self._patience = patience
        refresh_environment()
        self._leased = asker.settings.cache and not asker.llm.batches
        self._caller = Caller(asker, budget, self._lease, tell)
        self._tell = tell
        self._said: set[str] = set()

    @property
    def can_score(self) -> bool:
        """Whether the plugin returns log-probabilities of continuations and choices."""
        return self._llm.can_score

    async def complete(self, request: Request) -> Reply:
        """Return the model's reply to a conversation, from the cache if possible.

        Raises:
            LLMError: If all attempts failed.
            BudgetExceeded: If the spending limit is reached.
        """
        filled = self._filled(request)
        answer = await self._answer("complete", filled, self._llm.complete, Reply, self._roomier(request, filled))
        if filled.schema is not None and not self._llm.follows_schemas:
            self._say_once("rejects JSON schemas, so `structured` has no effect")
        if self._llm.merges_system_turn and any(message.role == "system" for message in filled.messages):
            self._say_once("rejects system turns, so their text is sent at the start of the first user turn")
        return readable(answer)

    def _say_once(self, what: str) -> None:
        """Report how the server limits the requests of this role."""
        if what not in self._said:
            self._said.add(what)
            text = f"{self._role}: the server of {self._model} {what}"
            log.warning(text)
            self._tell(text)

    def _filled(self, request: Request) -> Request:
        """Return a request with the role's settings filled in."""
        settings = self._settings
        return replace(
            request,
            max_tokens=min(request.max_tokens or settings.max_tokens, settings.max_tokens),
            temperature=settings.temperature if request.temperature is None else request.temperature,
            schema=request.schema if settings.structured else None,
        )

    def _roomier(self, request: Request, filled: Request) -> Request | None:
        """Return the request with `max_tokens_if_cut`; None if it sets its own limit or the limit would not rise."""
        room = self._settings.max_tokens_if_cut
        if self._llm.in_process or request.max_tokens is not None or room <= (filled.max_tokens or 0):
            return None
        return replace(filled, max_tokens=room)

    def discard(self, request: Request) -> None:
        """Mark the cached answer to a request as unreadable, so that the next run asks again."""
        _, key, _ = self._keyed("complete", self._filled(request))
        self._calls.mark(key, "unreadable")

    def _keyed(self, kind: str, request: R) -> tuple[R, str, str]:
        """Return a request with text that UTF-8 can encode, the key of its answer, and the hash of the request."""
        return keyed(request, f'"{kind}",{self._identity},')

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Return log-probabilities of continuations, from the cache if possible.

        Raises:
            LLMError: If all attempts failed.
            BudgetExceeded: If the spending limit is reached.
        """
        return await self._score("logprobs", request, self._llm.logprobs, LogprobReply)

    async def fill(self, request: FillRequest) -> FillReply:
        """Return log-probabilities of the choices in the gaps of texts, from the cache if possible.

        Raises:
            LLMError: If all attempts failed.
            BudgetExceeded: If the spending limit is reached.
        """
        return await self._score("fill", request, self._llm.fill, FillReply)

    async def _score(self, kind: str, request: Any, ask: Callable[[Any], Awaitable[S]], shape: type[S]) -> S:
        """Return the answer to a scoring request, in parts if the server answers each prompt separately.

        Every part is a call of its own. If one fails, parts that are not in flight are cancelled; finished ones stay in
        the cache and in the ledger.
        """
        parts = split_request(request) if self._llm.scores_singly and self._llm.can_score else []
        if len(parts) < 2 or self._is_kept(kind, request, shape):
            return await self._answer(kind, request, ask, shape)
        return join_replies(request, await all_or_none([self._answer(kind, part, ask, shape) for part in parts]))

    def _is_kept(self, kind: str, request: Any, shape: type[S]) -> bool:
        """Whether the cache has the answer to the whole request, from a version that did not split it."""
        cleaned, key, _ = self._keyed(kind, request)
        return self._kept(key, cleaned, shape) is not None

    async def _answer(
        self, kind: str, request: Any, ask: Callable[[Any], Awaitable[A]], shape: type[A], roomier: Any = None
    ) -> A:
        """Return the answer from the cache, from an equal request in flight, or by a call."""
        request, key, asked = self._keyed(kind, request)
        shared = key in self._asking
        if not shared:
            age = _LOOK_AGE if self._leased else 0.0  # with a lease, it looks again before it asks
            if (kept := self._kept(key, request, shape, age)) is not None:
                self._log.add(self._call(key, asked, "ok", kept.usage, cached=True))
                return kept
            new = self._asking[key] = CallState()
            question = Question(request, roomier, shape=shape, lease=key if self._leased else None)
            new.task = asyncio.ensure_future(self._ask_once(key, asked, question, ask, new))
            new.task.add_done_callback(lambda _: self._ended(key, new))
        work = self._asking[key]
        work.askers += 1
        try:
            await work.ended.wait()
            answer: A = work.task.result()
        finally:
            work.askers -= 1
            if not (work.askers or work.in_flight or work.task.done()):
                self._asking.pop(key)
                work.task.cancel()
        if shared:
            self._log.add(self._call(key, asked, "ok", answer.usage, cached=True))
        return answer

    def _kept(self, key: str, request: Any, shape: type[A], age: float = 0.0) -> A | None:
        """Return the cached answer; None if there is none or it is disabled, or the shape does not match."""
        kept = self._calls.get(key, age=age) if self._settings.cache else None
        answer: A | None = None if kept is None else restored(kept, shape, request)
        if kept is not None and answer is None:
            log.warning(
                "%s: the cached answer %s does not match the request; the model is asked again", self._role, key[:12]
            )
        return answer

    def _ended(self, key: str, work: CallState) -> None:
        if self._asking.get(key) is work:
            del self._asking[key]
        work.ended.set()
        mark_seen(work.task)  # the caller may have been cancelled

    async def finish(self) -> None:
        """Wait briefly for calls in flight and cache their answers, since they are billed even if cancelled here."""
        for work in self._asking.values():
            if not work.in_flight:
                work.task.cancel()
        if tasks := [work.task for work in self._asking.values()]:
            _, late = await asyncio.wait(tasks, timeout=_GRACE)
            for task in late:
                task.cancel()
        self._caller.end()

    async def _ask_once(
        self, key: str, asked: str, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState
    ) -> A:
        """Ask, unless another process that shares the cache is asking: then use its answer, or ask if it failed."""
        leases = self._calls.leases
        try:
            while True:
                try:
                    return await self._ask(key, asked, question, ask, work)
                except _AskedElsewhere:
                    if not question.leased and not await leases.wait(key, _LEASES * self._settings.timeout):
                        question.lease = None  # the process that holds the lease hangs
                kept: A | None = self._kept(key, question.request, question.shape)
                if kept is not None:
                    self._log.add(self._call(key, asked, "ok", kept.usage, cached=True))
                    return kept
        finally:
            self._caller.leave(question)
            if question.leased:
                leases.release(key)

    def _lease(self, question: Question) -> None:
        """Take the lease of a question before asking it.

        Raises:
            _AskedElsewhere: If another process holds it, or has just released it after caching the answer.
        """
        if question.lease is None or question.leased:
            return
        question.leased = self._calls.leases.take(question.lease)
        if not question.leased or self._kept(question.lease, question.request, question.shape) is not None:
            raise _AskedElsewhere

    async def _ask(
        self, key: str, asked: str, question: Question, ask: Callable[[Any], Awaitable[A]], work: CallState
    ) -> A:
        """Make the call with retries, and log the outcome in the ledger."""
        tries = Attempts(key, self._settings.retries, self._patience)
        bill = Bill()
        began = time.monotonic()
        try:
            answer = await self._caller.ask(question, ask, work, tries, bill)
        except BaseException as error:
            # If the budget stops the first attempt, no call was made; usage of earlier attempts is always logged.
            if bill.took is not None or (isinstance(error, Exception) and not isinstance(error, BudgetExceeded)):
                status: Literal["refused", "failed"] = "refused" if isinstance(error, Refused) else "failed"
                reason = without_secrets(error) if isinstance(error, SaevalError) else type(error).__name__
                usage = bill.took or Usage(usd=0.0)
                call = self._call(
                    key, asked, status, usage, attempts=tries.made, began=began, reason=reason, known_usd=_hidden(bill)
                )
                self._log.add(call)
            raise
        assert bill.took is not None
        answer = replace(answer, usage=bill.took)
        told: dict[str, Any] = {}
        if isinstance(answer, Reply):
            told = {"served": answer.served, "fingerprint": answer.fingerprint, "words": _words(question.request)}
        call = self._call(
            key, asked, "ok", bill.took, attempts=tries.made, began=began, known_usd=_hidden(bill), **told
        )
        await self._books.keep(key, answer, call)
        return answer

    def _call(
        self,
        key: str,
        asked: str,
        status: Literal["ok", "failed", "refused"],
        usage: Usage,
        *,
        cached: bool = False,
        attempts: int = 0,
        began: float | None = None,
        reason: str = "",
        **told: Any,
    ) -> Call:
        """Return the call as the ledger logs it."""
        milliseconds = round(1000 * (time.monotonic() - began), 1) if began is not None else 0.0
        return Call(self._role, self._model, asked, key, status, cached, attempts, usage, milliseconds, reason, **told)


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Collect garbage less often; with hundreds of calls in flight it took a third of the time, otherwise a sixth."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _AskedElsewhere(BaseException):
    """Raised when another process is asking the same question; this process made no call."""


def _hidden(bill: Bill) -> float:
    """Return the known dollars of a bill if its total does not show them, else 0."""
    return bill.known if bill.took is not None and known_dollars(bill.took) < bill.known else 0.0


def _words(request: object) -> int:
    """Return the number of words in a prompt; a server that reports fewer prompt tokens has truncated it."""
    return sum(_words_in(m.content) for m in request.messages) if isinstance(request, Request) else 0


@lru_cache(maxsize=256)  # most turns are the worked examples of a prompt
def _words_in(text: str) -> int:
    return len(text.split())
