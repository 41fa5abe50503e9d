"""A table of text as people paste it: aligned, Markdown, LaTeX."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

_DANGEROUS = {"Cc", "Cf", "Cs", "Co"}  # control, format (bidi marks among them), surrogates, private use
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # strings: titles, links, clipboard
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "−": "$-$",
}  # fmt: skip


def safe_text(text: object) -> str:
    """Return text of a model or corpus as one line that can do nothing to a terminal or to the text around it."""
    line = " ".join(_ESCAPES.sub("", str(text)).split())
    return "".join(c for c in line if unicodedata.category(c) not in _DANGEROUS)


def measured(value: float | None) -> str:
    """Return a measure as text: a count in full, anything else to four digits, – where it is unknown."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the table in columns, for a terminal."""
    lines = [[safe_text(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the table in Markdown; nothing in a cell is markup."""
    lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def latex(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the table as a `tabular` with rules of the package booktabs; nothing in a cell is a command."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (head, *rows)]
    return "\n".join(
        [rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
         r"\end{tabular}"]
    )  # fmt: skip


def escape_markdown(value: object) -> str:
    """Return text with nothing in it that Markdown or HTML would read."""
    return re.sub(r"([\\`*_\[\]~|])", r"\\\1", html.escape(safe_text(value), quote=False))


def _latex(value: object) -> str:
    return "".join(_LATEX.get(c, c) for c in safe_text(value))
