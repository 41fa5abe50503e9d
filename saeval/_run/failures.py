"""Decides which failures of latents are saved, and when failures stop a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from saeval._run.steps import StepOutput
from saeval._util import SaevalError, counted


class GaveUp(SaevalError):
    """Raised if many latents fail for the same reason, or the model is unavailable. The run can be resumed."""


class _Failure(NamedTuple):
    reason: str
    fault: bool
    write: Callable[[], None]


class Failures:
    """Watches a step for latents that all fail for the same reason; holds failures back until a latent succeeds.

    At the start of a step, all failures count; later only failed calls, since an outage may occur at any time.
    """

    def __init__(self, step: str, give_up_after: int):
        self._step, self._limit = step, give_up_after
        self._held: list[_Failure] = []
        self._any_success = False

    def note(self, made: StepOutput[Any], write: Callable[[], None]) -> None:
        """Save a result, or hold it back if it is a failure that may affect all latents.

        Raises:
            GaveUp: If `run.give_up_after` failures are held back, and have the same reason or are all failed calls.
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
                held = counted(self._limit, "latent")
                which = f"{held} in a row" if self._any_success else f"the first {held}"
                raise GaveUp(
                    f"{self._step}: {which} all failed for one reason: {made.result.reason}. "
                    "Completed work is saved. Fix the problem, then rerun the same command."
                )

    def settle(self) -> None:
        """Save the failures held back; failed calls only if a latent succeeded."""
        self._write(f for f in self._held if self._any_success or not f.fault)

    def _write(self, failures: Iterable[_Failure]) -> None:
        for failure in failures:
            failure.write()
        self._held = []


def _digitless(reason: str) -> str:
    """Return a reason without numbers, since delays and request ids differ between calls."""
    return re.sub(r"\w*\d[\w.-]*", "#", reason)
