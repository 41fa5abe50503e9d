"""The method of a run in a paragraph, for every report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from saeval.records import RunResult


def method(run: RunResult, shown: Callable[[str], str] = str) -> str:
    """Return the paragraph.

    Args:
        run: The run.
        shown: Makes names from the run fit for the report.
    """
    rows = [row for c in run.cells for row in c.scores]
    judges = shown(named(row.judge for row in rows))
    subjects, explainers = named(c.subject for c in run.cells), named(c.explainer for c in run.cells)
    return " ".join(
        [
            f"Subject: {shown(subjects)}.",
            f"Explained by {shown(explainers)},",
            "from windows of other documents than those scored on; non-activating windows are verified silent.",
            *([f"Judged by {judges}."] if judges else []),
            f"Scores are means over latents, with 95 % intervals ({shown(named(row.method for row in rows))}).",
            "A floor is the same metric for the explanations of a baseline, or by chance; lift is the score above "
            "the floor of",
            "uninformed explanations, pooled over cells. Ranks are ranges where z tests, Holm-corrected over all "
            "pairs of",
            "contestants, do not separate.",
            f"Seed {run.seed}.",
        ]
    )


def named(values: Iterable[str | None]) -> str:
    """Return the different names among the values, in order."""
    return ", ".join(dict.fromkeys(v for v in values if v))
