"""Draws the plots of a report as SVG without scripts, in the page's colours and with text for screen readers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import cos, pi, sin
from typing import Any

from markupsafe import Markup

from saeval._compare import Leaderboard
from saeval._util import number, text
from saeval.records import CellResult, DecileShares, ScoreRow
from saeval.report.html.svg import Axis, drawing, element, frame, label, title

_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 348, 26, 208
_BINS, _BARS_HEIGHT, _BARS_LEFT, _BARS_TOP = 20, 46, 104, 46  # of histograms
_COLOURS, _GREYS, _SHAPES = 8, 3, 4
_MOST_POINTS = 1500
_LONGEST = 15  # characters of a name beside a histogram


@dataclass(frozen=True)
class Series:
    """The style of one cell in every plot: colour and shape for contestants, grey for baselines.

    Attributes:
        cell: The cell.
        name: Name in legends.
        style: Class that sets the colour.
        shape: Number of the marker's shape.
        page: Address of its page; empty if it has none.
    """

    cell: CellResult
    name: str
    style: str
    shape: int
    page: str

    @classmethod
    def of(cls, cells: Iterable[CellResult], pages: dict[str, str]) -> list[Series]:
        """Assign a style to each cell; styles repeat if there are more cells than styles."""
        found: list[Series] = []
        counts = {True: 0, False: 0}
        for cell in cells:
            k = counts[cell.baseline is None]
            counts[cell.baseline is None] += 1
            name = ", ".join(cell.axes.values()) or cell.cell
            found.append(cls(cell, name, **_look(k, cell.baseline is None), page=pages.get(cell.cell, "")))
        return found

    def marker(self, x: float, y: float, size: float = 5.0, *children: Markup) -> Markup:
        """Return the cell's marker at a position."""
        look = f"mark {self.style}"
        if self.shape == 0:
            return element("circle", *children, cx=x, cy=y, r=size, class_=look)
        if self.shape == 1:
            return element(
                "rect", *children, x=x - size * 0.9, y=y - size * 0.9, width=size * 1.8, height=size * 1.8, class_=look
            )
        corners, turn = (4, 0.0) if self.shape == 2 else (3, pi / 6)
        points = [
            (x + size * 1.25 * cos(turn + 2 * pi * k / corners), y + size * 1.25 * sin(turn + 2 * pi * k / corners))
            for k in range(corners)
        ]
        return element("polygon", *children, points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), class_=look)

    @property
    def key(self) -> Markup:
        """Only the marker, for legends with text beside it."""
        return element("svg", self.marker(8.0, 8.0), viewBox="0 0 16 16", class_="key", aria_hidden="true")


