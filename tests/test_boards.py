"""Boards show the same numbers in every format, and every column that is declared."""

from __future__ import annotations

import pytest
from golden_boards import GOLDEN, boards


@pytest.fixture(scope="module")
def made():
    return boards()


def test_boards_are_word_for_word_what_they_were(made):
    changed = [name for name, text in made.items() if (GOLDEN / name).read_text() != text]
    assert not changed, f"{changed} changed; if that is meant, run `python tests/golden_boards.py` and look at the diff"
    assert {file.name for file in GOLDEN.iterdir()} == made.keys()
