"""Formats text for people: escaping, numbers, intervals and tables."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from math import isfinite
from textwrap import fill
from typing import Any

WIDTH = 80
"""Columns that every screen fits."""
MISSING = "–"
"""Shown in place of a missing number."""

_DANGEROUS = {"Cc", "Cf", "Cs", "Co"}  # control, format (bidi marks among them), surrogates, private use
_BREAKS = {"Zl", "Zp"}  # line and paragraph separators
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # strings: titles, links, clipboard
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "≠": r"$\neq$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "−": "$-$",
}  # fmt: skip
_GAP = 2  # blanks between columns
_LEAST = 8  # characters to which a column of names is folded at most
_LONG_WORD = 32  # a word of more characters may be cut even where there would be room for it
_JOINS = re.compile(r"(?<=[\s._/:=,-])")  # names are folded after these


# --- foreign text ---------------------------------------------------------------------------------------------


def safe_text(text: object) -> str:
    """Return text of a model or corpus as one line that can do nothing to a terminal or to the text around it."""
    line = " ".join(_ESCAPES.sub("", str(text)).split())
    return "".join(c for c in line if unicodedata.category(c) not in _DANGEROUS)


def visible(text: object) -> str:
    r"""Return text with invisible characters written as escapes such as `\u202e`; line breaks and tabs stay."""
    string = str(text)
    if string.isprintable():
        return string
    return "".join(c if c in "\n\t" or _shows(c) else f"\\u{ord(c):04x}" for c in string)


def _shows(c: str) -> bool:
    return (
        unicodedata.category(c) not in _DANGEROUS | _BREAKS and ord(c) & 0xFFFE != 0xFFFE
    )  # XML has no place for these


def escape_markdown(value: object) -> str:
    """Return text without HTML or Markdown in it, and that ends no cell of a table."""
    return re.sub(r"([\\|`*_~#\[\]])", r"\\\1", html.escape(safe_text(value), quote=False))


def escape_latex(value: object) -> str:
    """Return text in which LaTeX finds no command."""
    return "".join(_LATEX.get(c, c) for c in safe_text(value))


def escape_script(json_text: str) -> str:
    """Return JSON that is safe inside a `<script>`."""
    return json_text.translate(_IN_SCRIPT)


def escape_spreadsheet(value: Any) -> Any:
    """Return a value of a CSV file; text that a spreadsheet would take for a formula gets a `'` before it."""
    if not isinstance(value, str):
        return value
    text = safe_text(value)
    return f"'{text}" if value.startswith("\t") or text.startswith(("=", "+", "-", "@")) else text


# --- numbers --------------------------------------------------------------------------------------------------


def number(value: float | None, form: str = ".3f") -> str:
    """Write a number by a format specification, without a minus if it rounds to zero; `–` for none."""
    return MISSING if value is None else format(value, form.replace(".", "z.", 1))


def short(value: float | None, digits: int = 3) -> str:
    """Write a score in little room: `.612`, `-.020`, `1.00`, `23.4`; `–` for none."""
    if value is None:
        return MISSING
    if abs(value) >= 10:
        return f"{value:.{digits + 1}g}"
    text = f"{value:.{digits if abs(value) < 1 else digits - 1}f}"
    return re.sub(r"^-(?=\.0*$)", "", re.sub(r"^(-?)0\.", r"\1.", text))


def measured(value: float | None) -> str:
    """Write a measure: a count in full, anything else to four digits; `–` for none."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def interval(ends: tuple[float, float] | None, form: str = ".3f", between: str = " to ") -> str:
    """Write an interval: `0.574 to 0.651`; `–` for none."""
    return MISSING if ends is None else between.join(number(end, form) for end in ends)


def short_interval(ends: tuple[float, float] | None) -> str:
    """Write an interval in little room, to as many digits as tell its ends apart: `.57 .65`; `– –` for none."""
    if ends is None:
        return f"{MISSING} {MISSING}"
    low, high = ends
    digits = 2 if high - low >= 0.02 else 3
    return f"{short(low, digits)} {short(high, digits)}"


