"""Adds caching, retries, a budget and a ledger to a language model."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from saeval._util import (
    BudgetExceeded,
    Documented,
    LLMError,
    Refused,
    SaevalError,
    clean,
    clean_text,
    look_again,
    mark_seen,
    without_secrets,
    without_values,
)
from saeval.llm.bookkeeper import Bookkeeper
from saeval.llm.budget import Budget
from saeval.llm.cache import AnswerCache
from saeval.llm.concurrency import AdaptiveLimiter, Limiter
from saeval.llm.ledger import Call, CallLedger
from saeval.llm.pricing import Pricing
from saeval.llm.retries import Attempts, Timeout, Waits
from saeval.llm.truncation import TruncationPolicy
from saeval.plugin.base import LLM
from saeval.records import (
    FillReply,
    FillRequest,
    LanguageModel,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
    readable,
)

A = TypeVar("A", Reply, LogprobReply, FillReply)
V = TypeVar("V")

_LEASES = 3.0  # timeouts of a call that another process is given to answer a question
_GRACE = 10.0  # seconds that a run that stops waits for answers under way, which are paid for

log = logging.getLogger("saeval")


class RoleSettings(Documented):
    """What any role may set beside its `model`."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature, unless a step asks for another."""
    max_tokens: int = Field(default=256, ge=1)
    """Maximum tokens of an answer, unless a step asks for less."""
    max_tokens_if_cut: int = Field(default=4096, ge=1)
    """Maximum tokens when an answer cut off at `max_tokens` is asked for once more, so that reasoning has room; not
    used if this is not larger, or for models in process."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds an attempt may take, without the time in a server's queue; models in process have no limit."""
    retries: int = Field(default=5, ge=0)
    """Retries after failures that may pass; a server that asks for time is retried for `run.patience`."""
    concurrency: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Concurrent calls; `auto` starts at 8 and adapts to the server."""
    cache: bool = True
    """Whether answers of earlier runs are used."""
    usd_per_million_input: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens, if the provider's is unknown."""
    usd_per_million_output: float | None = Field(default=None, ge=0)
    """Price of a million generated tokens."""


