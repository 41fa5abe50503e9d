"""Items flow as soon as what they need is there, in a bounded number, and results never depend on who answers first."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter, defaultdict

import pytest
import yaml
from fake_server import fake_server
from planted_run import spec, truthful, truthful_server

import saeval
from saeval._run import work
from saeval._run.plan import plan
from saeval._run.preview import preview_prompts
from saeval._util import Silent
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def explains(messages):
    return not messages[-1]["content"].startswith("Explanation:")


def two_cells(server, **changes):
    texts = [{"id": "a", "seed": 0}, {"id": "b", "seed": 1}]
    source = {"use": "synthetic", "with": {"n_latents": 8, "documents": 60, "seed": "${matrix.text.seed}"}}
    sampler = {"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}}
    few = {
        "sampler": sampler,
        "latents": {"n": 4, "min_windows": 20},
        "baselines": ["shuffled_explanation", "top_tokens"],
    }
    return spec(
        server, matrix={"text": texts}, source=source, scorers={"detection": {}, "fuzzing": {}}, **few, **changes
    )


def shuffled(seed):
    """Answers truthfully, each question after a time of its own."""

    async def answer(messages):
        digest = hashlib.sha256(f"{seed}{messages[-1]['content']}".encode()).digest()
        await asyncio.sleep(digest[0] / 255 * 0.05)
        return truthful(messages)

    return answer


def found(run):
    data = json.loads((run / "results.json").read_text())
    for transient in ("run_id", "seconds", "ledger", "spec_sha", "components", "judges"):
        data.pop(transient)
    return data


def _without_run(rows):
    return [{key: value for key, value in row.items() if key not in ("run_id", "spec_sha")} for row in rows]


def test_results_do_not_depend_on_the_order_in_which_answers_arrive(tmp_path, monkeypatch):
    runs = []
    for seed in range(2):
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / f"cache-{seed}"))
        with fake_server(shuffled(seed)) as server:
            out = tmp_path / f"run-{seed}"
            saeval.run(two_cells(server), out=out)
        run = saeval.read(out)
        runs.append((found(out), run.judgements.to_pylist(), run.latents.to_pylist(), run.explanations.to_pylist()))
    (first, *first_tables), (second, *second_tables) = runs
    assert {key for key in first if first[key] != second[key]} == set()
    for tables in zip(first_tables, second_tables, strict=True):
        ours, theirs = (_without_run(table) for table in tables)
        assert ours == theirs


def test_a_latent_is_scored_while_others_are_still_explained(tmp_path):
    """One explanation never comes until a judge has been asked about another latent."""
    judged, held = threading.Event(), threading.Event()

    async def answer(messages):
        if not explains(messages):
            judged.set()
        elif not held.is_set():
            held.set()
            assert await asyncio.to_thread(judged.wait, 30), "scoring waits for all explanations"
        return truthful(messages)

    with fake_server(answer) as server:
        run = saeval.run(spec(server), out=tmp_path / "run")
    assert run.cells[0].counts["explained"] == 6 and not run.partial


def test_a_cell_and_a_scorer_do_not_wait_for_those_before_them(tmp_path):
    """Detection in the first cell gets no answer until fuzzing in the second one has asked."""
    asked, seen = threading.Event(), Counter()

    async def answer(messages):
        if explains(messages):
            return truthful(messages)
        kind = "fuzzing" if "<<" in messages[-1]["content"] else "detection"
        seen[kind] += 1
        if kind == "fuzzing":
            asked.set()
        elif seen["detection"] == 1:
            assert await asyncio.to_thread(asked.wait, 30), "a scorer waits for another one"
        return truthful(messages)

    with fake_server(answer) as server:
        run = saeval.run(two_cells(server), out=tmp_path / "run")
    assert [row for cell in run.cells for row in cell.scores if row.variant == "explanation" and row.failed] == []


def test_no_more_items_are_in_flight_than_the_spec_says(tmp_path):
    most, now = 0, 0

    async def answer(messages):
        nonlocal most, now
        if explains(messages):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1
        return truthful(messages)

    with fake_server(answer) as server:
        few = {"detection": {"when": {"latents": 1}}}
        saeval.run(spec(server, scorers=few, baselines=[], run={"concurrency": 2}), out=tmp_path / "run")
    assert most == 2


def test_a_shuffled_explanation_comes_from_the_first_partner_that_has_one(tmp_path, monkeypatch):
    """Whoever fails, and whenever: who gets whose explanation follows from the latents alone."""

    def failing(delay):
        async def answer(messages):
            if explains(messages):
                if "amber" in messages[-1]["content"]:
                    return "no idea"
                await asyncio.sleep(delay(messages[-1]["content"]))
            return truthful(messages)

        return answer

    given = []
    for place, delay in enumerate((lambda text: 0, lambda text: len(text) % 7 / 50)):
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / f"cache-{place}"))
        with fake_server(failing(delay)) as server:
            run = saeval.run(spec(server), out=tmp_path / f"run-{place}")
        rows = [row for row in run.explanations.to_pylist() if row["variant"] == "shuffled_explanation"]
        given.append({row["latent"]: row["text"] for row in rows})
        own = {row["latent"]: row["text"] for row in run.explanations.to_pylist() if row["variant"] == "explanation"}
        assert rows and all(row["text"] in own.values() and row["text"] != own[row["latent"]] for row in rows)
    assert given[0] == given[1]


def test_the_plan_prices_what_the_run_does(tmp_path):
    with fake_server(truthful) as server:
        task = two_cells(server)
        before = plan(load_task(task, registry=Registry()))
        run = saeval.run(task, out=tmp_path / "run")
        after = plan(load_task(task, registry=Registry()))
    scored = defaultdict(set)
    for row in run.judgements.to_pylist():
        own = row["variant"] == "explanation"
        step = row["scorer"] if own else f"{row['scorer']} ({row['variant']})"
        scored[row["cell"], step].add(row["latent"])
    counts = {place: len(latents) for place, latents in scored.items()}
    for planned in (before, after):
        asked = {(step.cell, step.step): step.latents for step in planned.steps if step.model}
        assert {place: n for place, n in asked.items() if place[1] != "explain"} == counts


def test_plan_and_preview_ask_what_the_run_asks(tmp_path):
    """The prompts of a dry run are those of the run, to the letter: the same windows in the same order."""
    asked = []

    def answer(messages):
        asked.append(messages[-1]["content"])
        return truthful(messages)

    with fake_server(answer) as server:
        task = load_task(spec(server, scorers={"detection": {}}, baselines=[]), registry=Registry())
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec(server, scorers={"detection": {}}, baselines=[])))
        saeval.run(tmp_path / "mine.yaml", out=tmp_path / "run")
    windows = {text.partition("\n")[2] for text in asked if text.startswith("Explanation:")}
    shown = [
        p["text"].rpartition("[user]\n")[2] for p in preview_prompts(task, 6, Silent()) if p["step"] == "detection"
    ]
    assert shown and {text.partition("\n")[2] for text in shown} <= windows


def test_the_list_of_work_names_every_step_of_a_cell_once(tmp_path):
    with fake_server(truthful) as server:
        task = load_task(spec(server), registry=Registry())
    latents = list(range(6))
    steps = list(work.steps(task.cells[0], latents, seed=0))
    assert len({(step.step, step.variant) for step in steps}) == len(steps)
    assert {(s.step, s.variant) for s in steps if s.step != "explain"} == {
        (scorer, variant)
        for scorer in ("detection", "fuzzing")
        for variant in ("explanation", "shuffled_explanation", "random_explanation", "top_tokens")
    }
    assert {s.step: len(s.latents) for s in steps if s.variant == "explanation"} == {
        "explain": 6, "detection": 6, "fuzzing": 3
    }  # fmt: skip


def test_a_run_that_is_stopped_counts_only_what_it_tried(tmp_path):
    with truthful_server() as server:
        server.delay = 0.05
        task = spec(server, matrix={"documents": [60, 80]}, baselines=["random_explanation"])
        task["source"] = {"use": "synthetic", "with": {"n_latents": 8, "documents": "${matrix.documents}"}}
        for role in task["llms"].values():
            role |= {"usd_per_million_input": 1e4, "usd_per_million_output": 0.0, "concurrency": 2}  # a dollar a call
        with pytest.raises(saeval.BudgetExceeded):
            saeval.run({**task, "run": {"max_cost_usd": 30}}, out=tmp_path / "run")
    rows = [row for cell in saeval.read(tmp_path / "run").cells for row in cell.scores]
    assert rows and all(row.failed == 0 and row.n == row.tried for row in rows)
    assert sum(row.n for row in rows) < 2 * 6 * len(rows)
    assert not any("failed on" in warning for warning in saeval.read(tmp_path / "run").warnings)
