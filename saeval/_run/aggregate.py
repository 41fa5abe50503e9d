"""Summarises a run: from the scores of single latents to the rows of `results.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from typing import TYPE_CHECKING, Any

import saeval
from saeval._compare import (
    ControlCell,
    Floors,
    KnownJudge,
    ScorerRun,
    components,
    control_contrasts,
    correct_for_judge,
    correlated,
    disattenuated,
    natural_rates,
    paired_power,
    prediction_interval,
    reliability,
    score_row,
    standard_error,
    with_lifts,
)
from saeval._run import judge_checks
from saeval._run.state import CellState, RunState, Scored
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
    Metric,
    Power,
    RunResult,
    ScorerCheck,
    ScoreRow,
    VarianceParts,
)
from saeval.task import AGAIN, OF_ALL_LATENTS

if TYPE_CHECKING:
    from saeval.task import Cell, StepPart, Task

_ELSEWHERE = ("fvu", "subject", "l0_of_files", "warnings", "measures")  # facts that other fields of a cell hold
_POWER_AT = 50  # latents that docs recommend for a claim
_FAR = 1.5  # factor between an L0 and the one of the coder's files from which on something is wrong


_RECORDED = (
    "Language models' replies were recorded in an earlier run and are repeated here: nothing was asked, and the "
    "numbers do not rank beside those of live models."
)


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
    """Return the result of a run from what is finished of it; its own warnings come after those given."""
    task, outcomes = state.task, state.cells
    parts = {p.label: p for p in task.parts()}
    synthetic = any(getattr(p.plugin, "synthetic", False) for p in parts.values())
    recorded = any(getattr(p.plugin, "recorded", False) for p in parts.values())
    cells, _ = with_lifts([_cell_result(task, outcome, state.done) for outcome in outcomes.values()])
    contestants = [outcome for outcome in outcomes.values() if outcome.cell.baseline is None]
    single_files = [part for part in parts.values() if part.loaded.sha]
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
            *_warnings(task, cells, outcomes, partial, synthetic),
            *_flaws(outcomes.values()),
            *([_RECORDED] * recorded),
        ],
        components={"plugins": {label: p.identity for label, p in parts.items()}, "packages": packages()},
        seconds={k: round(v, 2) for k, v in seconds.items()},
    )


def _controls(task: Task, outcomes: Iterable[CellState]) -> Iterator[ControlContrast]:
    """Yield trained minus control for each scorer's headline, control and stratum."""
    if not task.controls:
        return
    compared = [o for o in outcomes if o.cell.baseline is None or o.cell.baseline in task.controls]
    shares = {
        o.cell.name: {latent.index: token_share(o.store, latent.index) for latent in o.records.latents}
        for o in compared
    }
    for label, step in compared[0].cell.scorers.items():
        metric = step.part.plugin.metrics[0]
        if label.endswith(f"_{AGAIN}") or metric.higher_is_better is None:
            continue
        cells = []
        for o in compared:
            scores = o.scored.get((label, MAIN), Scored()).values(metric.name)
            l0 = _l0(o) if o.store.latents is None else None
            cells.append(ControlCell(o.cell.baseline, l0, scores, shares[o.cell.name]))
        yield from control_contrasts(label, metric, cells, derive_rng(task.run.seed, "controls", label))


def _judges(task: Task) -> list[JudgeRole]:
    """Return the models that scorers asked, each with what is known of it; in a check, not the one that is checked."""
    asked = dict.fromkeys(step.role for cell in task.cells for step in cell.scorers.values() if step.role)
    roles = [task.roles[role] for role in asked if role != task.checks]
    return [
        JudgeRole(role=r.role, model=r.model, check=judge_checks.find(r), command=judge_checks.command(task, r))
        for r in roles
    ]


