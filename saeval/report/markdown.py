"""The report in Markdown: method, leaderboard, scores, cost, warnings, and how to repeat it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from saeval._compare import Leaderboard, row_texts
from saeval._util import measured, safe_text
from saeval.records import MAIN, CellResult, Correlation, DecileShares, Finding, Judge, Ledger, RunResult, ScoreRow
from saeval.report.method import method, named

_STAGES = ("requested", "eligible", "sampled", "explained")
_SCORES = (
    "coder", "scorer", "explanation", "words", "metric", "↑", "value", "95 % CI", "n", "coverage", "floor", "lift", "judge",
)  # fmt: skip
_DECILES = (
    "Share of judged windows that were judged right, and their number: by rank decile of the window's activation, 0 the "
    "strongest, and where no was the right answer (silent or wrongly marked). The cells' own explanations."
)
_CORRELATIONS = (
    "Of headline metrics over the latents that both scored, with their number: Pearson above the diagonal, Spearman "
    "below. The cells' own explanations; none for fewer than three latents or scores that are all the same."
)
_FINDINGS = ("claim", "", "difference", "95 % CI", "n", "of what")
FINDINGS = (
    "Claims of the task, held against this run alone: shown, where the whole interval lies on the claimed side of 0 (for "
    "claims of likeness, near enough to it); contradicted, where it lies on the other; not shown, where it reaches over "
    "both; cannot be told, where there is too little data. Each at 95 % by itself: of twenty false claims, one seems to hold."
)
_COST = ("role", "model", "calls", "from cache", "failed", "tokens in", "tokens out", "$")


def markdown(run: RunResult) -> str:
    """Return the report of a run."""
    board = Leaderboard.of(run)
    flags = {"partial": run.partial, "synthetic": run.synthetic, "not reproducible": not run.reproducible}
    marks = ", ".join(mark for mark, on in flags.items() if on)
    parts = [f"# {_inert(run.task)} {_inert(run.task_version)}" + (f" ({marks})" if marks else "")]
    if run.description:
        parts.append(_inert(run.description))
    if run.warnings:
        parts += ["## Warnings", "\n".join(f"- {_inert(w)}" for w in run.warnings)]
    parts += [
        "## Method",
        method(run, _inert),
        f"## Leaderboard, ranked by {_inert(board.title)}",
        _leaderboard(run, board),
        "\n".join(f"- {_inert(note)}" for note in board.notes),
    ]
    if board.against:
        parts += ["## Against baseline coders", _table(row_texts.AGAINST, map(row_texts.against, board.against))]
    if run.findings:
        parts += ["## Findings", FINDINGS, _table(_FINDINGS, map(finding_row, run.findings))]
    parts += ["## Scores", *_scores(board)]
    if deciles := [[x.cell.cell, *_deciles(shares)] for x in board.standings for shares in x.cell.deciles]:
        parts += [
            "## Judged right, by decile",
            _DECILES,
            _table(("coder", "scorer", *map(str, range(10)), "silent"), deciles),
        ]
    if run.judges:
        parts += ["## Judges", *map(_judge, run.judges)]
    if correlations := list(_correlations(run, board)):
        parts += ["## Correlation of scorers", _CORRELATIONS, *correlations]
    counts = [[c.cell, *(c.counts.get(stage, "–") for stage in _STAGES)] for c in run.cells]
    parts += ["## Latents", _table(["coder", *_STAGES], counts)]
    if run.ledger:
        parts += ["## Cost", _table(_COST, map(_cost, run.ledger))]
    parts += ["## To repeat it", _repeat(run)]
    return "\n\n".join(parts) + "\n"


def _inert(value: object) -> str:
    """Return text without HTML or Markdown in it, and that ends no cell of a table."""
    return re.sub(r"([\\|`*_~#\[\]])", r"\\\1", html.escape(safe_text(value), quote=False))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(_inert, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _named(values: Iterable[str | None]) -> str:
    return _inert(named(values))


def _leaderboard(run: RunResult, board: Leaderboard) -> str:
    axes = list(dict.fromkeys(axis for c in run.cells for axis in c.axes))
    measures = list(dict.fromkeys(m for c in run.cells for m in c.measures))
    lifted = [
        s for s in board.metrics if any((row := board.row(x.cell, s)) and row.lift is not None for x in board.standings)
    ]
    rows = []
    for x in board.standings:
        facts = [measured(x.cell.measures.get(m)) for m in measures]
        scores = []
        for scorer in board.metrics:
            row = board.row(x.cell, scorer)
            scores.append(f"{_value(row)} ({row_texts.interval(row)})" if row else "–")
            scores += [row_texts.lift(row) if row else "–"] if scorer in lifted else []
        rows.append([x.rank_text, *(x.cell.axes.get(a, "–") for a in axes), *facts, *scores])
    heads = [
        head
        for s, m in board.metrics.items()
        for head in ([f"{s}: {m}", f"{s}: lift"] if s in lifted else [f"{s}: {m}"])
    ]
    return _table(["rank", *axes, *measures, *heads], rows)


def _scores(board: Leaderboard) -> Iterator[str]:
    """Yield the headline of each scorer; folded, its other metrics and the explanations of baselines."""
    rows = [(x.cell, row) for x in board.standings for row in x.cell.scores]
    first = [(c, r) for c, r in rows if r.variant == MAIN and board.metrics[r.scorer] == r.metric]
    yield _table(_SCORES, [_score(c, r) for c, r in first])
    if rest := [_score(c, r) for c, r in rows if (c, r) not in first]:
        yield "<details><summary>Other metrics, and explanations of baselines</summary>"
        yield _table(_SCORES, rest)
        yield "</details>"


def _score(cell: CellResult, row: ScoreRow) -> list[object]:
    floors = ", ".join(f"{name} {value:.3f}" for name, value in row.floor.items())
    return [
        cell.cell, row.scorer, "its own" if row.variant == MAIN else row.variant, _words(row), row.metric, "↑" if row.higher_is_better else "↓",
        _value(row), row_texts.interval(row), f"{row.n}/{row.tried}", row_texts.coverage(row), floors, row_texts.lift(row), row_texts.judge(row),
    ]  # fmt: skip


def finding_row(found: Finding) -> list[str]:
    """Return a finding as texts: claim, outcome, difference, interval or p, n, and what was computed or why not."""
    interval = "" if found.p is None else f"p {found.p:.2g}"
    if found.ci95 is not None:
        interval = f"{found.ci95[0]:+.3f} to {found.ci95[1]:+.3f}"
    difference = "–" if found.difference is None else f"{found.difference:+.3f}"
    about = f"{found.reason} ({found.quantity})" if found.reason else found.quantity
    return [found.claim, found.outcome, difference, interval, ", ".join(map(str, found.n)), about]


def _judge(judge: Judge) -> str:
    """Return what is known of a judge: a table of its check, or how to check it."""
    who = f"{_inert(judge.role)}: {_inert(judge.model)}"
    if judge.check is None:
        command = judge.command or f"saeval run --task judge-check --llm judge={judge.model}"
        return f"{who}. How far it can be trusted was not checked; to do so:\n\n```\n{safe_text(command)}\n```"
    rows = [
        [
            row.scorer,
            "the true one" if row.variant == MAIN else row.variant,
            row.metric,
            _value(row),
            row_texts.interval(row),
            row.n,
        ]
        for row in judge.check.scores
    ]
    table = _table(("scorer", "explanation", "metric", "value", "95 % CI", "n"), rows)
    errors = [[c.scorer, c.verdict, _share(c.sensitivity), _share(c.specificity), c.n] for c in judge.check.scorers]
    verdicts = f"\n\n{_table(('scorer', 'verdict', 'sensitivity', 'specificity', 'n'), errors)}" if errors else ""
    when = f"{judge.check.when} ({_inert(judge.check.task)} {_inert(judge.check.task_version)})"
    return f"{who}. Checked on {when}:{verdicts}\n\n{table}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _words(row: ScoreRow) -> str:
    return "–" if row.explanation_words is None else f"{row.explanation_words:.1f}"


def _deciles(shares: DecileShares) -> list[str]:
    right, n = (*shares.right, shares.negatives_right), (*shares.n, shares.negatives_n)
    return [shares.scorer, *("–" if r is None else f"{r:.3f} ({k})" for r, k in zip(right, n, strict=True))]


def _correlations(run: RunResult, board: Leaderboard) -> Iterator[str]:
    """Yield a titled matrix for every cell, and one for the contestants together when there are several."""
    found = [(x.cell.cell, x.cell.correlations) for x in board.standings]
    if sum(x.cell.baseline is None for x in board.standings) > 1:
        found.insert(0, ("all contestants together", run.correlations))
    for title, correlations in found:
        if correlations:
            yield f"### {_inert(title)}"
            yield _matrix(correlations)


def _matrix(correlations: Sequence[Correlation]) -> str:
    labels = list(dict.fromkeys(label for c in correlations for label in c.scorers))
    entries = {}
    for c in correlations:
        a, b = c.scorers
        entries[a, b], entries[b, a] = _correlation(c.pearson, c.n), _correlation(c.spearman, c.n)
    return _table(["", *labels], [[a, *(entries.get((a, b), "") for b in labels)] for a in labels])


def _correlation(value: float | None, n: int) -> str:
    return f"{'–' if value is None else f'{value:+.3f}'} ({n})"


def _value(row: ScoreRow) -> str:
    return "–" if row.value is None else f"{row.value:.3f}"


def _cost(x: Ledger) -> list[object]:
    usd = "unknown" if x.usd is None else f"{x.usd:.4f}"
    return [x.role, x.model, x.calls, x.cached, x.failed, x.input_tokens, x.output_tokens, usd]


def _repeat(run: RunResult) -> str:
    packages = run.components.get("packages")
    versions = {"saeval": run.saeval_version, **(packages if isinstance(packages, dict) else {})}
    return (
        "```\nsaeval run --task spec.yaml\n```\n\n"
        f"with this run's `spec.yaml` (sha {_inert(run.spec_sha[:12])}).\n\n"
        f"Packages: {_named(f'{name} {version}' for name, version in versions.items())}.\n\n"
        f"Plugins: {_named([*(c.explainer for c in run.cells), *(row.plugin for c in run.cells for row in c.scores)])}."
    )
