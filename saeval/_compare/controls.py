"""Compares trained coders with controls by stratum: similar L0, and latents of one token or of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from saeval._compare import stats
from saeval._util import number
from saeval.records import ControlContrast, Metric

if TYPE_CHECKING:
    import numpy as np

FEWEST = 8
"""Minimum latents per side for a test."""
MARGIN = 0.1
"""Minimum difference from every control that is worth claiming."""
_LIKE = 1.5  # maximum ratio of L0s that count as similar
_SINGLE = 0.5  # minimum share of firings on one token for a single-token latent
_OUTCOMES = {
    "null": "not distinguishable from",
    "below": "below",
    "above": "above",
    "too few": "too few latents against",
}


class ControlCell(NamedTuple):
    """One cell's data for a comparison under one scorer.

    Attributes:
        control: Name of the control; None for a trained coder.
        l0: Mean number of latents that fire per token; None if unknown.
        scores: Scores by latent.
        token_shares: Share of each latent's firings that fall on its most frequent token.
    """

    control: str | None
    l0: float | None
    scores: Mapping[int, float]
    token_shares: Mapping[int, float]


def control_contrasts(
    scorer: str, metric: Metric, cells: Sequence[ControlCell], rng: np.random.Generator
) -> list[ControlContrast]:
    """Compare trained latents with every control in every stratum, with Holm's correction over all comparisons.

    Strata are L0s within a factor of 1.5, and within each: all latents, latents with at least half of their firings on
    one token, and the others. Trained coders of similar L0 are pooled, and so are controls of the same name. Latents
    of different coders are treated as independent samples.

    Args:
        scorer: The scorer's label.
        metric: The metric; differences are positive where trained latents are better.
        cells: Trained coders and controls.
        rng: Random generator for resamples.
    """
    controls = list(dict.fromkeys(cell.control for cell in cells if cell.control is not None))
    found = []
    for label, trained, like in _by_l0(cells):
        for kind, wanted in (("all latents", None), ("one token", True), ("several tokens", False)):
            ours = _scores(trained, wanted)
            for control in controls:
                theirs = _scores((cell for cell in like if cell.control == control), wanted)
                found.append(_contrast((scorer, metric, control), f"{label}{kind}", ours, theirs, rng))
    return holm_corrected(found)


def holm_corrected(found: Sequence[ControlContrast]) -> list[ControlContrast]:
    """Correct the p values and detectable differences of one scorer's contrasts for multiple testing."""
    tested = [c for c in found if c.p is not None and c.ci95 is not None]
    ps = iter(stats.holm([c.p for c in tested if c.p is not None]))
    corrected = []
    for contrast in found:
        if contrast.p is not None and contrast.ci95 is not None:
            error = (contrast.ci95[1] - contrast.ci95[0]) / 2 / stats.Z95
            detectable = stats.detectable_difference([error] * len(tested))
            contrast = contrast.model_copy(update={"p_holm": next(ps), "detectable": detectable})
        corrected.append(contrast)
    return corrected


def pooled_contrasts(
    runs: Sequence[Sequence[ControlContrast]], repeats: Mapping[str, float] | None = None
) -> list[ControlContrast]:
    """Average each contrast over runs (one per seed); it has counts but no estimates if a run lacks an estimate.

    Args:
        runs: The contrasts of each run.
        repeats: By control, the mean number of runs that draw a latent; default: 1.
    """
    from saeval._compare.pooled import pooled_mean

    by_scorer: dict[str, list[ControlContrast]] = {}
    strata: dict[tuple[str, str, str], list[ControlContrast]] = {}
    for contrast in (contrast for run in runs for contrast in run):
        strata.setdefault((contrast.scorer, contrast.stratum, contrast.control), []).append(contrast)
    for (scorer, _, _), same in strata.items():
        known = [c for c in same if c.difference is not None and c.ci95 is not None]
        total = {"n": (sum(c.n[0] for c in same), sum(c.n[1] for c in same))}
        if len(known) < len(runs):
            nothing = dict.fromkeys(("trained", "value", "difference", "ci95", "p", "p_holm", "detectable"))
            by_scorer.setdefault(scorer, []).append(same[0].model_copy(update={**nothing, **total}))
            continue
        k, differences = len(known), [c.difference or 0.0 for c in known]
        means = {name: sum(getattr(c, name) for c in known) / k for name in ("trained", "value", "difference")}
        often = (repeats or {}).get(known[0].control, 1.0)
        ci95 = pooled_mean(differences, [c.ci95 for c in known if c.ci95], (None, None), often)
        p = stats.normal_p(means["difference"], (ci95[1] - ci95[0]) / 2 / stats.Z95)
        by_scorer.setdefault(scorer, []).append(known[0].model_copy(update={**means, **total, "ci95": ci95, "p": p}))
    return [contrast for same in by_scorer.values() for contrast in holm_corrected(same)]


