"""Summarises a run: from the scores of single latents to the rows of `results.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import saeval
from saeval._compare import (
    ControlCell,
    Halves,
    components,
    control_contrasts,
    correlated,
    disattenuated,
    mean_interval,
    paired_power,
    power_interval,
    reliability,
    with_lifts,
)
from saeval._run import judge_checks
from saeval._run.cautions import RECORDED, cautions_of, finite, noted_measures, warnings_of
from saeval._run.scorer_rows import explanation_baselines, scorer_rows
from saeval._run.state import CellState, RunState
from saeval._util import derive_rng
from saeval.activations import token_share
from saeval.records import (
    MAIN,
    CellResult,
    ControlContrast,
    Correlation,
    DecileShares,
    Finding,
    JudgeRole,
    Ledger,
    Measure,
    PartSettings,
    Power,
    RunResult,
    ScoreRow,
    VarianceParts,
)
from saeval.task import AGAIN, HALVES, OF_ALL_LATENTS, REPEATED, text_options_of

if TYPE_CHECKING:
    from saeval.task import Cell, Part, Task

_ELSEWHERE = ("fvu", "subject", "l0_of_files", "warnings", "measures")
"""Facts that are stored in other fields of a cell."""
_POWER_AT = 50  # number of latents that the docs recommend for a claim


def summarise(
    state: RunState,
    ledger: Sequence[Ledger],
    *,
    run_id: str,
    partial: bool,
    seconds: dict[str, float],
    findings: Sequence[Finding] = (),
    warnings: Sequence[str] = (),
) -> RunResult:
    """Return the result of a run from its finished work; `warnings` come before the run's own."""
    task, outcomes = state.task, state.cells
    parts = {(p.label, p.plugin.model_dump_json()): p for p in task.parts()}.values()
    synthetic = any(p.plugin.synthetic for p in parts if p.loaded.kind in ("source", "llm"))
    recorded = any(p.plugin.recorded for p in parts if p.loaded.kind == "llm")
    cells, _ = with_lifts([_cell_result(task, outcome) for outcome in outcomes.values()])
    contestants = [outcome for outcome in outcomes.values() if outcome.cell.baseline is None]
    single_files = [part for part in parts if part.loaded.sha]
    return RunResult(
        run_id=run_id,
        task=task.name,
        task_version=task.version,
        description=task.description,
        spec_sha=task.sha,
        saeval_version=saeval.__version__,
        seed=task.run.seed,
        rank_by=task.rank_by,
        partial=partial,
        synthetic=synthetic,
        recorded=recorded,
        reproducible=not synthetic and not single_files,
        cells=cells,
        measures=_measures(task),
        correlations=_correlations(contestants),
        ledger=list(ledger),
        judges=_judges(task),
        findings=list(findings),
        controls=list(_controls(task, outcomes.values())),
        warnings=[
            *warnings,
            *warnings_of(task, cells, outcomes, partial=partial, synthetic=synthetic),
            *([RECORDED] * recorded),
        ],
        components={"plugins": [part.identity for part in parts], "packages": packages()},
        seconds={k: round(v, 2) for k, v in seconds.items()},
    )


def _controls(task: Task, outcomes: Iterable[CellState]) -> Iterator[ControlContrast]:
    """Yield trained minus control for each scorer's headline metric, control and stratum.

    Cells of one coder (other explainers, judges or samplers) share their latents, so each latent counts once, with the
    mean of its scores.
    """
    if not task.controls:
        return
    compared = [o for o in outcomes if o.cell.baseline is None or o.cell.baseline in task.controls]
    coders: dict[tuple[str | None, str], list[CellState]] = {}
    for o in compared:
        coders.setdefault((o.cell.baseline, str(o.store.path)), []).append(o)
    shares = {
        key: {latent.index: token_share(o.store, latent.index) for o in same for latent in o.records.latents}
        for key, same in coders.items()
    }
    for label, step in compared[0].cell.scorers.items():
        metric = step.part.plugin.metrics[0]
        if label.endswith(REPEATED) or metric.higher_is_better is None:
            continue
        cells = []
        for key, same in coders.items():
            found: dict[int, list[float]] = {}
            for o in same:
                for latent, score in o.scores(label).values(metric.name).items():
                    found.setdefault(latent, []).append(score)
            scores = {latent: sum(values) / len(values) for latent, values in found.items()}
            l0 = same[0].l0 if same[0].store.latents is None else None
            cells.append(ControlCell(key[0], l0, scores, shares[key]))
        yield from control_contrasts(label, metric, cells, derive_rng(task.run.seed, "controls", label))


def _judges(task: Task) -> list[JudgeRole]:
    """Return the models that scorers ask, with their latest checks; without the model that the task itself checks."""
    asked = dict.fromkeys(step.role for cell in task.cells for step in cell.scorers.values() if step.role)
    roles = [task.roles[role] for role in asked if role != task.checks]
    return [
        JudgeRole(role=r.role, model=r.model, check=judge_checks.find(r), command=judge_checks.command(task, r))
        for r in roles
    ]


