"""A task under several seeds draws other latents and windows, is resumed seed by seed, and ends in pooled rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from made_run import cell, run_of
from planted_run import spec, truthful_server

import saeval
from saeval._compare import pooled_mean, pooled_runs, repeated
from saeval._compare.controls import pooled_contrasts
from saeval._run.claims import pooled_findings
from saeval._run.run_dir import spent_in
from saeval.cli.group import main
from saeval.records import ControlContrast, Finding, Power, VarianceParts
from saeval.records.results import read_result
from saeval.task import FindingSpec

SPEC = {
    "saeval": 1, "task": "seeds", "version": "1",
    "llms": {"judge": {"model": "oracle/judge", "sensitivity": 0.8, "specificity": 0.9}},
    "source": {"use": "known", "with": {"documents": 60, "rate": 0.03}},
    "latents": {"n": 5, "min_windows": 12},
    "sampler": {"use": "random", "with": {"explain": 5, "score": 8, "non_activating": {"n": 8}}},
    "explainer": "known",
    "scorers": {"detection": {"with": {"mode": "list"}}},
    "baselines": ["shuffled_explanation", "half_missing"],
    "findings": [
        {"claim": "better than half", "score": "detection", "is": "above", "than": "detection of half_missing"},
        {"claim": "above chance", "score": "detection", "is": "above", "than": "chance"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three seeds, run from Python."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        yield folder / "run", saeval.run({**SPEC, "run": {"seed": 3, "seeds": 3}}, out=folder / "run")


def test_rows_are_means_over_seeds_and_their_intervals_narrower(run):
    folder, pooled = run
    single = [read_result(folder / f"seed-{seed}") for seed in (3, 4, 5)]
    assert pooled.seeds == (3, 4, 5) and [r.seed for r in single] == [3, 4, 5] and not single[0].seeds
    row, rows = pooled.cells[0].scores[0], [r.cells[0].scores[0] for r in single]
    assert len({r.value for r in rows}) > 1  # other latents and windows
    assert row.value == pytest.approx(np.mean([r.value for r in rows])) and row.n == 15 == sum(r.n for r in rows)
    assert row.ci95[1] - row.ci95[0] < max(r.ci95[1] - r.ci95[0] for r in rows)
    assert row.against.n == sum(r.against.n for r in rows) and row.lift == pytest.approx(
        row.value - row.against.value, abs=0.1
    )
    assert row.prediction95[0] < row.ci95[0] and "3 seeds" in row.method
    assert pooled.ledger[0].calls == sum(r.ledger[0].calls for r in single)
    assert "Pooled over the seeds 3, 4, 5." in pooled.warnings


def test_pooled_results_are_not_said_to_be_of_an_earlier_spec(run):
    assert not any("earlier spec" in warning for warning in (*run[1].warnings, *saeval.read(run[0]).warnings))


@pytest.mark.parametrize(
    "command",
    [
        "compare RUN RUN/seed-3",
        "compare RUN/seed-3 RUN",
        "similarity RUN RUN/seed-3 --by explanations",
        "export RUN --format jsonl --out OUT",
        "push RUN OUT",
        "plan RUN/spec.yaml --like RUN",
        "leaderboard RUN RUN/seed-3 --weights energy",
    ],
)
def test_commands_that_need_the_files_of_one_seed_name_the_seeds(run, tmp_path, command):
    said = CliRunner().invoke(main, command.replace("RUN", str(run[0])).replace("OUT", str(tmp_path / "out")).split())
    assert said.exit_code == 2 and "pools several seeds; give the directory of one of them" in said.output
    assert str(run[0] / "seed-3") in said.output and not (tmp_path / "out").exists()


def test_tables_of_pooled_seeds_are_refused_although_an_earlier_run_left_some(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    saeval.run(SPEC, out=tmp_path / "run")
    saeval.run({**SPEC, "run": {"seeds": 2}}, out=tmp_path / "run")
    assert not list((tmp_path / "run" / "cells").glob("*/*"))
    with pytest.raises(saeval.InputError, match="pools several seeds"):
        saeval.read(tmp_path / "run").latents  # noqa: B018


def test_limit_for_all_seeds_is_named_whole_when_it_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    price = {"usd_per_million_input": 100.0, "usd_per_million_output": 0.0}
    with truthful_server() as server:
        task = spec(server)
        task["llms"] = {role: {**model, **price, "concurrency": 4} for role, model in task["llms"].items()}
        alone = saeval.run(task, out=tmp_path / "alone")
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache 2"))
        limit = round(1.5 * sum(row.usd for row in alone.ledger), 2)
        with pytest.raises(saeval.BudgetExceeded, match=rf"spent of \${limit:.4f} allowed") as stopped:
            saeval.run({**task, "run": {"seeds": 3}}, out=tmp_path / "run", max_cost=limit)
    runs = [saeval.read(tmp_path / "run" / f"seed-{seed}") for seed in (0, 1)]
    spent = sum(row.usd for run in runs for row in run.ledger)
    assert f"${spent:.4f} spent" in str(stopped.value) and limit <= spent <= limit + 0.011
    assert [run.partial for run in runs] == [False, True] and not (tmp_path / "run" / "seed-2").exists()


def test_limit_includes_what_later_seeds_and_tasks_spent_in_earlier_sessions(tmp_path, monkeypatch):
    price = {"usd_per_million_input": 100.0, "usd_per_million_output": 0.0}
    with truthful_server() as server:
        task = spec(server, scorers={"detection": {}}, baselines=[])
        task["llms"] = {role: {**model, **price, "concurrency": 4} for role, model in task["llms"].items()}
        for seed in (0, 1):  # as files too, the tasks of a group, and as many latents in all
            task["source"]["with"]["seed"] = seed
            (tmp_path / f"{seed}.yaml").write_text(json.dumps({**task, "task": f"of-{seed}", "run": {"seed": seed}}))
        (tmp_path / "group.yaml").write_text("{saeval: 1, group: all, tasks: [./0.yaml, ./1.yaml]}")
        (tmp_path / "seeds.yaml").write_text(json.dumps({**task, "run": {"seeds": 2}}))
        for name in ("group", "seeds"):
            monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / f"{name} cache"))
            command = ["run", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name), "--display", "none"]
            assert CliRunner().invoke(main, [*command, "--limit", "2"]).exit_code == 0
            ledgers = sorted((tmp_path / name).glob("*/calls.jsonl"))
            before = sum(map(spent_in, (ledger.parent for ledger in ledgers)))
            said = CliRunner().invoke(main, [*command, "--max-cost", f"{before + 0.05:.4f}"])
            after = sum(map(spent_in, (ledger.parent for ledger in ledgers)))
            assert len(ledgers) == 2 and said.exit_code == 3, said.output
            assert before + 0.05 <= after + 1e-9 < before + 0.05 + 0.01
            assert f"${after:.4f} spent of ${before + 0.05:.4f} allowed" in said.output


def test_claims_are_decided_on_the_pooled_numbers(run):
    folder, pooled = run
    alone = [read_result(folder / f"seed-{seed}").findings[1] for seed in (3, 4, 5)]
    assert {f.outcome for f in alone} == {"cannot be told"}  # five latents each
    assert pooled.findings[1].outcome == "cannot be told" and "3 seeds" in pooled.findings[1].quantity


def test_the_command_pools_too_and_does_only_what_is_missing(run, tmp_path, monkeypatch):
    folder, pooled = run
    monkeypatch.setenv("SAEVAL_CACHE", str(folder.parent / "cache"))
    journal = (folder / "seed-4" / "journal.jsonl").read_bytes()
    spec = str(folder / "spec.yaml")
    done = CliRunner().invoke(main, ["run", spec, "--seeds", "3", "--out", str(folder), "--display", "none"])
    assert done.exit_code == 0, done.output
    assert read_result(folder).cells[0].scores[0].value == pooled.cells[0].scores[0].value
    assert (folder / "seed-4" / "journal.jsonl").read_bytes() == journal
    board = CliRunner().invoke(main, ["leaderboard", str(folder)])
    assert board.exit_code == 0 and "detection" in board.output
    assert (folder / "report" / "index.html").exists()


def test_what_one_seed_alone_says_is_in_the_pool_whichever_seed_it_is(run):
    folder, _ = run
    first, *others = [read_result(folder / f"seed-{seed}") for seed in (3, 4, 5)]
    cell = first.cells[0]
    odd = cell.scores[0].model_copy(update={"off": True, "floor": {**cell.scores[0].floor, "late": 0.3}})
    parts = VarianceParts(scorer="detection", n=4, latents=0.02, windows=0.01, noise={"judge": 0.04}, shared={})
    changed = {"measures": {**cell.measures, "late": 2.0}, "variance": [parts], "scores": [odd, *cell.scores[1:]]}
    odd_run = first.model_copy(update={"cells": [cell.model_copy(update=changed)]})
    for runs in ([odd_run, *others], [*others, odd_run]):
        (pooled,) = pooled_runs(runs, "pool").cells
        assert pooled.scores[0].off and pooled.scores[0].floor["late"] == 0.3 and pooled.measures["late"] == 2.0
        assert [(x.n, x.latents, x.noise) for x in pooled.variance] == [(4, 0.02, {"judge": 0.04})]


def test_pooled_intervals_cover_and_grow_where_seeds_differ():
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(1000):
        draws = rng.normal(0.6, 0.1, size=(3, 50))
        values, errors = draws.mean(axis=1), draws.std(axis=1, ddof=1) / 50**0.5
        low, high = pooled_mean(
            values, [(v - 2.01 * e, v + 2.01 * e) for v, e in zip(values, errors, strict=True)], (0, 1)
        )
        covered += low <= 0.6 <= high
        widths.append(high - low)
    assert covered >= 930
    low, high = pooled_mean([0.4, 0.6, 0.8], [(v - 0.03, v + 0.03) for v in (0.4, 0.6, 0.8)], (0, 1))
    assert high - low > 0.4 > 4 * np.mean(widths)


@pytest.mark.parametrize("k", [2, 5])
def test_pooled_intervals_cover_although_seeds_draw_the_same_latents(k):
    rng = np.random.default_rng(k)
    covered = naive = 0
    for _ in range(500):
        draws = rng.normal(0.6, 0.1, 20) + rng.normal(0, 0.05, (k, 20))  # the same latents, on other windows
        values, errors = draws.mean(axis=1), draws.std(axis=1, ddof=1) / 20**0.5
        ends = [(v - 2.09 * e, v + 2.09 * e) for v, e in zip(values, errors, strict=True)]
        found = [pooled_mean(values, ends, (0, 1), often) for often in (1.0, repeated([range(20)] * k))]
        hits = [low <= 0.6 <= high for low, high in found]
        naive, covered = naive + hits[0], covered + hits[1]
    assert covered >= 470 and naive < 460


def test_a_latent_that_seeds_share_counts_once_in_rows_floors_controls_and_claims(run):
    folder, _ = run
    runs = [read_result(folder / f"seed-{seed}") for seed in (3, 4, 5)]
    name = runs[0].cells[0].cell
    once, thrice = (pooled_runs(runs, "pool", {name: often}).cells[0].scores[0] for often in (1.0, 3.0))
    assert thrice.ci95[0] < once.ci95[0] and thrice.prediction95[0] < once.prediction95[0]
    assert thrice.against.covariance == pytest.approx([3 * x for x in once.against.covariance])
    about = {"scorer": "d", "metric": "m", "stratum": "all", "control": "random", "n": (9, 9), "p": 0.01}
    contrast = ControlContrast(**about, trained=0.6, value=0.5, difference=0.1, ci95=(0.02, 0.18))
    ps = [pooled_contrasts([[contrast]] * 3, often)[0].p for often in ({}, {"random": 3.0})]
    assert ps[0] < 0.001 and ps[1] == pytest.approx(0.0143, abs=0.001)  # as in one seed
    claim = Finding(claim="c", outcome="shown", quantity="q", difference=0.1, ci95=(0.02, 0.18), p=None, n=(9,))
    for asked, often in (({"score": "d", "than": 0.5}, {name: 3.0}), ({"similarity": "decoder"}, {})):
        spec = FindingSpec.model_validate({"claim": "c", "is": "above", **asked})
        (found,) = pooled_findings([spec], [[claim]] * 3, runs[0].cells, often)
        assert found.ci95 == pytest.approx((0.02, 0.18))


def test_pooled_reruns_include_the_shifts_that_a_runs_latents_share(run):
    folder, _ = run
    runs = [read_result(folder / f"seed-{seed}") for seed in (3, 4, 5)]
    shifts = {"judge": 0.003, "corpus": 0.002}
    parts = VarianceParts(scorer="detection", n=4, latents=0.02, windows=0.01, noise={}, shared=shifts)
    shifted = [r.model_copy(update={"cells": [r.cells[0].model_copy(update={"variance": [parts]})]}) for r in runs]
    (plain,), (cell,) = pooled_runs(runs, "pool").cells, pooled_runs(shifted, "pool").cells
    (a, b), row = (x.scores[0].value - x.scores[0].prediction95[0] for x in (plain, cell)), cell.scores[0]
    assert b == pytest.approx((a**2 + 1.96**2 * 2 * (0.003 / 3 + 0.002)) ** 0.5)
    assert cell.scores[1].metric != row.metric and cell.scores[1].prediction95 == plain.scores[1].prediction95


@pytest.mark.parametrize(
    ("intervals", "pooled"),
    [([(0.1, 0.5), (0.7, 1.0)], (0.4, 0.75)), ([(0.1, 0.5), None], None), ([None, None], None)],
)
def test_a_pooled_power_has_an_interval_if_every_seed_has_one(intervals, pooled):
    powers = [
        Power(scorer="s", variant="v", metric="m", n=30, difference=0.1, latents=50, power=power, ci95=ci95)
        for power, ci95 in zip((0.3, 0.9), intervals, strict=True)
    ]
    seeds = [run_of(cell("a", []).model_copy(update={"powers": [power]})) for power in powers]
    (found,) = pooled_runs(seeds, "pooled").cells[0].powers
    assert found.power == pytest.approx(0.6) and found.ci95 == (pooled and pytest.approx(pooled))
