"""Reports say what the results say, rank only as far as intervals can tell, and no text in them does harm."""

from __future__ import annotations

import csv
import inspect
import io
import json
import re
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_run import SCORERS, VARIANTS, cell, made_run, run_of, score_row
from planted_run import spec, truthful_server
from rich.cells import cell_len
from rich.console import Console
from root import ROOT
from scipy import stats

import saeval
from saeval._compare.leaderboard import Leaderboard
from saeval._util.checksums import write_checksums
from saeval._util.errors import InputError
from saeval._util.text import safe_text, short
from saeval.records import results, rows, scores
from saeval.report.boards import short_estimate
from saeval.report.files import write_reports
from saeval.report.markdown import markdown_report
from saeval.report.terminal import render
from saeval.results import cells
from saeval.results.columns import estimate

HOSTILE = ["<script>alert(1)</script>", "a | b", "=cmd()", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07x", "two\n# lines", "[bold]x[/bold]", "[/nothing]", "\u202eevil",
           "@SUM(A1)", "\t=1+1", " +1", "-2+3", "`code`", "![i](http://h/p.png)"]  # fmt: skip


def rendered(run: results.RunResult, width: int = 100) -> str:
    out = io.StringIO()
    render(run, Console(file=out, width=width))
    return out.getvalue()


def board(*scores: tuple[float | None, float], **changes) -> list[str]:
    """Ranks of contestants with these values and half-widths, in the order given."""
    made = run_of(*(cell(str(i), [score_row("detection", v, half, **changes)]) for i, (v, half) in enumerate(scores)))
    ranks = {s.cell.cell: s.rank_text for s in Leaderboard.of(made).standings}
    return [ranks[f"coder={i}"] for i in range(len(scores))]


# --- ranks ---


def test_a_rank_is_a_range_where_intervals_do_not_separate():
    assert board((0.8, 0.01), (0.7, 0.01), (0.6, 0.01)) == ["1", "2", "3"]
    assert board((0.61, 0.04), (0.60, 0.04)) == ["1-2", "1-2"]
    assert board((0.60, 0.05), (0.66, 0.05), (0.72, 0.05)) == ["2-3", "1-3", "1-2"]


def test_ranks_are_corrected_for_the_number_of_pairs():
    # z = 2.26 for the widest pair: enough alone (p = .024), not as the first of three pairs (.05 / 3).
    assert board((0.70, 0.049), (0.62, 0.049)) == ["1", "2"]
    assert board((0.70, 0.049), (0.66, 0.049), (0.62, 0.049)) == ["1-3", "1-3", "1-3"]


def test_an_interval_cut_off_by_the_range_counts_by_its_longer_side():
    # The first interval is [.94 1]: by its half-width, z would be 2.35; its longer side makes it 1.63.
    assert board((1.0, 0.06), (0.94, 0.04)) == ["1-2", "1-2"]


def test_less_is_better_where_the_metric_says_so():
    assert board((0.8, 0.01), (0.6, 0.01), higher_is_better=False) == ["2", "1"]


def test_baselines_follow_unranked_and_a_cell_without_a_score_comes_last_of_the_contestants():
    made = run_of(
        cell("neurons", [score_row("detection", 0.9)], "neurons"),
        cell("broken", [score_row("detection", None)]),
        cell("topk", [score_row("detection", 0.6)]),
    )
    assert [(s.cell.axes["coder"], s.rank_text) for s in Leaderboard.of(made).standings] == [
        ("topk", "1"),
        ("broken", "–"),
        ("neurons", "base"),
    ]
    assert Leaderboard.of(made).smallest_difference is None


def test_the_smallest_visible_difference_follows_from_the_intervals():
    made = run_of(*(cell(str(i), [score_row("detection", 0.6, 0.049)]) for i in range(2)))
    assert Leaderboard.of(made).smallest_difference == pytest.approx(2.8016 * 0.025 * 2**0.5, rel=1e-4)


def test_the_board_shows_the_metric_that_ranks():
    made = made_run(rank_by="fuzzing.f1")
    assert list(Leaderboard.of(made).metrics.items()) == [
        ("fuzzing", "f1"),
        ("detection", "balanced_accuracy"),
        ("embedding", "auroc"),
    ]
    assert short(Leaderboard.of(made).row(made.cells[1], "fuzzing").value) == ".604"


