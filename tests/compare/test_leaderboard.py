"""Runs share a board where their numbers can be compared, are refused where not, and meet at one L0."""

from __future__ import annotations

import csv
import io
import json
import shutil
from math import log

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_run import cell, floor_sample, run_of, score_row

import saeval
from saeval import InputError
from saeval._compare.join import join
from saeval._util import counted
from saeval.cli.group import main
from saeval.report.joined_text import written
from saeval.results import list_runs

SAME = {"corpus": "aaaaaaaabbbb"}


def write(folder, *cells, **changes):
    run = run_of(
        *(c.model_copy(update=SAME) if not c.corpus else c for c in cells), **{"run_id": folder.name, **changes}
    )
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(run.model_dump_json(by_alias=True))
    return folder


def contestant(name, value, half=0.02, l0=None, **changes):
    fields = {k: changes.pop(k) for k in ("corpus", "coder", "subject", "explainer", "measures") if k in changes}
    rows = [score_row("detection", value, half), score_row("embedding", value - 0.1, half)]
    made = cell(name, rows, **changes)
    measures = fields.pop("measures", made.measures if l0 is None else {"l0": l0, "d_sae": 1024.0})
    return made.model_copy(update={"measures": measures, **fields})


@pytest.fixture
def runs(tmp_path):
    return [
        write(tmp_path / "here" / "one", contestant("topk", 0.7), contestant("jumprelu", 0.6)),
        write(
            tmp_path / "there" / "two",
            contestant("gated", 0.8),
            cell("random_sae", [score_row("detection", 0.52)], "random_sae"),
        ),
    ]


def order(joined, facet=None):
    return {
        value: [(x.cell.cell, x.rank_text) for x in board.standings] for value, board in joined.groups(facet).items()
    }


# --- joining ---


def test_cells_of_all_runs_are_ranked_together(runs):
    assert order(join(runs)) == {
        "": [
            ("two:coder=gated", "1"),
            ("one:coder=topk", "2"),
            ("one:coder=jumprelu", "3"),
            ("two:coder=random_sae", "base"),
        ]
    }


def test_ranks_are_ranges_where_intervals_do_not_separate_across_runs(tmp_path):
    runs = [write(tmp_path / n, contestant(n, v, 0.05)) for n, v in (("a", 0.70), ("b", 0.69), ("c", 0.5))]
    assert [rank for _, rank in order(join(runs))[""]] == ["1-2", "1-2", "3"]


def test_group_by_ranks_within_each_value(tmp_path):
    run = write(tmp_path / "r", *(contestant(f"{c}{y}", v, layer=y) for c, y, v in [
        ("a", "3", 0.9), ("b", "3", 0.7), ("a", "9", 0.5), ("b", "9", 0.6)]))  # fmt: skip
    assert order(join([run]), "layer") == {
        "3": [("r:coder=a3", "1"), ("r:coder=b3", "2")], "9": [("r:coder=b9", "1"), ("r:coder=a9", "2")]
    }  # fmt: skip


def test_filter_keeps_cells_and_names_what_there_is(runs):
    assert [e.facets["coder"] for e in join(runs, keep=["coder=topk", "coder=gated"]).entries.values()] == [
        "topk",
        "gated",
    ]
    assert len(join(runs, keep=["baseline=no", "run=two"]).entries) == 1
    with pytest.raises(InputError, match="coder: gated, jumprelu, random_sae, topk"):
        join(runs, keep=["coder=top"])
    with pytest.raises(InputError, match="no cell has it, did you mean 'coder'"):
        join(runs, keep=["codr=topk"])


def test_rank_by_takes_a_column_or_a_scorer(runs):
    assert join(runs).rank_by == "detection.balanced_accuracy"
    assert join(runs, rank_by="embedding").rank_by == "embedding.auroc"
    with pytest.raises(InputError, match="did you mean 'embedding.auroc'"):
        join(runs, rank_by="embeding.auroc")


def test_runs_that_rank_differently_need_a_word(tmp_path, runs):
    other = write(tmp_path / "three", contestant("x", 0.5), rank_by="embedding.auroc")
    with pytest.raises(InputError, match="choose one with --rank-by"):
        join([*runs, other])
    assert len(join([*runs, other], rank_by="embedding").entries) == 5


