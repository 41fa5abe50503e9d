"""Formats text for people: escaping, numbers, intervals and tables."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from math import inf, isfinite
from textwrap import fill
from typing import Any

WIDTH = 80
"""Default width of terminal output, in columns."""
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
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)  # as in report.js
_GAP = 2  # blanks between columns
_LEAST = 8  # minimum width of a folded column of names
_LONG_WORD = 32  # longer words may be broken even if other columns could be narrowed instead
_JOINS = re.compile(r"(?<=[\s._/:=,-])")  # names may be folded after these characters


# --- foreign text ---------------------------------------------------------------------------------------------


def safe_text(text: object) -> str:
    """Return external text as one line without control sequences, safe for terminals and surrounding text."""
    line = " ".join(_ESCAPES.sub("", str(text)).split())
    return "".join(c for c in line if unicodedata.category(c) not in _DANGEROUS)


def visible(text: object) -> str:
    r"""Return text with invisible characters as escapes such as `\u202e`; line breaks and tabs are kept."""
    string = str(text)
    if string.isprintable():
        return string
    return "".join(c if c in "\n\t" or _shows(c) else f"\\u{ord(c):04x}" for c in string)


def _shows(c: str) -> bool:
    return (
        unicodedata.category(c) not in _DANGEROUS | _BREAKS and ord(c) & 0xFFFE != 0xFFFE
    )  # noncharacters are invalid in XML


def escape_markdown(value: object) -> str:
    """Escape HTML, Markdown and table separators in a text."""
    return re.sub(r"([\\|`*_~#\[\]])", r"\\\1", html.escape(safe_text(value), quote=False))


def escape_latex(value: object) -> str:
    """Escape LaTeX commands in a text."""
    return "".join(_LATEX.get(c, c) for c in safe_text(value))


def escape_script(json_text: str) -> str:
    """Escape JSON for use inside a `<script>`."""
    return json_text.translate(_IN_SCRIPT)


def escape_spreadsheet(value: Any) -> Any:
    """Return a value for a CSV file; text that a spreadsheet would interpret as a formula gets a leading `'`."""
    if not isinstance(value, str):
        return value
    text = safe_text(value)
    return f"'{text}" if value.startswith("\t") or text.startswith(("=", "+", "-", "@")) else text


# --- numbers --------------------------------------------------------------------------------------------------


def number(value: float | None, form: str = ".3f") -> str:
    """Format a number by a format specification, without a minus if it rounds to zero; `–` for None."""
    if value is None:
        return MISSING
    text, zero = format(value, form), format(abs(value * 0), form)
    return zero if text.replace("-", "", 1).strip() == zero.replace("+", "", 1).strip() else text


def short(value: float | None, digits: int = 3) -> str:
    """Format a score compactly: `.612`, `-.020`, `1.00`, `23.4`; `–` for None."""
    if value is None:
        return MISSING
    if abs(value) >= 10:
        return f"{value:.{digits + 1}g}"
    text = f"{value:.{digits if abs(value) < 1 else digits - 1}f}"
    return re.sub(r"^-(?=\.0*$)", "", re.sub(r"^(-?)0\.", r"\1.", text))


def sort_key(text: str) -> tuple[float, list[tuple[str, float]], str]:
    """Return a key that sorts numbers by size, then other texts, in which groups of digits count as numbers.

    Example:
        >>> sorted(["layer10", "10", "0.5", "layer2", "-1", "0.25", "1e-3"], key=sort_key)
        ['-1', '1e-3', '0.25', '0.5', '10', 'layer2', 'layer10']
    """
    if _NUMBER.fullmatch(text):
        return float(text), [], text
    parts = re.findall(r"([^0-9]*)([0-9]*)", text.casefold())
    return inf, [(between, float(digits or -1)) for between, digits in parts], text


def counted(n: int, one: str, more: str = "") -> str:
    """Return a count with its noun: `1 cell`, `3 cells`; `more` is the plural unless it only adds an s."""
    return f"{n:,} {one if n == 1 else more or f'{one}s'}"


def measured(value: float | None) -> str:
    """Format a measure: large integers in full, other numbers with four digits; `–` for None."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def interval(ends: tuple[float, float] | None, form: str = ".3f", between: str = " to ") -> str:
    """Format an interval: `0.574 to 0.651`; `–` for None."""
    return MISSING if ends is None else between.join(number(end, form) for end in ends)


