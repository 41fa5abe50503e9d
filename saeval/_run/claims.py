"""Tests the claims of a spec on the run's results: shown, not shown, contradicted, or cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from math import isnan
from typing import TYPE_CHECKING

from saeval._compare import Basis, compare_vectors, pooled_mean, stats
from saeval._run.state import CellState
from saeval._util import SaevalError, counted, derive_rng
from saeval.models import embedder
from saeval.records import MAIN, CellResult, Finding, FindingOutcome, Metric
from saeval.task import CellFilter, FindingSpec, score_reference

if TYPE_CHECKING:
    import numpy as np

    from saeval._compare import Floats
    from saeval.task import Cell, Task

FEWEST_LATENTS = 8
"""Minimum latents per side to test a claim: intervals from fewer are unreliable."""
_WITHIN = 0.05  # default margin of `near` if there is no lift
FEWEST_CELLS = 5
"""Minimum cells to test an order along an axis: fewer have too few permutations."""

Unit = tuple[str, int]
"""A latent: the folder of its activation store, and its index."""


@dataclass(frozen=True)
class _Estimate:
    """The difference between a quantity and its reference.

    Attributes:
        what: The quantity in words.
        n: Number of latents (or cells) on each side.
        value: The difference; None if it could not be computed.
        ci95: Its interval; None if there is a p value instead, or the value is counted and not estimated.
        p: Two-sided p value of no difference.
        exact: Whether it is counted and not estimated.
        lift: Lift of the reference score; None for other quantities.
        why: Why the claim cannot be tested.
    """

    what: str
    n: tuple[int, ...] = ()
    value: float | None = None
    ci95: tuple[float, float] | None = None
    p: float | None = None
    exact: bool = False
    lift: float | None = None
    why: str = ""


def evaluate(task: Task, outcomes: Mapping[str, CellState]) -> list[Finding]:
    """Test the claims of a task's spec on the run's results.

    A claim is *shown* if the 95 % interval of the difference lies on the claimed side, *contradicted* if it lies on the
    other side, *not shown* if it covers both, and *cannot be told* with fewer than eight latents on a side or without a
    value to compare. For `near`, the claimed side is within a margin of 0; the margin is a share of the reference's
    lift, so that a small lift does not make a loss count as near. Claims are tested separately, without a correction
    for multiple tests, so about one in twenty false claims will be shown.

    Args:
        task: The task, with its findings.
        outcomes: The states of the cells by name.
    """
    claims = _Claims(list(outcomes.values()), task.run.seed)
    return [_finding(spec, claims.estimate(spec)) for spec in task.findings]


def _finding(spec: FindingSpec, found: _Estimate) -> Finding:
    margin = _margin(spec, found)
    if margin is not None and margin <= 0 and not found.why:
        found = replace(
            found, why="the score it is compared with is not above its floor, so there is no lift to compare"
        )
    outcome = "cannot be told" if found.why or found.value is None else _decided(spec, found, margin or 0.0)
    power = None if margin is None or found.ci95 is None or found.why else stats.power_of_near(margin, found.ci95)
    return Finding(
        claim=str(spec.claim),
        outcome=outcome,
        quantity=found.what + _within(margin, power),
        margin=margin,
        power=power,
        difference=found.value,
        ci95=found.ci95,
        p=found.p,
        n=found.n,
        reason=found.why,
    )


def pooled_findings(
    specs: Sequence[FindingSpec],
    found: Sequence[Sequence[Finding]],
    cells: Sequence[CellResult] = (),
    repeats: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Test claims on the means over runs with several seeds.

    Args:
        specs: The claims.
        found: For each run, its findings, one per claim.
        cells: The cells of a run.
        repeats: By cell, the mean number of runs that draw a latent; default: 1.
    """
    return [
        _pooled(spec, [findings[i] for findings in found], _repeats(spec, cells, repeats or {}, len(found)))
        for i, spec in enumerate(specs)
        if all(found)
    ]


def _repeats(spec: FindingSpec, cells: Sequence[CellResult], repeats: Mapping[str, float], runs: int) -> float:
    """Return the mean number of runs that draw a latent of a claim's cells; directions are those of all latents."""
    if spec.similarity in ("decoder", "encoder"):
        return float(runs)
    wanted = [spec.cells, *([] if spec.than_cells is None else [spec.than_cells])]
    concerned = [cell for cell in cells if any(_fits(cell, {"baseline": "None", **w}) for w in wanted)]
    return max((repeats.get(cell.cell, 1.0) for cell in concerned), default=1.0)