# --- terminal ---


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_number_is_shown_whole_at_any_width(width):
    made = made_run()
    axes = {"layer": ["a-very-long-name-of-a-layer-that-no-table-has-room-for", "x"], "hook": ["resid", "mlp-out"]}
    wide = [
        c.model_copy(update={"axes": {**c.axes, **{k: v[i % 2] for k, v in axes.items()}}})
        for i, c in enumerate(made.cells)
    ]
    for run in (made, made.model_copy(update={"cells": wide})):
        text = rendered(run, width)
        assert max(map(len, text.splitlines())) <= width and "…" not in text
        for row in (r for c in run.cells for r in c.scores if r.metric == SCORERS[r.scorer]):
            assert text.count(short_estimate(estimate(row))) >= (2 if row.variant == "explanation" else 1)
        assert all(f"{r.lift:+.3f}" in text for c in run.cells for r in c.scores if r.lift is not None)
        assert "48/50" in text and "99%" in text and "chance .500" in text and "32.2" in text and "0.12" in text
        assert short(Leaderboard.of(run).smallest_difference) in text and "something a reader must know" in " ".join(
            text.split()
        )


@pytest.mark.parametrize("width", [25, 40, 80])
@pytest.mark.parametrize("name", ["a-coder-with-a-long-name", "稀疏自编码器的一个很长的名字", "🙂🙃" * 8])
def test_no_number_is_cut_on_narrow_terminals_or_beside_wide_characters(width, name):
    made = made_run()
    cells = [c.model_copy(update={"axes": {"coder": f"{name}{i}"}}) for i, c in enumerate(made.cells)]
    text = rendered(made.model_copy(update={"cells": cells}), width)
    assert max(map(cell_len, text.splitlines())) <= width
    ranked = Leaderboard.of(made)
    rows = [ranked.row(x.cell, scorer) for x in ranked.standings for scorer in SCORERS]
    parts = [part for row in rows for part in (*short_estimate(estimate(row)).split(), f"{row.lift:+.3f}", "48/50")]
    assert {*parts, "32.2", "0.88", "0.12"} <= {*text.split()}


@pytest.mark.parametrize("width", [60, 80])
def test_words_of_names_and_heads_are_never_cut(width):
    made = made_run()
    names = [
        {"layer": f"model.layers.{i}.mlp.experts", "coder": f"gemma-scope-2b-pt-res/layer_{i}/canonical"}
        for i, _ in enumerate(made.cells)
    ]
    cells = [c.model_copy(update={"axes": axes}) for c, axes in zip(made.cells, names, strict=True)]
    text = rendered(made.model_copy(update={"cells": cells}), width)
    assert max(map(len, text.splitlines())) <= width
    tables = sum(line.startswith("rank ") for line in text.splitlines()) + len(SCORERS)
    words = {"experts": tables, "canonical": tables, "layers.": tables, "top_tokens": len(SCORERS), "windows": 1}
    assert all(text.count(word) >= least for word, least in words.items())


def test_output_that_is_no_terminal_is_plain_text():
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", rendered(made_run()))


def test_a_missing_score_says_how_many_failed():
    made = run_of(
        cell("topk", [score_row("detection", None)]), cell("other", [score_row("detection", None, tried=0, failed=0)])
    )
    assert "– (50 failed)" in rendered(made) and "– (none tried)" in rendered(made)


def test_numbers_are_short_but_never_hide_a_sign_or_a_width():
    assert [short(x) for x in (0.6124, -0.02, 1.0, -0.0001, 23.456, None)] == [
        ".612",
        "-.020",
        "1.00",
        ".000",
        "23.46",
        "–",
    ]
    assert short_estimate(estimate(score_row("d", 0.5, 0.004))) == ".500 [.496 .504]"


def test_a_run_interrupted_before_its_first_cell_can_be_reported():
    assert "face-off" in rendered(run_of()) and "face-off" in markdown_report(run_of())


# --- Markdown ---