def strata_texts(found: Sequence[ControlContrast]) -> Iterator[str]:
    """Yield a sentence per scorer and stratum: whether trained latents score above every control, and by how much."""
    groups: dict[tuple[str, str], list[ControlContrast]] = {}
    for contrast in found:
        groups.setdefault((contrast.scorer, contrast.stratum), []).append(contrast)
    for (scorer, stratum), same in groups.items():
        if all(c.outcome == "above" for c in same):
            nearest = min(same, key=lambda c: c.difference or 0.0)
            small = "" if (nearest.difference or 0.0) >= MARGIN else f", less than {MARGIN:g}"
            said = [f"above every control ({nearest.control} is nearest: {number(nearest.difference, '+.3f')}{small})"]
        else:
            said = list(_by_outcome(same))
        yield f"{scorer}, {stratum}: {'; '.join(said)}"


def _by_outcome(same: Sequence[ControlContrast]) -> Iterator[str]:
    """Yield the test's outcomes for one stratum's controls, grouped by outcome."""
    for outcome, words in _OUTCOMES.items():
        texts = []
        for c in (c for c in same if c.outcome == outcome):
            facts = [] if c.difference is None else [number(c.difference, "+.3f")]
            facts += [f"detectable {number(c.detectable)}"] if outcome == "null" else []
            texts.append(f"{c.control} ({', '.join(facts)})" if facts else c.control)
        if texts:
            yield f"{words} {', '.join(texts)}"


def _by_l0(cells: Sequence[ControlCell]) -> Iterator[tuple[str, list[ControlCell], list[ControlCell]]]:
    """Yield label, trained cells and controls per range of L0; a single range if any L0 is unknown."""
    trained = [cell for cell in cells if cell.control is None]
    controls = [cell for cell in cells if cell.control is not None]
    if any(cell.l0 is None for cell in cells):
        yield "", trained, controls
        return
    groups: list[list[ControlCell]] = []
    for cell in sorted(trained, key=lambda cell: cell.l0 or 0.0):
        if groups and (cell.l0 or 0.0) <= _LIKE * (groups[-1][0].l0 or 0.0):
            groups[-1].append(cell)
        else:
            groups.append([cell])
    for group in groups:
        low, high = group[0].l0 or 0.0, group[-1].l0 or 0.0
        ends = dict.fromkeys(f"{l0:.0f}" if l0 >= 10 else f"{l0:.2g}" for l0 in (low, high))
        yield f"L0 {'–'.join(ends)}, ", group, [c for c in controls if low / _LIKE <= (c.l0 or 0.0) <= high * _LIKE]


def _scores(cells: Iterable[ControlCell], single: bool | None) -> list[float]:
    """Return the scores of single-token latents (True), of the others (False) or of all latents (None)."""
    found = []
    for cell in cells:
        for latent, score in sorted(cell.scores.items()):
            share = cell.token_shares[latent]
            if single is None or (share >= _SINGLE) is single:
                found.append(score)
    return found


def _contrast(
    what: tuple[str, Metric, str], stratum: str, ours: list[float], theirs: list[float], rng: np.random.Generator
) -> ControlContrast:
    import numpy as np

    scorer, metric, control = what
    contrast = ControlContrast(
        scorer=scorer, metric=metric.name, stratum=stratum, control=control, n=(len(ours), len(theirs))
    )
    if min(contrast.n) < FEWEST:
        return contrast
    sign = 1 if metric.higher_is_better else -1
    trained, value = float(np.mean(ours)), float(np.mean(theirs))
    low, high = stats.difference_interval(ours, theirs, paired=False, low=metric.low, high=metric.high, rngs=(rng, rng))
    return contrast.model_copy(
        update={
            "trained": trained,
            "value": value,
            "difference": sign * (trained - value),
            "ci95": (low, high) if sign > 0 else (-high, -low),
            "p": stats.unpaired_p(ours, theirs, rng),
        }
    )