def _pooled(spec: FindingSpec, found: Sequence[Finding], repeats: float) -> Finding:
    known = [f for f in found if f.difference is not None and f.ci95 is not None]
    if len(known) < len(found):  # tested by a p value, counted, or not tested
        return found[0].model_copy(update={"quantity": f"{found[0].quantity}; first of {len(found)} seeds"})
    values, intervals = [f.difference or 0.0 for f in known], [f.ci95 for f in known if f.ci95]
    ci95 = pooled_mean(values, intervals, (None, None), repeats)
    margins = [f.margin for f in known if f.margin is not None]
    margin = sum(margins) / len(margins) if margins else None
    estimate = _Estimate(found[0].quantity, value=sum(values) / len(values), ci95=ci95)
    reasons = {f.reason for f in known} - {""}
    power = stats.power_of_near(margin, ci95) if margin is not None and margin > 0 else None
    told = {"margin": margin, "power": power, "n": tuple(map(sum, zip(*(f.n for f in known), strict=False)))}
    outcome = "cannot be told" if reasons else _decided(spec, estimate, margin or 0.0)
    quantity = f"{found[0].quantity.partition(', within ±')[0]}; {len(found)} seeds{_within(margin, power)}"
    return found[0].model_copy(
        update={**told, "outcome": outcome, "difference": estimate.value, "ci95": ci95, "quantity": quantity}
    )


def _margin(spec: FindingSpec, found: _Estimate) -> float | None:
    """Return the margin of a `near` claim; None for other claims."""
    if spec.is_ != "near":
        return None
    if spec.within is not None:
        return spec.within
    return _WITHIN if found.lift is None else spec.of_lift * found.lift


def _within(margin: float | None, power: float | None) -> str:
    """Return what the quantity of a `near` claim ends with; nothing if the claim was not tested."""
    return "" if power is None else f", within ± {margin:.3f} (power {power:.2f})"


def _decided(spec: FindingSpec, found: _Estimate, margin: float) -> FindingOutcome:
    """Return the outcome of a claim from the position of its interval."""
    assert found.value is not None
    if found.ci95 is not None:
        low, high = found.ci95
    elif found.exact or (found.p is not None and found.p <= 0.05):
        low = high = found.value
    else:
        return "not shown"
    inside, outside = {
        "above": (low > 0, high < 0),
        "below": (high < 0, low > 0),
        "near": (-margin <= low and high <= margin, low > margin or high < -margin),
    }[spec.is_]
    return "shown" if inside else "contradicted" if outside else "not shown"