def _cell_result(task: Task, outcome: CellState, done: bool) -> CellResult:
    cell, store = outcome.cell, outcome.store
    facts = store.facts
    firings = store.firings
    measures = {
        "l0": float(firings.sum()) / store.n_tokens,
        "density": float(firings.mean()) / store.n_tokens,
        "frac_alive": float((firings > 0).mean()),
        "d_sae": float(store.n_latents),
        "tokens": float(store.n_tokens),
        **({"fvu": float(facts["fvu"])} if "fvu" in facts else {}),
    }
    known = {*task.measures, "fvu"} if store.latents is None else {*task.measures} - OF_ALL_LATENTS
    measures = {k: v for k, v in measures.items() if k in known} | outcome.measured
    noted = facts.get("measures", {})
    measures |= {m.name: float(noted[m.name]) for m in _declared(cell) if m.name in noted}
    explained = sum(outcome.explanation(MAIN, latent.index) is not None for latent in outcome.records.latents)
    role = cell.explainer.role
    coder = cell.source.nested[0].label if cell.source.nested else cell.source.label
    explainer = cell.explainer.part.label + (f" with {task.roles[role].model}" if role else "")
    parts = list(_variance(outcome))
    shared = {found.scorer: sum(found.shared.values()) for found in parts}
    rates = _firing_rates(outcome)
    rows = []
    for label, step in cell.scorers.items():
        rows += _rows(task, outcome, label, step, done, rates, shared.get(label, 0.0))
    return CellResult(
        cell=cell.name,
        axes=cell.axes,
        baseline=cell.baseline,
        coder={"plugin": coder, **_coder_facts(facts)},
        subject=str(facts.get("subject", "")),
        corpus=str(store.manifest["files"]["tokens.npy"]["blake2b"]),
        explainer=explainer,
        measures=measures,
        counts={**outcome.counts, "explained": explained},
        scores=rows,
        deciles=[shares for label in cell.scorers if (shares := _deciles(outcome, label))],
        correlations=_correlations([outcome]),
        powers=list(_powers(task, outcome)),
        variance=parts,
        cautions=_cautions(outcome),
    )


def _score_cautions(outcome: CellState) -> Iterator[str]:
    """Say what scorers and sampler have to say of a cell's scores and windows."""
    for label, step in outcome.cell.scorers.items():
        if (scored := outcome.scored.get((label, MAIN))) is None or not scored.tried:
            continue
        columns = {name: list(scored.values(name).values()) for name in scored.metrics()}
        means = {name: sum(column) / len(column) for name, column in columns.items() if column}
        for caution in step.part.plugin.cautions(means, outcome.records.latents):
            yield f"{label}: {caution}"
    asked, silent = outcome.cell.sampler.plugin.silent_windows(), outcome.records.silent
    short = [n for n in silent if asked is not None and n < asked]
    if short:
        yield (
            f"{len(short)} of {len(silent)} latents have fewer than the {asked} non-activating windows asked for, "
            f"{min(short)} at least."
        )


def _l0(outcome: CellState) -> float:
    """Latents per token that fire."""
    return float(outcome.store.firings.sum()) / max(outcome.store.n_tokens, 1)


def _unlike(outcomes: Mapping[str, CellState]) -> Iterator[str]:
    """Say which random SAEs are sparser or denser than every contestant."""
    beside = [_l0(o) for o in outcomes.values() if o.cell.baseline is None and o.store.latents is None]
    for name, outcome in outcomes.items():
        l0 = _l0(outcome)
        random = outcome.cell.baseline is not None and outcome.store.facts.get("architecture") == "random top-k"
        if random and beside and all(not other / _FAR <= l0 <= other * _FAR for other in beside):
            yield (
                f"{name}: {l0:.3g} latents fire per token, and {min(beside):.3g} to {max(beside):.3g} in the coders "
                "that it is a baseline for; set its option `k`."
            )


def _cautions(outcome: CellState) -> list[str]:
    """Return cautions about a cell's numbers, such as a coder used differently than it was trained."""
    cell, store = outcome.cell, outcome.store
    said = [*cell.source.plugin.cautions(), *store.facts.get("warnings", ()), *_score_cautions(outcome)]
    if cell.baseline is not None:
        return list(dict.fromkeys(said))
    if (fvu := store.facts.get("fvu")) is not None and fvu >= 1:
        said.append(
            f"The coder explains nothing of what it reads (fvu {fvu:.2f}, where predicting the mean gives 1): it may "
            "belong to another place or model, or the text may be unlike that of its training."
        )
    expected, l0 = store.facts.get("l0_of_files"), _l0(outcome)
    if expected and store.latents is None and not expected / _FAR <= l0 <= expected * _FAR:
        said.append(f"{l0:.3g} latents fire per token, and the coder's files say {expected:g}.")
    return list(dict.fromkeys(said))


def _measures(task: Task) -> list[Measure]:
    """Return the measures that the parts of all cells declare, each name once."""
    return list({measure.name: measure for cell in task.cells for measure in _declared(cell)}.values())


def _coder_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a source noted of its coder, without what other fields of a cell hold."""
    return {name: value for name, value in facts.items() if name not in _ELSEWHERE}


def _declared(cell: Cell) -> list[Measure]:
    """Return the measures that a cell's source and coder plugins declare."""
    parts = (cell.source, *cell.source.nested)
    return [measure for part in parts for measure in getattr(part.plugin, "measures", ())]


