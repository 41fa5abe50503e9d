"""Writes answers to the cache and their calls to the ledger, many at once."""

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
    """Keeps answers and writes their lines of the ledger, for those of one turn of the event loop at once.

    With hundreds of calls in flight, a transaction each would take longer than all else that is done about an answer.

    Args:
        store: Where answers are kept.
        log: The ledger.
        model: The model whose answers they are.
    """

    def __init__(self, store: AnswerCache, log: CallLedger, model: str):
        self._store, self._log, self._model = store, log, model
        self._answered: list[_Answered] = []

    async def keep(self, key: str, answer: object, call: Call) -> None:
        """Return when the answer is kept and its line written, both of which survive a kill.

        Raises:
            StoreError: If the answer cannot be kept; what it took is in the ledger all the same.
            InputError: If the ledger cannot be written to.
        """
        loop = asyncio.get_running_loop()
        if not self._answered:
            loop.call_soon(self._write)
        kept: asyncio.Future[None] = loop.create_future()
        self._answered.append(_Answered(key, answer, call, kept))
        await kept

    def _expected(self, answered: _Answered) -> bool:
        """Whether who answered may; an answer of another model is written down as failed, and not kept."""
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