def _cell_result(task: Task, outcome: CellState) -> CellResult:
    cell, store = outcome.cell, outcome.store
    explained = sum(outcome.explanation(MAIN, latent.index) is not None for latent in outcome.records.latents)
    role = cell.explainer.role
    coder = cell.source.nested[0].label if cell.source.nested else cell.source.label
    explainer = cell.explainer.part.label + (f" with {task.roles[role].model}" if role else "")
    parts = list(_variance(outcome))
    shared = {found.scorer: sum(found.shared.values()) for found in parts}
    rates = _firing_rates(outcome)
    rows: list[ScoreRow] = []
    for label in cell.scorers:
        rows += scorer_rows(task, outcome, label, rates, shared.get(label, 0.0))
    return CellResult(
        cell=cell.name,
        axes=cell.axes,
        baseline=cell.baseline,
        coder={"plugin": coder, **_coder_facts(store.facts)},
        subject=str(store.facts.get("subject", "")),
        corpus=str(store.manifest["files"]["tokens.npy"]["blake2b"]),
        text_options=text_options_of(cell.source.plugin),
        explainer=explainer,
        settings=_settings(cell),
        measures=_cell_measures(task, outcome),
        counts={**outcome.counts, "explained": explained},
        scores=rows,
        deciles=[shares for label in cell.scorers if (shares := _deciles(outcome, label))],
        correlations=_correlations([outcome]),
        powers=list(_powers(task, outcome)),
        variance=parts,
        cautions=cautions_of(outcome),
    )


def _settings(cell: Cell) -> dict[str, PartSettings]:
    """Return the settings of a cell's sampler, explainer and scorers."""
    scorers = {f"scorers.{label}": step.part for label, step in cell.scorers.items()}
    parts: dict[str, Part[Any]] = {"sampler": cell.sampler, "explainer": cell.explainer.part, **scorers}
    return {
        name: PartSettings(plugin=part.label, options=part.plugin.model_dump(mode="json"), sha=part.sha, code=part.code)
        for name, part in parts.items()
    }


def _measures(task: Task) -> list[Measure]:
    """Return the measures that the parts of all cells declare, by unique name; those of explainers with intervals."""
    found = {measure.name: measure for cell in task.cells for measure in cell.source.measures}
    for cell in task.cells:
        for m in cell.explainer.part.plugin.measures:
            ends = [
                Measure(name=f"{m.name}_{end}", title=title, format=m.format, about=f"{side} end of its 95 % interval.")
                for end, title, side in (("low", "from", "Lower"), ("high", "to", "Upper"))
            ]
            found |= {measure.name: measure for measure in (m, *ends)}
    return list(found.values())


def _cell_measures(task: Task, outcome: CellState) -> dict[str, float]:
    """Return the finite measures of a cell's coder, activations and explanations; the coder's own take precedence."""
    store = outcome.store
    firings = store.firings
    of_activations = {
        "l0": float(firings.sum()) / store.n_tokens,
        "density": float(firings.mean()) / store.n_tokens,
        "frac_alive": float((firings > 0).mean()),
        "d_sae": float(store.n_latents),
        "tokens": float(store.n_tokens),
    }
    if "fvu" in store.facts:
        of_activations["fvu"] = float(store.facts["fvu"])
    wanted = {*task.measures, "fvu"} if store.latents is None else {*task.measures} - OF_ALL_LATENTS
    found: dict[str, object] = {name: value for name, value in of_activations.items() if name in wanted}
    found |= {**outcome.measured, **dict(noted_measures(outcome))}
    numbers = {name: number for name, value in found.items() if (number := finite(value)) is not None}
    return _of_explanations(task, outcome) | numbers


def _of_explanations(task: Task, outcome: CellState) -> dict[str, float]:
    """Return the means and intervals of the explainer's measures over latents."""
    found: dict[str, float] = {}
    for measure in outcome.cell.explainer.part.plugin.measures:
        made = (outcome.explanation(MAIN, latent.index) for latent in outcome.records.latents)
        notes = [explanation.notes.get(measure.name) for explanation in made if explanation is not None]
        values = [value for note in notes if (value := finite(note)) is not None]
        if not values:
            continue
        rng = derive_rng(task.run.seed, "interval", outcome.cell.name, measure.name)
        low, high = mean_interval(values, rng, low=-inf, high=inf)
        found[measure.name] = sum(values) / len(values)
        if isfinite(low):
            found |= {f"{measure.name}_low": low, f"{measure.name}_high": high}
    return found


def _coder_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about a coder that its source recorded, without those in other fields of a cell."""
    return {name: value for name, value in facts.items() if name not in _ELSEWHERE}


def _firing_rates(outcome: CellState) -> dict[int, float]:
    """Return the share of the corpus's windows in which each latent fires; empty for stores of excerpts."""
    store, window = outcome.store, outcome.cell.sampler.plugin.window
    if not store.holds_whole_text or not (total := store.window_count(window)):
        return {}
    return {latent.index: len(store.windows(latent.index, window).ids) / total for latent in outcome.records.latents}


