"""Runs as notebooks show them: a board instead of pydantic's fields, latents, plots, progress."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
from made_run import made_run
from planted_run import cache_in, spec, truthful_server

import saeval
from saeval._compare import Leaderboard
from saeval._util import progress
from saeval.report.notebook import NotebookView, _marked, board_html, leaderboard


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    with cache_in(folder), truthful_server() as server:
        return saeval.run(spec(server, baselines=["random_explanation"]), out=folder / "run")


def test_a_run_is_shown_as_its_board_and_printed_in_a_line(run):
    html = run._repr_html_()
    assert html.count("<table") == 1 and "detection" in html and "1.000 [" in html and "planted" in html
    assert len(html) < 10_000
    assert repr(run) == "<Run planted 1.0: 1 cell, best all detection.balanced_accuracy 1.000 (n 6)>"
    assert "latent" in dir(run) and "model_fields_set" not in dir(run)


def test_the_board_has_the_order_marks_and_notes_of_the_terminal():
    run = made_run(recorded=True, reproducible=False)
    board = Leaderboard.of(run)
    page, printed = board_html(run), " ".join(leaderboard(run).text.split())
    coders = [x.cell.axes["coder"] for x in board.standings]
    assert coders == sorted(coders, key=page.index) and "ranked by lift of detection.balanced_accuracy" in page
    assert "recorded · not reproducible" in page and "RECORDED NOT REPRODUCIBLE" in printed
    for note in (*board.notes, *(found.text for found in board.against), *run.warnings):
        assert note in page and note in printed


def test_the_board_is_text_when_printed(run, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # there rich would show it instead of writing it
    board = run.leaderboard()
    assert isinstance(board, NotebookView) and "balanced_accuracy" in str(board) and "<table" in board._repr_html_()


def test_a_latent_shows_its_explanation_scores_and_windows_with_activations(run):
    row = run.explanations.to_pandas().query("variant == 'explanation'").iloc[0]
    shown = run.latent(int(row.latent))
    assert row.text in shown.text and "detection.balanced_accuracy: 1.000" in shown.text
    assert "title='" in shown.html and "rgba(255,160,0,1.00)" in shown.html
    with pytest.raises(saeval.InputError, match="latent 9999 was not explained"):
        run.latent(9999)
    with pytest.raises(saeval.InputError, match="no cell 'al', did you mean 'all'"):
        run.latent(int(row.latent), cell="al")


def test_character_of_several_tokens_has_the_shade_of_its_strongest_token():
    shown = _marked({"tokens": ["a ", "🐋", "", " b"], "activations": [0.0, 1.0, 4.0, 2.0]})
    assert shown == (
        "<span>a </span><span style='background:rgba(255,160,0,1.00)' title='4'>🐋</span><span></span>"
        "<span style='background:rgba(255,160,0,0.50)' title='2'> b</span>"
    )


def test_what_a_model_wrote_is_no_markup(run):
    latent = int(run.latents["latent"][0].as_py())
    cell = run._files[0]
    for explanation in cell.explanations:
        explanation["text"] = "<img src=x onerror=alert(1)>"
    html = run.latent(latent).html
    assert "<img" not in html and "&lt;img" in html


def test_a_plot_is_an_image_and_an_unknown_one_lists_those_there_are(run):
    assert "data:image/svg+xml;base64," in run.plot().html
    assert "distributions-detection" in run.plot("distributions-detection").text
    with pytest.raises(saeval.InputError, match="no plot 'distribution-detection', did you mean"):
        run.plot("distribution-detection")


def test_progress_is_a_block_in_notebooks_and_nothing_in_scripts(monkeypatch):
    drawn = []
    handle = SimpleNamespace(update=lambda block: drawn.append(block.data))
    display = pytest.importorskip("IPython.display", reason="draws in notebooks")
    monkeypatch.setattr(display, "display", lambda block, display_id: drawn.append(block.data) or handle)
    assert type(progress.default_display()) is progress.Silent
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace(kernel=object()))
    block = progress.default_display()
    assert type(block) is type(progress.display("rich")) is progress.Notebook
    block.spending = lambda: progress.Spending(7, 0.25)
    with block.shown(), block.stage("explain <all>", 2) as stage:
        stage.advance(failed=True)
        stage.advance()
    assert (
        drawn[-1].startswith("<pre>explain &lt;all&gt;: 2/2 latents, 1 failed")
        and "7 calls" in drawn[-1]
        and "$0.25" in drawn[-1]
    )


def test_joined_boards_and_comparisons_are_readable_when_shown(run, tmp_path):
    folder = run._folder
    shutil.copytree(folder, tmp_path / "other")
    joined = repr(saeval.join([folder]))
    assert joined.startswith("1 cell, ranked by")
    assert "1.000 [" in joined and len(joined) < 1000 and "Entry(" not in joined
    compared = repr(saeval.compare(folder, tmp_path / "other"))
    assert compared.startswith("A  run:all\nB  other:all")
    assert "paired" in compared and "Contrast(" not in compared
    assert max(map(len, [*joined.splitlines(), *compared.splitlines()])) <= 80
