"""Runs the work of a task on a Ray cluster. Ray starts workers, places them, and replaces those that die."""

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
from saeval._run.executors.ray_worker import News, Order, Said, Stop, Worker, collect_cells, identity
from saeval._run.local_models import asks_model_in_process, collects_with_model
from saeval._run.steps import StepInput, StepOutput
from saeval._util import Display, InputError, SaevalError
from saeval.llm import Budget, Call, CallLedger
from saeval.records import Explanation, LatentId, Score, Usage
from saeval.task import Task, plain

if TYPE_CHECKING:
    from saeval.activations import ActivationStore

_TRIES = 4  # workers that may die with a latent before it counts as failed
_TOGETHER = 20.0  # seconds for all workers to come up
_PATIENCE = 300.0  # seconds without any worker
_AT_THE_END = 15.0  # seconds for answers under way, and for the ledger

log = logging.getLogger("saeval")


@contextmanager
def on_ray(task: Task, calls: CallLedger, budget: Budget, display: Display) -> Iterator[OnRay]:
    """Lend the executor, connected to a cluster for as long as the block lasts.

    Raises:
        InputError: If there is no cluster to be had.
    """
    with cluster(task.run.workers):
        yield OnRay(task, calls, budget, display)


class _Seat:
    """A worker, as seen from here.

    Attributes:
        actor: Ray's handle; it stays the same when Ray replaces the process.
        up: Whether it can be asked.
        life: How often it came up.
        latents: How much is under way on each latent.
    """

    def __init__(self, actor: Any):
        self.actor = actor
        self.up = False
        self.life = 0
        self.latents: Counter[LatentId] = Counter()


