"""`compare` pairs what is about the same latents and nothing else, and says so."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from cell_files import write_examples
from click.testing import CliRunner
from made_cells import cell_of, explained, judged, write_run
from planted_run import spec, truthful_server
from root import ROOT
from scipy import stats

import saeval
from saeval import InputError
from saeval._compare.pairwise import compare, text
from saeval.cli.group import main
from saeval.plugin import derive_rng

DETECTION, FUZZING = "detection.balanced_accuracy", "fuzzing.balanced_accuracy"


def scores(key: str, n: int = 40, mean: float = 0.7, start: int = 0) -> dict[int, float]:
    x = derive_rng(1, key).normal(mean, 0.1, n).clip(0, 1)
    return {start + i: float(v) for i, v in enumerate(x)}


def hard(n: int = 40) -> dict[int, float]:
    """Latents that differ in difficulty much more than explainers differ."""
    return {i: 0.4 + 0.5 * i / n for i in range(n)}


def plus(values: dict[int, float], by: float, key: str) -> dict[int, float]:
    noise = derive_rng(2, key).normal(by, 0.02, len(values))
    return {i: float(v + e) for (i, v), e in zip(values.items(), noise, strict=True)}


def write(folder, values, firings=None, failed=0, more=None, **changes):
    given = {**({"firings": firings} if firings is not None else {}), **(more or {})}
    fields = {k: changes.pop(k) for k in ("corpus", "coder", "explainer", "subject") if k in changes}
    write_run(folder, (cell_of("all", values, failed, **fields), values, given), **changes)
    return folder


def test_runs_of_one_name_are_named_by_their_paths(tmp_path):
    a = write(tmp_path / "mine" / "run", {DETECTION: scores("a")})
    b = write(tmp_path / "yours" / "run", {DETECTION: scores("b")})
    found = compare(a, b)
    assert (found.a, found.b) == (f"{a}:all", f"{b}:all")
    assert compare(a, write(tmp_path / "other", {DETECTION: scores("c")})).a == "run:all"


# --- paired or not ---


def test_two_explainers_of_one_coder_are_compared_latent_by_latent(tmp_path):
    base = hard()
    a = write(tmp_path / "a", {DETECTION: plus(base, 0.03, "a")}, explainer="x")
    b = write(tmp_path / "b", {DETECTION: plus(base, 0.0, "b")}, explainer="y")
    found = compare(a, b)
    (c,) = found.contrasts
    x, y = (np.array(list(plus(base, by, key).values())) for by, key in ((0.03, "a"), (0.0, "b")))
    assert found.paired and "40 latents are in both" in found.why and not found.warnings
    assert c.difference == pytest.approx((x - y).mean()) and c.n == (40, 40)
    assert c.p == pytest.approx(stats.ttest_rel(x, y).pvalue, abs=0.002) and c.p < 0.01 and c.ci95[0] > 0
    assert stats.ttest_ind(x, y).pvalue > 0.3  # which pairing alone could see
    assert c.smallest_visible < 0.03


def test_two_coders_are_unpaired_though_their_latents_have_the_same_numbers(tmp_path):
    a = write(tmp_path / "a", {DETECTION: scores("a")})
    b = write(tmp_path / "b", {DETECTION: scores("b", mean=0.5)}, firings={i: 900 - 5 * i for i in range(40)})
    found = compare(a, b)
    (c,) = found.contrasts
    assert not found.paired and "fire differently" in found.why and not found.agreement
    x, y = (np.array(list(scores(k, mean=m).values())) for k, m in (("a", 0.7), ("b", 0.5)))
    assert c.difference == pytest.approx(x.mean() - y.mean()) and c.p < 0.001
    se = np.sqrt(x.var(ddof=1) / 40 + y.var(ddof=1) / 40)
    assert (c.ci95[1] - c.ci95[0]) / 2 == pytest.approx(1.96 * se, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"corpus": "ffffffffffff"}, "corpora differ"),
        ({"values": {DETECTION: scores("b", start=35)}}, "only 5 latent numbers"),
        ({"firings": dict.fromkeys(range(40), 0), "coder": {"plugin": "q 1"}}, "fire differently"),
    ],
)
def test_other_corpora_latents_or_firings_are_unpaired(tmp_path, changes, why):
    a = write(tmp_path / "a", {DETECTION: scores("a")})
    b = write(tmp_path / "b", changes.pop("values", {DETECTION: scores("b")}), **changes)
    found = compare(a, b)
    assert not found.paired and why in found.why


@pytest.mark.parametrize("coder", ["p 1", "q 1"])
def test_without_firings_the_coders_name_decides(tmp_path, coder):
    silent = dict.fromkeys(range(40), 0)
    a = write(tmp_path / "a", {DETECTION: scores("a")}, firings=silent, coder={"plugin": "p 1"})
    b = write(tmp_path / "b", {DETECTION: scores("b")}, firings=silent, coder={"plugin": coder})
    found = compare(a, b)
    assert found.paired == (coder == "p 1") and "not recorded" in found.why


def test_firings_that_differ_as_between_machines_are_the_same_latents(tmp_path):
    firings = {i: 10_000 + 70 * i for i in range(40)}
    a = write(tmp_path / "a", {DETECTION: scores("a")}, firings=firings)
    b = write(tmp_path / "b", {DETECTION: scores("b")}, firings={i: f + 3 for i, f in firings.items()})
    assert compare(a, b).paired


def test_pairs_are_the_latents_scored_on_both_sides(tmp_path):
    a = write(tmp_path / "a", {DETECTION: scores("a")})
    b = write(tmp_path / "b", {DETECTION: {i: v for i, v in scores("b").items() if i >= 10}})
    (c,) = compare(a, b).contrasts
    assert c.n == (30, 30) and c.a == pytest.approx(np.mean(list(scores("a").values())[10:]))


# --- what is compared ---


def test_several_metrics_are_corrected_and_headlines_are_the_default(tmp_path):
    base = {DETECTION: scores("d"), "detection.f1": scores("f"), FUZZING: scores("z")}
    a = write(tmp_path / "a", {k: plus(v, 0.006, k) for k, v in base.items()})
    b = write(tmp_path / "b", {k: plus(v, 0.0, k + "b") for k, v in base.items()})
    found = compare(a, b)
    assert [c.metric for c in found.contrasts] == [DETECTION, FUZZING]
    ps, corrected = [c.p for c in found.contrasts], [c.p_holm for c in found.contrasts]
    assert min(corrected) == pytest.approx(2 * min(ps)) and max(corrected) == pytest.approx(max(*ps, 2 * min(ps)))
    (alone,) = compare(a, b, ["detection.f1"]).contrasts
    assert alone.metric == "detection.f1" and alone.p_holm == alone.p
    with pytest.raises(InputError, match="did you mean 'detection.f1'"):
        compare(a, b, ["detection.f2"])


def test_failures_at_the_floor_bound_the_difference(tmp_path):
    a = write(tmp_path / "a", {DETECTION: dict.fromkeys(range(30), 0.9)}, failed=10)
    b = write(tmp_path / "b", {DETECTION: dict.fromkeys(range(40), 0.85)})
    (c,) = compare(a, b).contrasts
    assert c.failed == (10, 0) and c.difference == pytest.approx(0.05)
    assert c.bounds == pytest.approx(((30 * 0.9 + 10 * 0.5) / 40 - 0.85, 0.05))
    assert "failures at the floor: -0.050 to +0.050" in text(compare(a, b))


def test_judges_of_the_same_windows_and_explanations_have_an_agreement(tmp_path):
    values = {DETECTION: scores("d", 2)}
    same, answers = {0: "rivers", 1: "verbs"}, [True, False, True, False, True, False]
    first = [*judged("detection", 0, answers), *judged("detection", 1, answers)]
    second = [*judged("detection", 0, [*answers[:4], False, None]), *judged("detection", 1, [not x for x in answers])]
    a = write(tmp_path / "a", values, more={"judgements": first, "explanations": explained(same)})
    b = write(tmp_path / "b", values, more={"judgements": second, "explanations": explained({**same, 1: "nouns"})})
    (agreement,) = compare(a, b).agreement  # of latent 0: latent 1 is explained differently
    assert (agreement.latents, agreement.windows, agreement.same) == (1, 5, 0.8)
    # Of five windows four alike; ten answers, five of them yes: 1 - 9 · 2 / (100 - 50) ...
    assert agreement.alpha == pytest.approx(1 - 9 * 2 / (100 - 25 - 25))


def test_judges_agree_on_windows_of_equal_text_only(tmp_path):
    values, answers = {DETECTION: scores("d", 2)}, [True, False, True, False]
    runs = []
    for name, words in (("a", "abcd"), ("b", "abxy")):
        more = {"judgements": judged("detection", 0, answers), "explanations": explained({0: "rivers"})}
        runs.append(write(tmp_path / name, values, more=more))
        windows = [
            {"latent": 0, "role": "score", "active": i % 2 == 0, "decile": None, "context": i, "start": 0, "document": i,
             "tokens": [word, "!"], "activations": [1.0, 0.0]} for i, word in enumerate(words)
        ]  # fmt: skip
        (cell,) = (tmp_path / name / "cells").iterdir()
        write_examples(cell / "examples.parquet", windows)
    (agreement,) = compare(*runs).agreement
    assert (agreement.windows, agreement.same) == (2, 1.0)


# --- which cells ---


def test_cells_are_named_where_a_run_has_several(tmp_path):
    one, other = scores("a"), scores("b")
    run = tmp_path / "run"
    write_run(
        run, (cell_of("coder=x", {DETECTION: one}), {DETECTION: one}, {}),
        (cell_of("coder=y", {DETECTION: other}), {DETECTION: other}, {"firings": {i: 9 + i for i in range(40)}}),
    )  # fmt: skip
    with pytest.raises(InputError, match="2 contestants; choose a cell"):
        compare(run, run)
    assert compare(f"{run}:coder=x", f"{run}:coder=y").b == "run:coder=y"
    with pytest.raises(InputError, match="compared with itself"):
        compare(f"{run}:coder=x", f"{run}:coder=x")
    with pytest.raises(InputError, match="no cell 'coder=z'"):
        compare(f"{run}:coder=z", f"{run}:coder=y")


def test_what_else_differs_is_warned_of(tmp_path):
    a = write(tmp_path / "a", {DETECTION: scores("a")}, synthetic=True)
    b = write(tmp_path / "b", {DETECTION: scores("b")}, corpus="ff", subject="other", task_version="2.0")
    warnings = " ".join(compare(a, b).warnings)
    for part in (
        "tasks differ (face-off 1.0; face-off 2.0)",
        "subjects differ",
        "corpora differ",
        "a:all: the run is made up",
    ):
        assert part in warnings


def test_the_same_comparison_gives_the_same_numbers(tmp_path):
    a, b = (write(tmp_path / k, {DETECTION: scores(k)}) for k in "ab")
    assert compare(a, b) == compare(a, b) and compare(a, b, seed=1) != compare(a, b)


# --- from the command line, on real runs ---


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Planted latents explained truthfully and by top tokens, judged by the same judge."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        for name in ("default", "top_tokens"):
            saeval.run(spec(server, explainer=name, baselines=[]), out=folder / name)
        other = {"use": "synthetic", "with": {"n_latents": 8, "documents": 60, "seed": 3}}
        saeval.run(spec(server, source=other, baselines=[]), out=folder / "other")
    return folder


def test_command_says_that_two_explainers_are_paired_and_two_coders_are_not(two_runs):
    done = CliRunner().invoke(main, ["compare", str(two_runs / "default"), str(two_runs / "top_tokens"), "--json"])
    found = json.loads(done.output)
    assert (
        done.exit_code == 0
        and found["paired"] is True
        and {c["metric"] for c in found["contrasts"]} == {DETECTION, FUZZING}
    )
    done = CliRunner().invoke(main, ["compare", str(two_runs / "default"), str(two_runs / "other")])
    assert done.exit_code == 0 and "unpaired: the corpora differ" in done.output and "made up" in done.output


def test_results_of_a_run_name_their_corpus(two_runs):
    hashes = [saeval.read(two_runs / name).cells[0].corpus for name in ("default", "top_tokens", "other")]
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 32


def test_code_of_the_page_runs(two_runs, capsys):
    page = (ROOT / "docs" / "comparing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace("runs/a", str(two_runs / "default")).replace("runs/b", str(two_runs / "top_tokens")), {})
    printed = capsys.readouterr().out
    assert f"{DETECTION} paired" in printed and "default:all" in printed and "top_tokens:all" in printed


def test_comparison_fits_eighty_columns_and_cuts_no_number(tmp_path):
    label = "a_scorer_whose_label_is_long.and_its_metric_too"
    a = write(
        tmp_path / "a", {label: dict.fromkeys(range(30), 0.9), DETECTION: dict.fromkeys(range(30), 0.9)}, failed=10
    )
    b = write(tmp_path / "b", {label: dict.fromkeys(range(40), 0.85), DETECTION: dict.fromkeys(range(40), 0.85)})
    shown = text(compare(a, b))
    assert max(map(len, shown.splitlines())) <= 80
    for c in compare(a, b).contrasts:
        assert f"{c.metric} ↑" in shown and f"{c.ci95[0]:+.3f} to {c.ci95[1]:+.3f}" in shown


@pytest.mark.parametrize(("n", "marked"), [(12, True), (99, True), (100, False)])
def test_p_values_of_few_paired_latents_are_marked_approximate(n, marked, tmp_path):
    base = hard(n)
    sides = [write(tmp_path / name, {DETECTION: plus(base, by, name)}) for name, by in (("a", 0.03), ("b", 0.0))]
    found = compare(*sides)
    assert found.paired and found.contrasts[0].approximate is marked
    assert ("~ approximate: exact if A and B" in " ".join(text(found).split())) is marked
    assert bool(re.search(r"  ~[0-9.e-]+ +~", text(found))) is marked


def test_p_values_of_unpaired_sides_are_not_marked(tmp_path):
    sides = [write(tmp_path / name, {DETECTION: scores(name)}, corpus=name * 16) for name in "ab"]
    found = compare(*sides)
    assert not found.paired and not found.contrasts[0].approximate and "approximate" not in text(found)