def short_interval(ends: tuple[float, float] | None) -> str:
    """Format an interval compactly, with enough digits to distinguish its ends: `.57 .65`; `– –` for None."""
    if ends is None:
        return f"{MISSING} {MISSING}"
    low, high = ends
    digits = 2 if high - low >= 0.02 else 3
    return f"{short(low, digits)} {short(high, digits)}"


def shown(value: Any, form: str = "", missing: str = MISSING) -> str:
    """Format a value of any column.

    Args:
        value: Text, a number, a pair of numbers, or numbers by name.
        form: Format specification of its numbers; `measure` for four digits.
        missing: Text for None.
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
    """Return a finite number rounded to significant digits, for JSON; None for other values."""
    return float(f"{value:.{digits}g}") if value is not None and isfinite(value) else None


def fold(sentence: object) -> str:
    """Return text (made safe by `safe_text`) wrapped to `WIDTH`, with continuation lines indented."""
    return fill(safe_text(sentence), WIDTH, subsequent_indent="  ", break_on_hyphens=False)


# --- tables ---------------------------------------------------------------------------------------------------


def screen_width(line: str) -> int:
    """Return how many columns a line takes on a terminal, where characters such as CJK and emoji take two."""
    if line.isascii():
        return len(line)
    from rich.cells import cell_len

    return cell_len(line)


def padded(line: str, width: int) -> str:
    """Return a line followed by blanks, up to a width on a terminal."""
    return line + " " * (width - screen_width(line))


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """Return a table with aligned columns, for a terminal.

    Args:
        head: Headings of the columns.
        rows: Cells.
        width: Width of the terminal; headings and names are folded to fit it, numbers never. Default: no folding.
    """
    return "\n".join(aligned_rows(head, rows, width))


def aligned_rows(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> list[str]:
    """Return heading and rows of `aligned` separately; folded ones contain several lines."""
    lines = [[safe_text(cell) for cell in row] for row in (head, *rows)]
    columns = [*zip(*lines, strict=True)]
    widths = [max(map(screen_width, column)) for column in columns]
    if width is not None:
        room = width - _GAP * (len(columns) - 1)
        widths = _narrowed(widths, [max(_least_width(column), whole_width(column)) for column in columns], room)
        widths = _narrowed(widths, [_least_width(column) for column in columns], room)
    return [_folded(line, widths) for line in lines]


def _least_width(column: Sequence[str]) -> int:
    """Return the minimum width of a column: numbers are not broken, words may be."""
    whole = [screen_width(cell) for cell in column[1:] if cell[:1] in "+-.~–[" or cell[:1].isdigit()]
    return max([_LEAST, *whole])


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Narrow the widest columns, down to their minimum widths, until all fit."""
    found = list(widths)
    while sum(found) > room:
        wide = [i for i, w in enumerate(found) if w > least[i]]
        if not wide:
            break
        widest = max(wide, key=lambda i: found[i])
        found[widest] -= 1
    return found


def whole_width(names: Iterable[str]) -> int:
    """Return the width at which folding breaks no word of the names, except very long words."""
    parts = [part.rstrip() for name in names for part in _JOINS.split(name)]
    return max([min(screen_width(part), _LONG_WORD) for part in parts], default=0)


def folded_name(cell: str, width: int) -> list[str]:
    """Fold a name into lines of a width, breaking after blanks and joining characters, else within words."""
    if screen_width(cell) <= width:
        return [cell]
    lines = [""]
    for part in _JOINS.split(cell):
        if screen_width(lines[-1]) + screen_width(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while screen_width(lines[-1].rstrip()) > width:
            start = _start(lines[-1], width)
            lines[-1:] = [start, lines[-1][len(start) :]]
    return [line for line in map(str.strip, lines) if line]


def _start(line: str, width: int) -> str:
    """Return as many of a line's first characters as fit the width, at least one."""
    end = max(1, width // 2)
    while end < len(line) and screen_width(line[: end + 1]) <= width:
        end += 1
    return line[:end]


def _folded(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [folded_name(cell, w) for cell, w in zip(line, widths, strict=True)]
    return "\n".join(
        (" " * _GAP).join(padded(part, w) for part, w in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown, with escaped cells."""
    lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def latex_table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Sequence[bool] = (),
    bold: Iterable[tuple[int, int]] = (),
) -> str:
    """Return a table as a LaTeX `tabular` with booktabs rules and escaped cells.

    Args:
        head: Headings of the columns.
        rows: Cells.
        numbers: Which columns are numbers, right-aligned; default: none.
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
