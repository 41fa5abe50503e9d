"""The state of a run in memory: explanations, and the statistics of scores that summaries need."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import fsum, nan
from typing import TYPE_CHECKING, Any, Protocol

from saeval._compare import Tally, reliability, score_noise, sides_right
from saeval._run.journal_entries import judged_windows
from saeval._run.work import Item, Keys
from saeval.records import MAIN, Explanation, JudgedWindows, LatentId, Score, Status, Usage

if TYPE_CHECKING:
    from saeval._run.sampling import Records
    from saeval.activations import ActivationStore
    from saeval.task import Cell, Task

_TALLIED = 5
_SILENT = 10  # index of non-activating windows, after the ten deciles
_REASONS = 1000
_NO_WINDOWS = JudgedWindows.of(())


def _tally(judged: JudgedWindows) -> tuple[float, ...]:
    """Return hits, activating windows, weight of false alarms, total weight, and sum of squared weights."""
    found: list[bool] = []
    silent: list[tuple[float, bool]] = []
    rows = zip(judged.active, judged.predicted, judged.weight, judged.status, strict=True)
    for active, predicted, weight, status in rows:
        if status != "ok" or predicted is None:
            continue
        if active:
            found.append(predicted)
        elif weight is None:
            return (0.0,) * _TALLIED
        else:
            silent.append((weight, predicted))
    alarms = sum(weight for weight, predicted in silent if predicted)
    return sum(found), len(found), alarms, sum(w for w, _ in silent), sum(w * w for w, _ in silent)


class Results(Protocol):
    """A store of full results, such as the journal of a run."""

    def made(self, key: str) -> Any | None:
        """Return the entry under a key, or None."""


class UsageSum:
    """Sum of tokens and dollars of many calls; does not depend on the order of adding."""

    def __init__(self) -> None:
        self._tokens = Usage()
        self._usd: array[float] | None = array("d")

    def add(self, usage: Usage) -> None:
        """Add the usage of one step on one latent."""
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
    """Statistics of one scorer's scores for one variant of a cell's explanations, as needed by summaries.

    Attributes:
        tried: Number of latents on which the scorer is run.
        spent: Usage of the scorer.
        unscored: Status and reason of latents without a score.
        unparsed: Number of judged windows without an answer (reply unparsable or refused).
        windows: Numbers of asked and answered windows.
        watched: Latents whose answers are kept, to compare them with those under other explanations.
        right: Number of windows judged correctly: activating ones by decile, then non-activating ones.
        judged: Number of answered windows, in the same order.
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
        self._latents, self._taken = array("q"), bytearray()  # latents in order of arrival; flag per latent index
        self._values: dict[str, array[float]] = {}
        self._noise = array("d")  # variance of the headline score of each latent, in the order of arrival
        self._tallies = array("d")  # five numbers per latent, in the order of arrival

    def __len__(self) -> int:
        return len(self._latents)

    def __contains__(self, latent: int) -> bool:
        return 0 <= latent < len(self._taken) and bool(self._taken[latent])

    def take(self, latent: int, score: Score, judged: JudgedWindows | None = None) -> None:
        """Add the score of a latent.

        Args:
            latent: The latent.
            score: Its score.
            judged: Its judged windows as columns, if at hand; default: its `outcomes`.
        """
        if judged is None:
            judged = JudgedWindows.of(score.outcomes)
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
        self.unparsed += judged.status.count("unparsed") + judged.status.count("refused")
        self._count(score, judged)
        self._tallies.extend(_tally(judged))
        noise = score_noise(score, judged)
        self._noise.append(nan if noise is None else noise.variance)
        if latent in self.watched:  # in an order that does not depend on the explanation
            answers = sorted(zip(judged.example, judged.active, judged.predicted, strict=True), key=lambda row: row[:2])
            self._answers[latent] = bytes(2 if predicted is None else predicted for *_, predicted in answers)
        rows = zip(judged.active, judged.predicted, judged.decile, judged.status, strict=True)
        for active, predicted, decile, status in rows:
            side = decile if active else _SILENT
            if status == "ok" and predicted is not None and side is not None and 0 <= side <= _SILENT:
                self.judged[side] += 1
                self.right[side] += predicted == active

    def _count(self, score: Score, judged: JudgedWindows) -> None:
        """Count a latent's windows, and bound its score by judging unanswered windows wrongly or correctly."""
        if score.status == "skipped":
            return
        headline = next(iter(score.values), "")
        self.unasked += not judged
        self.asked += len(judged.active)
        activating = len(judged.active) if headline == "accuracy" else sum(judged.active)
        worst, best = [], []
        for n, right in zip((activating, len(judged.active) - activating), sides_right(judged, headline), strict=True):
            if not n:
                continue
            self.answered += len(right)
            worst.append(sum(right) / n)
            best.append(worst[-1] + 1 - len(right) / n)
        self._worst.append(sum(worst) / len(worst) if worst else 0.0)
        self._best.append(sum(best) / len(best) if best else 1.0)

    @property
    def windows(self) -> tuple[int, int]:
        """Numbers of asked and answered windows; windows of latents that failed before asking count as asked."""
        latents = len(self) - self.unasked - sum(status == "skipped" for status, _ in self.unscored.values())
        each = self.asked / latents if latents > 0 else 0.0
        return round(self.asked + each * self.unasked), self.answered

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Bounds of the mean (balanced) accuracy: all unanswered windows judged wrongly, and all judged correctly."""
        if not self.answered:
            return None
        n = len(self._worst)
        return fsum(self._worst) / n, fsum(self._best) / n  # fsum: independent of the order of replies

    def noise(self, metric: str) -> dict[int, float]:
        """Return the variance of each latent's headline score; nan if unknown."""
        known = dict(zip(self._latents, self._noise, strict=True))
        return {latent: known[latent] for latent in self.values(metric)}

    def reliability(self, metric: str) -> float | None:
        """Return the reliability of the latents' headline scores; None if unknown."""
        return reliability([*self.values(metric).values()], [*self.noise(metric).values()])

    def tallies(self, rates: Mapping[int, float]) -> list[Tally]:
        """Return the answer counts of each latent whose non-activating windows were drawn with known probabilities.

        Args:
            rates: Share of windows in which each latent fires.
        """
        rows = zip(*[iter(self._tallies)] * _TALLIED, strict=True)
        each = zip(self._latents, rows, strict=True)
        return [Tally(rates[latent], *row) for latent, row in sorted(each) if row[-1] and latent in rates]

    def same(self, other: Scored) -> tuple[int, int]:
        """Return the number of windows with the same answer in both, and the number answered in both."""
        alike = both = 0
        for latent in self._answers.keys() & other._answers.keys():
            pairs = [
                (a, b) for a, b in zip(self._answers[latent], other._answers[latent], strict=False) if 2 not in (a, b)
            ]
            both += len(pairs)
            alike += sum(a == b for a, b in pairs)
        return alike, both

    def metrics(self) -> list[str]:
        """Return the names of the metrics that any latent has."""
        return sorted(self._values)

    def so_far(self, metric: str) -> tuple[int, float | None]:
        """Return the number of latents with a metric, and its mean so far."""
        import numpy as np

        column = np.array(self._values.get(metric, array("d")))
        known = column[~np.isnan(column)]
        return len(known), float(known.mean()) if len(known) else None

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric by latent, sorted by latent, so that sums do not depend on the order of replies."""
        import numpy as np

        column = np.array(self._values.get(metric, array("d")))
        latents = np.array(self._latents, dtype=np.int64)[: len(column)]
        known = ~np.isnan(column)
        latents, column = latents[known], column[known]
        order = np.argsort(latents)
        return dict(zip(latents[order].tolist(), column[order].tolist(), strict=True))


@dataclass
class CellState:
    """Results of one cell so far.

    Attributes:
        cell: The cell.
        store: Its activation store.
        records: Records of the sampled latents, in random order.
        counts: Numbers of latents requested, eligible and sampled.
        base: Hash of everything that the records depend on.
        explanations: Explanations by variant and latent, without prompts.
        scored: Scores by scorer label and variant.
        directions: Neighbours and promoted tokens, by latent.
        measured: Measures of the coder that need the model.
        dependent: Number of floors from a latent that does not fire independently, because there was no other.
    """

    cell: Cell
    store: ActivationStore
    records: Records
    counts: dict[str, int]
    base: str
    explanations: dict[tuple[str, int], Explanation] = field(default_factory=dict)
    scored: dict[tuple[str, str], Scored] = field(default_factory=dict)
    directions: dict[int, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    dependent: int = 0

    @property
    def l0(self) -> float:
        """Mean number of active latents per token."""
        return float(self.store.firings.sum()) / max(self.store.n_tokens, 1)

    def scores(self, label: str, variant: str = MAIN) -> Scored:
        """Return a scorer's scores for a variant of the explanations; without any latent if it was not run."""
        return self.scored.get((label, variant), Scored())

    def explanation(self, variant: str, latent: int) -> Explanation | None:
        """Return a latent's explanation; None if there is none or it failed."""
        found = self.explanations.get((variant, latent))
        return found if found is not None and found.status == "ok" else None

    def item(self, step: str, variant: str, latent: int) -> Item:
        """Return a work item of the cell."""
        return Item(self.cell.name, step, variant, LatentId(self.records.latents[0].hookpoint, latent))


