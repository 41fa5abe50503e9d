"""Writes a plot of the report as a self-contained SVG, PDF or PNG file, with its style and a legend below."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup

from saeval._util import InputError, first_line
from saeval.report.html.pages import plot_style
from saeval.report.html.plots import Series
from saeval.report.html.svg import element

PlotFormat = Literal["svg", "pdf", "png"]

_FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_LINE, _LETTER, _LEFT = 16, 6.4, 46  # height of a line of the legend, width of a letter, left edge
_SCALE = 3.0  # pixels of a PNG per unit of the drawing: 1116 for the width of 372


def as_file(drawing: Markup, legend: Sequence[Series], format_: PlotFormat) -> bytes:
    """Return the content of a file with a drawing of the report and a legend for these cells.

    Raises:
        InputError: If PDF or PNG is requested and CairoSVG is not installed or cannot load the Cairo library.
    """
    svg = _standalone(drawing, legend).encode()
    if format_ == "svg":
        return svg
    try:
        import cairosvg
    except (ImportError, OSError) as error:
        raise InputError(
            f"{format_} files need CairoSVG, which cannot be imported ({first_line(error)}). "
            "Run pip install 'saeval[plots]' and install the Cairo library, or choose svg"
        ) from None
    # CairoSVG fetches nothing: the drawing has no references, and `unsafe` stays off.
    content: bytes = (
        cairosvg.svg2pdf(svg) if format_ == "pdf" else cairosvg.svg2png(svg, scale=_SCALE, background_color="white")
    )
    return content


def _standalone(drawing: Markup, legend: Sequence[Series]) -> str:
    """Return a drawing as a standalone SVG with style, margins and legend."""
    head, _, body = str(drawing).partition(">")
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', head)
    assert size is not None, "`svg.py` gives every plot a viewBox"
    width, height = int(size[1]), int(size[2])
    keys, lines = _legend(legend, width)
    below = height + lines * _LINE + (8 if lines else 0)
    said = re.search(r'aria-label="[^"]*"', head)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-6 0 {width + 12} {below}" width="{width + 12}" '
        f'height="{below}" class="plot" role="img" {said[0] if said else ""}>\n<style>\n.plot {{font-family: '
        f'{_FONTS}}}\n{plot_style()}\n</style>\n{body.removesuffix("</svg>")}<g transform="translate(0 '
        f'{height})">{keys}</g></svg>\n'
    )


def _legend(legend: Sequence[Series], width: int) -> tuple[Markup, int]:
    """Return the markers and names of the cells, and the number of lines that they fill."""
    parts = []
    x, y = float(_LEFT), 0
    for s in legend:
        room = 24 + _LETTER * len(s.name)
        if x > _LEFT and x + room > width:
            x, y = float(_LEFT), y + _LINE
        parts.append(s.marker(x + 4, y + 8.0, 4.0) + element("text", s.name, x=x + 13, y=y + 12, class_="name"))
        x += room
    return Markup("").join(parts), y // _LINE + 1 if parts else 0