def test_runs_of_one_name_go_by_their_paths_and_a_run_named_twice_is_refused(tmp_path):
    a, b = (write(tmp_path / d / "run", contestant(d, 0.5)) for d in "ab")
    assert {e.facets["run"] for e in join([a, b]).entries.values()} == {str(a), str(b)}
    with pytest.raises(InputError, match="given twice"):
        join([a, a])


# --- what does not go together ---


@pytest.mark.parametrize(
    ("changes", "fields", "said"),
    [
        ({"task_version": "1.1"}, {}, "task differs: face-off 1.0 (one two), face-off 1.1 (odd)"),
        ({"task": "other"}, {}, "task differs: face-off 1.0 (one two), other 1.0 (odd)"),
        ({"synthetic": True}, {}, "synthetic differs: real (one two), made up (odd)"),
        ({}, {"corpus": "ccccccccdddd"}, "corpus of some/model-1b differs: aaaaaaaa (one two), cccccccc (odd)"),
    ],
)
def test_runs_that_differ_are_refused_by_name_and_marked_when_mixed(tmp_path, runs, changes, fields, said):
    odd = write(tmp_path / "odd", contestant("x", 0.75, **fields), **changes)
    with pytest.raises(InputError) as refused:
        join([*runs, odd])
    assert said in str(refused.value) and "--mixed" in str(refused.value)
    mixed = join([*runs, odd], mixed=True)
    assert mixed.differs == (said,)
    for format_ in ("text", "markdown", "latex"):
        assert "MIXED" in written(mixed, format_)
    assert json.loads(written(mixed, "json"))["mixed"] == [said]
    assert join(runs, mixed=True).differs == ()


def test_corpora_are_compared_within_a_subject_only(tmp_path, runs):
    other = write(tmp_path / "odd", contestant("x", 0.75, corpus="cccccccc", subject="another/model"))
    assert join([*runs, other]).differs == ()


@pytest.mark.parametrize("axis", ["corpus", "run", "subject", "judge"])
def test_axes_that_are_called_like_facts_hide_no_difference(tmp_path, axis):
    one, two = (
        write(tmp_path / name, contestant(f"{axis}=x", 0.7, corpus=corpus).model_copy(update={"axes": {axis: "x"}}))
        for name, corpus in (("one", "aaaaaaaa"), ("two", "cccccccc"))
    )
    with pytest.raises(InputError, match=r"corpus of .* differs: aaaaaaaa \(one\), cccccccc \(two\)"):
        join([one, two])
    assert {e.facets[axis] for e in join([one, two], keep=[f"{axis}=x"], mixed=True).entries.values()} == {"x"}


def test_several_corpora_of_one_run_are_its_own_affair(tmp_path):
    run = write(tmp_path / "r", contestant("a", 0.6, corpus="aaaaaaaa"), contestant("b", 0.6, corpus="bbbbbbbb"))
    assert join([run]).differs == ()


def test_other_judges_and_unknown_corpora_are_noted(tmp_path, runs):
    rows = [score_row("detection", 0.7, judge="openai/judge-2")]
    odd = cell("x", rows)
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "results.json").write_text(run_of(odd, run_id="odd", partial=True).model_dump_json(by_alias=True))
    notes = " ".join(join([*runs, folder]).notes)
    assert "corpus is not recorded in odd" in notes and "Partial: odd" in notes
    assert "detection: judge differs: openai/judge-1 (one two), openai/judge-2 (odd)" in notes
    assert join(runs).notes == ()


# --- formats ---


def test_every_format_holds_every_cell_and_score(runs):
    joined = join(runs)
    for format_ in ("text", "markdown", "latex", "csv", "json"):
        made = written(joined, format_)
        for value in ("gated", "topk", "jumprelu", "0.8", "0.7", "0.6", "0.52"):
            assert value in made, (format_, value)


def test_markdown_has_a_line_a_cell_and_scorer(runs):
    lines = [x for x in written(join(runs), "markdown").splitlines() if x.startswith("|")]
    assert len(lines) == 2 + 3 * 2 + 1 + 2 + 3  # and the three contestants against the baseline coder
    assert lines[2].startswith("| 1 | two | gated |") and "| ↑ | 0.800 | 0.780 to 0.820 |" in lines[2]