def test_markdown_shows_headlines_and_folds_other_metrics_and_baselines():
    text = markdown_report(made_run())
    shown, _, rest = text[text.index("## Scores") :].partition("<details>")
    folded = rest.partition("</details>")[0]
    assert len(re.findall(r"^\| coder=", shown, re.MULTILINE)) == 4 * len(SCORERS)
    assert shown.count("its own") == 4 * len(SCORERS) and "| f1 |" not in shown
    every = sum(len(c.scores) for c in made_run().cells)
    assert len(re.findall(r"^\| coder=", folded, re.MULTILINE)) == every - 4 * len(SCORERS) and "| f1 |" in folded


# --- hostile text ---


def hostile_run(text: str) -> results.RunResult:
    row = score_row("detection", 0.6, judge=text)
    other = score_row(text, 0.7, plugin=text, metric=text)
    made = run_of(
        cell(text, [row, other], layer=text), cell("b", [row, other], layer="2"), warnings=[text], description=text
    )
    return made.model_copy(update={"task": text})


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert_on_a_terminal(text):
    shown = rendered(hostile_run(text))
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    assert "".join(safe_text(text).split()) in "".join(shown.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert_in_markdown(text):
    report = markdown_report(hostile_run(text))
    prose = report.replace("```\nsaeval run --task spec.yaml\n```", "")
    assert "<" not in report and "![" not in report and "\x1b" not in report
    assert not re.search(r"^# lines", report, re.MULTILINE) and "`code`" not in prose.replace("\\`", "")
    for table in re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_formula_in_csv_and_untouched_in_parquet(text, tmp_path):
    write_reports(hostile_run(text), tmp_path)
    with (tmp_path / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert not [v for v in row.values() if v.startswith(("=", "+", "-", "@", "\t"))]
            assert safe_text(text) in row["task"] and "\x1b" not in row["task"]
    assert set(pq.read_table(tmp_path / "leaderboard.parquet")["task"].to_pylist()) == {text}


def test_escape_sequences_are_dropped_with_what_they_carry():
    assert safe_text("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07\na\tb\u202e") == "red link a b"


# --- files ---


def test_csv_and_parquet_hold_the_same_rows(tmp_path):
    made = made_run()
    assert [f.name for f in write_reports(made, tmp_path)] == [
        "report.md",
        "leaderboard.csv",
        "leaderboard.parquet",
        "index.html",
    ]
    table = pq.read_table(tmp_path / "leaderboard.parquet").to_pylist()
    with (tmp_path / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(table) == sum(len(c.scores) for c in made.cells)
    for line, row in zip(lines, table, strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in row.items()}
    first, given = table[0], made.cells[0].scores[0]
    assert (first["axis.coder"], first["measure.l0"], first["count.sampled"]) == ("topk", 32.25, 50)
    assert (first["value"], first["ci_low"], first["ci_high"]) == (given.value, *given.ci95)
    assert (first["floor.chance"], first["floor.random_explanation"]) == (0.5, 0.513)
    assert {row["variant"] for row in table} == set(VARIANTS)


def test_a_run_without_scores_keeps_the_columns_types(tmp_path):
    write_reports(run_of(), tmp_path)
    schema = pq.read_schema(tmp_path / "leaderboard.parquet")
    assert str(schema.field("value").type) == "double" and str(schema.field("judge").type) == "string"


def test_a_place_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_reports(made_run(), tmp_path / "file")


def test_the_report_holds_every_score_the_cost_and_the_way_to_repeat_it():
    made = made_run()
    report = markdown_report(made)
    for row in (r for c in made.cells for r in c.scores):
        assert f"| {row.value:.3f} | {row.ci95[0]:.3f} to {row.ci95[1]:.3f} | 48/50 | 2 | 0 | 3 | 96% |" in report
    assert "| 123456 | 7890 | unknown |" in report and "torch 2.9.0" in report
    assert "saeval run spec.yaml" in report and made.spec_sha[:12] in report


def test_results_survive_being_written_and_read(tmp_path):
    made = made_run()
    (tmp_path / "results.json").write_text(json.dumps(made.model_dump(mode="json", by_alias=True)))
    write_checksums(tmp_path)
    assert saeval.read(tmp_path) == made
    (tmp_path / "results.json").write_text('{"schema": "other/9"}')
    with pytest.raises(InputError, match="not results that this saeval can read"):
        saeval.read(tmp_path)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("99.1", r"schema: .*\); saeval 99\.1 wrote them, and this is [\d.]+: upgrade saeval$"),
        ("0.0.1", "write them again$"),
        ("next", "write them again$"),
        (None, "write them again$"),
    ],
)
def test_results_of_a_newer_version_ask_for_it(tmp_path, version, remedy):
    (tmp_path / "journal.jsonl").touch()
    (tmp_path / "results.json").write_text(json.dumps({"schema": "saeval.run/9", "saeval_version": version}))
    with pytest.raises(InputError, match=remedy):
        saeval.read(tmp_path)


def test_results_that_are_missing_or_damaged_name_the_remedy(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="has no results yet; rerun its command to resume it"):
        saeval.read(tmp_path)
    (tmp_path / "journal.jsonl").touch()
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"can read \(Invalid JSON.*\); rerun the run's command to write them again"):
        saeval.read(tmp_path)


