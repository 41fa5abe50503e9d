"""Applies a judge's known errors: a verdict on the judge, and scores corrected for its errors."""

from __future__ import annotations

from saeval.records import Verdict

_PASS, _FAIL = 0.8, 0.6  # thresholds of balanced accuracy on latents of known meaning


def verdict(value: float, interval: tuple[float, float] | None) -> Verdict:
    """Return the verdict on a judge from its balanced accuracy on latents of known meaning.

    `pass`: the lower end of the interval is at least .8, so scores show at least three fifths of a difference between
    explanations. `fail`: the lower end is at most .6, so scores may show only a fifth of it or less. Otherwise `weak`.

    Example:
        >>> verdict(0.952, (0.925, 0.970)), verdict(0.75, (0.70, 0.79)), verdict(0.5, (0.46, 0.54))
        ('pass', 'weak', 'fail')
    """
    low = value if interval is None else interval[0]
    if low <= _FAIL:
        return "fail"
    return "pass" if low >= _PASS else "weak"


def correct_for_judge(
    score: tuple[float, float], check: tuple[float, float], critical: float = 1.96
) -> tuple[float, tuple[float, float]] | None:
    """Correct a balanced accuracy and its interval for the judge's errors.

    Returns None if the judge's own accuracy is not significantly above chance.

    An observed rate p of "yes" corrects to (p + c − 1)/(s + c − 1) for sensitivity s and specificity c (Rogan and
    Gladen 1978). For both kinds of windows together, a balanced accuracy b corrects to ½ + (b − ½)/(s + c − 1), where
    s + c − 1 is 2k − 1 for the judge's own balanced accuracy k on latents of known meaning. The interval is Fieller's
    for the ratio of two independent estimates, so it contains the uncertainty of s and c. Assumes that the judge errs
    on these latents as often as on known ones.

    Args:
        score: Balanced accuracy and its standard error.
        check: The judge's balanced accuracy on known latents, and its standard error.
        critical: Half-width of the interval in standard errors.

    Example:
        >>> value, (low, high) = correct_for_judge((0.70, 0.02), (0.90, 0.01))
        >>> round(value, 3), round(low, 3), round(high, 3)
        (0.75, 0.7, 0.801)
    """
    (b, b_error), (k, k_error) = score, check
    top, bottom = b - 0.5, 2 * k - 1
    # Fieller: all r with (top - r * bottom)² <= critical² (b_error² + r² bottom_error²), a quadratic in r.
    bottom_error = 2 * k_error
    a = bottom**2 - (critical * bottom_error) ** 2
    if bottom <= 0 or a <= 0:
        return None
    half = top * bottom
    root = (half**2 - a * (top**2 - (critical * b_error) ** 2)) ** 0.5
    low, high = ((half - root) / a, (half + root) / a)
    return _inside(0.5 + top / bottom), (_inside(0.5 + low), _inside(0.5 + high))


def _inside(value: float) -> float:
    return min(max(value, 0.0), 1.0)
