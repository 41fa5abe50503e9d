"""Estimates the effect of a 10 % larger budget, spent on more latents or on more windows per latent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from saeval._compare import worth_of_more
from saeval._run.plan.planning import StepPlan
from saeval._util import read_json
from saeval.records import MAIN


class Worth(NamedTuple):
    """Effect of a 10 % larger budget on the interval of a cell's score.

    Attributes:
        cell: The cell.
        scorer: The scorer's label.
        reliability: Reliability of a latent's score in the earlier run.
        latents: Share by which the interval shrinks if it is spent on more latents.
        windows: Share by which the interval shrinks if it is spent on more windows per latent, for this scorer.
    """

    cell: str
    scorer: str
    reliability: float
    latents: float
    windows: float

    @property
    def text(self) -> str:
        """The effect and a recommendation, in a sentence."""
        better = "latents" if self.latents >= self.windows else "windows per latent"
        return (
            f"{self.cell}: {self.scorer} (reliability {self.reliability:.2f}): a 10 % larger budget narrows the "
            f"interval by {self.latents:.1%} with more latents, by {self.windows:.1%} with more windows per latent; "
            f"choose more {better}"
        )


def worth(steps: Sequence[StepPlan], like: Path) -> Iterator[Worth]:
    """Yield the effect of a 10 % larger budget, for each scorer of a plan that asks a model.

    The budget is in dollars if the plan costs any, else in tokens. The cost of windows is assumed to be proportional.

    Args:
        steps: The plan.
        like: An earlier run with the same scorers and windows, whose reliabilities are used.

    """
    earlier = _reliabilities(like)
    by_cell: dict[str, dict[str, float]] = {}
    column = "usd" if any(step.usd for step in steps) else "input_tokens"
    for step in steps:
        if step.cell and step.model:
            name = step.step.partition(" (")[0]
            costs = by_cell.setdefault(step.cell, {})
            costs[name] = costs.get(name, 0.0) + float(getattr(step, column) or 0.0)
    for cell, costs in by_cell.items():
        for scorer, reliability in earlier.items():
            if costs.get(scorer):
                fixed = sum(cost for name, cost in costs.items() if name != scorer)
                found = worth_of_more(reliability, 1 - reliability, fixed, costs[scorer])
                yield Worth(cell, scorer, reliability, found["latents"], found["windows"])


def _reliabilities(run: Path) -> dict[str, float]:
    """Return the reliability of each scorer in a run, from the first contestant that has one."""
    found: dict[str, float] = {}
    for cell in read_json(run / "results.json")["cells"]:
        rows = [row for row in cell.get("scores", ()) if row["variant"] == MAIN and not cell.get("baseline")]
        for row in rows:
            if row.get("reliability") is not None:
                found.setdefault(row["scorer"], float(row["reliability"]))
    return found