class Gateway(LanguageModel):
    """The language model of one role, as steps see it.

    Args:
        role: Role of the spec.
        llm: The plugin that makes the calls.
        model: The model as the spec names it.
        identity: All that answers depend on besides the request.
        settings: The role's settings.
        calls: Where answers are kept.
        log: The run's ledger.
        budget: The run's spending limit.
        tell: Where a user is told what the run waits for; it is in the log, too.
        patience: Seconds to wait for a server that asks for time.
    """

    def __init__(
        self,
        role: str,
        llm: LLM,
        *,
        model: str,
        identity: JsonValue,
        settings: RoleSettings,
        calls: AnswerCache,
        log: CallLedger,
        budget: Budget,
        tell: Callable[[str], None] = lambda text: None,
        patience: float = 0.0,
    ):
        self._role, self._llm, self._model = role, llm, model
        self._identity, self._settings = json_text(identity), settings
        self._calls, self._log, self._budget = calls, log, budget
        self._books = Bookkeeper(calls, log, model)
        self._asking: dict[str, _CallState] = {}
        self._limiter = _limiter(llm, settings)
        self._timeout = Timeout(None if llm.in_process or llm.batches else settings.timeout)
        self._patience = patience
        look_again()
        self._leased = settings.cache and not llm.batches
        self._waits = Waits(role, llm, self._limiter, tell)
        self._room = TruncationPolicy(role, settings.max_tokens, settings.max_tokens_if_cut, tell)
        self._pricing = Pricing(llm, settings)

    @property
    def can_score(self) -> bool:
        """Whether the plugin scores continuations and weighs choices."""
        return self._llm.can_score

    async def complete(self, request: Request) -> Reply:
        """Continue a conversation, from the cache if it was asked before.

        Raises:
            LLMError: If no answer came after all attempts.
            BudgetExceeded: If the spending limit is reached.
        """
        filled = self._filled(request)
        answer = await self._answer("complete", filled, self._llm.complete, Reply, self._roomier(request, filled))
        return readable(answer)

    def _filled(self, request: Request) -> Request:
        """Return a request with what the role decides."""
        settings = self._settings
        return replace(
            request,
            max_tokens=min(request.max_tokens or settings.max_tokens, settings.max_tokens),
            temperature=settings.temperature if request.temperature is None else request.temperature,
        )

    def _roomier(self, request: Request, filled: Request) -> Request | None:
        """Return the request with room for reasoning; None for one that wants a short answer, or has as much room."""
        room = self._settings.max_tokens_if_cut
        if self._llm.in_process or request.max_tokens is not None or room <= (filled.max_tokens or 0):
            return None
        return replace(filled, max_tokens=room)

    def discard(self, request: Request) -> None:
        """Keep the answer to a request from being used by another run: nobody could read it."""
        _, text = _encodable(self._filled(request))
        self._calls.mark(self._key("complete", text), "unreadable")

    def _key(self, kind: str, text: str) -> str:
        return _hash(f'["{kind}",{self._identity},{text}]')

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations, from the cache if they were asked for before.

        Raises:
            LLMError: If no answer came after all attempts.
            BudgetExceeded: If the spending limit is reached.
        """
        return await self._answer("logprobs", request, self._llm.logprobs, LogprobReply)

    async def fill(self, request: FillRequest) -> FillReply:
        """Weigh choices in the gaps of texts, from the cache if they were weighed before.

        Raises:
            LLMError: If no answer came after all attempts.
            BudgetExceeded: If the spending limit is reached.
        """
        return await self._answer("fill", request, self._llm.fill, FillReply)

    async def _answer(
        self, kind: str, request: Any, ask: Callable[[Any], Awaitable[A]], shape: type[A], roomier: Any = None
    ) -> A:
        """Answer from the cache, from an equal request that is under way, or by asking."""
        request, text = _encodable(request)
        key, asked = self._key(kind, text), _hash(f"[{text}]")
        shared = key in self._asking
        if not shared:
            if (kept := self._kept(key, request, shape)) is not None:
                self._log.add(self._call(key, asked, "ok", kept.usage, cached=True))
                return kept
            new = self._asking[key] = _CallState()
            question = _Question(request, roomier, shape=shape, lease=key if self._leased else None)
            new.task = asyncio.ensure_future(self._ask_once(key, asked, question, ask, new))
            new.task.add_done_callback(lambda task: self._ended(key, task))
        work = self._asking[key]
        work.askers += 1
        try:
            answer: A = await asyncio.shield(work.task)
        finally:
            work.askers -= 1
            if not (work.askers or work.in_flight or work.task.done()):
                self._asking.pop(key)
                work.task.cancel()
        if shared:
            self._log.add(self._call(key, asked, "ok", answer.usage, cached=True))
        return answer

    def _kept(self, key: str, request: Any, shape: type[A]) -> A | None:
        """Return the answer of an earlier run, unless the role wants none, or it does not fit the request."""
        kept = self._calls.get(key) if self._settings.cache else None
        answer: A | None = None if kept is None else _restored(kept, shape, request)
        if kept is not None and answer is None:
            log.warning(
                "%s: the answer %s in the cache has another shape, and is asked for again", self._role, key[:12]
            )
        return answer

    def _ended(self, key: str, task: asyncio.Future[Any]) -> None:
        if (work := self._asking.get(key)) is not None and work.task is task:
            del self._asking[key]
        mark_seen(task)  # the caller may have been cancelled

    async def finish(self) -> None:
        """Wait briefly for answers under way, which are paid for even if the caller was cancelled, and keep them."""
        for work in self._asking.values():
            if not work.in_flight:
                work.task.cancel()
        if tasks := [work.task for work in self._asking.values()]:
            _, late = await asyncio.wait(tasks, timeout=_GRACE)
            for task in late:
                task.cancel()
        self._waits.end()

    async def _ask_once(
        self, key: str, asked: str, question: _Question, ask: Callable[[Any], Awaitable[A]], work: _CallState
    ) -> A:
        """Ask, unless another process that shares the cache does: then take its answer, or ask when it could not."""
        leases = self._calls.leases
        try:
            while True:
                try:
                    return await self._ask(key, asked, question, ask, work)
                except _AskedElsewhere:
                    if not question.leased and not await leases.wait(key, _LEASES * self._settings.timeout):
                        question.lease = None  # its holder hangs
                kept: A | None = self._kept(key, question.request, question.shape)
                if kept is not None:
                    self._log.add(self._call(key, asked, "ok", kept.usage, cached=True))
                    return kept
        finally:
            self._room.leave(question)
            if question.leased:
                leases.release(key)

    def _lease(self, question: _Question) -> None:
        """Take the lease of a question that is about to be asked.

        Raises:
            _AskedElsewhere: If another process has it, or has just given it back with an answer.
        """
        if question.lease is None or question.leased:
            return
        question.leased = self._calls.leases.take(question.lease)
        if not question.leased or self._kept(question.lease, question.request, question.shape) is not None:
            raise _AskedElsewhere

    async def _ask(
        self, key: str, asked: str, question: _Question, ask: Callable[[Any], Awaitable[A]], work: _CallState
    ) -> A:
        """Make the call, again where that can help, and write down how it ended."""
        tries = Attempts(key, self._settings.retries, self._patience)
        bill = _Bill()
        began = time.monotonic()
        try:
            answer = await self._asked(question, ask, work, tries, bill)
        except BaseException as error:
            # Nothing was asked when the budget stops the first attempt; what earlier ones took must not be forgotten.
            if bill.took is not None or (isinstance(error, Exception) and not isinstance(error, BudgetExceeded)):
                status: Literal["refused", "failed"] = "refused" if isinstance(error, Refused) else "failed"
                reason = without_secrets(error) if isinstance(error, SaevalError) else type(error).__name__
                usage = bill.took or Usage(usd=0.0)
                call = self._call(key, asked, status, usage, attempts=tries.made, began=began, reason=reason)
                self._log.add(call)
            raise
        assert bill.took is not None
        answer = replace(answer, usage=bill.took)
        call = self._call(key, asked, "ok", bill.took, attempts=tries.made, began=began)
        if isinstance(answer, Reply):
            call = replace(
                call,
                served=answer.served,
                fingerprint=answer.fingerprint,
                words=_words(question.request),
            )
        await self._books.keep(key, answer, call)
        return answer

    async def _asked(
        self, question: _Question, ask: Callable[[Any], Awaitable[A]], work: _CallState, tries: Attempts, bill: _Bill
    ) -> A:
        """Return an answer: the first whole one, with more room for one that was cut off.

        Once that helped, all are given the room at once, unless the server has none: a limit costs nothing by itself.
        """
        cut: A | None = None
        last = LLMError("")
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
                if cut is None:
                    raise last
                return cut

    async def _has_more_room(self, question: _Question, work: _CallState) -> bool:
        """Whether a question whose answer was cut off may be asked again with more room; it then has it."""
        if question.raised:
            self._room.note(whole=False, raised=question.roomier is not None)
            return False
        work.in_flight = False
        question.raised = await self._room.turn(question)
        return question.raised

    async def _wait(self, error: LLMError, tries: Attempts, work: _CallState) -> None:
        """Wait for the next attempt.

        Raises:
            LLMError: If there is none: the error.
        """
        seconds = tries.wait_after(error) if work.askers else None
        if seconds is None:
            raise error
        self._waits.tell_of(seconds, error)
        await asyncio.sleep(seconds)

    async def _attempt(self, question: _Question, ask: Callable[[Any], Awaitable[A]], work: _CallState) -> A:
        if question.roomier is not None and not question.raised:
            await self._room.settled()
        epoch = await self._limiter.enter()
        refused: bool | None = None
        question.raised |= self._room.needed or question.roomier is None
        request = question.request if question.roomier is None or not question.raised else question.roomier
        question.sent = request
        try:
            self._budget.check()
            self._lease(question)
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
                answer = _writable(answer)
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
    ) -> Call:
        """Return the ledger's line."""
        milliseconds = round(1000 * (time.monotonic() - began), 1) if began is not None else 0.0
        return Call(self._role, self._model, asked, key, status, cached, attempts, usage, milliseconds, reason)


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Collect garbage less often; with hundreds of calls in flight it took a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _AskedElsewhere(BaseException):
    """Another process asks this very question; nothing was asked here."""