class OnRay(Executor):
    """See `Executor`. What is made is the same, bit for bit, as what `Local` makes.

    Collecting is one Ray task a model pass, explaining and scoring one actor a worker. Results, ledger and budget are
    kept here alone, so that each exists once, whatever workers die.
    """

    def __init__(self, task: Task, calls: CallLedger, budget: Budget, display: Display):
        self._task, self._calls, self._budget, self._display = task, calls, budget, display
        shares = _shares(task)
        self.workers = workers = shares.workers
        self._needs = {"num_cpus": shares.cpus, "num_gpus": shares.gpus}
        self._order = Order(
            plain(task.resolved, absolute=True),
            os.environ.get("SAEVAL_CACHE"),
            socket.gethostname(),
            workers,
            budget.limit,
            calls.expected,
        )
        self._identity = identity(task)
        self._seats: list[_Seat] = []
        self._error: SaevalError | None = None
        self._spent = self._over = False

    # --- collect ---

    def collect(self) -> dict[str, ActivationStore]:
        """Collect each model pass in as many tasks as there are workers for it, each with a share of the corpus."""
        sources = {cell.name: cell.collected for cell in self._task.cells}

        def shares(names: list[str], passes: int) -> int:
            return -(-self._order.workers // passes) if sources[names[0]].plugin.sharded else 1

        def work(groups: list[list[str]]) -> None:
            self._collect([(names, (i, n)) for names in groups for n in [shares(names, len(groups))] for i in range(n)])
            if not all(store_path(sources[name]).exists() for names in groups for name in names):
                raise InputError(
                    "run.executor: the stores that Ray workers collected are not in this machine's cache; set "
                    "SAEVAL_CACHE to a folder that all machines share"
                )

        return collect(sources, self._display, work)

    def _collect(self, todo: list[tuple[list[str], tuple[int, int]]]) -> None:
        """Collect shares of model passes, each in a task, which Ray does again if its process or node dies.

        What a lost one has finished lies in the cache, and is not done again.
        """
        import ray

        standstill = self._task.run.hang_after
        with collecting(self._display, len(todo), "shares of model passes", standstill) as stage:
            # A process each, so that no model stays in memory.
            remote = ray.remote(max_calls=1, max_retries=_TRIES - 1, scheduling_strategy="SPREAD", **self._needs)(
                collect_cells
            )
            waiting = [remote.remote(self._order, self._identity, *what) for what in todo]
            while waiting:
                (done,), waiting = ray.wait(waiting)
                try:
                    stop = ray.get(done)
                except _losses() as error:
                    raise SaevalError(f"{_TRIES} Ray workers died while they collected: {error}") from None
                if stop is not None:
                    raise stop.error()
                stage.advance()

    # --- explain and score ---

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Start the workers."""
        import ray

        actor = ray.remote(Worker).options(
            max_restarts=-1, max_task_retries=0, max_concurrency=10_000, scheduling_strategy="SPREAD", **self._needs
        )
        self._alone = asyncio.Lock()
        self._changed = asyncio.Event()
        self._seats = [_Seat(actor.remote(self._order, self._identity)) for _ in range(self._order.workers)]
        attending = [asyncio.ensure_future(self._attend(seat)) for seat in self._seats]
        try:
            await self._wait_for_all()
            yield
        finally:
            self._over = True
            for seat in self._seats:
                if seat.up:
                    seat.actor.finish.remote()
                else:
                    ray.kill(seat.actor)
            await asyncio.wait(attending, timeout=_AT_THE_END)
            for task in attending:
                task.cancel()
            await asyncio.gather(*attending, return_exceptions=True)
            for seat in self._seats:
                ray.kill(seat.actor)
        if self._error is not None:
            raise self._error

    async def _wait_for_all(self) -> None:
        """Wait briefly until all workers are up, so that none takes the share of others."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TOGETHER):
                while not (self._error or all(seat.up for seat in self._seats)):
                    self._changed.clear()
                    await self._changed.wait()

    async def make(self, work: StepInput) -> StepOutput[Any]:
        """Have a worker do a step on a latent, and another one if that one dies."""
        for lost in range(_TRIES):
            # A latent may be what kills workers. One that was lost twice goes apart, so that it takes no other along.
            async with self._alone if lost > 1 else nullcontext():
                seat = await self._seat(work.examples.latent)
                life = seat.life
                seat.latents[work.examples.latent] += 1
                try:
                    made: StepOutput[Any] | Stop = await seat.actor.make.remote(work)
                except _losses() as error:
                    self._down(seat, life, error)
                    continue
                finally:
                    seat.latents -= Counter([work.examples.latent])  # which forgets those that are done
            if self._error is not None:
                raise self._error
            if isinstance(made, Stop):
                raise made.error()
            return made
        kind = Explanation if work.explanation is None else Score
        reason = f"{_TRIES} workers died at this work: killed, out of memory, or stuck for run.hang_after"
        return StepOutput(kind.failed(reason), Usage(usd=0.0), fault=False)

    async def _seat(self, latent: LatentId) -> _Seat:
        """Return the worker that is at this latent already, so that nothing is asked twice, or the least busy one."""
        while True:
            if self._error is not None:
                raise self._error
            if up := [seat for seat in self._seats if seat.up]:
                same = (seat for seat in up if seat.latents[latent])
                return next(same, None) or min(up, key=lambda seat: seat.latents.total())
            self._changed.clear()
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._changed.wait()
            except TimeoutError:
                self._fail(SaevalError(f"no Ray worker started within {_PATIENCE:g} s; rerun the same command"))

    async def _attend(self, seat: _Seat) -> None:
        """Open a worker, write down what it tells, and do so again when Ray has replaced it."""
        from ray.exceptions import RayError

        while not (self._over or self._error):
            try:
                if (stop := await seat.actor.open.remote(self._budget.spent)) is not None:
                    raise stop.error()
                seat.up, seat.life = True, seat.life + 1
                self._changed.set()
                async for news in seat.actor.news.remote():
                    self._hear(await news)
                return
            except _losses() as error:
                if getattr(error, "actor_init_failed", False):
                    self._fail(SaevalError(f"a Ray worker cannot start; is saeval installed on every node? {error}"))
                self._down(seat, seat.life, error)
                await asyncio.sleep(0.1)
            except (RayError, SaevalError) as error:
                self._fail(error if isinstance(error, SaevalError) else SaevalError(f"a Ray worker failed: {error}"))

    def _down(self, seat: _Seat, life: int, error: Exception) -> None:
        """Ask a worker no more until it is open again; where it only could not be reached, have Ray replace it."""
        import ray

        if seat.up and seat.life == life:
            seat.up = False
            log.warning("a Ray worker is lost; its work goes to others: %s", str(error).strip().splitlines()[0])
            ray.kill(seat.actor, no_restart=False)

    def _hear(self, news: list[News]) -> None:
        for said in (item for item in news if isinstance(item, Said)):
            (log.info if said.to == "log" else self._display.wait)(said.text)
        calls = [item for item in news if isinstance(item, Call)]
        if calls:
            self._calls.add(*calls)
        for call in calls:
            if not call.cached:
                self._budget.add(call.usage, call.model)
        limit = self._budget.limit
        if limit is not None and self._budget.spent >= limit and not self._spent:
            self._spent = True
            for seat in self._seats:
                seat.actor.spent.remote(self._budget.spent)

    def _fail(self, error: SaevalError) -> None:
        self._error = self._error or error
        self._changed.set()


def _losses() -> tuple[type[Exception], ...]:
    """What Ray raises when a worker is lost, or a result on its way from a lost node."""
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

    return RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError, WorkerCrashedError


def _shares(task: Task) -> Shares:
    """Return the number of workers, and what each takes of the cluster that is connected."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    models = collects_with_model(task) or asks_model_in_process(task)
    return divide(nodes, task.run.workers, task.run.gpus_per_worker, models=models)
