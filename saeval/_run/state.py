"""The state of a run in memory: explanations, and the numbers of each score that summaries need."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import fsum, nan
from typing import TYPE_CHECKING, Any, Protocol

from saeval._compare import Tally, reliability, score_noise
from saeval._run.work import Item, Keys
from saeval.records import Explanation, LatentId, Outcome, Score, Status, Usage

if TYPE_CHECKING:
    from saeval._run.sampling import Records
    from saeval.activations import ActivationStore
    from saeval.task import Cell, Task

_TALLIED = 5
_SILENT = 10  # place after the deciles
_REASONS = 1000


def _in_order(score: Score) -> list[Outcome]:
    """Return judged windows in an order that no explanation changes."""
    return sorted(score.outcomes, key=lambda o: (o.example, o.active))


def _tally(score: Score) -> tuple[float, ...]:
    """Return hits, of how many, weight of false alarms, of how much, and the sum of squared weights."""
    answered = [o for o in score.outcomes if o.status == "ok" and o.predicted is not None]
    found = [bool(o.predicted) for o in answered if o.active]
    silent = [(o.weight, bool(o.predicted)) for o in answered if not o.active]
    if any(weight is None for weight, _ in silent):
        return (0.0,) * _TALLIED
    weights = [(weight or 0.0, predicted) for weight, predicted in silent]
    alarms = sum(weight for weight, predicted in weights if predicted)
    return sum(found), len(found), alarms, sum(w for w, _ in weights), sum(w * w for w, _ in weights)


class Results(Protocol):
    """Where results are kept in full, such as the journal of a run."""

    def made(self, key: str) -> Any | None:
        """Return the entry under a key, or None."""


class UsageSum:
    """Tokens and dollars of many calls. The sum does not depend on the order in which they are added."""

    def __init__(self) -> None:
        self._tokens = Usage()
        self._usd: array[float] | None = array("d")

    def add(self, usage: Usage) -> None:
        """Add what one step on one latent took."""
        self._tokens += replace(usage, usd=None)
        if usage.usd is None:
            self._usd = None
        elif self._usd is not None:
            self._usd.append(usage.usd)

    @property
    def total(self) -> Usage:
        """The sum; dollars are None if a price is unknown."""
        return replace(self._tokens, usd=None if self._usd is None else fsum(self._usd))


class Scored:
    """Scores of one scorer on one variant of a cell's explanations, by latent, as far as a summary needs them.

    Attributes:
        tried: Latents that it was to be run on.
        spent: What it took.
        unscored: Status and reason of latents without a score.
        unparsed: Judged windows whose reply held no answer, or was refused.
        windows: Windows asked about, and windows answered.
        watched: Latents whose answers are kept, so that those under other explanations can be compared with them.
        right: Activating windows judged right, by decile, and then the others.
        judged: Answered windows, likewise.
    """

    def __init__(self, tried: int = 0, watched: frozenset[int] = frozenset()):
        self.tried, self.watched = tried, watched
        self.spent = UsageSum()
        self.unscored: dict[int, tuple[Status, str]] = {}
        self.unparsed = 0
        self.right, self.judged = [0] * 11, [0] * 11
        self.asked = self.answered = self.unasked = 0
        self._worst, self._best = array("d"), array("d")
        self._answers: dict[int, bytes] = {}
        self._latents, self._taken = array("q"), bytearray()  # in the order of arrival; whether each latent is there
        self._values: dict[str, array[float]] = {}
        self._noise = array("d")  # variance of the headline score of each latent, in the order of arrival
        self._tallies = array("d")  # five numbers per latent, in the order of arrival

    def __len__(self) -> int:
        return len(self._latents)

    def __contains__(self, latent: int) -> bool:
        return 0 <= latent < len(self._taken) and bool(self._taken[latent])

    def take(self, latent: int, score: Score) -> None:
        """Take the score of a latent."""
        row = len(self._latents)
        self._latents.append(latent)
        self._taken.extend(bytes(max(0, latent + 1 - len(self._taken))))
        self._taken[latent] = True
        if score.status != "ok":
            self.unscored[latent] = score.status, score.reason
        for metric, value in score.values.items() if score.status == "ok" else ():
            column = self._values.setdefault(metric, array("d"))
            column.extend([nan] * (row - len(column)))
            column.append(value)
        self.unparsed += score.count("unparsed", "refused")
        self._count(score)
        self._tallies.extend(_tally(score))
        noise = score_noise(score)
        self._noise.append(nan if noise is None else noise.variance)
        if latent in self.watched:
            self._answers[latent] = bytes(2 if o.predicted is None else o.predicted for o in _in_order(score))
        for o in score.outcomes:
            side = o.decile if o.active else _SILENT
            if o.status == "ok" and o.predicted is not None and side is not None and 0 <= side <= _SILENT:
                self.judged[side] += 1
                self.right[side] += o.predicted == o.active

    def _count(self, score: Score) -> None:
        """Count a latent's windows, and bound its score by judging unanswered ones wrong or right."""
        if score.status == "skipped":
            return
        sides = [[o for o in score.outcomes if o.active is active] for active in (True, False)]
        self.unasked += not score.outcomes
        self.asked += len(score.outcomes)
        worst, best = [], []
        for side in filter(None, sides):
            answers = [o.predicted == o.active for o in side if o.status == "ok" and o.predicted is not None]
            self.answered += len(answers)
            worst.append(sum(answers) / len(side))
            best.append(worst[-1] + 1 - len(answers) / len(side))
        self._worst.append(sum(worst) / len(worst) if worst else 0.0)
        self._best.append(sum(best) / len(best) if best else 1.0)

    @property
    def windows(self) -> tuple[int, int]:
        """Windows asked and answered; windows of a latent that failed before they were asked count as asked."""
        latents = len(self) - self.unasked - sum(status == "skipped" for status, _ in self.unscored.values())
        each = self.asked / latents if latents > 0 else 0.0
        return round(self.asked + each * self.unasked), self.answered

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Mean share judged right, both sides alike, with everything unanswered judged wrong, and judged right."""
        if not self.answered:
            return None
        n = len(self._worst)
        return fsum(self._worst) / n, fsum(self._best) / n  # in whatever order the replies came

    def noise(self, metric: str) -> dict[int, float]:
        """Return the variance of the headline score of every latent that has one, by latent; nan if unknown."""
        known = dict(zip(self._latents, self._noise, strict=True))
        return {latent: known[latent] for latent in self.values(metric)}

    def reliability(self, metric: str) -> float | None:
        """Return the reliability of the latents' headline scores; None if it is not known."""
        return reliability([*self.values(metric).values()], [*self.noise(metric).values()])

    def tallies(self, rates: Mapping[int, float]) -> list[Tally]:
        """Return the answers of each latent whose non-activating windows were drawn with known probabilities.

        Args:
            rates: Share of windows in which each latent fires.
        """
        rows = zip(*[iter(self._tallies)] * _TALLIED, strict=True)
        each = zip(self._latents, rows, strict=True)
        return [Tally(rates[latent], *row) for latent, row in sorted(each) if row[-1] and latent in rates]

    def same(self, other: Scored) -> tuple[int, int]:
        """Return how many windows got the same answer here and there, of how many answered in both."""
        alike = both = 0
        for latent in self._answers.keys() & other._answers.keys():
            pairs = [
                (a, b) for a, b in zip(self._answers[latent], other._answers[latent], strict=False) if 2 not in (a, b)
            ]
            both += len(pairs)
            alike += sum(a == b for a, b in pairs)
        return alike, both

    def metrics(self) -> list[str]:
        """Return the names of the metrics that some latent has."""
        return sorted(self._values)

    def so_far(self, metric: str) -> tuple[int, float | None]:
        """Return how many latents have a metric, and its mean so far."""
        import numpy as np

        column = np.array(self._values.get(metric, array("d")))
        known = column[~np.isnan(column)]
        return len(known), float(known.mean()) if len(known) else None

    def values(self, metric: str) -> dict[int, float]:
        """Return the metric of every latent that has it, by latent: replies arrive in any order, sums depend on it."""
        import numpy as np

        column = np.array(self._values.get(metric, array("d")))
        latents = np.array(self._latents, dtype=np.int64)[: len(column)]
        known = ~np.isnan(column)
        latents, column = latents[known], column[known]
        order = np.argsort(latents)
        return dict(zip(latents[order].tolist(), column[order].tolist(), strict=True))