def test_latex_is_a_table_in_which_names_are_text(tmp_path):
    run = write(tmp_path / "r_1", contestant("top_k {50%} \\x & $y#", 0.7), contestant("b", 0.6))
    made = written(join([run]), "latex")
    assert r"top\_k \{50\%\} \textbackslash{}x \& \$y\#" in made and r"$\uparrow$" in made
    body = made[made.index("\\begin{tabular}") : made.index("\\end{tabular}")].replace(r"\&", "")
    assert {line.count("&") for line in body.splitlines() if line.endswith(r"\\")} == {5}


def test_markdown_of_hostile_names_is_text(tmp_path):
    run = write(tmp_path / "r", contestant("a|b<script>[x](y)\x1b[31m", 0.7), contestant("b", 0.6))
    made = written(join([run]), "markdown")
    assert "<script>" not in made and r"a\|b" in made and "\x1b" not in made and r"\[x\]" in made


def test_tidy_tables_hold_a_row_a_score_and_their_run(tmp_path, runs):
    rows = list(csv.DictReader(io.StringIO(written(join(runs), "csv"))))
    assert (
        len(rows) == 7
        and {r["run_id"] for r in rows} == {"one", "two"}
        and {r["corpus"] for r in rows} == {"aaaaaaaabbbb"}
    )
    (tmp_path / "x.parquet").write_bytes(written(join(runs), "parquet"))
    assert [str(r["value"]) for r in pq.read_table(tmp_path / "x.parquet").to_pylist()] == [r["value"] for r in rows]


def test_command_prints_and_writes(tmp_path, runs):
    named = [str(r) for r in runs]
    done = CliRunner().invoke(main, ["leaderboard", *named])
    assert done.exit_code == 0 and "gated" in done.output and "minimum detectable difference" in done.output
    done = CliRunner().invoke(main, ["leaderboard", *named, "-f", "latex", "--out", str(tmp_path / "t.tex")])
    assert done.exit_code == 0 and r"\toprule" in (tmp_path / "t.tex").read_text()
    assert CliRunner().invoke(main, ["leaderboard", *named, "-f", "parquet"]).exit_code == 2
    assert CliRunner().invoke(main, ["leaderboard", *named, "--filter", "x=1"]).exit_code == 2


@pytest.mark.parametrize("given", [["-f", "latex"], ["--out", "x.txt"], ["--match-l0", "32"]])
def test_page_and_what_it_would_ignore_do_not_go_together(tmp_path, runs, given):
    done = CliRunner().invoke(main, ["leaderboard", str(runs[0]), "--html", str(tmp_path / "b.html"), *given])
    assert done.exit_code == 2 and "use either --html or --" in done.output and not (tmp_path / "b.html").exists()


# --- at one L0 ---


def curve(folder, family, points, half=0.02, **changes):
    coder = {"plugin": "p 1", "architecture": family, "hookpoint": "layers.1", **changes.pop("coder", {})}
    cells = [contestant(f"{family}{l0:g}", v, half, l0=l0, coder=coder, **changes) for l0, v in points]
    return write(folder, *cells)


def at(joined, l0, **changes):
    return {r["family"]: r for r in json.loads(written(joined, "json", match_l0=l0, **changes))["rows"]}


def test_scores_are_interpolated_over_log_l0(tmp_path):
    a = curve(tmp_path / "a", "topk", [(16, 0.8), (64, 0.6), (256, 0.5)])
    b = curve(tmp_path / "b", "jumprelu", [(20, 0.65), (200, 0.45)])
    found = at(join([a, b]), 32)
    assert found["topk"]["value"] == pytest.approx(0.7) and found["topk"]["between"] == [
        "a:coder=topk16",
        "a:coder=topk64",
    ]
    share = log(32 / 20) / log(10)
    assert found["jumprelu"]["value"] == pytest.approx(0.65 - 0.2 * share)
    # Halfway between two means of half-width .02: .02 / √2. A parabola through all three cells is .0125 lower.
    assert np.diff(found["topk"]["ci95"]) / 2 == pytest.approx(0.02 / 2**0.5 + 0.0125)
    assert found["topk"]["rank"] == [1, 1] and found["jumprelu"]["rank"] == [2, 2]


def test_a_cell_at_the_l0_is_itself(tmp_path):
    run = curve(tmp_path / "a", "topk", [(16, 0.8), (64, 0.6)])
    for l0, value in ((16, 0.8), (64, 0.6)):
        found = at(join([run]), l0)["topk"]
        assert (
            found["value"] == value
            and found["ci95"] == pytest.approx([value - 0.02, value + 0.02])
            and len(found["between"]) == 1
        )


