"""Writes what stands beside a score - interval, lift, coverage, verdict - the same way on every board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.records import ScoreRow

if TYPE_CHECKING:
    from saeval._compare.leaderboard import AgainstBaseline

MAX_UNANSWERED = 0.05
"""Share of unanswered windows above which a row is marked."""
AGAINST = ("contestant", "is", "baseline coder", "difference", "95 % CI", "p (Holm)")
"""Columns of `against`."""


def interval(row: ScoreRow) -> str:
    """Write an interval, `.025 to .140`, marked `*` where few latents are behind it; why there is none."""
    if row.ci95 is None and row.value is not None:
        return "unknown"
    if row.ci95 is None:
        return f"{row.failed} failed" if row.failed else "skipped" if row.skipped else "–"
    return f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}" + "*" * row.few


def lift(row: ScoreRow) -> str:
    """Write a lift and its interval; nothing without a floor."""
    if row.lift is None or row.against is None:
        return ""
    few = "*" * (row.against.n < row.FEW)
    return f"{row.lift:+.3f}" + (f" ({row.lift_ci95[0]:+.3f} to {row.lift_ci95[1]:+.3f}){few}" if row.lift_ci95 else "")


def floor(row: ScoreRow) -> str:
    """Write the floor that the lift is measured from, on how many latents; nothing without one."""
    return "" if row.against is None else f"{row.against.value:.3f} (n {row.against.n})"


def coverage(row: ScoreRow) -> str:
    """Write the share of latents scored; where windows lack an answer, the share answered and what the score could be."""
    if not row.unanswered:
        return f"{row.coverage:.0%}"
    text = f"{row.coverage:.0%}, {answered(row)} of windows"
    return text if row.bounds is None else f"{text} ({row.bounds[0]:.3f} to {row.bounds[1]:.3f})"


def answered(row: ScoreRow) -> str:
    """Write the share of windows answered, marked `!` where too many are not; nothing where none were asked about."""
    if not row.windows:
        return ""
    return f"{min(row.answered / row.windows, 0.999 if row.unanswered else 1.0):.0%}" + "!" * marked(row)


def marked(row: ScoreRow) -> bool:
    """Tell whether so many windows have no answer that a row is marked."""
    return row.unanswered > MAX_UNANSWERED


def corrected(row: ScoreRow) -> str:
    """Write the score corrected for the judge's errors, and its interval; nothing without one."""
    if row.corrected is None or row.corrected_ci95 is None:
        return ""
    return f"{row.corrected:.3f} ({row.corrected_ci95[0]:.3f} to {row.corrected_ci95[1]:.3f})"


def judge(row: ScoreRow) -> str:
    """Write what a check says of the judge: its verdict, or that there was none; nothing for scorers without a judge."""
    if row.judge is None:
        return ""
    return row.verdict or "unchecked"


def against(found: AgainstBaseline) -> list[str]:
    """Return a contestant against a baseline coder as texts: the two, what came of it, difference, interval, p."""
    side = "above" if found.difference > 0 else "below"
    low, high = found.ci95
    said = side if found.p <= 0.05 else "not told apart from"
    return [
        found.cell,
        said,
        found.baseline,
        f"{found.difference:+.3f}",
        f"{low:+.3f} to {high:+.3f}",
        f"{found.p:.2g}",
    ]
