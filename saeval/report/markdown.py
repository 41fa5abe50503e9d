"""Writes the report in Markdown: method, leaderboard, scores, cost, warnings, and how to reproduce it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import not_

from saeval._compare import AgainstBaseline, Leaderboard, strata_texts
from saeval._util import MISSING, counted, escape_markdown, interval, markdown_table, number, safe_text
from saeval.records import (
    MAIN,
    CellResult,
    ControlContrast,
    Correlation,
    DecileShares,
    Finding,
    JudgeRole,
    Ledger,
    RunResult,
    ScoreRow,
)
from saeval.report.boards import (
    Field,
    arrow,
    cell_fields,
    detail_fields,
    head_and_rows,
    marks,
    notes,
    rank_field,
    roomy_estimate,
)
from saeval.report.method import method, named
from saeval.results import Line, estimate

_STAGES = ("requested", "eligible", "sampled", "explained")
_DECILES = (
    "Share and number of windows judged correctly, by rank decile of the window's activation (0 is the strongest), and "
    "for windows whose correct answer is no (non-activating or wrongly marked). The cells' own explanations."
)
_CORRELATIONS = (
    "Correlations of headline metrics over the latents that both scorers scored, with their number: Pearson above the "
    "diagonal, Spearman below. The cells' own explanations; none for fewer than three latents or constant scores. "
    "Corrected: for the noise in both scores that is due to few windows per latent."
)
_FINDINGS = ("claim", "outcome", "difference", "95 % CI", "n", "quantity")
FINDINGS = (
    "Claims of the task, checked against this run alone. Shown: the whole interval is on the claimed side of 0 (for "
    "similarity, near 0). Contradicted: it is on the other side. Not shown: it covers both. Cannot be told: too little "
    "data. Each claim is tested separately at 95 %, so about one in twenty false claims is shown."
)
CONTROL_HEADS = (
    "scorer",
    "stratum",
    "control",
    "trained",
    "of control",
    "difference",
    "95 % CI",
    "p (Holm)",
    "outcome",
    "detectable",
    "n",
)
CONTROLS = (
    "Trained coders minus each control, in headline metrics of their own explanations. Strata: L0s within a factor of "
    "1.5, and latents with half of their firings or more on one token or fewer. Null: not distinguishable (5 %, Holm "
    "over a scorer's controls and strata). Detectable: minimum detectable difference, with 80 % power and that "
    "correction. n: latents of the trained coders and of the control; with fewer than 8 (in a seed) there is no test."
)
_POWER = (
    "Share of runs with {latents} in which a paired test (5 %) finds the cells' own explanations better than "
    "those of the baseline; after the comma the power at both ends of the mean difference's 95 % interval, and in "
    "brackets the mean difference. Latents are drawn with replacement from this run's."
)
_VARIANCE = (
    "Standard deviations of one latent's score: between latents, by the choice of windows, when judge or explainer "
    "are asked again, and by the text (`corpus`, from the two halves of it); and of a shift that all latents share, "
    "which widens the interval for reruns."
)
_COST = ("role", "model", "calls", "from cache", "failed", "tokens in", "tokens out", "$")


def markdown_report(run: RunResult) -> str:
    """Return the report of a run."""
    board = Leaderboard.of(run)
    marked = f" ({', '.join(marks(run))})" if marks(run) else ""
    parts = [f"# {escape_markdown(run.task)} {escape_markdown(run.task_version)}{marked}"]
    if run.description:
        parts.append(escape_markdown(run.description))
    if run.warnings:
        parts += ["## Warnings", "\n".join(f"- {escape_markdown(w)}" for w in run.warnings)]
    parts += [
        "## Method",
        method(run, escape_markdown),
        f"## Leaderboard, ranked by {escape_markdown(board.title)}",
        _leaderboard(run, board),
        "\n".join(f"- {escape_markdown(note)}" for note in board.notes),
    ]
    if board.against:
        heads, rows = AgainstBaseline.HEADS, [found.texts for found in board.against]
        parts += ["## Against baseline coders", markdown_table(heads, rows)]
    if run.findings:
        parts += ["## Findings", FINDINGS, markdown_table(_FINDINGS, map(finding_row, run.findings))]
    if run.controls:
        parts += [
            "## Trained against controls",
            CONTROLS,
            markdown_table(CONTROL_HEADS, map(control_row, run.controls)),
        ]
        parts.append("\n".join(f"- {escape_markdown(text)}" for text in strata_texts(run.controls)))
    if board.metrics:
        parts += ["## Scores", *_scores(run, board)]
    if deciles := [[x.cell.cell, *_deciles(shares)] for x in board.standings for shares in x.cell.deciles]:
        parts += [
            "## Judged correctly, by decile",
            _DECILES,
            markdown_table(("coder", "scorer", *map(str, range(10)), "non-activating"), deciles),
        ]
    if run.judges:
        parts += ["## Judges", *map(_judge, run.judges)]
    if correlations := list(_correlations(run, board)):
        parts += ["## Correlation of scorers", _CORRELATIONS, *correlations]
    if any(cell.variance for cell in run.cells):
        parts += ["## Where the variance comes from", _VARIANCE, *_variance(run.cells)]
    if any(cell.powers for cell in run.cells):
        parts += ["## Distinguished from informed baselines", *_powers(run.cells)]
    counts = [[c.cell, *(c.counts.get(stage, MISSING) for stage in _STAGES)] for c in run.cells]
    parts += ["## Latents", markdown_table(["coder", *_STAGES], counts)]
    if run.ledger:
        parts += ["## Cost", markdown_table(_COST, map(_cost, run.ledger))]
    parts += ["## How to reproduce", _repeat(run)]
    return "\n\n".join(parts) + "\n"


def _named(values: Iterable[str | None]) -> str:
    return escape_markdown(named(values))


def _leaderboard(run: RunResult, board: Leaderboard) -> str:
    """Return a table with one row per cell: axes, measures and scores."""
    cells = [x.cell for x in board.standings]
    axes = list(dict.fromkeys(axis for c in run.cells for axis in c.axes))
    names = [Field(axis, [cell.axes.get(axis, MISSING) for cell in cells]) for axis in axes]
    fields = [rank_field(board), *names, *cell_fields(board, lambda _: run, "report")]
    for scorer, metric in board.shown:
        rows = [board.row(cell, scorer, metric=metric) for cell in cells]
        texts = [_score(run, cell, row) for cell, row in zip(cells, rows, strict=True)]
        fields.append(Field(f"{scorer}: {metric}", texts))
    return markdown_table(*head_and_rows(fields))


def _score(run: RunResult, cell: CellResult, row: ScoreRow | None) -> str:
    if row is None:
        return MISSING
    return roomy_estimate(estimate(row), *notes(run, cell, row))


def _scores(run: RunResult, board: Leaderboard) -> Iterator[str]:
    """Yield a table of headline scores, and a collapsed one of other metrics and baselines' explanations."""
    lines = [Line(run, x.cell, row) for x in board.standings for row in x.cell.scores]
    headline = [x.score.variant == MAIN and (x.score.scorer, x.score.metric) in board.shown for x in lines]
    yield _details([*compress(lines, headline)])
    doubts = {x.score.natural.not_identifiable for x in lines if x.score.natural} - {""}
    if doubts:
        yield f"? natural precision is not identifiable: {escape_markdown('; '.join(sorted(doubts)))}."
    if rest := [*compress(lines, map(not_, headline))]:
        yield "<details><summary>Other metrics, and explanations of baselines</summary>"
        yield _details(rest)
        yield "</details>"


