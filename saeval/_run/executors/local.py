"""Runs all work in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from saeval._run.collect import collect
from saeval._run.executors import Executor
from saeval._run.steps import StepInput, StepOutput, Steps, gateways
from saeval._util import Display, cache_dir, interrupt_if_blocked
from saeval.llm import Budget, CallLedger
from saeval.models import screened
from saeval.task import Task

if TYPE_CHECKING:
    from saeval.activations import ActivationStore


class Local(Executor):
    """See `Executor`."""

    def __init__(self, task: Task, calls: CallLedger, budget: Budget, display: Display):
        self._task, self._calls, self._budget, self._display = task, calls, budget, display

    def collect(self) -> dict[str, ActivationStore]:
        """Collect in this process."""
        sources = {cell.name: cell.collected for cell in self._task.cells}
        with screened(self._task.run.screen):
            return collect(sources, self._display, standstill=self._task.run.hang_after)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Open the gateways."""
        answers, tell = cache_dir() / "calls.sqlite", self._display.wait
        lent = gateways(self._task.roles, answers, self._calls, self._budget, tell, self._task.run.patience)
        async with lent as models:
            self._steps = Steps(self._task, models)
            with interrupt_if_blocked(self._task.run.hang_after):
                yield

    async def make(self, work: StepInput) -> StepOutput[Any]:
        """Run a step in this process."""
        return await self._steps.make(work)
