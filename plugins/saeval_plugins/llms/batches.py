"""Collects requests into provider batches, which are answered within a day at half the price."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from saeval.plugin import LLMError, content_hash, write_atomic

_SEND_AFTER = 5.0  # seconds without another request after which a batch is sent
_MOST = 50_000  # maximum requests per batch
_MOST_BYTES = 150_000_000  # maximum size of a batch; OpenAI accepts 200 MB
_POLL = 30.0  # seconds between two status requests
_KEPT = 30 * 86_400.0  # seconds for which providers keep answers
_TURN = 0.1  # seconds between two attempts to send after another process

log = logging.getLogger("saeval")


class NotFound(LLMError):
    """Raised if a provider does not know a batch or a file: it was deleted, or the key is of another project."""


class Progress(NamedTuple):
    """Progress of a batch.

    Attributes:
        status: Status in the provider's words.
        answered: Number of answered requests.
        requests: Number of requests in the batch.
        over: Whether the batch has ended.
        error: Why the batch ended without answers, if it did.
        files: Identifiers of the files that hold the answers, once it has ended.
    """

    status: str
    answered: int = 0
    requests: int = 0
    over: bool = False
    error: str = ""
    files: tuple[str, ...] = ()


class BatchProvider(Protocol):
    """A provider's batch API. All methods raise `LLMError` on failure, and `NotFound` if what they name is unknown."""

    async def send(self, lines: str) -> str:
        """Submit a batch and return its identifier."""

    async def look(self, batch: str) -> Progress:
        """Return the progress of a batch."""

    async def read(self, file: str) -> str:
        """Return the contents of an answer file, one JSON object per line."""


@dataclass
class _Batch:
    id: str
    file: Path
    keys: set[str]
    """Requests whose answers have not been used yet."""
    asked: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    following: asyncio.Task[None] | None = None
    progress: Progress = field(default_factory=lambda: Progress("sent"))

    def write(self, owner: str) -> None:
        """Save what another process, or this one after a restart, needs to wait for this batch."""
        entry = {"batch": self.id, "owner": owner, "requests": sorted(self.keys)}
        write_atomic(self.file, json.dumps(entry))

    def update(self, owner: str) -> None:
        """Remove used requests from the file; delete it once no process needs it."""
        if (entry := _entry(self.file)) is None:
            return
        self.keys &= set(entry["requests"])  # others have used the rest
        if self.keys:
            self.write(owner)
        else:
            self.file.unlink(missing_ok=True)