@pytest.mark.parametrize("l0", [10, 65, 1000])
def test_nothing_is_extrapolated(tmp_path, l0):
    runs = [
        curve(tmp_path / "a", "topk", [(16, 0.8), (64, 0.6)]),
        curve(tmp_path / "b", "relu", [(20, 0.8), (300, 0.6)]),
    ]
    with pytest.raises(InputError, match="not extrapolated \\(all families cover 20 to 64\\)"):
        at(join(runs), l0)


def test_families_that_share_no_l0_are_said_to(tmp_path):
    runs = [curve(tmp_path / "a", "topk", [(16, 0.8)]), curve(tmp_path / "b", "relu", [(20, 0.8), (300, 0.6)])]
    with pytest.raises(InputError, match="no L0 is covered by all"):
        at(join(runs), 20)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coder": {"hookpoint": "layers.2"}}, "hookpoint differs: layers.1 (a), layers.2 (b)"),
        ({"explainer": "other"}, "explainer differs"),
        ({"subject": "m"}, "subject differs"),
    ],
)
def test_families_must_differ_in_nothing_else(tmp_path, changes, said):
    runs = [
        curve(tmp_path / "a", "topk", [(16, 0.8), (64, 0.6)]),
        curve(tmp_path / "b", "relu", [(16, 0.8), (64, 0.6)], **changes),
    ]
    with pytest.raises(InputError) as error:
        at(join(runs), 20)
    assert said in str(error.value)


def test_two_cells_at_one_l0_or_of_other_widths_are_refused(tmp_path):
    run = curve(tmp_path / "a", "topk", [(16, 0.8), (64, 0.6)])
    twice = curve(tmp_path / "b", "topk", [(16, 0.7)])
    with pytest.raises(InputError, match="both topk at L0 16"):
        at(join([run, twice]), 20)
    wide = write(tmp_path / "c", contestant("w", 0.7, measures={"l0": 30.0, "d_sae": 4096.0},
                                            coder={"architecture": "topk", "hookpoint": "layers.1"}))  # fmt: skip
    with pytest.raises(InputError, match="d_sae differs: 1024, 4096"):
        at(join([run, wide]), 20)


def test_families_may_be_an_axis_and_every_format_shows_them(tmp_path):
    rows = [("a", 16, 0.8), ("a", 64, 0.6), ("b", 8, 0.6), ("b", 64, 0.5)]
    run = write(tmp_path / "r", *(contestant(f"{f}{l0}", v, l0=l0, trainer=f) for f, l0, v in rows))
    done = CliRunner().invoke(main, ["leaderboard", str(run), "--match-l0", "32", "--family", "trainer"])
    shown = " ".join(done.output.split())
    assert done.exit_code == 0 and "0.700" in shown and "interpolated linearly over log L0" in shown
    for format_ in ("markdown", "latex"):
        assert "0.700" in written(join([run]), format_, match_l0=32, family="trainer")


def test_interval_of_an_interpolated_score_covers_by_simulation():
    from saeval._compare.matched_l0 import at_l0
    from saeval.plugin import derive_rng

    rng = derive_rng(1, "matched")
    truth = {16.0: 0.8, 64.0: 0.6}
    covered = 0
    for _ in range(400):
        cells = [contestant(str(l0), v + rng.normal(0, 0.02 / 1.96), l0=l0) for l0, v in truth.items()]
        low, high = at_l0({"f": cells}, 24.0, "detection.balanced_accuracy")[0].ci95
        covered += low <= 0.8 - 0.2 * log(24 / 16) / log(4) <= high
    assert 0.91 <= covered / 400 <= 0.985


def test_runs_on_the_hub_are_fetched_and_joined(runs, monkeypatch):
    fetched = []

    def pull(source, out):
        fetched.append(source)
        shutil.copytree(runs[1], out)

    monkeypatch.setattr("saeval.exchange.hub.pull", pull)
    done = CliRunner().invoke(main, ["leaderboard", str(runs[0]), "hf://datasets/me/two", "-f", "csv"])
    assert done.exit_code == 0 and fetched == ["hf://datasets/me/two"]
    assert {row["run_id"] for row in csv.DictReader(io.StringIO(done.output))} == {"one", "two"}