class _Claims:
    """Estimates the quantities of claims from the cells of a run."""

    def __init__(self, outcomes: Sequence[CellState], seed: int):
        self.outcomes = outcomes
        self.seed = seed
        self.embed = embedder()
        self.vectors = cache(self._vectors)
        self.excess = cache(self._excess)

    def estimate(self, spec: FindingSpec) -> _Estimate:
        cells = self.cells(spec.cells)
        if not cells:
            return _Estimate(_named(spec.cells), why=f"no cell is {_named(spec.cells)}")
        try:
            if spec.score is not None:
                return self.score(spec, spec.score, cells)
            if spec.correlation is not None:
                return self.correlation(spec, spec.correlation, cells)
            if spec.tokens is not None:
                return self.tokens(spec, spec.tokens, cells)
            return self.similarity(spec, cells)
        except SaevalError as error:
            return _Estimate(_named(spec.cells), why=str(error))

    def cells(self, wanted: CellFilter) -> list[CellState]:
        """Return the cells that match a filter; only contestants unless it names a baseline."""
        return [o for o in self.outcomes if _fits(o.cell, {"baseline": "None", **wanted})]

    def rng(self, *keys: str) -> np.random.Generator:
        return derive_rng(self.seed, "finding", *keys)

    # --- scores ---

    def score(self, spec: FindingSpec, name: str, cells: Sequence[CellState]) -> _Estimate:
        import numpy as np

        metric, a = _scores(cells, name)
        title = f"{name}: {_named(spec.cells)}"
        if spec.than == "chance" or isinstance(spec.than, int | float):
            level = metric.chance if spec.than == "chance" else float(spec.than)
            what = f"{title}, less {'chance' if spec.than == 'chance' else level}"
            if level is None:
                return _Estimate(what, why=f"{name} has no chance level")
            if few := _few(a):
                return _Estimate(what, (len(a),), why=few)
            low, high = stats.mean_interval(list(a.values()), self.rng(what), low=metric.low, high=metric.high)
            return _Estimate(what, (len(a),), float(np.mean(list(a.values()))) - level, (low - level, high - level))
        other = spec.cells if spec.than_cells is None else spec.than_cells
        than = str(spec.than or name)
        what = f"{title}, less {than + ': ' if than != name else ''}{_named(other)}"
        if not (rivals := self.cells(other)):
            return _Estimate(what, why=f"no cell is {_named(other)}")
        other_metric, b = _scores(rivals, than)
        bounds = min(metric.low, other_metric.low), max(metric.high, other_metric.high)
        return replace(self.difference(what, bounds, a, b), lift=_lift(rivals, than, other_metric, b))

    def difference(
        self, what: str, bounds: stats.Interval, a: Mapping[Unit, float], b: Mapping[Unit, float]
    ) -> _Estimate:
        """Return the difference of two means, paired by latent if most latents are on both sides.

        Args:
            what: The difference in words.
            bounds: Minimum and maximum of both scores.
            a: Scores of one side.
            b: Scores of the other.
        """
        import numpy as np

        common = sorted(a.keys() & b.keys())
        paired = stats.pairs_well(common, a, b)
        if paired:
            what += ", paired"
            a, b = ({unit: side[unit] for unit in common} for side in (a, b))
        n = (len(common),) if paired else (len(a), len(b))
        if few := _few(a) or _few(b):
            return _Estimate(what, n, why=few)
        x, y = (np.array(list(side.values())) for side in (a, b))
        rngs = self.rng(what), self.rng(what)
        ci = stats.difference_interval(x, y, paired=paired, low=bounds[0], high=bounds[1], rngs=rngs)
        difference = float((x - y).mean()) if paired else float(x.mean()) - float(y.mean())
        return _Estimate(what, n, difference, ci)

    def correlation(self, spec: FindingSpec, names: tuple[str, str], cells: Sequence[CellState]) -> _Estimate:
        """Return the rank correlation of two scores over the latents that have both."""
        level = float(spec.than or 0)
        what = f"rank correlation of {names[0]} and {names[1]}: {_named(spec.cells)}" + (
            f", less {level}" if level else ""
        )
        (_, a), (_, b) = (_scores(cells, name) for name in names)
        common = sorted(a.keys() & b.keys())
        if few := _few(common):
            return _Estimate(what, (len(common),), why=few)
        found = stats.correlated(*([side[unit] for unit in common] for side in (a, b)))
        if found.spearman is None or found.ci95 is None:
            return _Estimate(what, (len(common),), why="one of the two gives all latents the same score")
        low, high = found.ci95
        return _Estimate(what, (len(common),), found.spearman - level, (low - level, high - level))

    def tokens(self, spec: FindingSpec, names: tuple[str, str], cells: Sequence[CellState]) -> _Estimate:
        level = 1.0 if spec.than is None else float(spec.than)
        what = f"tokens per latent, {names[0]} over {names[1]}: {_named(spec.cells)}, less {level:g}"
        taken = []
        for name in names:
            found = [o.scored[name, MAIN] for o in cells if (name, MAIN) in o.scored]
            usage, latents = [s.spent.total for s in found], sum(map(len, found))
            taken.append(sum(u.input_tokens + u.output_tokens for u in usage) / latents if latents else 0.0)
        if not all(taken):
            return _Estimate(what, why="one of the two has no token counts")
        return _Estimate(what, value=taken[0] / taken[1] - level, exact=True)

    # --- similarity ---

    def similarity(self, spec: FindingSpec, cells: Sequence[CellState]) -> _Estimate:
        basis = spec.similarity
        assert basis is not None
        names = tuple(o.cell.name for o in cells)
        what = f"similarity ({basis}) above that of random ones: {_named(spec.cells)}"
        if spec.along is not None:
            return self.along(f"rank correlation of {what}, and distance in {spec.along}", spec, basis, cells)
        if len(names) < 2:
            return _Estimate(what, why="there is only one cell")
        level = float(spec.than or 0)
        if len(names) == 2:
            cosines, random = self.excess(basis, spec.embedder, *names)
            if few := _few(cosines):
                return _Estimate(what, (len(cosines),), why=few)
            low, high = stats.mean_interval(cosines, self.rng(what), low=-1, high=1)
            floor = random + level
            return _Estimate(what, (len(cosines),), float(cosines.mean()) - floor, (low - floor, high - floor))
        mean, (low, high) = stats.jackknifed_pairs(partial(self.gain, basis, spec.embedder), names)
        return _Estimate(f"{what} ({len(names)} cells)", (len(names),), mean - level, (low - level, high - level))

    def gain(self, basis: Basis, model: str, a: str, b: str) -> float:
        """Return the mean cosine of matched latents minus that of random ones."""
        cosines, random = self.excess(basis, model, *sorted((a, b)))
        return float(cosines.mean()) - random

    def along(self, what: str, spec: FindingSpec, basis: Basis, cells: Sequence[CellState]) -> _Estimate:
        """Return the rank correlation of similarity and distance along an axis, over pairs of cells."""
        if len(cells) < FEWEST_CELLS:
            return _Estimate(what, (len(cells),), why=f"{len(cells)} of at least {FEWEST_CELLS} cells")
        places = [float(o.cell.axes[str(spec.along)]) for o in cells]
        names = [o.cell.name for o in cells]
        alike = [self.gain(basis, spec.embedder, a, b) for a, b in combinations(names, 2)]
        seen, p = stats.mantel(places, alike, self.rng(what))
        if isnan(seen):
            return _Estimate(what, (len(cells),), why="all pairs have equal similarity or equal distance")
        return _Estimate(what, (len(cells),), seen, p=p)

    def _excess(self, basis: Basis, model: str, a: str, b: str) -> tuple[Floats, float]:
        """Return the cosines of matched latents of two cells, and the mean cosine of random pairs."""
        x, y = self.vectors(basis, model, a), self.vectors(basis, model, b)
        if x.shape[1] != y.shape[1]:
            raise SaevalError(f"{a} and {b} are in different spaces: {x.shape[1]} and {y.shape[1]} dimensions")
        found, random, _ = compare_vectors(x, y, self.rng(basis, a, b))
        return found.cosines, random

    def _vectors(self, basis: Basis, model: str, name: str) -> Floats:
        outcome = next(o for o in self.outcomes if o.cell.name == name)
        if basis == "explanations":
            texts = [e.text for x in outcome.records.latents if (e := outcome.explanation(MAIN, x.index))]
            if not texts:
                raise SaevalError(f"{name}: has no explanations to embed")
            return self.embed(model, texts)
        weights = outcome.cell.source.plugin.weights()
        directions = weights.directions() if basis == "decoder" else weights.encoder_directions()
        if directions is None:
            raise SaevalError(f"{name}: its coder has no {basis} directions")
        found: Floats = directions.detach().float().cpu().numpy()
        if outcome.store.latents is None:
            found = found[outcome.store.firings > 0]  # without dead latents, which match nothing
        if not len(found):
            raise SaevalError(f"{name}: none of its latents fires")
        return found


