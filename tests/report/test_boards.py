"""Boards show the same numbers in every format, and every column that is declared."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from golden_boards import GOLDEN, boards, odd_run, page_text
from made_run import cell, run_of, score_row
from tiny import tiny_corpus, tiny_model

import saeval
from saeval import InputError
from saeval._compare.join import join
from saeval.cli.group import main
from saeval.records.columns import ColumnStyle
from saeval.report.html.board import BoardRun, board_pages
from saeval.report.html.joined import joined_page
from saeval.report.html.plots import layer_of
from saeval.report.joined_text import BOARD_FORMATS, written
from saeval.report.notebook import board_html
from saeval.results import columns
from saeval.results.columns import Column


@pytest.fixture(scope="module")
def made():
    return boards()


def test_boards_are_word_for_word_what_they_were(made):
    changed = [name for name, text in made.items() if (GOLDEN / name).read_text() != text]
    assert not changed, (
        f"{changed} changed; if that is meant, run `python tests/helpers/golden_boards.py` and look at the diff"
    )
    assert {file.name for file in GOLDEN.iterdir()} == made.keys()


def test_text_boards_fit_eighty_columns(made):
    boards_as_text = [made[name] for name in ("joined.txt", "made-terminal.txt", "odd-terminal.txt")]
    assert all(len(line) <= 80 for text in boards_as_text for line in text.splitlines())


def test_every_format_shows_n_beside_a_score(made):
    narrow = {name: made[name] for name in ("odd-terminal.txt", "joined.txt", "joined.tex")}
    for name, text in {**narrow, "notebook": board_html(odd_run())}.items():
        numbers = re.findall(r"(?:-0)?\.(?:734|004) \[[^]]*\]\*? n (\d+/\d+)", text)
        assert numbers == ["48/50", "5/50"], name
    assert re.search(r"-0\.004 \([^;]*; n 5/50;", made["odd-report.md"]) and "| 5/50 |" in made["joined.md"]
    assert {row["n"] for row in csv.DictReader(made["odd-leaderboard.csv"].splitlines())} >= {"5", "48"}
    assert "n 5/50" in made["odd-page.txt"]


def test_every_board_says_why_a_score_is_missing(made, tmp_path):
    (tmp_path / "results.json").write_text(odd_run().model_dump_json(by_alias=True))
    texts = {name: made[name] for name in ("odd-terminal.txt", "odd-report.md", "joined.txt", "joined.tex")}
    for name, text in {**texts, "notebook": board_html(odd_run()), "repr": repr(join([tmp_path]))}.items():
        assert re.search(r"(–|--) \(50 failed\)", text) and re.search(r"(–|--) \(skipped\)", text), name
    public = board_pages([BoardRun(tmp_path, odd_run(), "2026-01-31", "")], "all")["index.html"]
    for name, page in {"page": made["odd-page.txt"], "joined": made["joined-page.json"], "public": public}.items():
        assert re.search(r"\b50 failed\b", page) and re.search(r"\bskipped\b", page), name


def test_public_board_and_plots_take_the_layer_from_a_hookpoint_in_the_same_way(tmp_path):
    one = cell("topk", [score_row("detection", 0.7)])
    one = one.model_copy(update={"coder": {"hookpoint": "gpt2.h.9.mlp"}})
    (tmp_path / "results.json").write_text(run_of(one).model_dump_json(by_alias=True))
    public = board_pages([BoardRun(tmp_path, run_of(one), "2026-01-31", "")], "all")["index.html"]
    assert layer_of(one) == 9 and 'data-layer="9"' in public


def test_column_that_is_declared_once_shows_in_every_format(monkeypatch):
    extra = Column(
        "spread", lambda line: 77.1251, ColumnStyle("spread", ".2f", unit="points"), "How far scores spread."
    )
    monkeypatch.setattr(columns, "SCORE_COLUMNS", (*columns.SCORE_COLUMNS, extra))
    for name, text in boards().items():
        assert "spread" in text and re.search(r"77\.1[23]", text), name


PLUGINS = """
from saeval.plugin import Coder, LinearCoder, Measure, Metric, Score, Scorer


class Odd(Coder):
    name = "odd"
    measures = (Measure(name="odd_bits", title="odd bits", about="Bits that are odd.", unit="bits", format=".1f"),)
    seed: int = 0

    def load(self, device, d_in):
        import torch

        rows = torch.randn(32, d_in, generator=torch.Generator().manual_seed(self.seed))
        coder = LinearCoder(rows.T, rows, k=4, architecture="odd", metadata={"seed": self.seed})
        coder.measures = {"odd_bits": 7531.25 + self.seed, "undeclared": 1.0}
        return coder


