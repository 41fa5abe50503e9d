"""Writes answers to the cache and their calls to the ledger, in batches."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple

from saeval._util import InputError, SaevalError, StoreError
from saeval.llm.cache import AnswerCache
from saeval.llm.ledger import Call, CallLedger


class _Answered(NamedTuple):
    key: str
    answer: object
    call: Call
    kept: asyncio.Future[None]


class Bookkeeper:
    """Writes answers to the cache and their lines to the ledger, batched per iteration of the event loop.

    With hundreds of calls in flight, one transaction per answer would take longer than all other work on the answer.

    Args:
        store: The cache of answers.
        log: The ledger.
        model: The model that gives the answers.
    """

    def __init__(self, store: AnswerCache, log: CallLedger, model: str):
        self._store, self._log, self._model = store, log, model
        self._answered: list[_Answered] = []

    async def keep(self, key: str, answer: object, call: Call) -> None:
        """Write an answer and its ledger line; return when both are on disk and survive a kill.

        Raises:
            StoreError: If the answer cannot be written to the cache; its usage is in the ledger anyway.
            InputError: If the ledger cannot be written to.
        """
        loop = asyncio.get_running_loop()
        if not self._answered:
            loop.call_soon(self._write)
        kept: asyncio.Future[None] = loop.create_future()
        self._answered.append(_Answered(key, answer, call, kept))
        await kept

    def _expected(self, answered: _Answered) -> bool:
        """Check whether the expected model answered; if not, log the call as failed and do not cache the answer."""
        try:
            self._log.refuse_change(answered.call)
            return True
        except InputError as error:
            self._log.add(replace(answered.call, status="failed", reason=str(error)))
            if not answered.kept.done():
                answered.kept.set_exception(error)
            return False

    def _write(self) -> None:
        answered, self._answered = [a for a in self._answered if self._expected(a)], []
        calls = [a.call for a in answered]
        error: SaevalError | None = None
        try:
            self._store.put({a.key: a.answer for a in answered}, self._model)
        except StoreError as found:
            error = found
            calls = [replace(call, status="failed", reason=str(found)) for call in calls]
        try:
            self._log.add(*calls)
        except InputError as found:
            error = error or found
        for kept in (a.kept for a in answered if not a.kept.done()):
            if error is None:
                kept.set_result(None)
            else:
                kept.set_exception(error)