def test_the_report_shows_the_length_of_explanations_beside_every_score():
    made = run_of(
        cell(
            "a",
            [score_row("detection", 0.6, explanation_words=17.25), score_row("embedding", 0.7, explanation_words=None)],
        )
    )
    report = markdown_report(made)
    assert "unchecked | 17.2 | 0.12 |" in report and "|  | – | 0.12 |" in report
    assert re.search(r"windows\s+words", rendered(made)) and re.search(r"99%\s+17\.2", rendered(made))


def test_the_report_shows_shares_by_decile():
    shares = rows.DecileShares(
        scorer="detection",
        right=(1.0, 0.9, *[None] * 7, 0.25),
        n=(20, 10, *[0] * 7, 4),
        negatives_right=0.5,
        negatives_n=30,
    )
    report = markdown_report(run_of(cell("a", []).model_copy(update={"deciles": [shares]})))
    assert "| coder=a | detection | 1.000 (20) | 0.900 (10) |" in report and "| – | 0.250 (4) | 0.500 (30) |" in report
    assert "decile" not in markdown_report(made_run())


def correlation(a: str, b: str, value: float | None, rank: float | None, n: int = 40) -> rows.Correlation:
    return rows.Correlation(scorers=(a, b), n=n, pearson=value, spearman=rank)


def test_the_report_shows_correlations_as_a_matrix():
    found = [
        correlation("detection", "human", 0.5, 0.25),
        correlation("detection", "fuzzing", -0.125, 0.0),
        correlation("human", "fuzzing", None, None, 2),
    ]
    one = cell("a", []).model_copy(update={"correlations": found})
    two = cell("b", []).model_copy(update={"correlations": found[:1]})
    report = markdown_report(run_of(one, two, correlations=[correlation("detection", "human", 0.75, 0.7, 80)]))
    assert "|  | detection | human | fuzzing |\n" in report
    assert "| detection |  | +0.500 (40) | -0.125 (40) |\n| human | +0.250 (40) |  | – (2) |\n" in report
    assert "| fuzzing | +0.000 (40) | – (2) |  |" in report
    assert "### all contestants\n\n|  | detection | human |\n|---|---|---|\n| detection |  | +0.750 (80) |" in report
    assert "together" not in markdown_report(run_of(one, correlations=found))


def test_a_score_that_was_skipped_on_every_latent_is_not_called_failed():
    made = run_of(cell("a", [score_row("human", None, n=0, tried=8, failed=0, skipped=8)]))
    assert "– (skipped)" in rendered(made) and "| – | – | 0/8 | 0 | 8 |" in markdown_report(made)


def test_results_written_before_there_were_deciles_and_correlations_can_be_read(tmp_path):
    old = made_run().model_dump(mode="json", by_alias=True)
    del old["correlations"]
    for one in old["cells"]:
        del one["deciles"], one["correlations"]
        for row in one["scores"]:
            del row["skipped"], row["explanation_words"]
    (tmp_path / "results.json").write_text(json.dumps(old))
    read = saeval.read(tmp_path)
    assert read.cells[0].deciles == [] and read.cells[0].scores[0].explanation_words is None
    assert "## Scores" in markdown_report(read) and "face-off" in rendered(read)
    assert len(write_reports(read, tmp_path / "report")) == 4


