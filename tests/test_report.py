"""Reports rank as far as intervals allow, say what every number stands on, and let no text do harm."""

from __future__ import annotations

import csv
import io

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from saeval import RunResult, read
from saeval.report import write_reports
from saeval.report.leaderboard import Leaderboard
from saeval.report.markdown import markdown
from saeval.report.terminal import render
from saeval.results import CellResult, Explanation, Latent, Ledger, Outcome, Score, ScoreRow


def row(value, half=0.02, *, scorer="detection", metric="balanced_accuracy", variant="explanation", **changes):
    interval = None if value is None else (value - half, value + half)
    return ScoreRow(
        **{
            "scorer": scorer, "variant": variant, "plugin": "saeval/detection 0.1.0", "metric": metric, "higher_is_better": True,
            "range": (0, 1), "value": value, "median": value, "ci95": interval, "n": 0 if value is None else 40, "tried": 40,
            "failed": 40 if value is None else 0, "unparsed": 0, "coverage": 0.0 if value is None else 1.0,
            "floor": {"random_explanation": 0.512, "chance": 0.5} if variant == "explanation" else {},
            "lift": None if value is None else value - 0.512, "judge": "openai/gpt-4o-mini", "usd": 0.25, **changes,
        }
    )  # fmt: skip


def cell(name, scores, baseline=None):
    return CellResult(
        cell=f"coder={name}", axes={"coder": name}, baseline=baseline, coder={"plugin": "saeval/sae_lens 0.1.0"}, subject="gemma",
        explainer="saeval/default 0.1.0 with openai/gpt-4o-mini", measures={"l0": 32.0, "frac_alive": 0.9},
        counts={"requested": 40, "eligible": 900, "sampled": 40, "explained": 40}, scores=scores,
    )  # fmt: skip


def made_run(cells, **changes):
    return RunResult(
        **{
            "run_id": "r", "task": "face-off", "task_version": "1.0", "spec_sha": "ab" * 16, "saeval_version": "0.1.0", "seed": 0,
            "rank_by": "detection.balanced_accuracy", "partial": False, "synthetic": False, "reproducible": True, "cells": cells,
            "ledger": [Ledger(role="judge", model="openai/gpt-4o-mini", calls=10, cached=2, failed=1, input_tokens=999, output_tokens=50, usd=None)],
            **changes,
        }
    )  # fmt: skip


