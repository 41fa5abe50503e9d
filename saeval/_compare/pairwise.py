"""Compares two cells: paired if they have the same latents, unpaired otherwise; reports the choice and its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._compare import stats
from saeval._compare.settings import differing_settings
from saeval._util import (
    WIDTH,
    InputError,
    aligned,
    aligned_rows,
    counted,
    derive_rng,
    did_you_mean,
    fold,
    interval,
    number,
    refuse_text,
    with_home,
)
from saeval.records import RunResult, ScoreRow
from saeval.results import RunCell, open_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ENOUGH = 100  # minimum paired latents for the sign-flip test to hold for means of skewed differences
_ALIKE = 0.01  # maximum relative difference of the same latent's firings and maxima between machines


@dataclass(frozen=True)
class Contrast:
    """Comparison of two cells in one metric.

    Attributes:
        metric: `scorer.metric`.
        higher_is_better: Direction of the metric; None if neither is better.
        a: Mean over A's latents; over the shared ones when paired.
        b: The same for B.
        n: Number of latents in each mean.
        difference: a - b.
        ci95: Interval of the difference; None if there are too few data.
        p: Two-sided p value of no difference; None for fewer than two latents.
        p_holm: The same, corrected for the number of metrics compared.
        approximate: Whether the p value is that of a mean of paired differences over fewer than 100 latents: exact if
            the sides are exchangeable, too small if one side fails rarely but by a lot.
        smallest_visible: Minimum detectable difference (5 % level, 80 % power).
        failed: Latents of A and of B that were tried and have no score.
        bounds: The difference with A's failures counted at the metric's floor, and with B's; None without failures or
            floor.
    """

    metric: str
    higher_is_better: bool | None
    a: float | None
    b: float | None
    n: tuple[int, int]
    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    approximate: bool
    smallest_visible: float | None
    failed: tuple[int, int]
    bounds: tuple[float, float] | None


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges on the same windows under the same explanations.

    Attributes:
        scorer: Label of the scorer.
        latents: Latents whose explanation is the same on both sides.
        windows: Windows of these latents that both judges answered.
        same: Share with equal answers.
        alpha: Krippendorff's alpha, nominal; None if all answers are equal.
        ci95: Its interval, by a jackknife over latents; None for fewer than ten latents.
    """

    scorer: str
    latents: int
    windows: int
    same: float
    alpha: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """Two cells side by side.

    Attributes:
        a: The first, `run:cell`.
        b: The second.
        paired: Whether differences are taken latent by latent.
        why: Reason for pairing or not pairing, from the data.
        contrasts: One per metric.
        agreement: Agreement of judges, if windows and explanations are the same.
        warnings: Warnings for readers of the numbers.
    """

    a: str
    b: str
    paired: bool
    why: str
    contrasts: tuple[Contrast, ...]
    agreement: tuple[Agreement, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        """Return the comparison as text."""
        return text(self)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class _Side:
    label: str
    path: Path
    run: RunResult
    cell: RunCell


def compare(
    a: str | Path, b: str | Path, metrics: Sequence[str] = (), *, paired: bool = False, seed: int = 0
) -> Comparison:
    """Compare two cells of the same or of different runs.

    If both have the same latents on the same corpus (two explainers, judges or prompts on one SAE), differences are
    taken per latent: a bootstrap interval of the mean difference, and a permutation test that flips signs. Otherwise
    (two SAEs: latent 17 of one is not latent 17 of the other) the sides are independent samples: the interval combines
    those of the two means, and the test permutes latents between sides. Both assume that latents are drawn
    independently of each other; `saeval._compare.stats` states each test's other assumptions.

    Args:
        a: A run directory, or `run:cell` if it has several contestants.
        b: Another one.
        metrics: `scorer.metric` each; default: the headline of every scorer that both have.
        paired: Pair latents by number even if they fire differently, as in checkpoints of one SAE.
        seed: Seed of resampling.

    Raises:
        InputError: If a run, cell or metric does not exist, both are the same cell, or too few latent numbers are on
            both sides to pair them.

    Example:
        >>> found = saeval.compare("mine", "other")
        >>> found.paired, [(c.metric, round(c.difference, 2)) for c in found.contrasts]
        (True, [('detection.balanced_accuracy', 0.5)])
    """
    refuse_text("metrics", metrics)
    sides = _told_apart(_open(a), _open(b))
    if sides[0].cell.folder.resolve() == sides[1].cell.folder.resolve():
        raise InputError(f"{sides[0].label}: is compared with itself; give two cells, as in `{a}:cell`")
    names = _metrics(sides, metrics)
    same, why = _same_latents(*(side.cell for side in sides))
    alike = same
    if paired and not same:
        same, why = True, _paired_by_number(*(side.cell for side in sides))
    found = [_contrast(sides, row, same, seed) for row in names]
    corrected = iter(stats.holm([c.p for c in found if c.p is not None]))
    contrasts = [replace(c, p_holm=None if c.p is None else next(corrected)) for c in found]
    cells = [side.cell for side in sides]
    return Comparison(
        a=sides[0].label,
        b=sides[1].label,
        paired=same,
        why=why,
        contrasts=tuple(contrasts),
        agreement=tuple(_agreement(*cells)) if alike else (),
        warnings=tuple(_warnings(*sides, same=same)),
    )


def split_reference(reference: str | Path) -> tuple[Path, str | None]:
    """Split `run` or `run:cell` into run directory and cell; cell names contain no colon."""
    path, colon, cell = str(reference).rpartition(":")
    whole = with_home(reference)
    return (with_home(path), cell) if colon and not whole.exists() else (whole, None)


def _open(reference: str | Path) -> _Side:
    path, name = split_reference(reference)
    run, cells = open_run(path, name)
    contestants = [c for c in cells if name is not None or c.result.baseline is None]
    if len(contestants) != 1:
        names = "; ".join(f"{path}:{c.name}" for c in cells)
        raise InputError(f"{path}: has {len(contestants)} contestants; choose a cell: {names}")
    return _Side(f"{run.run_id}:{contestants[0].name}", path, run, contestants[0])


def _told_apart(a: _Side, b: _Side) -> tuple[_Side, _Side]:
    """Return the sides, named by their directories if runs of the same name are compared: by path if necessary."""
    if a.label != b.label:
        return a, b
    short = a.path.name != b.path.name
    names = [f"{side.path.name if short else side.path}:{side.cell.name}" for side in (a, b)]
    return replace(a, label=names[0]), replace(b, label=names[1])


def _metrics(sides: tuple[_Side, _Side], wanted: Sequence[str]) -> list[tuple[ScoreRow, ScoreRow]]:
    """Return the rows of both sides for each metric to compare."""
    tables = [{f"{r.scorer}.{r.metric}": r for rows in side.cell.rows().values() for r in rows} for side in sides]
    common = [name for name in tables[0] if name in tables[1]]
    if not common:
        have = [", ".join(dict.fromkeys(r.scorer for r in table.values())) or "none" for table in tables]
        raise InputError(f"{sides[0].label} and {sides[1].label} have no scorer in common ({have[0]}; {have[1]})")
    for name in wanted:
        if name not in common:
            raise InputError(
                f"metric {name!r} is not in both{did_you_mean(name, common)}; available: {', '.join(common)}"
            )
    headlines = {tables[0][name].scorer: name for name in reversed(common)}
    names = wanted or [name for name in common if headlines[tables[0][name].scorer] == name]
    return [(tables[0][name], tables[1][name]) for name in dict.fromkeys(names)]


def _same_latents(a: RunCell, b: RunCell) -> tuple[bool, str]:
    """Decide from the data whether two cells have the same latents on the same corpus."""
    one, other = ({row["latent"]: row for row in cell.latents} for cell in (a, b))
    common = sorted(one.keys() & other.keys())
    corpora = {cell.result.corpus for cell in (a, b)} - {""}
    if len(corpora) > 1:
        return False, "the corpora differ"
    if not stats.pairs_well(common, one, other):
        return False, _few_in_both(common, one, other)
    if any(row["firings"] for cell in (one, other) for row in cell.values()):
        alike = [
            _alike(one[i]["firings"], other[i]["firings"])
            and _alike(one[i]["max_activation"], other[i]["max_activation"])
            for i in common
        ]
        if sum(alike) >= 0.95 * len(common):
            return True, f"{_in_both(common)}, with the same number, firings and maximum"
        return False, (
            f"latents of the same number fire differently ({len(common) - sum(alike)} of {len(common)}), so they are "
            "different latents"
        )
    if a.result.coder == b.result.coder and a.result.subject == b.result.subject:
        return (
            True,
            f"{_in_both(common)}, of a coder with the same name; how they fire is not recorded",
        )
    return False, "how the latents fire is not recorded, and the coders have different names"


def _in_both(common: Sequence[int]) -> str:
    return f"{counted(len(common), 'latent is', 'latents are')} in both"


def _few_in_both(common: Sequence[int], one: Collection[int], other: Collection[int]) -> str:
    sides = f"{len(one):,} and {counted(len(other), 'latent')}"
    return f"only {counted(len(common), 'latent number is', 'latent numbers are')} in both ({sides})"


def _paired_by_number(a: RunCell, b: RunCell) -> str:
    """Return why latents can be paired by number, as requested."""
    one, other = ([row["latent"] for row in cell.latents] for cell in (a, b))
    common = sorted(set(one) & set(other))
    if not stats.pairs_well(common, one, other):
        raise InputError(
            f"{_few_in_both(common, one, other)}, too few to be paired; score the same latents on both sides "
            "(`latents: {select: list}`)"
        )
    return f"{counted(len(common), 'latent is', 'latents are')} paired by number, as requested"


def _alike(x: float | None, y: float | None) -> bool:
    return abs((x or 0) - (y or 0)) <= _ALIKE * max(abs(x or 0), abs(y or 0))


def _contrast(sides: tuple[_Side, _Side], rows: tuple[ScoreRow, ScoreRow], paired: bool, seed: int) -> Contrast:
    """Return the difference of a metric; its p value is not yet corrected."""
    import numpy as np

    row = rows[0]
    name = f"{row.scorer}.{row.metric}"
    scores = [side.cell.values(row.scorer, row.metric) for side in sides]
    if paired:
        common = sorted(scores[0].keys() & scores[1].keys())
        scores = [{i: side[i] for i in common} for side in scores]
    x, y = (np.array(list(side.values()), dtype=np.float64) for side in scores)
    rng = derive_rng(seed, "compare", name)
    low = -inf if row.range[0] is None else row.range[0]
    high = inf if row.range[1] is None else row.range[1]
    known = len(x) > 0 and len(y) > 0
    interval, p = (float("nan"), float("nan")), float("nan")
    if known:
        interval = stats.difference_interval(x, y, paired=paired, low=low, high=high, rngs=(rng, rng))
        p = stats.paired_p(x - y, rng) if paired else stats.unpaired_p(x, y, rng)
    difference = float(x.mean() - y.mean()) if known else None
    bounded = bool(np.isfinite(interval).all())
    means = [float(values.mean()) if len(values) else None for values in (x, y)]
    visible = stats.detectable_within(interval) if bounded else None
    return Contrast(
        metric=name,
        higher_is_better=row.higher_is_better,
        a=means[0],
        b=means[1],
        n=(len(x), len(y)),
        difference=difference,
        ci95=interval if bounded else None,
        p=None if isnan(p) else p,
        p_holm=None,
        approximate=paired and not isnan(p) and len(x) < _ENOUGH and not _symmetric(x - y),
        smallest_visible=visible,
        failed=(rows[0].failed, rows[1].failed),
        bounds=_bounds(*rows),
    )


def _symmetric(differences: NDArray[np.float64]) -> bool:
    """Return whether the differences are symmetric, so that the sign-flip test also tests the mean."""
    import numpy as np

    d = np.sort(differences.round(9))
    return bool(np.allclose(d, -d[::-1]))


def _bounds(a: ScoreRow, b: ScoreRow) -> tuple[float, float] | None:
    """Return the differences with A's and with B's failures at the floor."""
    if not (a.failed or b.failed) or a.value is None or b.value is None:
        return None
    worst = [at_floor(row) for row in (a, b)]
    if worst[0] is None or worst[1] is None:
        return None
    return worst[0] - b.value, a.value - worst[1]


def at_floor(row: ScoreRow) -> float | None:
    """Return the mean with failures counted as chance, or as the worst value if there is no chance level."""
    worst = row.floor.get("chance", row.range[0] if row.higher_is_better else row.range[1])
    if worst is None or row.value is None:
        return None
    return (row.n * row.value + row.failed * worst) / (row.n + row.failed)


def _agreement(a: RunCell, b: RunCell) -> list[Agreement]:
    same = {i for i, text in a.texts.items() if b.texts.get(i) == text}
    found = []
    for scorer in dict.fromkeys(row.scorer for row in a.result.scores):
        answers = [_answers(cell, scorer, same) for cell in (a, b)]
        common = sorted(answers[0].keys() & answers[1].keys())
        if common:
            pair = [[side[key] for key in common] for side in answers]
            alpha = stats.krippendorff_alpha(pair)
            alike = sum(x == y for x, y in zip(*pair, strict=True)) / len(common)
            latents = [key[0] for key in common]
            ci95 = stats.alpha_interval(pair, latents)
            known = None if isnan(alpha) else alpha
            found.append(Agreement(scorer, len({*latents}), len(common), alike, known, ci95))
    return found


def _answers(cell: RunCell, scorer: str, latents: set[int]) -> dict[tuple[Any, ...], bool]:
    """Return answers by latent, window (its place and its text), truth and repetition of the question."""
    answers = {}
    judged = cell.judged(scorer)
    seen: Counter[tuple[Any, ...]] = Counter()
    for latent in latents & judged.keys():
        for row in judged[latent]:
            window = cell.windows.get((latent, row["example"]), {})
            key = latent, row["example"], "".join(window.get("tokens", ())), row["active"]
            seen[key] += 1
            if row["status"] == "ok" and row["predicted"] is not None:
                answers[*key, seen[key]] = bool(row["predicted"])
    return answers


def _warnings(a: _Side, b: _Side, *, same: bool) -> list[str]:
    found = []
    for what, one, other in (
        ("tasks", f"{a.run.task} {a.run.task_version}", f"{b.run.task} {b.run.task_version}"),
        ("subjects", a.cell.result.subject, b.cell.result.subject),
        ("corpora", a.cell.result.corpus, b.cell.result.corpus),
        ("explainers", a.cell.result.explainer, b.cell.result.explainer),
        ("judges", *(", ".join(sorted({r.judge for r in s.cell.result.scores if r.judge})) for s in (a, b))),
    ):
        if one and other and one != other and not (same and what in ("explainers", "judges")):
            found.append(f"The {what} differ ({one}; {other}), so the difference may not be due to coders alone.")
    for difference in differing_settings({"A": [a.cell.result], "B": [b.cell.result]}):
        if not (same and difference.startswith("explainer:")):
            found.append(f"{difference}; this may cause part of the difference.")
    for side in (a, b):
        for mark, on in (("made up (synthetic)", side.run.synthetic), ("partial", side.run.partial)):
            if on:
                found.append(f"{side.label}: the run is {mark}.")
    return found


def _p(contrast: Contrast, p: float | None) -> str:
    return "~" * contrast.approximate + number(p, ".2g")


def _contrasts(comparison: Comparison) -> str:
    """Return the metrics, each with its numbers below it."""
    head = ["A", "B", "A − B", "95 %", "p", "p Holm", "detectable", "n", "failed"]
    rows = [
        [
            number(c.a),
            number(c.b),
            number(c.difference, "+.3f"),
            interval(c.ci95, "+.3f"),
            _p(c, c.p),
            _p(c, c.p_holm),
            number(c.smallest_visible),
            str(c.n[0]) if comparison.paired else f"{c.n[0]}, {c.n[1]}",
            f"{c.failed[0]}, {c.failed[1]}",
        ]
        for c in comparison.contrasts
    ]
    first, *others = aligned_rows(head, rows, WIDTH - 2)
    lines = [f"metric\n  {first}"]
    for c, row in zip(comparison.contrasts, others, strict=True):
        arrow = {True: " ↑", False: " ↓", None: ""}[c.higher_is_better]
        lines.append(f"{c.metric}{arrow}\n  {row}")
        if c.bounds is not None:
            lines.append(f"  A − B with failures at the floor: {interval(c.bounds, '+.3f')}")
    return "\n".join(lines)


def text(comparison: Comparison) -> str:
    """Return the comparison for a terminal."""
    kind = "paired" if comparison.paired else "unpaired"
    parts = [f"A  {comparison.a}\nB  {comparison.b}", fold(f"{kind}: {comparison.why}"), _contrasts(comparison)]
    if comparison.agreement:
        head = ["judges agree", "alpha", "95 %", "same answer", "windows", "latents"]
        rows = [
            [x.scorer, number(x.alpha), interval(x.ci95), f"{x.same:.0%}", str(x.windows), str(x.latents)]
            for x in comparison.agreement
        ]
        parts.append(aligned(head, rows, WIDTH))
    note = "detectable: minimum detectable difference (5 %, power 80 %)."
    if len(comparison.contrasts) > 1:
        note += " p Holm: corrected for the number of metrics."
    if any(c.approximate for c in comparison.contrasts):
        note += (
            f" ~ approximate: exact if A and B are exchangeable; for means of skewed differences, {_ENOUGH} latents "
            "are needed."
        )
    return "\n\n".join([*parts, fold(note), *(fold(f"! {warning}") for warning in comparison.warnings)])
