"""Gathers requests into provider batches, answered within a day at half the price."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from saeval.plugin import LLMError, content_hash, write_atomic

_GATHERED = 5.0  # seconds without another request after which a batch is sent
_MOST = 50_000  # requests of a batch
_POLL = 30.0  # seconds between two looks
_KEPT = 30 * 86_400.0  # seconds for which providers keep answers


class Progress(NamedTuple):
    """How far a batch is.

    Attributes:
        status: The provider's word for it.
        answered: Requests that are answered.
        requests: Requests of the batch.
        over: Whether nothing more will come.
        error: Why the batch as a whole failed.
        files: Files that hold the answers, once it is over.
    """

    status: str
    answered: int = 0
    requests: int = 0
    over: bool = False
    error: str = ""
    files: tuple[str, ...] = ()


class BatchProvider(Protocol):
    """Where batches are sent to; each of its methods raises `LLMError`."""

    async def send(self, lines: str) -> str:
        """Have the provider answer a batch; return its identifier."""

    async def look(self, batch: str) -> Progress:
        """Tell how far a batch is."""

    async def read(self, file: str) -> str:
        """Return a file of answers, a JSON object a line."""


@dataclass
class _Batch:
    id: str
    file: Path
    keys: set[str]
    """Requests whose answers nobody has taken yet."""
    asked: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    following: asyncio.Task[None] | None = None
    progress: Progress = field(default_factory=lambda: Progress("sent"))

    def write(self, owner: str) -> None:
        """Write down what is needed to wait for this batch again; nothing where all is taken."""
        if self.keys:
            entry = {"batch": self.id, "owner": owner, "requests": sorted(self.keys)}
            write_atomic(self.file, json.dumps(entry))
        else:
            self.file.unlink(missing_ok=True)


class Batches:
    """Gathers requests until no more come, and hands each its answer when the provider is done with all.

    A batch is written down as soon as it is sent: a run that is killed and started again waits for the same batch, and
    takes from it what it has not used yet, instead of paying for another.

    Args:
        folder: Where batches are written down.
        model: The model, for errors.
        owner: All that answers depend on besides the request.
        provider: Where batches are sent to.
    """

    def __init__(self, folder: Path, model: str, owner: str, provider: BatchProvider):
        self._folder, self._model, self._owner, self._provider = folder, model, owner, provider
        self._gathered: dict[str, tuple[dict[str, Any], asyncio.Future[Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._sent = self._written_down()

    def _written_down(self) -> list[_Batch]:
        found = []
        for file in sorted(self._folder.glob("*.json")):
            if time.time() - file.stat().st_mtime > _KEPT:
                file.unlink(missing_ok=True)
                continue
            entry = json.loads(file.read_text(encoding="utf-8"))
            if entry["owner"] == self._owner:
                found.append(_Batch(entry["batch"], file, set(entry["requests"])))
        return found

    def waiting_for(self) -> str:
        """Say which batches are under way."""
        said = [
            f"batch {b.id} is {b.progress.status}, {b.progress.answered} of {b.progress.requests} answered"
            for b in self._sent
            if b.following is not None and not b.following.done()
        ]
        return "; ".join(said)

    async def answer(self, key: str, body: dict[str, Any]) -> Any:
        """Return the provider's line for a request: an object with `response` and `error`.

        Args:
            key: Identifier of the request; no other one that is asked at the same time has it.
            body: What is asked.

        Raises:
            LLMError: If the batch failed, or ended without an answer to it.
        """
        batch = next((batch for batch in self._sent if key in batch.keys), None)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if batch is not None:
            batch.asked[key] = answer
            self._follow(batch)
        else:
            self._gathered[key] = body, answer
            self._wait_for_more()
        return await answer

    def _wait_for_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = _GATHERED if len(self._gathered) < _MOST else 0.0
        self._timer = asyncio.get_running_loop().call_later(delay, self._send_gathered)

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        if wanted := {key: asked for key, asked in gathered.items() if not asked[1].done()}:
            task = asyncio.ensure_future(self._send(wanted))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, wanted: Mapping[str, tuple[dict[str, Any], asyncio.Future[Any]]]) -> None:
        lines = [
            json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body})
            for key, (body, _) in wanted.items()
        ]
        try:
            found = await self._provider.send("\n".join(lines) + "\n")
            self._folder.mkdir(parents=True, exist_ok=True)
            batch = _Batch(found, self._folder / f"{content_hash(self._owner, found)}.json", set(wanted))
            batch.write(self._owner)
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            for _, answer in wanted.values():
                _fail(answer, error)
            return
        batch.asked = {key: answer for key, (_, answer) in wanted.items()}
        self._sent.append(batch)
        self._follow(batch)

    def _follow(self, batch: _Batch) -> None:
        if batch.following is None or batch.following.done():
            batch.following = asyncio.ensure_future(self._hand_out(batch))

    async def _hand_out(self, batch: _Batch) -> None:
        """Wait for a batch, and give its answers to those who asked."""
        try:
            lines = await self._lines(batch)
            batch.keys &= lines.keys()
            batch.keys -= {key for key, line in lines.items() if not answered(line)}
            batch.write(self._owner)  # what is asked again is asked in another batch
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            for answer in batch.asked.values():
                _fail(answer, error)
            return
        for key, answer in batch.asked.items():
            if key not in lines:
                what = f"{self._model}: batch {batch.id} ended as {batch.progress.status} without an answer"
                _fail(answer, LLMError(what, retryable=True))
            elif not answer.done():
                answer.set_result(lines[key])
        # The file holds what was handed out until the end of the run, when it is certain to be in the cache.
        batch.keys -= set(batch.asked)
        batch.asked = {}

    async def _lines(self, batch: _Batch) -> dict[str, Any]:
        while not batch.progress.over:
            try:
                batch.progress = await self._provider.look(batch.id)
            except LLMError as error:
                if not error.retryable:
                    raise
            if not batch.progress.over:
                await asyncio.sleep(_POLL)
        if batch.progress.error:
            batch.file.unlink(missing_ok=True)  # nothing will come of it, so another run sends another one
            raise LLMError(f"{self._model}: batch {batch.id} failed: {batch.progress.error}", lasting=True)
        texts = [await self._provider.read(file) for file in batch.progress.files]
        lines = [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]
        return {line["custom_id"]: line for line in lines}

    async def aclose(self) -> None:
        """Stop waiting. Batches under way go on at the provider, and are found again; what was taken is forgotten."""
        if self._timer is not None:
            self._timer.cancel()
        tasks: Sequence[asyncio.Task[None]] = [*self._sending, *(b.following for b in self._sent if b.following)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for batch in self._sent:
            if batch.file.exists():
                batch.write(self._owner)


def answered(line: Mapping[str, Any]) -> bool:
    """Tell whether a line of a provider's file holds an answer."""
    response = line.get("response")
    return isinstance(response, Mapping) and response.get("status_code") == 200


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