def _rows(
    task: Task,
    outcome: CellState,
    label: str,
    step: StepPart[Any],
    done: bool,
    rates: Mapping[int, float],
    shared: float,
) -> list[ScoreRow]:
    """Rows of one scorer: every metric of the cell's own explanations, then of each baseline.

    Args:
        task: The task.
        outcome: The cell.
        label: The scorer's label.
        step: The scorer.
        done: Whether everything was scored.
        rates: Share of the corpus's windows in which each latent fires.
        shared: Variance of what all latents of a run share, where steps were repeated; it widens the intervals for
            reruns of headlines.
    """
    rows = []
    cell = outcome.cell
    known = None
    if step.role and step.role != task.checks:
        known = judge_checks.of_scorer(judge_checks.find(task.roles[step.role]), step)
    for variant in (MAIN, *cell.alternatives):
        scored = outcome.scored.get((label, variant))
        if scored is None or not (scored.tried or done):  # interrupted before
            continue
        scoring = ScorerRun(
            label,
            step.part.label,
            variant,
            scored.tried,
            sum(s == "skipped" for s, _ in scored.unscored.values()),
            scored.unparsed,
            *_windows(scored, step),
            task.roles[step.role].model if step.role else None,
            scored.spent.total.usd,
        )
        off = not _conditions_met(scored, step)
        for place, metric in enumerate(step.part.plugin.metrics):
            values = scored.values(metric.name)
            if not values and place > 0:
                continue  # a metric this mode does not give, such as AUROC without probabilities
            rng = derive_rng(task.run.seed, "interval", metric.name, cell.name, label, variant)
            words = _words(outcome, variant, values)
            row = score_row(scoring, metric, values, rng, words=words, floors=_floors(outcome, label, variant, metric))
            further: dict[str, Any] = {"off": off}
            if place == 0:
                further["natural"] = natural_rates(scored.tallies(rates), _known_judge(known), rng)
                further["reliability"] = scored.reliability(metric.name)
            if row.value is not None and row.ci95 is not None:
                extra = shared if further.get("reliability") is not None else 0.0
                further["prediction95"] = prediction_interval(row.value, row.ci95, row.range, extra)
            if known is not None:
                further |= {"verdict": known.verdict, **_corrected(task, row, known)}
            rows.append(row.model_copy(update=further))
    return rows


def _conditions_met(scored: Scored, step: StepPart[Any]) -> bool:
    """Tell whether the mean of each metric of a scorer lies between the values that it wants."""
    for metric in (metric for metric in step.part.plugin.metrics if metric.wanted is not None):
        values = scored.values(metric.name)
        if values and not metric.meets(sum(values.values()) / len(values)):
            return False
    return True


def _firing_rates(outcome: CellState) -> dict[int, float]:
    """Return the share of the corpus's windows in which each latent fires; none for stores made of excerpts."""
    store, window = outcome.store, outcome.cell.sampler.plugin.window
    if not store.holds_whole_text or not (total := store.window_count(window)):
        return {}
    return {latent.index: len(store.windows(latent.index, window).ids) / total for latent in outcome.records.latents}


def _known_judge(known: ScorerCheck | None) -> KnownJudge | None:
    if known is None or known.sensitivity is None or known.specificity is None or not known.windows:
        return None
    return KnownJudge(known.sensitivity, known.specificity, known.windows)


def _corrected(task: Task, row: ScoreRow, known: ScorerCheck) -> dict[str, Any]:
    """Return the score corrected for the judge's known errors, where that is asked for and can be done."""
    if not task.correct_for_judge or row.metric != "balanced_accuracy" or row.value is None or row.ci95 is None:
        return {}
    error = standard_error(row.value, row.ci95, *row.range)
    check_error = standard_error(known.balanced_accuracy, known.ci95, 0.0, 1.0)
    found = correct_for_judge((row.value, error), (known.balanced_accuracy, check_error))
    return {} if found is None else {"corrected": found[0], "corrected_ci95": found[1]}


def _floors(outcome: CellState, label: str, variant: str, metric: Metric) -> Floors | None:
    """Return the baselines' scores for a cell and metric; none for baselines."""
    if variant != MAIN:
        return None
    scored = {name: outcome.scored.get((label, name)) for name in outcome.cell.alternatives}
    values = {name: found.values(metric.name) for name, found in scored.items() if found}
    own = outcome.scored[label, MAIN]
    uninformed = [name for name in outcome.cell.floors if name in values]
    return Floors(values, uninformed, {name: own.same(found) for name in uninformed if (found := scored[name])})