def _fits(cell: Cell | CellResult, wanted: CellFilter) -> bool:
    have = {"baseline": str(cell.baseline), **cell.axes}
    return all(have.get(axis) in _ids(ids) for axis, ids in wanted.items())


def _ids(ids: object) -> list[str]:
    return [str(i) for i in ids] if isinstance(ids, list) else [str(ids)]


def _named(wanted: CellFilter) -> str:
    return ", ".join(f"{axis}={' or '.join(_ids(ids))}" for axis, ids in wanted.items()) or "all contestants"


def _scores(cells: Sequence[CellState], name: str) -> tuple[Metric, dict[Unit, float]]:
    """Return a score's metric, and its values by latent, averaged over the cells that share the latent."""
    label, wanted, explanation = score_reference(name)
    metrics = cells[0].cell.scorers[label].part.plugin.metrics
    metric = next((m for m in metrics if m.name == wanted), metrics[0])
    found: dict[Unit, list[float]] = {}
    for outcome in cells:
        for latent, value in outcome.scores(label, explanation).values(metric.name).items():
            found.setdefault((str(outcome.store.path), latent), []).append(value)
    return metric, {unit: sum(values) / len(values) for unit, values in sorted(found.items())}


def _lift(cells: Sequence[CellState], name: str, metric: Metric, values: Mapping[Unit, float]) -> float | None:
    """Return a score's lift above the cells' first uninformed baseline, or above chance; None without either."""
    label, _, explanation = score_reference(name)
    floors = [floor for floor in cells[0].cell.floors if floor != explanation]
    found = [_scores(cells, f"{label}.{metric.name} of {floor}")[1] for floor in floors]
    floor = next((sum(f.values()) / len(f) for f in found if f), metric.chance)
    if floor is None or not values or explanation in cells[0].cell.floors:
        return None
    mean = sum(values.values()) / len(values)
    return mean - floor if metric.higher_is_better else floor - mean


def _few(units: Sequence[object] | Mapping[Unit, float] | Floats) -> str:
    """Return a message if there are too few latents, else an empty string."""
    n = len(units)
    few = counted(n, "latent is", "latents are")
    return "" if n >= FEWEST_LATENTS else f"{few} too few (at least {FEWEST_LATENTS} are required)"