_CANONICAL = json.JSONEncoder(default=vars, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def json_text(value: object) -> str:
    """Return JSON that is equal for equal content, dataclasses included; what `content_hash` takes the hash of."""
    return _CANONICAL.encode(value)


def _encodable(value: V) -> tuple[V, str]:
    """Return a request or reply whose text UTF-8 can encode, and its JSON."""
    text = json_text(value)
    if clean_text(text) is text:
        return value, text
    cleaned = clean(value)
    return cleaned, json_text(cleaned)


def _writable(reply: Reply) -> Reply:
    """Return a reply whose text UTF-8 can encode, without the credentials that a server may echo."""
    reply, text = _encodable(reply)
    if without_values(text) == text:
        return reply
    tokens = reply.logprobs and tuple(
        TokenLogprobs(without_values(t.token), tuple((without_values(other), p) for other, p in t.top))
        for t in reply.logprobs
    )
    return replace(reply, text=without_values(reply.text), logprobs=tokens)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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


def _words(request: object) -> int:
    """Words of a prompt; a server that read fewer tokens has cut it."""
    return sum(len(m.content.split()) for m in request.messages) if isinstance(request, Request) else 0


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _restored(kept: object, kind: Any, request: Any) -> Any | None:
    """Return a kept answer, or None where it does not answer the request: another version's, or somebody's."""
    try:
        answer = _adapter(kind).validate_python(kept)
    except ValidationError:
        return None
    return answer if _fits(answer, request) else None


def _fits(answer: Reply | LogprobReply | FillReply, request: Any) -> bool:
    if isinstance(answer, Reply):
        return bool(answer.text.strip())
    if isinstance(answer, LogprobReply):
        shape = [len(request.continuations)] * len(request.prompts)
        return [len(row) for row in answer.logprobs] == shape
    gaps = [[len(request.choices)] * len(parts) for parts in request.texts]
    return [[len(gap) for gap in row] for row in answer.logprobs] == gaps


@dataclass
class _Question:
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
class _Bill:
    """What the attempts at a request took."""

    took: Usage | None = None


@dataclass
class _CallState:
    """A request that is being answered.

    Attributes:
        task: What answers it.
        askers: How many wait for the answer.
        in_flight: Whether a call is under way that will be paid for, answered or not.
    """

    task: asyncio.Future[Any] = field(init=False)
    askers: int = 0
    in_flight: bool = False
