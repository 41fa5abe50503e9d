"""Runs in a worker process of a Ray cluster: collects cells and runs steps, with its own task and gateways."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import saeval
from saeval._run.collect import collect_pass
from saeval._run.steps import StepInput, StepOutput, Steps, gateways
from saeval._util import SaevalError, cache_dir, content_hash, granted, without_secrets
from saeval.llm import Budget, Call, CallLedger, Served
from saeval.models import screened
from saeval.plugin.registry import Registry
from saeval.task import RolePart, Task, load_task

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class WorkerSetup:
    """The configuration of a worker.

    Attributes:
        spec: The resolved spec of the task.
        cache: SAEVAL_CACHE of the driver; None for each machine's default.
        host: Name of the driver's machine.
        workers: Number of workers that share the work.
        max_cost: The run's spending limit.
        served: Which models answered each role in earlier sessions, and have to answer it now; see `CallLedger`.
        permissions: The user's permissions, as environment variables.
    """

    spec: dict[str, Any]
    cache: str | None
    host: str
    workers: int
    max_cost: float | None
    served: Mapping[tuple[str, str], Served] = field(default_factory=dict)
    permissions: dict[str, str] = field(default_factory=granted)

    def task(self) -> Task:
        """Build the task in this process."""
        if self.cache is not None:
            os.environ["SAEVAL_CACHE"] = self.cache
        os.environ.update(self.permissions)
        return load_task(self.spec, registry=Registry())


class Message(NamedTuple):
    """A message of a worker, for the log or for the user (what the run waits for)."""

    to: Literal["log", "user"]
    text: str


News = Call | Message
Tell = Callable[[News], None]


class Stop(NamedTuple):
    """An error that stops the run, in a form that can be sent to the driver: Ray would wrap it and lose its message."""

    kind: type[SaevalError]
    text: str

    @classmethod
    def of(cls, error: SaevalError) -> Stop:
        """Create it from an error."""
        plain = type(error) if type(error).__init__ is SaevalError.__init__ else SaevalError
        return cls(plain, without_secrets(error))

    def error(self) -> SaevalError:
        """Return the error."""
        return self.kind(self.text)


def identity(task: Task) -> str:
    """Return a hash of all code and files that a task's results depend on; it has to be equal on all machines."""
    return content_hash(saeval.__version__, [part.identity for part in task.parts()])


def collect_cells(setup: WorkerSetup, expected: str, cells: Sequence[str], share: tuple[int, int]) -> Stop | None:
    """Collect a share of the cells of one model pass; the last worker writes the stores to the cache."""
    try:
        task = setup.task()
        _same(task, expected)
        sources = {cell.name: cell.collected for cell in task.cells}
        with screened(task.run.screen):
            collect_pass([sources[name] for name in cells], share)
    except SaevalError as error:
        return Stop.of(error)
    return None


def _same(task: Task, expected: str) -> None:
    if identity(task) != expected:
        raise SaevalError(
            f"{socket.gethostname()}: packages, plugins or files of the task differ from those of the machine that "
            "runs saeval; install the same everywhere"
        )


class Worker:
    """The Ray actor. Its state can be rebuilt from its configuration, so its death only loses calls in flight.

    Args:
        setup: Its configuration.
        expected: Required hash of its task; see `identity`.
    """

    def __init__(self, setup: WorkerSetup, expected: str):
        self._setup, self._expected = setup, expected
        self._budget = Budget(setup.max_cost, workers=setup.workers)
        self._budget.unknown = 1  # suppresses the warning about unknown prices, which the driver shows
        self._at_the_end = AsyncExitStack()
        self._making: set[asyncio.Task[Any]] = set()
        self._news: list[News] = []
        self._any_news = asyncio.Event()
        self._ending = self._finished = False

    async def open(self, spent: float) -> Stop | None:
        """Build the task and the gateways.

        Args:
            spent: Dollars spent so far by all workers.
        """
        try:
            self._loop = asyncio.get_running_loop()
            self._budget.update(spent)
            log.addHandler(_Sent(self._tell))
            log.setLevel(logging.INFO)
            task = await asyncio.to_thread(self._setup.task)
            await asyncio.to_thread(_same, task, self._expected)
            roles = {name: _share(role, self._setup.workers) for name, role in task.roles.items()}
            calls = _SentCalls(self._tell, self._setup.served)
            models = await self._at_the_end.enter_async_context(
                gateways(roles, self._answers(), calls, self._budget, self._waits, task.run.patience)
            )
            self._steps = Steps(task, models)
            if math.isfinite(task.run.hang_after):
                threading.Thread(target=self._end_when_stuck, args=(task.run.hang_after,), daemon=True).start()
        except SaevalError as error:
            return Stop.of(error)
        return None

    def _answers(self) -> Path:
        """Return the cache of answers: one file per machine, since SQLite's locks do not work on network disks."""
        host = socket.gethostname()
        return cache_dir() / ("calls.sqlite" if host == self._setup.host else f"calls-{host}.sqlite")

    def _end_when_stuck(self, seconds: float) -> None:
        """End the process if a plugin blocks the event loop; Ray starts another one."""
        while True:
            turned = threading.Event()
            self._loop.call_soon_threadsafe(turned.set)
            if not turned.wait(seconds):
                os._exit(1)
            time.sleep(seconds / 4)

    async def make(self, work: StepInput) -> StepOutput[Any] | Stop:
        """Run a step on a latent; requests that arrive after `finish` are refused."""
        if self._ending:
            return Stop(SaevalError, "the run has ended")
        task = asyncio.ensure_future(self._steps.make(work))
        self._making.add(task)
        try:
            return await task
        except SaevalError as error:
            return Stop.of(error)
        finally:
            self._making.discard(task)

    async def spent(self, dollars: float) -> None:
        """Update the dollars that all workers together have spent."""
        self._budget.update(dollars)

    def _waits(self, text: str) -> None:
        self._tell(Message("user", text))

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._loop.call_soon_threadsafe(self._any_news.set)

    async def news(self) -> AsyncIterator[list[News]]:
        """Yield calls for the ledger and messages as they arrive, until the work is finished."""
        while not self._finished or self._news:
            await self._any_news.wait()
            self._any_news.clear()
            told, self._news = self._news, []
            yield told

    async def finish(self) -> None:
        """Stop working, after waiting briefly for calls in flight."""
        self._ending = True
        for task in self._making:
            task.cancel()
        await self._at_the_end.aclose()
        self._finished = True
        self._any_news.set()


def _share(role: RolePart, workers: int) -> RolePart:
    """Return a role with this worker's share of its concurrency limit, at least 1."""
    if role.settings.concurrency == "auto":
        return role
    share = max(1, role.settings.concurrency // workers)
    return replace(role, settings=role.settings.model_copy(update={"concurrency": share}))


class _SentCalls(CallLedger):
    """A ledger that sends its lines to the driver; the served model is still checked here, before caching an answer."""

    def __init__(self, tell: Tell, expected: Mapping[tuple[str, str], Served]):
        self._tell = tell
        self.expected = dict(expected)

    def add(self, *calls: Call) -> None:
        """Send a line for each call."""
        for call in calls:
            self._tell(call)


class _Sent(logging.Handler):
    """A log handler that sends its lines to the driver."""

    def __init__(self, tell: Tell):
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        text = f"{socket.gethostname()}:{os.getpid()} {record.levelname} {without_secrets(self.format(record))}"
        self._tell(Message("log", text))
