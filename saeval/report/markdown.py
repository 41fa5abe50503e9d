"""The report in Markdown: method, leaderboard, baselines, cost, warnings, and how to repeat it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from saeval.report import safe_text
from saeval.report.leaderboard import OWN, Leaderboard
from saeval.results import RunResult, ScoreRow


def _cell(value: object) -> str:
    """Make text inert inside a Markdown table."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(safe_text(value), quote=False))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows]
    return "\n".join(lines)


def _score(row: ScoreRow) -> list[object]:
    value = "–" if row.value is None else f"{row.value:.3f}"
    interval = "–" if row.ci95 is None else f"{row.ci95[0]:.3f} – {row.ci95[1]:.3f}"
    floors = ", ".join(f"{k} {v:.3f}" for k, v in row.floor.items())
    lift = "" if row.lift is None else f"{row.lift:+.3f}"
    return [
        row.metric,
        "↑" if row.higher_is_better else "↓",
        value,
        interval,
        f"{row.n}/{row.tried}",
        f"{row.coverage:.0%}",
        floors,
        lift,
    ]


def _shown(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    """Leave each scorer its headline metric and AUROC; all others are in the tables."""
    kept: dict[tuple[str, str, str], ScoreRow] = {}
    for row in rows:
        headline = not any(scorer == row.scorer and variant == row.variant for scorer, variant, _ in kept)
        if headline or row.metric == "auroc":
            kept[row.scorer, row.variant, row.metric] = row
    return list(kept.values())


_SCORE_HEAD = ["metric", "", "value", "95 % interval", "n", "covered", "floors", "lift"]


def markdown(run: RunResult) -> str:
    """Return the report of a run."""
    board = Leaderboard.of(run)
    first = run.cells[0]
    judges = ", ".join(dict.fromkeys(str(r.judge) for c in run.cells for r in c.scores if r.judge))
    marks = [
        m
        for m, on in (
            ("partial", run.partial),
            ("synthetic", run.synthetic),
            ("not reproducible", not run.reproducible),
        )
        if on
    ]
    parts = [f"# {_cell(run.task)} {_cell(run.task_version)}" + (f" ({', '.join(marks)})" if marks else "")]
    if run.description:
        parts.append(_cell(run.description))
    method = (
        f"Subject {_cell(first.subject)}. Latents explained by {_cell(first.explainer)} from windows of other documents than those "
        f"they are scored on; non-activating windows are verified silent. "
        + (f"Judged by {_cell(judges)}. " if judges else "")
        + f"Scores are means over latents with 95 % intervals ({_cell(first.scores[0].method) if first.scores else 'bootstrap over latents'}); "
        "`lift` is the distance to the best explanation that knows nothing of the latent, on the same latents. "
        f"Seed {run.seed}."
    )
    parts += ["## Method", method, f"## Leaderboard, ranked by {_cell(run.rank_by)}"]
    axes = list(dict.fromkeys(axis for c in run.cells for axis in c.axes))
    rows = []
    for standing in board.standings:
        cell = standing.cell
        measures = [f"{cell.measures[m]:.3g}" if m in cell.measures else "–" for m in ("l0", "frac_alive", "fvu")]
        for row in _shown(cell.scores):
            if row.variant == OWN:
                rows.append(
                    [
                        standing.rank_text or "baseline",
                        *(cell.axes.get(a, "") for a in axes),
                        *measures,
                        row.scorer,
                        *_score(row),
                    ]
                )
    parts.append(_table(["rank", *map(_cell, axes), "L0", "alive", "FVU", "scorer", *_SCORE_HEAD], rows))
    if board.smallest_difference is not None:
        parts.append(
            f"Smallest difference that two contestants' intervals could show (80 % power): {board.smallest_difference:.3f}."
        )
    if board.variants:
        rows = [
            [c.cell.cell, row.variant, row.scorer, *_score(row)]
            for c in board.standings for variant in board.variants for row in _shown(c.cell.scores) if row.variant == variant
        ]  # fmt: skip
        parts += [
            "## Explanations that the scores are held against",
            _table(["cell", "explanation", "scorer", *_SCORE_HEAD], rows),
        ]
    counts = [
        [c.cell, *(c.counts.get(k, "") for k in ("requested", "eligible", "sampled", "explained"))] for c in run.cells
    ]
    parts += ["## Latents", _table(["cell", "requested", "eligible", "sampled", "explained"], counts)]
    if run.ledger:
        spent = [
            [x.role, x.model, x.calls, x.cached, x.failed, x.input_tokens, x.output_tokens, "unknown" if x.usd is None else f"{x.usd:.4f}"]
            for x in run.ledger
        ]  # fmt: skip
        parts += [
            "## Cost",
            _table(["role", "model", "calls", "from cache", "failed", "tokens in", "tokens out", "$"], spent),
        ]
    if run.warnings:
        parts += ["## Warnings", "\n".join(f"- {_cell(w)}" for w in run.warnings)]
    packages = run.components.get("packages")
    versions = ", ".join(f"{k} {v}" for k, v in packages.items()) if isinstance(packages, dict) else ""
    parts += [
        "## To repeat it",
        f"`saeval run --task spec.yaml` with this run's `spec.yaml` (sha {_cell(run.spec_sha[:12])}).",
        f"saeval {_cell(run.saeval_version)}; {_cell(versions)}.",
    ]
    return "\n\n".join(parts) + "\n"
