"""Describes a run's method in one paragraph, for every report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from saeval.records import RunResult


def method(run: RunResult, shown: Callable[[str], str] = str) -> str:
    """Return the paragraph.

    Args:
        run: The run.
        shown: Escapes names from the run for the report's format.
    """
    rows = [row for c in run.cells for row in c.scores]
    judges = shown(named(row.judge for row in rows))
    subjects, explainers = named(c.subject for c in run.cells), named(c.explainer for c in run.cells)
    if not rows:
        return f"Subject: {shown(subjects)}. Explained by {shown(explainers)}. There are no scores."
    return " ".join(
        [
            f"Subject: {shown(subjects)}.",
            f"Explained by {shown(explainers)},",
            "from other documents than those used for scoring.",
            "Non-activating windows are verified: the latent does not fire in them.",
            *([f"Judged by {judges}."] if judges else []),
            f"Scores are means over latents, with 95 % intervals ({shown(named(row.method for row in rows))}).",
            "A floor is the same metric for a baseline's explanations, or by chance.",
            "Lift is the score above the floor of uninformed explanations, pooled over cells.",
            "A rank is a range if z tests, Holm-corrected over all pairs of contestants, do not distinguish them.",
            f"Seed {run.seed}.",
        ]
    )


def named(values: Iterable[str | None]) -> str:
    """Return the distinct names among the values, in order."""
    return ", ".join(dict.fromkeys(v for v in values if v))
