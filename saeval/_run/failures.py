"""Decides which failures of latents are recorded, and when they stop a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from saeval._run.steps import StepOutput
from saeval._util import SaevalError


class GaveUp(SaevalError):
    """Raised if the first latents of a step all failed for one reason, or its model is gone. The run can be resumed."""


class _Failure(NamedTuple):
    reason: str
    fault: bool
    write: Callable[[], None]


class Failures:
    """Watches a step for latents that all fail alike; until one succeeds, such failures are not written down.

    At the beginning of a step any failures count; later, only those of calls, for an outage may come at any time.
    """

    def __init__(self, step: str, give_up_after: int):
        self._step, self._limit = step, give_up_after
        self._held: list[_Failure] = []
        self._any_success = False

    def note(self, made: StepOutput[Any], write: Callable[[], None]) -> None:
        """Take one result: write it down, or hold it back while nothing but failures came.

        Raises:
            GaveUp: If as many as `run.give_up_after` were held back and are alike, or all of calls.
        """
        if made.result.status != "failed":
            self._any_success = True
            self._write(self._held)
            write()
        elif self._any_success and not made.fault:
            write()
        else:
            self._held.append(_Failure(made.result.reason, made.fault, write))
            if len(self._held) >= self._limit and (
                all(f.fault for f in self._held) or len({_digitless(f.reason) for f in self._held}) == 1
            ):
                which = f"{self._limit} latents in a row" if self._any_success else f"the first {self._limit} latents"
                raise GaveUp(
                    f"{self._step}: {which} all failed for one reason: {made.result.reason}. "
                    "Completed work is saved. Fix the problem, then rerun the same command."
                )

    def settle(self) -> None:
        """Record the failures held back, unless no call succeeded at all."""
        self._write(f for f in self._held if self._any_success or not f.fault)

    def _write(self, failures: Iterable[_Failure]) -> None:
        for failure in failures:
            failure.write()
        self._held = []


def _digitless(reason: str) -> str:
    """Return a reason without numbers: waiting times and identifiers of requests differ from call to call."""
    return re.sub(r"\w*\d[\w.-]*", "#", reason)