def _details(lines: Sequence[Line]) -> str:
    """Return a table with one row per score and all its columns."""
    rows = [x.score for x in lines]
    variants = ["its own" if row.variant == MAIN else row.variant for row in rows]
    fields = [Field("coder", [x.cell.cell for x in lines]), Field("scorer", [row.scorer for row in rows])]
    fields += [Field("explanation", variants), Field("metric", [row.metric for row in rows])]
    fields += [Field("↑", [arrow([row]) for row in rows]), *detail_fields(lines, "details")]
    return markdown_table(*head_and_rows(fields))


def finding_row(found: Finding) -> list[str]:
    """Return a finding as texts: claim, outcome, difference, interval or p, n, and quantity or reason."""
    between = "" if found.p is None else f"p {number(found.p, '.2g')}"
    if found.ci95 is not None:
        between = interval(found.ci95, "+.3f")
    about = f"{found.reason} ({found.quantity})" if found.reason else found.quantity
    return [found.claim, found.outcome, number(found.difference, "+.3f"), between, ", ".join(map(str, found.n)), about]


def control_row(x: ControlContrast) -> list[str]:
    """Return a contrast with a control as texts."""
    numbers = [number(x.trained), number(x.value), number(x.difference, "+.3f"), interval(x.ci95, "+.3f")]
    numbers += [number(x.p_holm, ".2g"), x.outcome, number(x.detectable)]
    return [x.scorer, x.stratum, x.control, *numbers, f"{x.n[0]}, {x.n[1]}"]


