"""Formats the facts shown beside a score: floor, lift, answered windows, correction and the judge's verdict."""

from __future__ import annotations

from saeval._util import short
from saeval.records import ScoreRow


def lift(row: ScoreRow) -> str:
    """Return a lift and its interval as text; empty without a floor."""
    if row.lift is None or row.against is None:
        return ""
    few = "*" * row.lift_few
    return f"{row.lift:+.3f}" + (f" ({row.lift_ci95[0]:+.3f} to {row.lift_ci95[1]:+.3f}){few}" if row.lift_ci95 else "")


def short_lift(row: ScoreRow) -> str:
    """Return a lift and its interval as short text, `+.160 [+.07 +.25]`; empty without a floor."""
    if row.lift is None or row.against is None:
        return ""
    if row.lift_ci95 is None:
        return f"{_signed(row.lift)} [– –]"
    low, high = row.lift_ci95
    return f"{_signed(row.lift)} [{_signed(low, 2)} {_signed(high, 2)}]" + "*" * row.lift_few


def _signed(value: float, digits: int = 3) -> str:
    return ("" if value < 0 else "+") + short(value, digits)


def floor(row: ScoreRow) -> str:
    """Return the floor and its number of latents as text; empty without a floor."""
    return "" if row.against is None else f"{row.against.value:.3f} (n {row.against.n})"


def answered(row: ScoreRow) -> str:
    """Return the share of answered windows as text.

    If too many are unanswered, it is marked `!` and followed by the score in the worst and the best case.
    """
    if not row.windows:
        return ""
    share = f"{int(100 * row.answered / row.windows)}%"  # rounded down, so that 100 % is all of them
    if row.unanswered > row.MAX_UNANSWERED and row.bounds is not None:
        return f"{share}! {short(row.bounds[0], 2)}–{short(row.bounds[1], 2)}"
    return share + "!" * (row.unanswered > row.MAX_UNANSWERED)


def corrected(row: ScoreRow) -> str:
    """Return the score corrected for the judge's errors, and its interval, as text; empty without one."""
    if row.corrected is None or row.corrected_ci95 is None:
        return ""
    return f"{row.corrected:.3f} ({row.corrected_ci95[0]:.3f} to {row.corrected_ci95[1]:.3f})"


def weighted(row: ScoreRow) -> str:
    """Return the weighted mean and its interval as text, marked `*` if few latents dominate it; empty without one."""
    if row.weighted is None or row.weighted_n is None:
        return ""
    few = "*" * (row.weighted_n < row.FEW)
    if row.weighted_ci95 is None:
        return f"{short(row.weighted)}{few}"
    low, high = row.weighted_ci95
    return f"{short(row.weighted)} [{short(low, 2)} {short(high, 2)}]{few}"


def natural(row: ScoreRow) -> str:
    """Return the natural precision, its interval and the judge's ceiling as text; `?` marks it as not identifiable."""
    if (found := row.natural) is None:
        return ""
    low, high = found.precision_ci95
    ceiling = "" if found.ceiling is None else f", ceiling {found.ceiling:.2f}"
    doubt = " ?" if found.not_identifiable else ""
    return f"{found.precision:.2f} ({low:.2f} to {high:.2f}{ceiling}){doubt}"


def judge(row: ScoreRow) -> str:
    """Return the judge's verdict, or `unchecked`; empty for scorers without a judge."""
    if row.judge is None:
        return ""
    return row.verdict or "unchecked"
