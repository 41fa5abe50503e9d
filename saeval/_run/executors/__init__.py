"""Runs the work of a task in this process or on the workers of a Ray cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from saeval._run.steps import StepInput, StepOutput
from saeval._util import Display
from saeval.llm import Budget, CallLedger
from saeval.task import Task

if TYPE_CHECKING:
    from saeval.activations import ActivationStore


class Executor(ABC):
    """Runs the heavy stages of a task; the caller records their results.

    Attributes:
        workers: Processes that do the work.
    """

    workers: int = 1

    @abstractmethod
    def collect(self) -> dict[str, ActivationStore]:
        """Return the store of every cell, by the cell's name; see `saeval._run.collect.collect`."""

    @abstractmethod
    def working(self) -> AbstractAsyncContextManager[None]:
        """Within this context, `make` can be called.

        At its end, every call to a language model is in the ledger and counted in the budget.
        """

    @abstractmethod
    async def make(self, work: StepInput) -> StepOutput[Any]:
        """Run a step on a latent; see `saeval._run.steps.Steps.make`."""


@contextmanager
def executor(task: Task, calls: CallLedger, budget: Budget, display: Display) -> Iterator[Executor]:
    """Open the executor that the task names.

    Args:
        task: The task.
        calls: The run's ledger.
        budget: The run's spending limit.
        display: Shows the progress.

    Raises:
        InputError: If it is not available.
    """
    if task.run.executor == "ray":
        from saeval._run.executors.ray import on_ray

        with on_ray(task, calls, budget, display) as executor:
            yield executor
    else:
        from saeval._run.executors.local import Local

        yield Local(task, calls, budget, display)