def test_lifts_of_a_joined_board_are_the_same_in_every_format(tmp_path):
    runs = []
    for name, own, floor in (("one", 0.8, 0.6), ("two", 0.7, 0.5)):
        row = score_row("detection", own, 0.02, against=floor_sample(own, floor))
        runs.append(str(write(tmp_path / name, cell(name, [row]))))
    (board,) = join(runs).groups(None).values()
    lifts = {x.cell.axes["coder"]: board.row(x.cell, "detection").lift for x in board.standings}
    assert lifts["one"] != pytest.approx(0.2, abs=1e-4)  # floors are pooled over both runs
    as_csv = CliRunner().invoke(main, ["leaderboard", *runs, "-f", "csv"]).output
    rows = [row for row in csv.DictReader(io.StringIO(as_csv)) if row["scorer"] == "detection"]
    assert {row["axis.coder"]: float(row["lift"]) for row in rows} == pytest.approx(lifts)
    as_json = json.loads(CliRunner().invoke(main, ["leaderboard", *runs, "-f", "json"]).output)
    assert all(str(round(lift, 6))[:7] in json.dumps(as_json) for lift in lifts.values())


def with_floors(folder, scores, **changes):
    made = []
    for name, (own, floor) in scores.items():
        row = score_row("detection", own, 0.02, against=floor_sample(own, floor))
        made.append(cell(name, [row]).model_copy(update=changes))
    return write(folder, *made)


def shown(runs, **options):
    joined = join(runs, **options)
    (board,) = joined.groups(None).values()
    reading = board.readings["detection"]
    return joined, {x.cell.cell: (x.cell.scores[0].model_dump(), reading) for x in board.standings}


def test_rows_of_a_cell_and_the_verdict_on_its_judge_are_the_same_with_and_without_a_filter(tmp_path):
    runs = [
        with_floors(tmp_path / "one", {"a": (0.81, 0.62), "b": (0.66, 0.41)}),
        with_floors(tmp_path / "two", {"c": (0.74, 0.58)}),
    ]
    whole, rows = shown(runs)
    assert not any("hidden" in note for note in whole.notes)
    for keep in (["coder=a"], ["coder=b", "coder=c"], ["run=two"]):
        joined, kept = shown(runs, keep=keep)
        assert kept == {name: rows[name] for name in joined.entries}
        assert any(f"from {counted(3 - len(kept), 'hidden cell')}" in note for note in joined.notes)
    grouped, kept = whole.groups("run"), join(runs, keep=["coder=a", "coder=c"]).groups("run")
    assert kept["one"].standings[0].cell == next(
        x.cell for x in grouped["one"].standings if x.cell.cell == "one:coder=a"
    )
    assert kept["two"] == grouped["two"]
    as_csv = CliRunner().invoke(main, ["leaderboard", *map(str, runs), "-f", "csv", "--filter", "coder=b"]).output
    (row,) = [row for row in csv.DictReader(io.StringIO(as_csv)) if row["scorer"] == "detection"]
    assert float(row["lift"]) == pytest.approx(rows["one:coder=b"][0]["lift"])


def test_ranks_and_minimum_differences_are_about_the_cells_that_a_filter_keeps(tmp_path):
    run = with_floors(tmp_path / "run", {"a": (0.80, 0.5), "b": (0.70, 0.5), "c": (0.60, 0.5)})
    (board,) = join([run], keep=["coder=b", "coder=c"]).groups(None).values()
    assert [(x.cell.axes["coder"], x.rank_text) for x in board.standings] == [("b", "1"), ("c", "2")]
    (alone,) = join([run], keep=["coder=c"]).groups(None).values()
    assert alone.smallest_difference is None and board.smallest_difference > 0


def test_hidden_runs_that_are_not_comparable_with_the_cells_shown_do_not_count_in_their_floors(tmp_path):
    one = with_floors(tmp_path / "one", {"a": (0.81, 0.62), "b": (0.66, 0.41)})
    other = with_floors(tmp_path / "other", {"c": (0.74, 0.2)}, corpus="bbbbbbbbcccc")
    _, alone = shown([one])
    _, beside = shown([one, other], keep=["run=one"])
    assert beside == alone
    _, part = shown([one, other], keep=["coder=a"])
    assert part["one:coder=a"] == alone["one:coder=a"]
    _, mixed = shown([one, other], mixed=True)
    _, kept = shown([one, other], mixed=True, keep=["run=one"])
    assert kept == {name: mixed[name] for name in kept} and mixed["one:coder=a"] != alone["one:coder=a"]