def _deciles(outcome: CellState, label: str) -> DecileShares | None:
    """Return the share of correct judgements per decile; None for scorers without answers per window."""
    scored = outcome.scores(label)
    if not any(scored.judged):
        return None
    *shares, negatives = (right / n if n else None for right, n in zip(scored.right, scored.judged, strict=True))
    *n, negatives_n = scored.judged
    return DecileShares(
        scorer=label, right=tuple(shares), n=tuple(n), negatives_right=negatives, negatives_n=negatives_n
    )


def _correlations(outcomes: Sequence[CellState]) -> list[Correlation]:
    """Return the correlation of each pair of scorers over the common latents of these cells."""
    headlines: dict[str, dict[tuple[str, int], float]] = {}
    noise: dict[str, dict[tuple[str, int], float]] = {}
    for outcome in outcomes:
        for label, step in outcome.cell.scorers.items():
            scored, metric = outcome.scores(label), step.part.plugin.metrics[0].name
            for found, values in ((headlines, scored.values(metric)), (noise, scored.noise(metric))):
                found.setdefault(label, {}).update({(outcome.cell.name, i): v for i, v in values.items()})
    correlations = []
    for a, b in combinations(headlines, 2):
        latents = sorted(headlines[a].keys() & headlines[b].keys())
        columns = [[headlines[label][latent] for latent in latents] for label in (a, b)]
        errors = [[noise[label][latent] for latent in latents] for label in (a, b)]
        pair = correlated(*columns, interval=False)
        corrected = disattenuated(pair.pearson, [reliability(x, e) for x, e in zip(columns, errors, strict=True)])
        correlations.append(
            Correlation(scorers=(a, b), n=pair.n, pearson=pair.pearson, spearman=pair.spearman, corrected=corrected)
        )
    return correlations


def _variance(outcome: CellState) -> Iterator[VarianceParts]:
    """Yield the variance components of each scorer with repeated judgements or explanations."""
    for label, step in outcome.cell.scorers.items():
        metric = step.part.plugin.metrics[0].name
        own = outcome.scores(label)
        again = {"judge": outcome.scores(f"{label}_{AGAIN}"), "explainer": outcome.scores(label, AGAIN)}
        values, repeats = own.values(metric), {}
        for source, other in again.items():
            others = other.values(metric)
            common = [latent for latent in values if latent in others]
            if len(common) > 1:
                repeats[source] = [values[i] for i in common], [others[i] for i in common]
        halves = _halves(outcome, label, metric)
        if repeats or halves is not None:
            found = components(list(values.values()), list(own.noise(metric).values()), repeats, halves)
            counts = [len(one) for one, _ in repeats.values()]
            n = min(counts if halves is None else [*counts, len(halves.scores[0])])
            yield VarianceParts(scorer=label, n=n, **found._asdict())


def _halves(outcome: CellState, label: str, metric: str) -> Halves | None:
    """Return a scorer's scores on the two halves of the corpus; None if not requested."""
    one, other = (outcome.scores(f"{label}_{name}", name) for name in HALVES)
    values, noises = (one.values(metric), other.values(metric)), (one.noise(metric), other.noise(metric))
    common = [latent for latent in values[0] if latent in values[1]]
    if len(common) < 2:
        return None
    first, second = ([scores[i] for i in common] for scores in values)
    errors = ([noise[i] for i in common] for noise in noises)
    return Halves((first, second), (next(errors), next(errors)))


def _powers(task: Task, outcome: CellState) -> Iterator[Power]:
    """Yield each scorer's power to distinguish the cell's own explanations from those of each informed baseline."""
    informed = [name for name in explanation_baselines(outcome) if name not in outcome.cell.floors]
    for label, step in outcome.cell.scorers.items():
        metric = step.part.plugin.metrics[0]
        own = outcome.scores(label).values(metric.name)
        for variant in informed:
            other = outcome.scores(label, variant).values(metric.name)
            sign = 1 if metric.higher_is_better else -1
            differences = [sign * (own[latent] - other[latent]) for latent in own if latent in other]
            if len(differences) < ScoreRow.FEW:
                continue
            rng = derive_rng(task.run.seed, "power", outcome.cell.name, label, variant)
            yield Power(
                scorer=label,
                variant=variant,
                metric=metric.name,
                n=len(differences),
                difference=sum(differences) / len(differences),
                latents=_POWER_AT,
                power=paired_power(differences, _POWER_AT, rng),
                ci95=power_interval(differences, _POWER_AT, rng),
            )


_version = cache(version)  # which reads the package's metadata each time


def packages() -> dict[str, str]:
    """Return the versions of the packages that results may depend on."""
    found = {}
    for name in (
        "saeval",
        "torch",
        "transformers",
        "sae-lens",
        "litellm",
        "sentence-transformers",
        "numpy",
        "pydantic",
    ):
        try:
            found[name] = _version(name)
        except PackageNotFoundError:
            continue
    return found