@dataclass
class RunState:
    """Results of a run so far; the journal contains them in full.

    Attributes:
        task: The task.
        cells: States of the sampled cells, by name.
        reasons: Number of failures by step and reason.
    """

    task: Task
    cells: dict[str, CellState] = field(default_factory=dict)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def failed(self, step: str, reason: str) -> None:
        """Count a failure; only a limited number of different reasons is kept."""
        known = (step, reason) in self.reasons or len(self.reasons) < _REASONS
        self.reasons[step, reason if known else "other reasons"] += 1

    def key(self, item: Item, text: str = "") -> str:
        """Return the key of an item's result; `text` is the explanation that is scored."""
        return self._keys.of(item, text)

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self.task, {name: cell.base for name, cell in self.cells.items()})

    def explanation(self, journal: Results, item: Item) -> Explanation | None:
        """Return an explanation with its prompts from the journal."""
        entry = journal.made(self.key(item))
        return entry and Explanation.model_validate(entry["result"])

    def score(self, journal: Results, item: Item) -> tuple[Score, JudgedWindows] | None:
        """Return a latent's score without outcomes, and its judged windows, from the journal; None if not made yet."""
        cell, latent = self.cells[item.cell], item.latent.index
        scored = cell.scored[item.step, item.variant]
        if latent not in scored:
            return None
        explanation = cell.explanations.get((item.variant, latent))
        entry = journal.made(self.key(item, explanation.text)) if explanation else None
        if entry:
            return Score.model_validate({**entry["result"], "outcomes": ()}), judged_windows(entry) or _NO_WINDOWS
        status, reason = scored.unscored[latent]  # there was no explanation to score
        return Score(status=status, reason=reason), _NO_WINDOWS