@pytest.mark.parametrize("suffix", ["", ".lift", ".raw"])
def test_the_best_cell_is_the_same_in_lists_and_on_boards(tmp_path, suffix):
    rows = {
        name: score_row("detection", own, 0.01, against=floor_sample(own, floor), lift=own - floor)
        for name, own, floor in (("high", 0.8, 0.7), ("low", 0.7, 0.45))
    }
    run = write(
        tmp_path / "run", *(cell(name, [row]) for name, row in rows.items()),
        rank_by=f"detection.balanced_accuracy{suffix}",
    )  # fmt: skip
    best = "high" if suffix == ".raw" else "low"
    (head,) = list_runs(tmp_path)
    assert head.headline == f"detection.balanced_accuracy {rows[best].value:.3f} (coder={best})" and head.n == 48
    assert f"best coder={best} detection.balanced_accuracy" in repr(saeval.read(run))


@pytest.mark.parametrize("best", ["a", "b"])
def test_list_of_runs_shows_the_number_of_latents_of_the_cell_that_it_names(tmp_path, best):
    rows = {name: score_row("detection", 0.8 if name == best else 0.6) for name in ("a", "b", "base")}
    numbers = {"a": 21, "b": 20, "base": 30}
    cells = [
        cell(name, [row.model_copy(update={"n": numbers[name]})], "random_sae" if name == "base" else None)
        for name, row in rows.items()
    ]
    write(tmp_path / "run", *cells)
    listed = CliRunner().invoke(main, ["list", "runs", str(tmp_path)]).output
    assert f"detection.balanced_accuracy 0.800 (coder={best})  n {numbers[best]}  openai" in listed


@pytest.mark.parametrize("place", [".", "seed-7"])
def test_results_of_an_earlier_spec_are_not_listed_for_the_changed_one(tmp_path, place):
    run = write(tmp_path / "run", cell("a", [score_row("detection", 0.7)]), seeds=(7, 8))
    (run / place).mkdir(exist_ok=True)
    state = {"status": "failed", "task": "changed", "spec_sha": "another", "reason": "no space left"}
    (run / place / "run.json").write_text(json.dumps(state))
    (head,) = list_runs(tmp_path)
    assert (head.status, head.task, head.headline, head.reason) == ("failed", "changed", "", "no space left")
    (run / place / "run.json").write_text(
        json.dumps({**state, "spec_sha": saeval.read(run).spec_sha, "status": "done"})
    )
    (head,) = list_runs(tmp_path)
    assert (head.status, head.task) == ("done", "face-off") and head.headline


def test_runs_without_cells_are_refused_without_naming_a_filter_that_nobody_gave(tmp_path):
    run = write(tmp_path / "run")
    with pytest.raises(InputError, match="^run: no cell has results yet$"):
        join([run])


def test_families_on_one_curved_line_are_not_told_apart_by_the_places_of_their_cells():
    from saeval._compare.matched_l0 import at_l0
    from saeval.plugin import derive_rng

    rng = derive_rng(2, "curved")
    families = {"near": (32, 64, 128), "far": (16, 128, 512)}
    apart = covered = 0
    for _ in range(200):
        cells = {
            family: [contestant(f"{family}{l0}", curved(l0) + rng.normal(0, 0.02 / 1.96), l0=l0) for l0 in places]
            for family, places in families.items()
        }
        found = at_l0(cells, 45.0, "detection.balanced_accuracy")
        apart += found[0].rank == (1, 1)
        low, high = next(x.ci95 for x in found if x.family == "far")
        covered += low <= curved(45) <= high
    assert apart <= 10 and covered >= 180


@pytest.mark.parametrize(
    ("others", "used"),
    [([47], []), ([46], [46]), ([128], []), ([131], [131]), ([24, 59], [24]), ([101, 300], [300]), ([59, 101], [])],
)
def test_a_cell_close_to_a_neighbour_shows_no_curvature_but_one_further_away_does(others, used):
    from saeval._compare.matched_l0 import at_l0

    def interval(more):
        scores = {60: 0.7, 100: 0.68, **dict.fromkeys(more, 0.6)}
        cells = [contestant(str(l0), value, l0=l0) for l0, value in scores.items()]
        return at_l0({"f": cells}, 80.0, "detection.balanced_accuracy")[0].ci95

    assert interval(others) == interval(used)
    assert (interval(used) != interval([])) is bool(used)


def curved(l0):
    return 0.8 - 0.05 * log(l0 / 45, 2) ** 2
