"""Runs in a process of a Ray cluster: collects cells and does steps with its own task and gateways."""

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
class Order:
    """What a worker is told when it begins.

    Attributes:
        spec: The task, resolved.
        cache: SAEVAL_CACHE of the caller; None leaves each machine its own.
        host: The machine of the caller.
        workers: How many workers share the work.
        max_cost: The run's spending limit.
        served: Who has to answer each role and model, as earlier sittings of the run were answered; anybody elsewhere.
        permissions: What the user allows specs to name, as variables of the environment.
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


class Said(NamedTuple):
    """What a worker says, and where it belongs: in the log, or before the user, who is told what a run waits for."""

    to: Literal["log", "user"]
    text: str


News = Call | Said
Tell = Callable[[News], None]


class Stop(NamedTuple):
    """An error that ends the run, on its way to the caller: Ray would wrap it, and lose what it says."""

    kind: type[SaevalError]
    text: str

    @classmethod
    def of(cls, error: SaevalError) -> Stop:
        """Pack an error."""
        plain = type(error) if type(error).__init__ is SaevalError.__init__ else SaevalError
        return cls(plain, without_secrets(error))

    def error(self) -> SaevalError:
        """Unpack it."""
        return self.kind(self.text)


def identity(task: Task) -> str:
    """Return a hash of all code and files that a task's results depend on; equal on all machines that may share it."""
    return content_hash(saeval.__version__, [part.identity for part in task.parts()])


def collect_cells(order: Order, expected: str, cells: Sequence[str], share: tuple[int, int]) -> Stop | None:
    """Collect a share of cells that share a model pass; the last worker puts the stores into the cache."""
    try:
        task = order.task()
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
    """The actor; what it knows can be made again from its order, so losing it loses the calls under way only.

    Args:
        order: What it is told.
        expected: Hash that its task must have.
    """

    def __init__(self, order: Order, expected: str):
        self._order, self._expected = order, expected
        self._budget = Budget(order.max_cost)
        self._budget.unknown = 1  # the caller says so
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
            self.spent(spent)
            log.addHandler(_Sent(self._tell))
            log.setLevel(logging.INFO)
            task = await asyncio.to_thread(self._order.task)
            await asyncio.to_thread(_same, task, self._expected)
            roles = {name: _share(role, self._order.workers) for name, role in task.roles.items()}
            calls = _SentCalls(self._tell, self._order.served)
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
        """A file a machine, wherever the cache lies: SQLite's lock does not hold across a network."""
        host = socket.gethostname()
        return cache_dir() / ("calls.sqlite" if host == self._order.host else f"calls-{host}.sqlite")

    def _end_when_stuck(self, seconds: float) -> None:
        """End the process when a plugin keeps the event loop from turning; Ray begins another one."""
        while True:
            turned = threading.Event()
            self._loop.call_soon_threadsafe(turned.set)
            if not turned.wait(seconds):
                os._exit(1)
            time.sleep(seconds / 4)

    async def make(self, work: StepInput) -> StepOutput[Any] | Stop:
        """Do a step on a latent; what comes after the end was sent before it, and nobody waits for it any more."""
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

    def spent(self, dollars: float) -> None:
        """Hear what all workers together have spent."""
        self._budget.spent = max(self._budget.spent, dollars)

    def _waits(self, text: str) -> None:
        self._tell(Said("user", text))

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._loop.call_soon_threadsafe(self._any_news.set)

    async def news(self) -> AsyncIterator[list[News]]:
        """Yield calls for the ledger, and what is to be said, as they come, until the work is over."""
        while not self._finished or self._news:
            await self._any_news.wait()
            self._any_news.clear()
            told, self._news = self._news, []
            yield told

    async def finish(self) -> None:
        """Stop working; wait a little for answers under way."""
        self._ending = True
        for task in self._making:
            task.cancel()
        await self._at_the_end.aclose()
        self._finished = True
        self._any_news.set()


def _share(role: RolePart, workers: int) -> RolePart:
    """Return a role with its part of the calls that may be in flight; one at least."""
    if role.settings.concurrency == "auto":
        return role
    share = max(1, role.settings.concurrency // workers)
    return replace(role, settings=role.settings.model_copy(update={"concurrency": share}))


class _SentCalls(CallLedger):
    """A ledger that is kept elsewhere; who has to answer is checked here, before an answer is kept."""

    def __init__(self, tell: Tell, expected: Mapping[tuple[str, str], Served]):
        self._tell = tell
        self.expected = dict(expected)

    def add(self, *calls: Call) -> None:
        """Send a line for each call."""
        for call in calls:
            self._tell(call)


class _Sent(logging.Handler):
    """A log that is kept elsewhere."""

    def __init__(self, tell: Tell):
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        text = f"{socket.gethostname()}:{os.getpid()} {record.levelname} {without_secrets(self.format(record))}"
        self._tell(Said("log", text))