class Length(Scorer):
    name = "length"
    metrics = (
        Metric("chars", high=1000), Metric("dots", high=1000, higher_is_better=False, on_board=True),
        Metric("reached", high=9, higher_is_better=None, on_board=True, wanted=(0.9, 1.1)),
    )

    async def score(self, explanation, examples, context):
        reached = 2.25 if context.source.weights().metadata["seed"] else 1.0
        return Score(values={"chars": 123.0, "dots": 456.0, "reached": reached})

    def needs(self):
        return frozenset({"coder"})
"""


@pytest.fixture(scope="module")
def run_with_plugins(tmp_path_factory) -> tuple[Path, str]:
    """A run of a coder and a scorer that contribute columns, and what it printed."""
    folder = tmp_path_factory.mktemp("columns")
    (folder / "mine.py").write_text(PLUGINS)
    task = {
        "saeval": 1, "task": "columns", "version": "1", "llms": {},
        "matrix": {"coder": [{"id": f"odd{seed}", "coder": {"use": f"{folder}/mine.py:Odd", "with": {"seed": seed}}} for seed in (0, 1)]},
        "source": {"use": "transformers", "with": {
            "model": str(tiny_model(folder / "model")), "hookpoint": "layers.1", "coder": "${matrix.coder.coder}",
            "corpus": {"path": str(tiny_corpus(folder / "corpus.jsonl")), "context": 32}}},
        "latents": {"n": 4, "min_windows": 4}, "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 10, "non_activating": {"n": 10}}},
        "explainer": "top_tokens", "scorers": {"length": {"use": "./mine.py:Length"}}, "measure": ["l0"],
        "leaderboard": {"rank_by": "length.chars"}, "baselines": ["shuffled_explanation"],
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    done = CliRunner().invoke(main, ["run", "--task", str(folder / "task.yaml"), "--out", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run", done.output


def test_measure_and_metric_that_plugins_declare_show_on_every_board(run_with_plugins):
    run, printed = run_with_plugins
    joined = join([run])
    shown = {format_: written(joined, format_) for format_ in BOARD_FORMATS if format_ != "parquet"}
    CliRunner().invoke(main, ["leaderboard", str(run), "--html", str(run / "board.html")])
    for name, text in {
        "terminal": printed, "report.md": (run / "report" / "report.md").read_text(),
        "index.html": page_text((run / "report" / "index.html").read_text()),
        "board.html": (run / "board.html").read_text(), **shown,
    }.items():  # fmt: skip
        assert re.search(r"odd.bits", text) and re.search(r"7,?531|7532", text) and re.search(r"7,?532", text), name
        assert "dots" in text and "456" in text and "undeclared" not in text, name
    (row, *_) = csv.DictReader((run / "report" / "leaderboard.csv").open())
    assert row["measure.odd_bits"] in ("7531.25", "7532.25")
    assert {m["name"]: m["unit"] for m in json.loads((run / "results.json").read_text())["measures"]} == {
        "odd_bits": "bits"
    }


def test_a_condition_of_a_score_is_no_score_and_where_it_is_missed_the_row_is_marked_everywhere(run_with_plugins):
    run, printed = run_with_plugins
    rows = [row for cell in saeval.read(run).cells for row in cell.scores if row.variant == "explanation"]
    reached = [row for row in rows if row.metric == "reached"]
    assert {(row.higher_is_better, row.lift, row.against) for row in reached} == {(None, None, None)}
    assert not any(row.floor for row in reached) and any(row.floor for row in rows if row.metric == "chars")
    table = list(csv.DictReader((run / "report" / "leaderboard.csv").open()))
    assert {row["off"] for row in table if "odd1" in row["cell"]} == {"True"}
    assert {row["off"] for row in table if "odd0" in row["cell"]} == {"False"}
    assert {row["higher_is_better"] for row in table if row["metric"] == "reached"} == {""}
    board = (run / "report" / "report.md").read_text()
    for name, text in {"terminal": printed, "report.md": board, "text": written(join([run]), "text")}.items():
        assert "≠: a condition of the scorer was missed" in " ".join(text.split()), name
        marked = [line for line in text.splitlines() if "≠" in line and "condition" not in line]
        assert marked and "reached ↑" not in text and "reached ↓" not in text, name
    assert r"$\neq$" in written(join([run]), "latex")


def test_number_of_a_narrow_board_is_written_as_its_measure_says(run_with_plugins):
    run, printed = run_with_plugins
    assert "7531.2" in printed and "7531.25" not in printed and "odd bits" in printed
    assert "7531.2" in written(join([run]), "latex") and "7,531" not in printed


def test_metric_off_the_board_stays_in_tables():
    rows = [score_row("detection", 0.7), score_row("detection", 0.6543, metric="f1")]
    shown = [score_row("detection", 0.7), score_row("detection", 0.6543, metric="f1", on_board=True)]
    without, with_ = (
        {f: boards_of(run_of(cell("a", r), cell("b", r)), f) for f in ("text", "latex")} for r in (rows, shown)
    )
    assert all("f1" not in text for text in without.values())
    assert all("f1" in text and "0.654" in text for text in with_.values())


def boards_of(run, format_: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "results.json").write_text(run.model_dump_json(by_alias=True))
        return str(written(join([folder]), format_))


LOW = {"metric": "error", "higher_is_better": False, "range": (0.0, None)}


def test_groups_of_a_joined_board_are_in_the_order_of_their_numbers(tmp_path):
    values = ["10", "layers.10", "0.5", "layers.2", "-1", "0.25", "2"]
    run = run_of(*(cell(f"at {value}", [score_row("detection", 0.7)], place=value) for value in values))
    (tmp_path / "results.json").write_text(run.model_dump_json(by_alias=True))
    ordered = ["-1", "0.25", "0.5", "2", "10", "layers.2", "layers.10"]
    assert re.findall(r"^place: (.*)$", str(written(join([tmp_path]), "text", group_by="place")), re.M) == ordered
    with pytest.raises(InputError, match=f"available: place: {', '.join(ordered)}"):
        join([tmp_path], keep=["place=3"])


def test_pages_and_notebooks_of_many_cells_refer_to_the_command_for_tests_against_baselines(tmp_path):
    def pages(n):
        cells = [cell(f"a{i}", [score_row("detection", 0.7, 0.01)]) for i in range(n)]
        cells += [cell(f"b{i}", [score_row("detection", 0.5, 0.01)], "neurons") for i in range(n)]
        (tmp_path / "results.json").write_text(run_of(*cells).model_dump_json(by_alias=True))
        return joined_page(join([tmp_path])), board_html(run_of(*cells))

    said = "prints the 576 tests against baseline coders"
    (page, notebook), (fewer, shorter), (small, _) = pages(24), pages(22), pages(3)
    assert said in page and len(page) < 2 * len(small) and said not in fewer
    assert said in notebook and len(notebook) < len(shorter) and said not in shorter


def test_heads_of_a_joined_board_are_distinct_when_judges_differ(tmp_path):
    for name in ("one", "two"):
        run = run_of(cell("a", [score_row("detection", 0.7, judge=f"judge-{name}")]), run_id=name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(run.model_dump_json(by_alias=True))
    table = str(written(join([tmp_path / "one", tmp_path / "two"]), "markdown")).split("\n\n")[1]
    heads = [head.strip() for head in table.splitlines()[0].split("|")[1:-1] if head.strip()]
    assert {"judge", "verdict"} < {*heads} and len(heads) == len({*heads})


def test_latex_aligns_numbers_and_sets_the_best_contestant_in_bold():
    run = run_of(
        cell("a", [score_row("detection", 0.7), score_row("steering", 3.0, **LOW, ci95=(2.9, 3.1))]),
        cell("b", [score_row("detection", 0.6), score_row("steering", 2.0, **LOW, ci95=(1.9, 2.1))]),
        cell("neurons", [score_row("detection", 0.9)], "neurons"),
    )
    lines = boards_of(run, "latex").splitlines()
    assert any(re.fullmatch(r"\\begin\{tabular\}\{ll+r+\}", line) for line in lines)
    bold = [re.findall(r"\\textbf\{([\d.]+)", line) for line in lines if line.endswith(r"\\")]
    assert bold[:4] == [[], ["0.700"], ["2.000"], []]


def test_boards_as_text_fit_eighty_columns_and_cut_no_number():
    long = "a-coder-with-a-name-for-which-no-table-has-room"
    scores = [score_row(f"scorer-number-{k}-with-a-long-label", 0.6 + k / 100) for k in range(5)]
    run = run_of(cell(long, scores), cell("b", scores), rank_by="scorer-number-0-with-a-long-label.balanced_accuracy")
    text = boards_of(run, "text")
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{row.value:.3f} [{row.ci95[0]:.3f}, {row.ci95[1]:.3f}]" in text for row in scores)