PLANTED_SCORERS = """
from saeval.plugin import Metric, Scorer, Score

class Planted(Scorer):
    name = "planted"
    metrics = (Metric("value", low=0, high=100),)
    shape: str = "line"

    async def score(self, explanation, examples, context):
        i = context.latent.index
        if (self.shape == "odd" and i % 2 == 0) or (self.shape == "two" and i > 1):
            return Score.skipped("not this one")
        value = {"square": i * i, "flat": 0.1 * i + 1 - 0.1 * i, "bowl": (i - 4) ** 2}.get(self.shape, i)
        return Score(values={"value": value})
"""


@pytest.mark.slow
def test_correlations_are_over_latents_scored_by_both_and_pooled_over_contestants(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "planted.py").write_text(PLANTED_SCORERS)
    shapes = ("line", "square", "odd", "flat", "two", "bowl")
    scorers = {s: {"use": f"{tmp_path}/planted.py:Planted", "with": {"shape": s}} for s in shapes}
    source = {"use": "synthetic", "with": {"n_latents": 8, "documents": "${matrix.documents}"}}
    changes = {"source": source, "matrix": {"documents": [50, 60]}, "latents": {"n": 8, "min_windows": 20}}
    with truthful_server() as server:
        run = saeval.run(spec(server, scorers=scorers, baselines=[], **changes), out=tmp_path / "run")
    i = np.arange(8)
    for found, times in ((run.cells[0].correlations, 1), (run.cells[1].correlations, 1), (run.correlations, 2)):
        by = {c.scorers: c for c in found}
        assert len(by) == 15
        whole = by["line", "square"]
        assert whole.n == 8 * times and whole.pearson == pytest.approx(stats.pearsonr(i, i * i).statistic)
        assert whole.spearman == pytest.approx(1)
        assert by["square", "bowl"].spearman == pytest.approx(stats.spearmanr(i * i, (i - 4) ** 2).statistic)
        assert (by["line", "odd"].n, by["line", "odd"].pearson) == (4 * times, pytest.approx(1))
        assert (by["line", "flat"].n, by["line", "flat"].pearson, by["line", "flat"].spearman) == (
            8 * times,
            None,
            None,
        )
        assert by["odd", "two"].n == times and by["odd", "two"].pearson is None
    assert [d for c in run.cells for d in c.deciles] == []


def test_tables_of_a_cell_keep_their_types_with_and_without_rows(tmp_path):
    example = {"latent": 3, "role": "explain", "active": True, "decile": None, "context": 2**40, "start": 5, "document": 9,
               "tokens": ["a", "b"], "activations": [0.0, 1.5]}  # fmt: skip
    outcome = scores.Outcome(example="1:2", active=True, status="refused", reason="declined")
    some, none = tmp_path / "some", tmp_path / "none"
    for folder in (some, none):
        folder.mkdir()
    with cells.cell_tables(some, ["score.detection.auroc"], directions=False) as tables:
        tables.examples.add([example])
        tables.latents.add([{"latent": 1, "score.detection.auroc": np.float64(0.5)}, {"latent": 2}])
        tables.judgements.add([{"latent": 1, "scorer": "d", "variant": "explanation", **outcome.model_dump()}])
        tables.explanations.add([{"latent": 1, "text": "café\nand more"}])
    with cells.cell_tables(none, [], directions=False):
        pass
    assert pq.read_table(some / "examples.parquet").to_pylist() == [example]
    assert pq.read_schema(some / "examples.parquet") == pq.read_schema(none / "examples.parquet")
    assert pq.read_table(some / "latents.parquet")["score.detection.auroc"].to_pylist() == [0.5, None]
    assert pq.read_table(some / "judgements.parquet").to_pylist()[0]["reason"] == "declined"
    assert [json.loads(line) for line in (some / "explanations.jsonl").read_text(encoding="utf-8").splitlines()] == [
        {"latent": 1, "text": "café\nand more"}
    ]


def test_every_field_of_the_results_is_documented():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    classes = {m for module in (results, rows, scores) for _, m in inspect.getmembers(module, inspect.isclass)}
    models = [m for m in classes if issubclass(m, results.Documented) and m is not results.Documented]
    assert len(models) >= 20
    missing = [
        f"{m.__name__}.{f.alias or name}"
        for m in models
        for name, f in m.model_fields.items()
        if f"`{f.alias or name}`" not in text
    ]
    assert not missing
