"""Numbers, intervals and tables as text; what models write is harmless in every format."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from saeval._util import text


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (None, ".3f", "–"),
        (0.61249, ".3f", "0.612"),
        (16384.0, "measure", "16,384"),
        (0.21345, "measure", "0.2135"),
        ((0.5, 0.75), ".2f", "0.50 to 0.75"),
        ({"chance": 0.5, "random": None}, ".1f", "chance 0.5, random –"),
        ({}, ".1f", "–"),
        ("48/50", "", "48/50"),
        (7, "", "7"),
        (-0.0003, ".3f", "0.000"),
        (True, "", "True"),
    ],
)
def test_value_of_a_column_is_written_as_its_format_says(value, form, expected):
    assert text.shown(value, form) == expected


@pytest.mark.parametrize("width", [40, 60, 80])
def test_table_is_folded_to_the_width_between_the_parts_of_names_and_numbers_stay_whole(width):
    head = ["name", "a head of several words", "n"]
    rows = [["coder=some/long-name,layer=9", "0.612 [0.571, 0.651]", "48/50"], ["b", "–", "5/50"]]
    lines = text.aligned(head, rows, width).splitlines()
    assert max(map(len, lines)) <= width
    assert "0.612 [0.571, 0.651]" in "\n".join(lines) and "48/50" in "\n".join(lines)
    names = "".join(line[: lines[0].index("a head")].strip() for line in lines[1:])
    assert "coder=some/long-name,layer=9" in names


@pytest.mark.parametrize("width", [None, 24, 40])
def test_table_with_wide_characters_is_aligned_as_terminals_show_it(width):
    lines = text.aligned(["name", "n"], [["稀疏自编码器🙂的名字", "48/50"], ["b", "5/50"]], width).splitlines()
    starts = {cell_len(line[: line.index(n)]) for line in lines for n in ("48/50", "5/50") if f"  {n}" in line}
    assert len(starts) == 1 and max(map(cell_len, lines)) <= (width or 80)
    assert (
        "".join(line.split()[0] for line in lines if "b" not in line and "name" not in line) == "稀疏自编码器🙂的名字"
    )


def test_word_that_no_line_holds_is_cut_and_nothing_is_lost():
    lines = text.aligned(["name", "n"], [["x" * 100, "1"]], 30).splitlines()
    assert "".join(lines).count("x") == 100 and max(map(len, lines)) <= 30


def test_table_without_a_width_is_not_folded():
    assert text.aligned(["name"], [["x " * 60]]).splitlines()[1] == ("x " * 60).strip()


@pytest.mark.parametrize(
    "hostile", ["\x1b[31mred", "a|b", "<script>", "\\input{x}", "$x$", "\u202eevil", "two\nlines", "=cmd()"]
)
def test_foreign_text_is_inert_in_every_format(hostile):
    row = [[hostile, "1"]]
    for table in (
        text.aligned(["a", "b"], row),
        text.markdown_table(["a", "b"], row),
        text.latex_table(["a", "b"], row),
    ):
        assert "\x1b" not in table and "\u202e" not in table
    assert len(text.markdown_table(["a", "b"], row).splitlines()) == 3 and "<script>" not in text.markdown_table(
        ["a", "b"], row
    )
    made = text.latex_table(["a", "b"], row)
    assert "\\input" not in made and "$x$" not in made
    assert "<" not in text.escape_script('"<script>"') and not str(text.escape_spreadsheet(hostile)).startswith("=")


def test_sentence_is_folded_to_eighty_columns():
    assert max(map(len, text.fold("some words " * 30).splitlines())) <= 80


def test_a_number_that_rounds_to_zero_has_no_minus():
    assert (
        text.number(-0.0004, "+.3f") == "+0.000"
        and text.number(-0.0004) == "0.000"
        and text.number(-0.0006) == "-0.001"
    )
    assert text.number(-0.001, ".0%") == "0%" and text.number(1234, ",d") == "1,234" and text.number(3, ".1f") == "3.0"
    assert text.number(-0.3, ",.0f") == "0" and text.number(-1234.5, ",.1f") == "-1,234.5"
    assert text.number(-0.3, "6.0f") == "     0" and text.number(float("nan")) == "nan"
    assert text.interval((-0.0001, 0.2), "+.3f") == "+0.000 to +0.200" and text.number(None) == "–"


def test_counts_have_the_noun_in_the_right_number():
    assert [text.counted(n, "cell") for n in (0, 1, 2000)] == ["0 cells", "1 cell", "2,000 cells"]
    assert text.counted(1, "line is", "lines are") == "1 line is"
    assert text.counted(2, "line is", "lines are") == "2 lines are"