_BY_WINDOW = ("balanced_accuracy", "accuracy")


def _windows(scored: Scored, step: StepPart[Any]) -> tuple[tuple[int, int], tuple[float, float] | None]:
    """Return windows asked about and answered, and the score's bounds, for scorers whose headline counts windows."""
    if not scored.answered and not scored.unparsed:
        return (0, 0), None
    return scored.windows, scored.bounds if step.part.plugin.metrics[0].name in _BY_WINDOW else None


def _words(outcome: CellState, variant: str, latents: Iterable[int]) -> Iterator[int]:
    """Yield the number of words of each of these latents' explanations."""
    for latent in latents:
        if (explanation := outcome.explanation(variant, latent)) is not None:
            yield len(explanation.text.split())


def _deciles(outcome: CellState, label: str) -> DecileShares | None:
    """Return how often a scorer judged right in each decile; None for scorers that give no answers window by window."""
    scored = outcome.scored.get((label, MAIN))
    if scored is None or not any(scored.judged):
        return None
    *shares, negatives = (right / n if n else None for right, n in zip(scored.right, scored.judged, strict=True))
    *n, negatives_n = scored.judged
    return DecileShares(
        scorer=label, right=tuple(shares), n=tuple(n), negatives_right=negatives, negatives_n=negatives_n
    )


def _correlations(outcomes: Sequence[CellState]) -> list[Correlation]:
    """Return the correlation of each pair of scorers over the latents of these cells that both scored."""
    headlines: dict[str, dict[tuple[str, int], float]] = {}
    noise: dict[str, dict[tuple[str, int], float]] = {}
    for outcome in outcomes:
        for label, step in outcome.cell.scorers.items():
            scored, metric = outcome.scored.get((label, MAIN), Scored()), step.part.plugin.metrics[0].name
            for found, values in ((headlines, scored.values(metric)), (noise, scored.noise(metric))):
                found.setdefault(label, {}).update({(outcome.cell.name, i): v for i, v in values.items()})
    correlations = []
    for a, b in combinations(headlines, 2):
        latents = sorted(headlines[a].keys() & headlines[b].keys())
        columns = [[headlines[label][latent] for latent in latents] for label in (a, b)]
        errors = [[noise[label][latent] for latent in latents] for label in (a, b)]
        pair = correlated(*columns)
        corrected = disattenuated(pair.pearson, [reliability(x, e) for x, e in zip(columns, errors, strict=True)])
        correlations.append(
            Correlation(scorers=(a, b), n=pair.n, pearson=pair.pearson, spearman=pair.spearman, corrected=corrected)
        )
    return correlations


def _variance(outcome: CellState) -> Iterator[VarianceParts]:
    """Yield variance components of each scorer whose model was asked again, or whose explanations were made again."""
    for label, step in outcome.cell.scorers.items():
        metric = step.part.plugin.metrics[0].name
        own = outcome.scored.get((label, MAIN), Scored())
        again = {
            "judge": outcome.scored.get((f"{label}_{AGAIN}", MAIN)),
            "explainer": outcome.scored.get((label, AGAIN)),
        }
        values, repeats = own.values(metric), {}
        for source, other in again.items():
            others = other.values(metric) if other is not None else {}
            common = [latent for latent in values if latent in others]
            if len(common) > 1:
                repeats[source] = [values[i] for i in common], [others[i] for i in common]
        if repeats:
            found = components(list(values.values()), list(own.noise(metric).values()), repeats)
            n = min(len(one) for one, _ in repeats.values())
            yield VarianceParts(scorer=label, n=n, **found._asdict())


def _powers(task: Task, outcome: CellState) -> Iterator[Power]:
    """Yield how surely each scorer tells the cell's own explanations from those of each informed baseline."""
    informed = [name for name in outcome.cell.alternatives if name not in outcome.cell.floors]
    for label, step in outcome.cell.scorers.items():
        metric = step.part.plugin.metrics[0]
        own = outcome.scored.get((label, MAIN), Scored()).values(metric.name)
        for variant in informed:
            other = outcome.scored.get((label, variant), Scored()).values(metric.name)
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
            )


