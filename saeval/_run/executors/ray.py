"""Runs the work of a task on a Ray cluster. Ray starts and places workers, and replaces those that die."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from saeval._run.collect import collect, collecting, store_path
from saeval._run.executors import Executor
from saeval._run.executors.ray_cluster import cluster
from saeval._run.executors.ray_shares import Shares, divide
from saeval._run.executors.ray_worker import Message, News, Stop, Worker, WorkerSetup, collect_cells, identity
from saeval._run.local_models import asks_model_in_process, collects_with_model
from saeval._run.steps import StepInput, StepOutput
from saeval._util import BudgetExceeded, Display, InputError, SaevalError, first_line
from saeval.llm import Budget, Call, CallLedger
from saeval.records import Explanation, LatentId, Score, Usage
from saeval.task import Task, plain

if TYPE_CHECKING:
    from saeval.activations import ActivationStore

_TRIES = 4  # number of workers that may die on a latent before it counts as failed
_TOGETHER = 20.0  # seconds to wait until all workers have started
_PATIENCE = 300.0  # seconds to wait without any worker
_NEWS = 0.25  # part of a worker's share of the limit; once all workers spent so much, each is told
_AT_THE_END = 15.0  # seconds to wait at the end for calls in flight and the ledger

log = logging.getLogger("saeval")


@contextmanager
def on_ray(task: Task, calls: CallLedger, budget: Budget, display: Display) -> Iterator[OnRay]:
    """Connect to a cluster within this context, and yield the executor.

    Raises:
        InputError: If no cluster is available.
    """
    with cluster(task.run.workers):
        yield OnRay(task, calls, budget, display)


class _WorkerHandle:
    """The driver's state of a worker.

    Attributes:
        actor: Ray's handle; it stays the same when Ray replaces the process.
        up: Whether the worker is available.
        life: Number of times that it started.
        latents: Number of steps in flight, by latent.
    """

    def __init__(self, actor: Any):
        self.actor = actor
        self.up = False
        self.life = 0
        self.latents: Counter[LatentId] = Counter()


class OnRay(Executor):
    """See `Executor`. Results are equal bit for bit to those of `Local`.

    Collecting uses Ray tasks, one per share of a model pass; explaining and scoring use one actor per worker. Results,
    ledger and budget are kept only in this process, so that they survive the death of workers.
    """

    def __init__(self, task: Task, calls: CallLedger, budget: Budget, display: Display):
        self._task, self._calls, self._budget, self._display = task, calls, budget, display
        shares = _shares(task)
        self.workers = workers = shares.workers
        self._needs = {"num_cpus": shares.cpus, "num_gpus": shares.gpus}
        self._setup = WorkerSetup(
            plain(task.resolved, absolute=True),
            os.environ.get("SAEVAL_CACHE"),
            socket.gethostname(),
            workers,
            budget.limit,
            calls.expected,
        )
        self._identity = identity(task)
        self._handles: list[_WorkerHandle] = []
        self._error: SaevalError | None = None
        self._told = budget.spent
        self._over = False

    # --- collect ---

    def collect(self) -> dict[str, ActivationStore]:
        """Collect each model pass in several tasks, each with a share of the corpus, such that all workers are busy."""
        sources = {cell.name: cell.collected for cell in self._task.cells}

        def shares(names: list[str], passes: int) -> int:
            return -(-self._setup.workers // passes) if sources[names[0]].plugin.sharded else 1

        def work(groups: list[list[str]]) -> None:
            self._collect([(names, (i, n)) for names in groups for n in [shares(names, len(groups))] for i in range(n)])
            if not all(store_path(sources[name]).exists() for names in groups for name in names):
                raise InputError(
                    "run.executor: the stores that Ray workers collected are not in this machine's cache; set "
                    "SAEVAL_CACHE to a folder that all machines share"
                )

        return collect(sources, self._display, work)

    def _collect(self, todo: list[tuple[list[str], tuple[int, int]]]) -> None:
        """Collect shares of model passes, each in a task, which Ray reruns if its process or node dies.

        Pieces that a lost task finished are in the cache, and are not redone.
        """
        import ray

        standstill = self._task.run.hang_after
        with collecting(self._display, len(todo), "shares of model passes", standstill) as stage:
            # A new process per task, so that no model stays in memory.
            remote = ray.remote(max_calls=1, max_retries=_TRIES - 1, scheduling_strategy="SPREAD", **self._needs)(
                collect_cells
            )
            waiting = [remote.remote(self._setup, self._identity, *what) for what in todo]
            while waiting:
                (done,), waiting = ray.wait(waiting)
                try:
                    stop = ray.get(done)
                except _losses() as error:
                    raise SaevalError(f"{_TRIES} Ray workers died while collecting: {error}") from None
                if stop is not None:
                    raise stop.error()
                stage.advance()

    # --- explain and score ---

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Start the workers."""
        try:
            async with self._started():
                yield
        except BudgetExceeded:
            self._budget.check()  # names what all workers spent, now that no call is in flight
            raise

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[None]:
        import ray

        actor = ray.remote(Worker).options(
            max_restarts=-1, max_task_retries=0, max_concurrency=10_000, scheduling_strategy="SPREAD", **self._needs
        )
        self._alone = asyncio.Lock()
        self._changed = asyncio.Event()
        self._handles = [_WorkerHandle(actor.remote(self._setup, self._identity)) for _ in range(self._setup.workers)]
        monitors = [asyncio.ensure_future(self._monitor(handle)) for handle in self._handles]
        try:
            await self._wait_for_all()
            yield
        finally:
            self._over = True
            for handle in self._handles:
                if handle.up:
                    handle.actor.finish.remote()
                else:
                    ray.kill(handle.actor)
            await asyncio.wait(monitors, timeout=_AT_THE_END)
            for task in monitors:
                task.cancel()
            await asyncio.gather(*monitors, return_exceptions=True)
            for handle in self._handles:
                ray.kill(handle.actor)
        if self._error is not None:
            raise self._error

    async def _wait_for_all(self) -> None:
        """Wait briefly until all workers are available, so that the work is distributed evenly."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TOGETHER):
                while not (self._error or all(handle.up for handle in self._handles)):
                    self._changed.clear()
                    await self._changed.wait()

    async def make(self, work: StepInput) -> StepOutput[Any]:
        """Run a step on a worker; if the worker dies, retry on another one."""
        for lost in range(_TRIES):
            # The latent itself may kill workers. After two losses it runs alone, so that it does not affect others.
            async with self._alone if lost > 1 else nullcontext():
                handle = await self._pick(work.examples.latent)
                life = handle.life
                handle.latents[work.examples.latent] += 1
                try:
                    made: StepOutput[Any] | Stop = await handle.actor.make.remote(work)
                except _losses() as error:
                    self._mark_lost(handle, life, error)
                    continue
                finally:
                    handle.latents -= Counter([work.examples.latent])  # subtraction also removes zero counts
            if self._error is not None:
                raise self._error
            if isinstance(made, Stop):
                raise made.error()
            return made
        kind = Explanation if work.explanation is None else Score
        reason = f"{_TRIES} workers died at this work: killed, out of memory, or stuck for run.hang_after"
        return StepOutput(kind.failed(reason), Usage(usd=0.0), fault=False)

    async def _pick(self, latent: LatentId) -> _WorkerHandle:
        """Return the worker that already has this latent (to share its calls in flight), else the least busy one."""
        while True:
            if self._error is not None:
                raise self._error
            if up := [handle for handle in self._handles if handle.up]:
                same = (handle for handle in up if handle.latents[latent])
                return next(same, None) or min(up, key=lambda handle: handle.latents.total())
            self._changed.clear()
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._changed.wait()
            except TimeoutError:
                self._fail(SaevalError(f"no Ray worker started within {_PATIENCE:g} s; rerun the same command"))

    async def _monitor(self, handle: _WorkerHandle) -> None:
        """Open a worker and process its messages; repeat when Ray has replaced it."""
        from ray.exceptions import RayError

        while not (self._over or self._error):
            try:
                if (stop := await handle.actor.open.remote(self._budget.spent)) is not None:
                    raise stop.error()
                handle.up, handle.life = True, handle.life + 1
                self._changed.set()
                async for news in handle.actor.news.remote():
                    self._process(await news)
                return
            except _losses() as error:
                if getattr(error, "actor_init_failed", False):
                    self._fail(SaevalError(f"a Ray worker cannot start; is saeval installed on every node? {error}"))
                self._mark_lost(handle, handle.life, error)
                await asyncio.sleep(0.1)
            except (RayError, SaevalError) as error:
                self._fail(error if isinstance(error, SaevalError) else SaevalError(f"a Ray worker failed: {error}"))

    def _mark_lost(self, handle: _WorkerHandle, life: int, error: Exception) -> None:
        """Mark a worker as unavailable until it is opened again; let Ray replace it, if it was only unreachable."""
        import ray

        if handle.up and handle.life == life:
            handle.up = False
            log.warning("a Ray worker is lost; its work goes to others: %s", first_line(error))
            ray.kill(handle.actor, no_restart=False)

    def _process(self, news: list[News]) -> None:
        for message in (item for item in news if isinstance(item, Message)):
            (log.info if message.to == "log" else self._display.wait)(message.text)
        calls = [item for item in news if isinstance(item, Call)]
        if calls:
            self._calls.add(*calls)
        for call in calls:
            if not call.cached:
                self._budget.add(call.usage, call.model, call.known_usd)
        self._tell_spent()

    def _tell_spent(self) -> None:
        """Tell the workers what all of them have spent, each time that a quarter of a worker's share of the rest is."""
        spent, limit = self._budget.spent, self._budget.limit
        if limit is None or spent == self._told or spent - self._told < _NEWS * (limit - self._told) / self.workers:
            return
        self._told = spent
        for handle in self._handles:
            handle.actor.spent.remote(spent)

    def _fail(self, error: SaevalError) -> None:
        self._error = self._error or error
        self._changed.set()


def _losses() -> tuple[type[Exception], ...]:
    """Return the exceptions that Ray raises if a worker, or a result on a lost node, is lost."""
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

    return RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError, WorkerCrashedError


def _shares(task: Task) -> Shares:
    """Return the number of workers, and the resources of each, for the connected cluster."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    models = collects_with_model(task) or asks_model_in_process(task)
    return divide(nodes, task.run.workers, task.run.gpus_per_worker, models=models)