@dataclass
class CellState:
    """Everything found out about one cell so far.

    Attributes:
        cell: The cell.
        store: Its activations.
        records: The latents sampled, in their random order.
        counts: Latents requested, eligible, sampled.
        base: Hash of what the records depend on.
        explanations: By variant and latent; without what was asked.
        scored: By scorer label and variant.
        explaining: What explaining took, by variant.
        directions: What the directions of latents tell, by latent.
        measured: Measures of the coder that needed the model.
        dependent: Floors made of a latent that does not fire independently, for want of another.
    """

    cell: Cell
    store: ActivationStore
    records: Records
    counts: dict[str, int]
    base: str
    explanations: dict[tuple[str, int], Explanation] = field(default_factory=dict)
    scored: dict[tuple[str, str], Scored] = field(default_factory=dict)
    explaining: dict[str, UsageSum] = field(default_factory=dict)
    directions: dict[int, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    dependent: int = 0

    @property
    def l0(self) -> float:
        """Latents per token that fire."""
        return float(self.store.firings.sum()) / max(self.store.n_tokens, 1)

    def explanation(self, variant: str, latent: int) -> Explanation | None:
        """Return a latent's explanation if there is one that worked."""
        found = self.explanations.get((variant, latent))
        return found if found is not None and found.status == "ok" else None

    def spend(self, variant: str, usage: Usage) -> None:
        """Add to what explaining took."""
        self.explaining.setdefault(variant, UsageSum()).add(usage)

    def item(self, step: str, variant: str, latent: int) -> Item:
        """Return a work item of the cell."""
        return Item(self.cell.name, step, variant, LatentId(self.records.latents[0].hookpoint, latent))


@dataclass
class RunState:
    """Everything found out in a run so far; the journal holds the results in full.

    Attributes:
        task: The task.
        cells: By name, those that are sampled.
        done: Whether everything was explained and scored.
        reasons: How often each step failed for each reason.
    """

    task: Task
    cells: dict[str, CellState] = field(default_factory=dict)
    done: bool = False
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def failed(self, step: str, reason: str) -> None:
        """Count a failure; of very many different reasons, only the first ones by name."""
        known = (step, reason) in self.reasons or len(self.reasons) < _REASONS
        self.reasons[step, reason if known else "other reasons"] += 1

    def key(self, item: Item, text: str = "") -> str:
        """Return the key under which an item's result is kept; `text` is the explanation that is scored."""
        return self._keys.of(item, text)

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self.task, {name: cell.base for name, cell in self.cells.items()})

    def explanation(self, journal: Results, item: Item) -> Explanation | None:
        """Return an explanation with everything that was asked for it, as it was written down."""
        entry = journal.made(self.key(item))
        return entry and Explanation.model_validate(entry["result"])

    def score(self, journal: Results, item: Item) -> Score | None:
        """Return a latent's score with all judged windows, if there is one by now."""
        cell, latent = self.cells[item.cell], item.latent.index
        scored = cell.scored[item.step, item.variant]
        if latent not in scored:
            return None
        explanation = cell.explanations.get((item.variant, latent))
        entry = journal.made(self.key(item, explanation.text)) if explanation else None
        if entry:
            return Score.model_validate(entry["result"])
        status, reason = scored.unscored[latent]  # there was no explanation to score
        return Score(status=status, reason=reason)
