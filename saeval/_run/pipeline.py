"""Explains and scores: processes each work item as soon as its inputs are ready, with a limit on concurrent items.

There is no barrier between cells, scorers or stages. Results do not depend on the order of completion: an item's random
stream and key depend only on the item, and a shuffled explanation waits for the latents before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from heapq import heappop, heappush
from itertools import chain
from math import inf
from typing import Any, Literal, NamedTuple

from saeval._run import floors, work
from saeval._run.executors import Executor
from saeval._run.failures import Failures, GaveUp
from saeval._run.floors import Partners
from saeval._run.journal import Journal
from saeval._run.journal_entries import Kept, entry_of, kept_explanation, kept_score
from saeval._run.state import CellState, RunState, Scored
from saeval._run.steps import StepInput
from saeval._run.work import EXPLAIN, Item, StepWork
from saeval._util import Display, Stage, counted, memory_left
from saeval.records import MAIN, Explanation, JudgedWindows, LatentId, Score, Usage
from saeval.task import SHUFFLED, Task

_log = logging.getLogger("saeval.run")

Retry = Literal["failed"]

_LITTLE_MEMORY = 0.02  # stop below this share of available memory
_MEMORY_EVERY = 0.05  # seconds between two checks of memory
_WATCHED = 500  # maximum latents whose answers under different explanations are compared
_AHEAD = 64  # explain first while fewer items than this are ready to be scored
_AT_ONCE = 100  # items taken from the journal per iteration of the event loop
_CANCELLED = (
    "the work on a latent was cancelled, probably by a plugin that cancels tasks that it did not start; completed work "
    "is saved. Fix the plugin, then rerun the same command"
)


class Limits(NamedTuple):
    """Limits on items in flight. Explaining takes one call per latent and scoring many, so explaining may have more.

    Attributes:
        explaining: Maximum explaining items.
        scoring: Maximum scoring items.
        total: Maximum items of both kinds.
    """

    explaining: float
    scoring: float
    total: float = inf

    @classmethod
    def of(cls, task: Task, workers: int) -> Limits:
        """Return the limits of a task: from the spec, or a default that keeps the models busy in bounded memory."""
        if task.run.concurrency != "auto":
            return cls(inf, inf, task.run.concurrency)
        if any(role.part.plugin.batches for role in task.roles.values()):
            return cls(2000, 2000)  # models that batch requests need many of them
        if _in_process(task):
            return cls(32, 32)
        return cls(max(512, 64 * workers), 64 * workers)


class Queue:
    """A priority queue of work items that are ready, in an order that does not depend on when results arrive.

    For models in this process, all explaining comes first, then one scorer after another, so that their caches of
    prompts and windows can be reused. For other models, scoring follows explaining closely.

    Args:
        state: The run.
        steps: The steps of each cell.
        places: Position of each latent in its cell's order.
        limits: Limits on items in flight.
    """

    def __init__(
        self,
        state: RunState,
        steps: Mapping[str, Sequence[StepWork]],
        places: Mapping[str, Mapping[int, int]],
        limits: Limits,
    ):
        self._limits, self._places = limits, places
        self._by_stage = _in_process(state.task)
        self._explaining = _explaining(state, steps, self._by_stage)
        self._next = next(self._explaining, None)
        self._ready: list[tuple[tuple[int, ...], Item]] = []
        self._cells = {name: place for place, name in enumerate(state.cells)}
        self._labels = {name: list(cell.cell.scorers) for name, cell in state.cells.items()}
        self._variants = {name: [MAIN, *cell.cell.alternatives] for name, cell in state.cells.items()}
        self._in_flight: Counter[bool] = Counter()

    def add(self, item: Item) -> None:
        """Add an item that is ready to be scored."""
        cell, place = self._cells[item.cell], self._places[item.cell][item.latent.index]
        scorer, variant = self._labels[item.cell].index(item.step), self._variants[item.cell].index(item.variant)
        order = (cell, scorer, place, variant) if self._by_stage else (cell, place, scorer, variant)
        heappush(self._ready, (order, item))

    def take(self) -> Item | None:
        """Return the next item to start now; None if there is none or a limit is reached."""
        if self._in_flight.total() >= self._limits.total:
            return None
        may_explain = self._next is not None and self._in_flight[True] < self._limits.explaining
        may_score = bool(self._ready) and self._in_flight[False] < self._limits.scoring
        if may_explain and not (may_score and len(self._ready) >= _AHEAD and not self._by_stage):
            item, self._next = self._next, next(self._explaining, None)
        elif may_score:
            _, item = heappop(self._ready)
        else:
            return None
        assert item is not None
        self._in_flight[item.step == EXPLAIN] += 1
        return item

    def done(self, item: Item) -> None:
        """Record that an item is no longer in flight."""
        self._in_flight[item.step == EXPLAIN] -= 1

    @property
    def unfinished(self) -> int:
        """The number of items that were added or started, and are not done."""
        return len(self._ready) + self._in_flight.total() + (self._next is not None)


def _explaining(state: RunState, steps: Mapping[str, Sequence[StepWork]], by_stage: bool) -> Iterator[Item]:
    """Yield the explaining items, ordered by kind of explanation or by latent."""
    for name, cell in state.cells.items():
        explaining = [step for step in steps[name] if step.step == EXPLAIN]
        if by_stage:
            yield from (cell.item(EXPLAIN, step.variant, latent) for step in explaining for latent in step.latents)
            continue
        for place, latent in enumerate(cell.records.latents):
            yield from (Item(name, EXPLAIN, s.variant, latent) for s in explaining if s.includes(latent.index, place))


class Pipeline:
    """Explains and scores all items of a run, and saves each result immediately.

    Args:
        state: The state of the run, which is updated.
        journal: The journal; finished items in it are not redone.
        workplace: The executor that processes items.
        display: Shows the progress.
        retry: `failed` to redo items that failed in an earlier session.
    """

    def __init__(self, state: RunState, journal: Journal, workplace: Executor, display: Display, retry: Retry | None):
        self._state, self._journal, self._workplace, self._retry = state, journal, workplace, retry
        self._display = display
        self._seed = state.task.run.seed
        self._places = {
            name: {latent.index: place for place, latent in enumerate(cell.records.latents)}
            for name, cell in state.cells.items()
        }
        self._steps = {name: self._lay_out(cell) for name, cell in state.cells.items()}
        limits = Limits.of(state.task, workplace.workers)
        self._queue = Queue(state, self._steps, self._places, limits)
        self._shuffles = {
            name: _Shuffling(cell, self._seed)
            for name, cell in state.cells.items()
            if SHUFFLED in cell.cell.alternatives
        }
        self._failures: dict[tuple[str, str, str], Failures] = {}
        self._stages: dict[str, Stage] = {}
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._memory_read = 0.0

    def _lay_out(self, cell: CellState) -> list[StepWork]:
        """Return the steps of a cell, and initialise their scores."""
        latents = [latent.index for latent in cell.records.latents]
        steps = list(work.steps(cell.cell, latents, self._seed))
        watched = floors.in_order(latents, self._seed)
        for step in steps:
            if step.step != EXPLAIN:
                among = set(latents[: step.part.latents])
                some = [latent for latent in watched if latent in among][:_WATCHED]
                cell.scored[step.step, step.variant] = Scored(watched=frozenset(some))
        return steps

    async def run(self) -> None:
        """Process all items.

        Raises:
            GaveUp: If the first items of a step all fail for the same reason, or calls fail for many items in a row.
            BudgetExceeded: If the spending limit is reached.
            StoreError, InputError: If the disk is full.
        """
        tasks: set[asyncio.Task[None]] = set()
        with ExitStack() as shown:
            for title, total in self._totals().items():
                self._stages[title] = shown.enter_context(self._display.stage(title, total))
            try:
                while await self._start(tasks):
                    await self._changed.wait()
                    self._changed.clear()
                    if self._error is not None:
                        raise self._error
                self._check_finished()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for failures in self._failures.values():
                failures.settle()
            for stage in self._stages.values():
                stage.reach(stage.done, stage.done)  # totals may be too high: a single explanation cannot be shuffled

    def _totals(self) -> Counter[str]:
        """Return the number of items of each step, by its title."""
        totals: Counter[str] = Counter()
        for step in chain.from_iterable(self._steps.values()):
            totals[work.title(step.step, step.variant)] += len(step.latents)
        return totals

    async def _start(self, tasks: set[asyncio.Task[None]]) -> bool:
        """Start items that are ready and take finished ones from the journal; return whether any is in flight."""
        taken = 0
        while (item := self._queue.take()) is not None:
            if (kept := self._finished(item)) is not None:
                self._take(item, kept.result, kept.usage)
                taken += 1
                if taken % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                continue
            task = asyncio.ensure_future(self._do(item))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(self._ended)
        return bool(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # while the run stops, it cancels its tasks and reads no further errors
        error = GaveUp(_CANCELLED) if task.cancelled() else task.exception()
        self._error = self._error or error
        self._changed.set()

    def _check_finished(self) -> None:
        """Check that no item was lost, since a run that is marked as done is never resumed.

        Raises:
            GaveUp: If items are not finished.
        """
        if self._error is not None:
            raise self._error
        if left := self._queue.unfinished:
            raise GaveUp(f"{counted(left, 'item was', 'items were')} started and not finished; rerun the same command")

    def _key(self, item: Item) -> str:
        if item.step == EXPLAIN:
            return self._state.key(item)
        explanation = self._state.cells[item.cell].explanations[item.variant, item.latent.index]
        return self._state.key(item, explanation.text)

    def _finished(self, item: Item) -> Kept[Any] | None:
        """Return an item's result from the journal; None if there is none, it is invalid, or it should be retried.

        Results without an answer are retried on request, and if a reply was cut off and the limit was raised since.
        """
        entry = self._journal.finished(self._key(item))
        if entry is None:
            return None
        kept: Kept[Any] | None
        if item.step == EXPLAIN:
            kept = kept_explanation(entry)
        else:
            scorer = self._state.cells[item.cell].cell.scorers[item.step]
            kept = kept_score(entry, scorer.part.plugin.metrics)
        if kept is None:
            return None
        cut_at = entry.get("cut_at")
        again = self._retry == "failed" or (cut_at is not None and cut_at < self._limit_if_cut(item))
        return None if again and _unanswered(kept.result) else kept

    def _limit_if_cut(self, item: Item) -> int:
        """Return `max_tokens_if_cut` of the role that an item asks; 0 if it asks none."""
        part = work.part_of(self._state.cells[item.cell].cell, item.step, item.variant)
        return self._state.task.roles[part.role].settings.max_tokens_if_cut if part.role else 0

    async def _do(self, item: Item) -> None:
        """Process an item and save its result."""
        cell, key = self._state.cells[item.cell], self._key(item)
        record = cell.records[item.latent]
        if item.step == EXPLAIN:
            made = await self._workplace.make(StepInput(item.cell, item.variant, record.explain))
        else:
            explanation = cell.explanations[item.variant, item.latent.index]
            made = await self._workplace.make(StepInput(item.cell, item.step, record.score, explanation))
        judged = JudgedWindows.of(made.result.outcomes) if isinstance(made.result, Score) else None
        entry = entry_of(made.result, made.usage, judged)
        if made.cut:
            entry["cut_at"] = self._limit_if_cut(item)
        self._journal.keep(key, entry)
        if made.result.status == "failed":
            title = work.title(item.step, item.variant)
            _log.warning("%s %s, latent %s: %s", title, item.cell, item.latent, made.result.reason)
        self._failures_of(item).note(made, partial(self._journal.finish, key, entry))
        self._take(item, made.result, made.usage, judged)
        if (now := time.monotonic()) >= self._memory_read + _MEMORY_EVERY:
            self._memory_read = now
            _check_memory()

    def _failures_of(self, item: Item) -> Failures:
        place = item.cell, item.step, item.variant if item.step == EXPLAIN else MAIN
        if place not in self._failures:
            name = f"{work.title(item.step, item.variant)} {item.cell}"
            self._failures[place] = Failures(name, self._state.task.run.give_up_after)
        return self._failures[place]

    def _take(self, item: Item, result: Explanation | Score, usage: Usage, judged: JudgedWindows | None = None) -> None:
        """Add a result to the state, and queue the items that it makes ready."""
        self._queue.done(item)
        cell, latent = self._state.cells[item.cell], item.latent.index
        if isinstance(result, Explanation):
            cell.explanations[item.variant, latent] = result.model_copy(update={"asked": ""})
            self._offer(cell, item.variant, item.latent)
        else:
            scored = cell.scored[item.step, item.variant]
            scored.tried += 1  # not when it is queued: the run may stop before
            scored.take(latent, result, judged)
            scored.spent.add(usage)
        title, failed = work.title(item.step, item.variant), result.status == "failed"
        if failed:
            self._state.failed(title, result.reason)
        self._stages[title].advance(failed=failed)

    def _offer(self, cell: CellState, variant: str, latent: LatentId) -> None:
        """Queue the scoring of an explanation; if the explanation failed or was skipped, so are its scores."""
        explanation = cell.explanations[variant, latent.index]
        for label in self._scorers(cell, variant, latent.index):
            scored = cell.scored[label, variant]
            if explanation.status == "ok":
                self._queue.add(Item(cell.cell.name, label, variant, latent))
            else:
                scored.tried += 1
                failed = explanation.status == "failed"
                without = Score.failed if failed else Score.skipped
                scored.take(latent.index, without(f"no explanation: {explanation.reason}"))
                self._stages[work.title(label, variant)].advance(failed=failed)
        if variant == MAIN and cell.cell.name in self._shuffles:
            for other in self._shuffles[cell.cell.name].explained(latent.index):
                self._offer(cell, SHUFFLED, LatentId(latent.hookpoint, other))

    def _scorers(self, cell: CellState, variant: str, latent: int) -> Iterator[str]:
        """Yield the scorers that score an explanation."""
        place = self._places[cell.cell.name][latent]
        for step in self._steps[cell.cell.name]:
            if step.step != EXPLAIN and step.variant == variant and step.includes(latent, place):
                yield step.step


class _Shuffling:
    """Assigns to each latent of a cell the explanation of another latent that fires nearly independently of it.

    It uses the first partner with an explanation, so it waits until all earlier partners are known to have none.

    Args:
        cell: The cell, which receives the explanations.
        seed: Seed of the run.
    """

    def __init__(self, cell: CellState, seed: int):
        latents = [latent.index for latent in cell.records.latents[: cell.cell.explainer.latents]]
        self._cell = cell
        self._partners = Partners(cell.store, cell.cell.sampler.plugin.window, latents, seed)
        self._left: dict[int, Iterator[int]] = {}
        self._waiting: dict[int, list[int]] = defaultdict(list)

    def explained(self, latent: int) -> Iterator[int]:
        """Record that a latent's own explanation is finished; yield the latents that now have a shuffled one."""
        waiting = self._waiting.pop(latent, [])
        if self._cell.explanation(MAIN, latent) is not None:
            for one in waiting:
                self._give(one, latent)
                yield one
            waiting = [latent]
            self._left[latent] = self._partners.of(latent)
        for one in waiting:
            yield from self._try_partners(one)

    def _try_partners(self, latent: int) -> Iterator[int]:
        for other in self._left[latent]:
            if (MAIN, other) not in self._cell.explanations:
                self._waiting[other].append(latent)
                return
            if self._cell.explanation(MAIN, other) is not None:
                self._give(latent, other)
                yield latent
                return

    def _give(self, latent: int, other: int) -> None:
        explanation = self._cell.explanations[MAIN, other]
        self._cell.explanations[SHUFFLED, latent] = explanation.model_copy(update={"notes": {"latent": other}})
        self._cell.dependent += not self._partners.independent(latent, other)
        del self._left[latent]


def _in_process(task: Task) -> bool:
    return any(role.part.plugin.in_process for role in task.roles.values())


def _check_memory() -> None:
    """Stop the run before memory runs out, since a new process recovers leaked memory.

    Raises:
        GaveUp: If almost no memory is available.
    """
    left = memory_left()
    if left is not None and left < _LITTLE_MEMORY:
        raise GaveUp(
            f"memory is nearly used up ({left:.1%} left); completed work is saved. Rerun the same command, which "
            f"starts with fresh memory; if this happens again soon, a model or plugin needs more memory than available"
        )


def _unanswered(result: Explanation | Score) -> bool:
    """Return whether asking again may help: the result failed, or a reply could not be parsed."""
    return result.status == "failed" or (isinstance(result, Score) and result.count("failed", "unparsed") > 0)