def _warnings(
    task: Task, cells: Sequence[CellResult], outcomes: Mapping[str, CellState], partial: bool, synthetic: bool
) -> list[str]:
    found = []
    if synthetic:
        found.append(
            "A part of this run is made up (synthetic source, scripted or replayed model): its numbers say nothing "
            "about a model."
        )
    if partial:
        found.append("This run is partial: latents were omitted by --limit, or it was interrupted.")
    found += _unlike(outcomes)
    for cell in cells:
        if caveat := cell.coder.get("caveat"):
            found.append(f"{cell.cell}: {caveat}")
        found += [f"{cell.cell}: {caution}" for caution in cell.cautions]
        if cell.counts["sampled"] < cell.counts["requested"]:
            found.append(
                f"{cell.cell}: only {cell.counts['sampled']} of {cell.counts['requested']} latents have enough windows."
            )
        for row in cell.scores:
            if (
                row.variant == MAIN
                and row.tried
                and row.failed / row.tried > task.run.max_failed
                and row is _headline(cell, row)
            ):
                why = _why(outcomes[cell.cell], row.scorer)
                found.append(f"{cell.cell}: {row.scorer} failed on {row.failed} of {row.tried} latents: {why}")
            if row.variant == MAIN and row.answered < row.windows and row is _headline(cell, row):
                found.append(f"{cell.cell}: {row.scorer}: {_unanswered(row)}")
        if dependent := outcomes[cell.cell].dependent:
            found.append(
                f"{cell.cell}: {dependent} latents have no other one that fires independently of them, so their "
                "floors are made of the explanations of latents that fire with them or avoid them."
            )
        found += _without_probabilities(outcomes[cell.cell])
    return found


def _unanswered(row: ScoreRow) -> str:
    """Say how many windows have no answer, and how far that could move the score."""
    missing = row.windows - row.answered
    text = f"{missing} of {row.windows} windows ({missing / row.windows:.0%}) have no answer and are not in the score"
    if row.bounds is None:
        return f"{text}."
    return (
        f"{text}, which would be {row.bounds[0]:.3f} if all of them were judged wrong and {row.bounds[1]:.3f} if right."
    )


def _without_probabilities(outcome: CellState) -> Iterator[str]:
    """Say which scorers asked for log-probabilities in vain, and so have no AUROC."""
    for label, step in outcome.cell.scorers.items():
        scored = outcome.scored.get((label, MAIN))
        asked = getattr(step.part.plugin, "top_logprobs", 0) and any(
            m.name == "auroc" for m in step.part.plugin.metrics
        )
        if asked and scored and scored.metrics() and "auroc" not in scored.metrics():
            yield (
                f"{outcome.cell.name}: {label}: the model gave no log-probabilities that can be read, so there is no "
                "AUROC."
            )


def _why(outcome: CellState, label: str) -> str:
    """Return the reason that most of a scorer's failed latents have."""
    unscored = outcome.scored[label, MAIN].unscored.values()
    reasons = Counter(reason for status, reason in unscored if status == "failed")
    return reasons.most_common(1)[0][0] if reasons else "no reason given"


def _flaws(outcomes: Iterable[CellState]) -> Iterator[str]:
    """Report the flaws that each cell's sampler declares, and how many windows they affect."""
    for outcome in outcomes:
        name, sampler = outcome.cell.name, outcome.cell.sampler.label
        if leak := outcome.records.flaws.get("leak"):
            yield (
                f"{name}: the sampler {sampler} does not keep explaining and scoring apart: {leak.windows} of "
                f"{leak.of} scored activating windows share text with those that the explainer is shown, so scores "
                "may come out too high."
            )
        if unverified := outcome.records.flaws.get("unverified"):
            yield (
                f"{name}: the sampler {sampler} calls windows silent without looking: the latent fires in "
                f"{unverified.windows} of {unverified.of} of them, where right answers count as wrong."
            )


def _headline(cell: CellResult, row: ScoreRow) -> ScoreRow:
    return next(r for r in cell.scores if (r.scorer, r.variant) == (row.scorer, row.variant))


def over_limits(task: Task, result: RunResult) -> list[str]:
    """Say of each score where more latents failed, or more windows have no answer, than the spec allows."""
    found = []
    for cell in result.cells:
        for row in cell.scores:
            place = f"{cell.cell}: {row.scorer}" + ("" if row.variant == MAIN else f" of {row.variant}")
            if row is not _headline(cell, row):
                continue
            if row.tried and row.failed / row.tried > task.run.max_failed:
                found.append(
                    f"{place}: {row.failed} of {row.tried} latents failed (run.max_failed {task.run.max_failed:g})"
                )
            if row.unanswered > task.run.max_unanswered:
                found.append(
                    f"{place}: {row.unanswered:.0%} of the windows have no answer (run.max_unanswered "
                    f"{task.run.max_unanswered:g})"
                )
    return found


def packages() -> dict[str, str]:
    """Return the versions of the packages that numbers may depend on."""
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
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
