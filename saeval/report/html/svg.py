"""Draws SVG elements with escaped attributes and text, and axes with round ticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log10

from markupsafe import Markup, escape

from saeval._util import visible

_NOTHING = Markup("")


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """Return an SVG element with escaped attributes and children.

    In attribute names, a trailing underscore is dropped (`class_`) and other underscores become hyphens. Attributes of
    value None are omitted; floats are written with at most two decimals.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(c if isinstance(c, Markup) else escape(visible(c)) for c in children)
    # Names are this module's. Not `Markup.format`, which takes seven times as long.
    return Markup(f"<{name}{written}>{inside}</{name}>")  # noqa: S704


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else visible(value)


def title(text: str) -> Markup:
    """Return a `<title>`, which browsers show as the tooltip of its element."""
    return element("title", text)


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates along an axis.

    Attributes:
        low: Smallest value.
        high: Largest value.
        start: Coordinate of the smallest value.
        end: Coordinate of the largest value.
        log: Whether the scale is logarithmic; values are then above zero.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(
        cls,
        values: Sequence[float],
        start: float,
        end: float,
        bounds: tuple[float | None, float | None] = (None, None),
        *,
        log: bool = False,
    ) -> Axis:
        """Return an axis around all values with a small margin, within the bounds."""
        least, greatest = (-inf if bounds[0] is None else bounds[0]), (inf if bounds[1] is None else bounds[1])
        low, high = (min(max(value, least), greatest) for value in (min(values), max(values)))
        if log:
            return cls(low / 1.25, high * 1.25, start, end, log=True)
        room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
        return cls(max(low - room, least), min(high + room, greatest), start, end)

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; values beyond the ends are clipped."""
        value = min(max(value, self.low), self.high)
        share = log10(value / self.low) / log10(self.high / self.low) if self.log else (value - self.low) / self._span
        return self.start + share * (self.end - self.start)

    @property
    def _span(self) -> float:
        return (self.high - self.low) or 1.0

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values along the axis: about this many, or 1, 2 and 5 of every decade on a log scale."""
        if self.log:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            found = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        else:
            rough = self._span / about
            power = 10.0 ** floor(log10(rough))
            step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
            found = [k * step for k in range(floor(self.low / step), ceil(self.high / step) + 1)]
        slack = 1e-9 * self._span
        return [v for v in found if self.low - slack <= v <= self.high + slack]


def label(value: float) -> str:
    """Return the label of a tick."""
    return f"{value:.4g}" if abs(value) >= 1e-12 else "0"


def frame(x: Axis, y: Axis, x_title: str, y_title: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> Markup:
    """Return grid lines, tick labels and titles; `y.start` is the lower edge."""
    parts = [
        element("line", x1=x.start, x2=x.end, y1=y(v), y2=y(v), class_="grid")
        + element("text", label(v), x=x.start - 6, y=y(v) + 4, class_="tick end")
        for v in y.ticks()
    ]
    if x_ticks is None:
        x_ticks = [(v, label(v)) for v in x.ticks(6)]
    parts += [element("text", text, x=x(v), y=y.start + 16, class_="tick middle") for v, text in x_ticks]
    parts += [
        element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"),
        element("text", x_title, x=(x.start + x.end) / 2, y=y.start + 34, class_="name middle"),
        element("text", y_title, x=x.start - 34, y=y.end - 10, class_="name"),
    ]
    return _NOTHING.join(parts)


def drawing(width: int, height: int, said: str, *parts: Markup) -> Markup:
    """Return an SVG of these parts, with `said` as its description for screen readers."""
    return element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=said, class_="plot")