def printed(run, width=100):
    out = io.StringIO()
    render(run, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def ranks(*cells):
    return {s.cell.axes["coder"]: s.rank_text for s in Leaderboard.of(made_run(list(cells))).standings}


def test_cells_that_intervals_separate_have_ranks_of_their_own():
    assert ranks(cell("b", [row(0.6)]), cell("a", [row(0.9)]), cell("c", [row(0.3)])) == {"a": "1", "b": "2", "c": "3"}


def test_cells_that_intervals_do_not_separate_share_a_range():
    assert ranks(cell("a", [row(0.62, 0.1)]), cell("b", [row(0.60, 0.1)]), cell("c", [row(0.1)])) == {
        "a": "1-2",
        "b": "1-2",
        "c": "3",
    }


def test_holm_correction_asks_more_of_many_cells_than_of_two():
    close = [row(0.60, 0.05), row(0.68, 0.05)]  # p = 0.027
    assert ranks(cell("a", [close[0]]), cell("b", [close[1]])) == {"b": "1", "a": "2"}
    others = [cell(f"x{i}", [row(0.64, 0.05)]) for i in range(6)]
    assert ranks(cell("a", [close[0]]), cell("b", [close[1]]), *others)["b"].startswith("1-")


def test_baselines_stand_below_without_a_rank_and_missing_scores_are_dashes():
    run = made_run([cell("random_sae", [row(0.95)], "random_sae"), cell("topk", [row(0.6)]), cell("dead", [row(None)])])
    assert [s.cell.axes["coder"] for s in Leaderboard.of(run).standings] == ["topk", "dead", "random_sae"]
    line = next(x for x in printed(run).splitlines() if "dead" in x)
    assert "–" in line
    assert "0/40" in printed(run)


def test_smallest_visible_difference_follows_from_the_standard_errors():
    board = Leaderboard.of(made_run([cell("a", [row(0.6, 0.0196)]), cell("b", [row(0.7, 0.0196)])]))
    assert board.smallest_difference == pytest.approx(2.8 * (0.01**2 * 2) ** 0.5)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_shows_every_number_at_any_width(width):
    labels = ["detection", "fuzzing", "embedding", "simulation", "surprisal"]
    scores = [row(0.511 + i / 100, scorer=label) for i, label in enumerate(labels)]
    text = printed(made_run([cell("topk", scores), cell("jumprelu", scores)]), width)
    assert all(len(line) <= width for line in text.splitlines())
    for i in range(5):
        assert f".5{11 + 10 * i}" in text
    assert "40/40" in text and "chance .500" in text and "+0.0" in text


HOSTILE = "<script>alert(1)</script> | \x1b]0;owned\x07\x1b[31m[bold red]x[/] =cmd() \u202egnp\n# head"


def test_hostile_text_is_inert_everywhere(tmp_path):
    run = made_run([cell("topk", [row(0.6)])], task="t", description=HOSTILE, warnings=[HOSTILE, "=1+1"])
    run = run.model_copy(
        update={"cells": [run.cells[0].model_copy(update={"axes": {"coder": "=cmd()|x"}, "subject": HOSTILE})]}
    )
    for text in (printed(run), markdown(run)):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "[bold red]" in printed(run)
    assert "<script>" not in markdown(run)
    assert all(
        line.count(" | ") == markdown(run).splitlines()[i - 1].count(" | ")
        for i, line in enumerate(markdown(run).splitlines())
        if "cmd" in line and line.startswith("|") and i and markdown(run).splitlines()[i - 1].startswith("| rank")
    )
    write_reports(run, tmp_path)
    with (tmp_path / "leaderboard.csv").open() as file:
        assert next(csv.DictReader(file))["axis.coder"] == "'=cmd()|x"


def test_csv_and_parquet_hold_the_same_tidy_rows(tmp_path):
    run = made_run(
        [cell("topk", [row(0.6), row(0.52, variant="random_explanation")]), cell("neurons", [row(0.5)], "neurons")]
    )
    write_reports(run, tmp_path)
    table = pq.read_table(tmp_path / "leaderboard.parquet").to_pylist()
    with (tmp_path / "leaderboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [r["value"] for r in table] == [float(line["value"]) for line in lines] == [0.6, 0.52, 0.5]
    assert table[0]["axis.coder"] == "topk" and table[0]["floor.chance"] == 0.5 and table[2]["baseline"] == "neurons"


def test_markdown_says_what_the_numbers_stand_on():
    text = markdown(made_run([cell("topk", [row(0.6), row(0.52, variant="random_explanation")])], partial=True))
    for wanted in (
        "(partial)",
        "verified silent",
        "0.600",
        "0.580 – 0.620",
        "40/40",
        "random\\_explanation",
        "unknown",
        "spec.yaml",
    ):
        assert wanted in text


def test_results_survive_a_round_trip_and_damaged_ones_are_refused(tmp_path):
    run = made_run([cell("topk", [row(0.6)])])
    (tmp_path / "results.json").write_text(run.model_dump_json(by_alias=True))
    assert read(tmp_path) == run
    (tmp_path / "results.json").write_text('{"schema": "other/9"}')
    with pytest.raises(Exception, match="not results that this saeval can read"):
        read(tmp_path)


def test_results_page_names_every_field():
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    for model in (RunResult, CellResult, ScoreRow, Ledger, Explanation, Outcome, Score, Latent):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in page, f"docs/results.md does not name {model.__name__}.{name}"