def _look(k: int, contestant: bool) -> dict[str, Any]:
    """Return the style and shape of the k-th contestant or baseline."""
    return {"style": f"s{k % _COLOURS}" if contestant else f"b{k % _GREYS}", "shape": (k + k // _COLOURS) % _SHAPES}


def interval(row: ScoreRow) -> Markup:
    """Return a small bar: the metric's range, the interval, the value, and the highest floor."""
    if row.value is None:
        return Markup("")
    low, high = row.range
    known = [row.value, *(row.ci95 or ()), *row.floor.values()]
    axis = Axis(min(known) if low is None else low, max(known) if high is None else high, 2.0, 98.0)
    floors = [
        element("line", title(f"{k} {number(v)}"), x1=axis(v), x2=axis(v), y1=1, y2=13, class_="floor")
        for k, v in row.floor.items()
    ]
    parts = [element("line", x1=2, x2=98, y1=7, y2=7, class_="track")]
    if row.ci95:
        parts.append(element("line", x1=axis(row.ci95[0]), x2=axis(row.ci95[1]), y1=7, y2=7, class_="bar"))
    return element(
        "svg",
        *parts,
        *floors,
        element("circle", cx=axis(row.value), cy=7, r=3.5, class_="dot"),
        viewBox="0 0 100 14",
        class_="mini",
        aria_hidden="true",
    )


def against(board: Leaderboard, scorer: str, series: Sequence[Series], measure: str = "l0") -> Markup | None:
    """Draw a scorer's value against a measure, with intervals, chance, and baselines' explanations as floors.

    Returns:
        The drawing; None if no cell has both.
    """
    rows = [
        (s, s.cell.measures[measure], row)
        for s in series
        if measure in s.cell.measures and (row := board.row(s.cell, scorer)) and row.value is not None
    ]
    if not rows:
        return None
    right = _RIGHT - 30  # leaves room for the label `chance`
    xs = [x for _, x, _ in rows]
    spread = min(xs) > 0 and max(xs) / min(xs) > 8
    ys = [v for _, _, row in rows for v in (row.value, *(row.ci95 or ()), *row.floor.values()) if v is not None]
    x = Axis.around(xs, _LEFT, right, log=spread)
    y = Axis.around(ys, _BOTTOM, _TOP, rows[0][2].range)
    name_of_x = "L0" if measure == "l0" else measure
    name_of_x += ", log scale" * spread
    parts = [frame(x, y, name_of_x, _titled(scorer, board.metrics[scorer]))]
    parts += _chance(y, rows[0][2].floor.get("chance"), right)
    said = []
    for s, at, row in rows:
        value = row.value or 0.0
        parts += _whisker(s, x(at), y, row)
        parts += [
            element(
                "line",
                title(f"{s.name}: {name} {number(level)}"),
                x1=x(at) - 7,
                x2=x(at) + 7,
                y1=y(level),
                y2=y(level),
                class_=f"level {s.style}",
            )
            for name, level in row.floor.items()
            if name != "chance"
        ]
        parts.append(s.marker(x(at), y(value), 5.0, title(f"{s.name}: {_with_interval(row)}; {measure} {label(at)}")))
        said.append(f"{s.name} {number(value)} at {label(at)}")
    return drawing(_WIDTH, _HEIGHT, f"{scorer} against {measure}: {'; '.join(said)}.", *parts)


def layer_of(cell: CellResult) -> int | None:
    """Return the layer of a cell: its axis `layer`, or the first number in the path of its hookpoint."""
    named = re.search(r"(?:^|[./_])(\d+)(?:[./_]|$)", str(cell.coder.get("hookpoint") or ""))
    axis = cell.axes.get("layer", "")
    return int(axis) if axis.isdigit() else int(named[1]) if named else None


def families(series: Sequence[Series]) -> list[list[Series]]:
    """Group cells that differ only in their layer, each family in one style; empty for a single layer.

    Axes whose values correspond one to one to layers count as the layer.
    """
    placed = [(s, layer) for s in series if (layer := layer_of(s.cell)) is not None]
    layers = {layer for _, layer in placed}
    if len(layers) < 2:
        return []
    axes = {axis for s, _ in placed for axis in s.cell.axes}
    pairs = {axis: {(s.cell.axes.get(axis), layer) for s, layer in placed} for axis in axes}
    same = {axis for axis, p in pairs.items() if axis == "layer" or len(p) == len(layers) == len({v for v, _ in p})}
    found: dict[tuple[str | None, tuple[str, ...]], list[Series]] = {}
    for s, _ in sorted(placed, key=lambda x: x[1]):
        key = s.cell.baseline, tuple(v for axis, v in s.cell.axes.items() if axis not in same)
        found.setdefault(key, []).append(s)
    looks = {key: some[0] for key, some in found.items()}
    counts = {True: 0, False: 0}
    for key, first in looks.items():
        k = counts[key[0] is None]
        counts[key[0] is None] += 1
        looks[key] = replace(
            first, name=", ".join(key[1]) or first.cell.baseline or "all", **_look(k, key[0] is None), page=""
        )
    return [[replace(looks[key], cell=s.cell, page=s.page) for s in some] for key, some in found.items()]


def by_layer(board: Leaderboard, scorer: str, groups: Sequence[Sequence[Series]]) -> Markup | None:
    """Draw a scorer's value by layer, with intervals, chance, and one line per family of cells (paper, A5).

    Returns None for fewer than two layers.
    """
    rows = [
        [
            (s, layer_of(s.cell) or 0, row, row.value)
            for s in some
            if (row := board.row(s.cell, scorer)) and row.value is not None
        ]
        for some in groups
    ]
    every = [point for some in rows for point in some]
    if len({layer for _, layer, _, _ in every}) < 2:
        return None
    right = _RIGHT - 30
    layers = sorted({layer for _, layer, _, _ in every})
    x = Axis.around(layers, _LEFT, right)
    bounds = [v for _, _, row, value in every for v in (value, *(row.ci95 or ()))]
    chance = every[0][2].floor.get("chance")
    y = Axis.around([*bounds, *([chance] if chance is not None else [])], _BOTTOM, _TOP, every[0][2].range)
    ticks = [(float(n), str(n)) for n in layers[:: -(-len(layers) // 12)]]
    parts = [frame(x, y, "layer", _titled(scorer, board.metrics[scorer]), ticks), *_chance(y, chance, right)]
    said = []
    for some in rows:
        if some:
            points = " ".join(f"{x(n):.1f},{y(v):.1f}" for _, n, _, v in some)
            parts.append(element("polyline", points=points, class_=f"line {some[0][0].style}"))
            said.append(f"{some[0][0].name} " + ", ".join(f"{number(v)} at {n}" for _, n, _, v in some))
        for s, n, row, value in some:
            parts += _whisker(s, x(n), y, row)
            parts.append(s.marker(x(n), y(value), 4.5, title(f"{s.name}, layer {n}: {_with_interval(row)}")))
    return drawing(_WIDTH, _HEIGHT, f"{scorer} by layer: {'; '.join(said)}.", *parts)


def _whisker(s: Series, x: float, y: Axis, row: ScoreRow) -> list[Markup]:
    """Return the interval of a score as a line at `x`; empty without one."""
    if row.ci95 is None:
        return []
    low, high = row.ci95
    return [element("line", x1=x, x2=x, y1=y(low), y2=y(high), class_=f"whisker {s.style}")]


def _with_interval(row: ScoreRow) -> str:
    """Return a score and its interval as text."""
    return number(row.value) + (f", {text.interval(row.ci95)}" if row.ci95 else "")


def _chance(y: Axis, chance: float | None, right: float) -> list[Markup]:
    """Return the line at chance with its label; empty if chance is unknown."""
    if chance is None:
        return []
    return [
        element(
            "line", title(f"chance {label(chance)}"), x1=_LEFT, x2=right, y1=y(chance), y2=y(chance), class_="chance"
        ),
        element("text", "chance", x=right + 3, y=y(chance) + 4, class_="tick"),
    ]


def distribution(
    scorer: str, metric: str, rows: Sequence[tuple[Series, Sequence[float], ScoreRow | None]]
) -> Markup | None:
    """Draw histograms of latents' scores, one row per cell, with mean and chance; None if there are no scores."""
    rows = [(s, values, row) for s, values, row in rows if values]
    if not rows:
        return None
    x = _scores_axis(rows)
    bottom = _BARS_TOP + _BARS_HEIGHT * len(rows)
    parts = [element("text", _titled(scorer, metric), x=12, y=14, class_="name")]
    parts += [
        element("line", x1=x(v), x2=x(v), y1=_BARS_TOP, y2=bottom, class_="grid")
        + element("text", label(v), x=x(v), y=bottom + 16, class_="tick middle")
        for v in x.ticks(5)
    ]
    said = []
    for k, (s, values, row) in enumerate(rows, 1):
        mean = row.value if row and row.value is not None else sum(values) / len(values)
        parts += _histogram(s, values, mean, x, _BARS_TOP + _BARS_HEIGHT * k)
        said.append(f"{s.name} mean {number(mean)} over {len(values)}")
    chance = next((row.floor["chance"] for _, _, row in rows if row and "chance" in row.floor), None)
    if chance is not None:
        ends = {"x1": x(chance), "x2": x(chance), "y1": _BARS_TOP - 6, "y2": bottom}
        parts.append(element("line", title(f"chance {label(chance)}"), **ends, class_="chance"))
        parts.append(element("text", "chance", x=x(chance), y=_BARS_TOP - 10, class_="tick middle"))
    return drawing(_WIDTH, bottom + 24, f"Scores of latents under {scorer}: {'; '.join(said)}.", *parts)


def _scores_axis(rows: Sequence[tuple[Series, Sequence[float], ScoreRow | None]]) -> Axis:
    """Return the horizontal axis of histograms: the metric's range where it is bounded, else that of the scores."""
    low, high = next((row.range for _, _, row in rows if row), (None, None))
    seen = [v for _, values, _ in rows for v in values]
    least, greatest = min(seen) if low is None else low, max(seen) if high is None else high
    return Axis(least, greatest if greatest > least else least + 1, _BARS_LEFT, _RIGHT)


def _histogram(s: Series, values: Sequence[float], mean: float, x: Axis, base: float) -> list[Markup]:
    """Return the histogram of one cell's scores, from the height `base` upwards, with its mean and name."""
    counts = [0] * _BINS
    for v in values:
        counts[min(int((v - x.low) / (x.high - x.low) * _BINS), _BINS - 1)] += 1
    edges = [label(x.low + i * (x.high - x.low) / _BINS) for i in range(_BINS + 1)]
    width = (_RIGHT - _BARS_LEFT) / _BINS
    parts = []
    for i, n in enumerate(counts):
        if not n:
            continue
        height = (_BARS_HEIGHT - 10) * n / max(counts)
        place = {"x": _BARS_LEFT + i * width + 0.5, "width": width - 1, "y": base - height, "height": height}
        said = title(f"{n} of {len(values)} latents from {edges[i]} to {edges[i + 1]}")
        parts.append(element("rect", said, **place, class_=f"column {s.style}"))
    ends = {"x1": x(mean), "x2": x(mean), "y1": base - _BARS_HEIGHT + 8, "y2": base}
    return [
        *parts,
        element("line", x1=_BARS_LEFT, x2=_RIGHT, y1=base, y2=base, class_="axis"),
        element("line", title(f"mean {number(mean)}"), **ends, class_="mean"),
        element("text", _short(s.name), title(s.name), x=_BARS_LEFT - 8, y=base - 14, class_="tick end"),
        element("text", f"n {len(values)}", x=_BARS_LEFT - 8, y=base - 1, class_="small end"),
    ]


def deciles(scorer: str, rows: Sequence[tuple[Series, DecileShares]]) -> Markup:
    """Draw the share judged correctly by activation decile, and for non-activating windows, one line per cell."""
    x, y = Axis(0, 11, _LEFT + 10, _RIGHT - 10), Axis(0, 1, _BOTTOM, _TOP)
    ticks = [(float(k), str(k)) for k in range(10)] + [(11.0, "none")]
    parts = [
        frame(
            x, y, "decile of activation (0 strongest; none: non-activating)", f"{scorer}: share judged correctly", ticks
        )
    ]
    said = []
    for s, shares in rows:
        points = [
            (float(k), r, n) for k, (r, n) in enumerate(zip(shares.right, shares.n, strict=True)) if r is not None
        ]
        line = " ".join(f"{x(k):.1f},{y(r):.1f}" for k, r, _ in points)
        parts.append(element("polyline", points=line, class_=f"line {s.style}"))
        if shares.negatives_right is not None:
            points.append((11.0, shares.negatives_right, shares.negatives_n))
        parts += [
            s.marker(
                x(k),
                y(r),
                3.5,
                title(f"{s.name}, {f'decile {k:.0f}' if k <= 9 else 'non-activating'}: {number(r)} of {n}"),
            )
            for k, r, n in points
        ]
        known = [r for k, r, _ in points if k <= 9]
        said.append(f"{s.name} {text.interval((known[0], known[-1]), '.2f')}" if known else f"{s.name} none")
    return drawing(
        _WIDTH, _HEIGHT, f"{scorer}, judged correctly from strongest to weakest decile: {'; '.join(said)}.", *parts
    )


def scatter(names: tuple[str, str], rows: Sequence[tuple[Series, Sequence[tuple[int, float, float]]]]) -> Markup | None:
    """Draw each latent at its scores under two scorers; None if no latent has both.

    A click on a point opens the latent's page. At most about 1,500 points are drawn.
    """
    rows = [(s, points) for s, points in rows if points]
    if not rows:
        return None
    x = Axis.around([p for _, points in rows for _, p, _ in points], _LEFT, _RIGHT)
    y = Axis.around([p for _, points in rows for _, _, p in points], _BOTTOM, _TOP)
    parts = [frame(x, y, names[0], names[1])]
    total = sum(len(points) for _, points in rows)
    step = -(-total // _MOST_POINTS)
    size = 5.0 if total < 60 else 3.0
    for s, points in rows:
        for latent, a, b in points[::step]:
            mark = s.marker(x(a), y(b), size, title(f"{s.name}, latent {latent}: {label(a)}, {label(b)}"))
            parts.append(element("g", mark, class_="point", data_go=f"{s.page}#latent={latent}" if s.page else None))
    some = f", one in {step} drawn" if step > 1 else ""
    return drawing(_WIDTH, _HEIGHT, f"{names[1]} against {names[0]} for {total} latents{some}.", *parts)


def share_bar(share: float) -> Markup:
    """Return a bar filled to a share from 0 to 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    return element(
        "svg",
        element("rect", width=100, height=8, rx=4, class_="empty"),
        element("rect", width=width, height=8, rx=4, class_="full"),
        viewBox="0 0 100 8",
        class_="share",
        aria_hidden="true",
        preserveAspectRatio="none",
    )


def _titled(scorer: str, metric: str) -> str:
    return f"{scorer}: {metric.replace('_', ' ')}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