def shown(value: Any, form: str = "", missing: str = MISSING) -> str:
    """Write a value of any column.

    Args:
        value: Text, a number, a pair of numbers, or numbers by name.
        form: Format specification of its numbers; `measure` for four digits.
        missing: What stands for None.
    """
    if value is None:
        return missing
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(v, form, missing)}" for name, v in value.items()) or missing
    if isinstance(value, tuple):
        return interval(value, form)
    if isinstance(value, str):
        return value
    return measured(value) if form == "measure" else number(value, form)


def rounded(value: Any, digits: int = 5) -> float | None:
    """Return a finite number rounded to significant digits, for JSON; None for any other."""
    return float(f"{value:.{digits}g}") if value is not None and isfinite(value) else None


def fold(sentence: object) -> str:
    """Return text in lines that fit every screen, further lines indented; harmless as `safe_text` makes it."""
    return fill(safe_text(sentence), WIDTH, subsequent_indent="  ", break_on_hyphens=False)


# --- tables ---------------------------------------------------------------------------------------------------


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """Return a table in columns, for a terminal.

    Args:
        head: Heads of the columns.
        rows: Cells.
        width: Columns of the terminal, to which heads and names are folded; numbers never are. Default: no
            folding.
    """
    return "\n".join(aligned_rows(head, rows, width))


def aligned_rows(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> list[str]:
    """Return the head and each row of `aligned`, which are several lines where they are folded."""
    lines = [[safe_text(cell) for cell in row] for row in (head, *rows)]
    columns = [*zip(*lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    if width is not None:
        room = width - _GAP * (len(columns) - 1)
        widths = _narrowed(widths, [max(_least_width(column), whole_width(column)) for column in columns], room)
        widths = _narrowed(widths, [_least_width(column) for column in columns], room)
    return [_folded(line, widths) for line in lines]


def _least_width(column: Sequence[str]) -> int:
    """Return to how few characters a column can be folded: numbers stay whole, words may be cut."""
    whole = [len(cell) for cell in column[1:] if cell[:1] in "+-.~–[" or cell[:1].isdigit()]
    return max([_LEAST, *whole])


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Take from the widest columns, as far as they can be folded, until all fit the room."""
    found = list(widths)
    while sum(found) > room:
        wide = [i for i, w in enumerate(found) if w > least[i]]
        if not wide:
            break
        widest = max(wide, key=lambda i: found[i])
        found[widest] -= 1
    return found


def whole_width(names: Iterable[str]) -> int:
    """Return the width at which no word of some names is cut when they are folded, very long words aside."""
    parts = [part.rstrip() for name in names for part in _JOINS.split(name)]
    return max([min(len(part), _LONG_WORD) for part in parts], default=0)


def folded_name(cell: str, width: int) -> list[str]:
    """Return a name in lines of a width, broken after blanks and the marks that join names, within words elsewhere."""
    if len(cell) <= width:
        return [cell]
    lines = [""]
    for part in _JOINS.split(cell):
        if len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line for line in map(str.strip, lines) if line]


def _folded(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [folded_name(cell, w) for cell, w in zip(line, widths, strict=True)]
    return "\n".join(
        (" " * _GAP).join(part.ljust(w) for part, w in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; nothing in a cell is markup."""
    lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def latex_table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Sequence[bool] = (),
    bold: Iterable[tuple[int, int]] = (),
) -> str:
    """Return a table as a `tabular` with rules of the package booktabs; nothing in a cell is a command.

    Args:
        head: Heads of the columns.
        rows: Cells.
        numbers: Which columns are numbers, aligned at the right; default: none.
        bold: Row and column of the cells in bold.
    """
    strong = set(bold)
    lines = [[escape_latex(cell) for cell in row] for row in rows]
    for i, j in strong:
        lines[i][j] = rf"\textbf{{{lines[i][j]}}}"
    layout = "".join("r" if j < len(numbers) and numbers[j] else "l" for j in range(len(head)))
    body = [" & ".join(line) + r" \\" for line in ([*map(escape_latex, head)], *lines)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