def _judge(judge: JudgeRole) -> str:
    """Return a table of a judge's check, or the command that checks it."""
    who = f"{escape_markdown(judge.role)}: {escape_markdown(judge.model)}"
    if judge.check is None:
        command = judge.command or f"saeval run judge-check --llm judge={judge.model}"
        return f"{who}. This judge was not checked. To check it:\n\n```\n{safe_text(command)}\n```"
    rows = [
        [
            row.scorer,
            "true" if row.variant == MAIN else row.variant,
            row.metric,
            number(row.value),
            interval(row.ci95),
            row.n,
        ]
        for row in judge.check.scores
    ]
    errors = [[c.scorer, c.verdict, number(c.sensitivity), number(c.specificity), c.n] for c in judge.check.scorers]
    parts = [
        f"{who}. Checked on {judge.check.when} ({escape_markdown(f'{judge.check.task} {judge.check.task_version}')}):"
    ]
    if errors:
        parts.append(markdown_table(("scorer", "verdict", "sensitivity", "specificity", "n"), errors))
    parts.append(markdown_table(("scorer", "explanation", "metric", "value", "95 % CI", "n"), rows))
    return "\n\n".join(parts)


def _deciles(shares: DecileShares) -> list[str]:
    right, n = (*shares.right, shares.negatives_right), (*shares.n, shares.negatives_n)
    return [shares.scorer, *(MISSING if r is None else f"{number(r)} ({k})" for r, k in zip(right, n, strict=True))]


def _correlations(run: RunResult, board: Leaderboard) -> Iterator[str]:
    """Yield a titled matrix for every cell, and one for all contestants if there are several."""
    found = [(x.cell.cell, x.cell.correlations) for x in board.standings]
    if sum(x.cell.baseline is None for x in board.standings) > 1:
        found.insert(0, ("all contestants", run.correlations))
    for title, correlations in found:
        if correlations:
            yield f"### {escape_markdown(title)}"
            yield _matrix(correlations)


def _matrix(correlations: Sequence[Correlation]) -> str:
    labels = list(dict.fromkeys(label for c in correlations for label in c.scorers))
    entries = {}
    for c in correlations:
        a, b = c.scorers
        entries[a, b], entries[b, a] = _correlation(c.pearson, c.n), _correlation(c.spearman, c.n)
        if c.corrected is not None:
            entries[a, b] += f", corrected {number(c.corrected, '+.3f')}"
    return markdown_table(["", *labels], [[a, *(entries.get((a, b), "") for b in labels)] for a in labels])


def _correlation(value: float | None, n: int) -> str:
    return f"{number(value, '+.3f')} ({n})"


def _variance(cells: Iterable[CellResult]) -> Iterator[str]:
    """Yield a table of the standard deviation of each component, by cell and scorer."""
    found = [(cell.cell, parts) for cell in cells for parts in cell.variance]
    sources = list(dict.fromkeys(source for _, parts in found for source in parts.noise))
    rows = []
    for cell, parts in found:
        variances = [parts.latents, parts.windows, *map(parts.noise.get, sources), *map(parts.shared.get, sources)]
        rows.append([cell, parts.scorer, *(MISSING if v is None else f"{v**0.5:.3f}" for v in variances), parts.n])
    heads = ["latents", "windows", *sources, *(f"{source}, shared" for source in sources)]
    yield markdown_table(("coder", "scorer", *heads, "n"), rows)


def _powers(cells: Iterable[CellResult]) -> Iterator[str]:
    """Yield a description and a table of powers, with a row per cell and scorer and a column per baseline."""
    found = [(cell.cell, power) for cell in cells for power in cell.powers]
    yield _POWER.format(latents=counted(found[0][1].latents, "latent"))
    variants = list(dict.fromkeys(power.variant for _, power in found))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for cell, x in found:
        power = number(x.power, ".2f")
        if x.ci95 is not None:
            power += f", {interval(x.ci95, '.2f')}"
        lines.setdefault((cell, x.scorer), {})[x.variant] = f"{power} ({number(x.difference, '+.3f')})"
    rows = [[*place, *(texts.get(v, MISSING) for v in variants)] for place, texts in lines.items()]
    yield markdown_table(("coder", "scorer", *variants), rows)


def _cost(x: Ledger) -> list[object]:
    usd = "unknown" if x.usd is None else f"{x.usd:.4f}"
    return [x.role, x.model, x.calls, x.cached, x.failed, x.input_tokens, x.output_tokens, usd]


def _repeat(run: RunResult) -> str:
    packages = run.components.get("packages")
    versions = {"saeval": run.saeval_version, **(packages if isinstance(packages, dict) else {})}
    scorers = [row.plugin for cell in run.cells for row in cell.scores]
    plugins = [*(cell.explainer for cell in run.cells), *scorers]
    return (
        "```\nsaeval run spec.yaml\n```\n\n"
        f"with this run's `spec.yaml` (sha {escape_markdown(run.spec_sha[:12])}).\n\n"
        f"Packages: {_named(f'{name} {version}' for name, version in versions.items())}.\n\n"
        f"Plugins: {_named(plugins)}."
    )