class Batches:
    """Collects requests, sends them as one batch, and returns each answer when the provider has finished.

    A batch is saved as soon as it is sent. Other runs, and a run that is killed and restarted, wait for the same batch
    and use its answers, instead of paying for another batch.

    Args:
        folder: Folder in which batches are saved.
        model: The model, for error messages.
        owner: Hash of everything besides the request that answers depend on.
        provider: The provider that answers batches.
    """

    def __init__(self, folder: Path, model: str, owner: str, provider: BatchProvider):
        self._folder, self._model, self._owner, self._provider = folder, model, owner, provider
        self._gathered: dict[str, tuple[str, asyncio.Future[Any]]] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._sent: list[_Batch] = []
        self._seen: set[Path] = set()
        self._find_saved()

    def _find_saved(self) -> None:
        """Find batches that were saved since the last time."""
        for file in sorted(set(self._folder.glob("[!.]*.json")) - self._seen):
            self._seen.add(file)
            entry = _entry(file)
            if entry is not None and entry["owner"] == self._owner:
                self._sent.append(_Batch(entry["batch"], file, set(entry["requests"])))

    def waiting_for(self) -> str:
        """Describe the batches in progress."""
        said = [
            f"batch {b.id} is {b.progress.status}, {b.progress.answered} of {b.progress.requests} answered"
            for b in self._sent
            if b.following is not None and not b.following.done()
        ]
        return "; ".join(said)

    async def answer(self, key: str, body: dict[str, Any]) -> Any:
        """Send a request with the next batch and return the provider's line for it, with `response` and `error`.

        Args:
            key: Identifier of the request, unique among the requests in progress.
            body: Body of the request.

        Raises:
            LLMError: If the batch failed, or ended without an answer to this request.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self._was_sent(key, answer):
            self._gather(key, body, answer)
        return await answer

    def _was_sent(self, key: str, answer: asyncio.Future[Any]) -> bool:
        """Return whether a batch contains the request; if so, its answer is awaited."""
        batch = next((batch for batch in self._sent if key in batch.keys), None)
        if batch is not None:
            batch.asked[key] = answer
            self._follow(batch)
        return batch is not None

    def _gather(self, key: str, body: dict[str, Any], answer: asyncio.Future[Any]) -> None:
        """Add a request to the next batch, and send the batch when it is full or no other request follows."""
        request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = json.dumps(request) + "\n"  # ASCII, so its length is its size
        if self._bytes + len(line) > _MOST_BYTES:
            self._send_gathered()
        self._gathered[key] = line, answer
        self._bytes += len(line)
        if self._timer is not None:
            self._timer.cancel()
        if len(self._gathered) < _MOST:
            self._timer = asyncio.get_running_loop().call_later(_SEND_AFTER, self._send_gathered)
        else:
            self._send_gathered()

    def _send_gathered(self) -> None:
        gathered, self._gathered, self._bytes = self._gathered, {}, 0
        if gathered:
            task = asyncio.ensure_future(self._send(gathered))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, wanted: Mapping[str, tuple[str, asyncio.Future[Any]]]) -> None:
        """Send requests as one batch, except those that another process has sent."""
        try:
            async with _turn(self._folder):
                self._find_saved()
                waiting = {key: asked for key, asked in wanted.items() if not asked[1].done()}
                wanted = {key: asked for key, asked in waiting.items() if not self._was_sent(key, asked[1])}
                if not wanted:
                    return
                found = await self._provider.send("".join(line for line, _ in wanted.values()))
                batch = _Batch(found, self._folder / f"{content_hash(self._owner, found)}.json", set(wanted))
                batch.write(self._owner)
        except Exception as error:  # noqa: BLE001 - any error is passed on to the callers
            for _, answer in wanted.values():
                _fail(answer, error)
            return
        batch.asked = {key: answer for key, (_, answer) in wanted.items()}
        self._seen.add(batch.file)
        self._sent.append(batch)
        self._follow(batch)

    def _follow(self, batch: _Batch) -> None:
        if batch.following is None or batch.following.done():
            batch.following = asyncio.ensure_future(self._deliver(batch))

    async def _deliver(self, batch: _Batch) -> None:
        """Wait for a batch and pass its answers to the waiting callers."""
        try:
            lines = await self._lines(batch)
            batch.keys &= lines.keys()
            batch.keys -= {key for key, line in lines.items() if not answered(line)}
            batch.update(self._owner)  # a failed request that is retried goes into another batch
        except Exception as error:  # noqa: BLE001 - any error is passed on to the callers
            for answer in batch.asked.values():
                _fail(answer, error)
            return
        for key, answer in batch.asked.items():
            if key not in lines:
                what = f"{self._model}: batch {batch.id} ended as {batch.progress.status} without an answer"
                _fail(answer, LLMError(what, retryable=True))
            elif not answer.done():
                answer.set_result(lines[key])
        # The file still lists the delivered requests until the run ends, when their answers are certainly cached.
        batch.keys -= set(batch.asked)
        batch.asked = {}

    async def _lines(self, batch: _Batch) -> dict[str, Any]:
        while not batch.progress.over:
            try:
                batch.progress = await self._provider.look(batch.id)
            except NotFound as error:
                self._warn(batch, error)
                batch.progress = Progress("unknown to the provider", over=True)
            except LLMError as error:
                if not error.retryable:
                    raise
            if not batch.progress.over:
                await asyncio.sleep(_POLL)
        texts = await self._texts(batch)
        lines = [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]
        if batch.progress.error and not any(map(answered, lines)):
            batch.file.unlink(missing_ok=True)  # so that the next run sends a new batch
            raise LLMError(f"{self._model}: batch {batch.id} failed: {batch.progress.error}", lasting=True)
        return {line["custom_id"]: line for line in lines}

    async def _texts(self, batch: _Batch) -> list[str]:
        """Return the contents of a batch's files, except those that the provider no longer has."""
        found = []
        for file in batch.progress.files:
            try:
                found.append(await self._provider.read(file))
            except NotFound as error:
                self._warn(batch, error)
        return found

    def _warn(self, batch: _Batch, error: NotFound) -> None:
        log.warning("batch %s is lost, so requests without an answer are sent again: %s", batch.id, error)

    async def aclose(self) -> None:
        """Stop waiting. Batches continue at the provider and a later run finds them; used answers are removed."""
        if self._timer is not None:
            self._timer.cancel()
        tasks: Sequence[asyncio.Task[None]] = [*self._sending, *(b.following for b in self._sent if b.following)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for batch in self._sent:
            batch.update(self._owner)


def _entry(file: Path) -> Any:
    """Return the contents of a saved batch; None if it is gone, or too old, which deletes it."""
    try:
        if time.time() - file.stat().st_mtime <= _KEPT:
            return json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
    except FileNotFoundError:
        pass  # another process has used all its answers
    return None


@asynccontextmanager
async def _turn(folder: Path) -> AsyncIterator[None]:
    """Let one process at a time find the batches of the others and send its own."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            await asyncio.sleep(_TURN)
    try:
        yield
    finally:
        lock.release()


def answered(line: Mapping[str, Any]) -> bool:
    """Return whether a line of a provider's file contains an answer."""
    response = line.get("response")
    return isinstance(response, Mapping) and response.get("status_code") == 200


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
