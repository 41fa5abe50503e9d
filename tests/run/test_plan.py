"""A plan tells what a run will take, closely enough to decide by, and never says nothing where it does not know."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fake_server import pieces
from planted_run import spec, truthful_server
from tiny import tiny_model

import saeval
from saeval import InputError
from saeval._run.plan import speed, throughput
from saeval._run.plan.planning import plan
from saeval.cli.group import main
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

LATENTS = 64  # as many as can be planted


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def many(server, model="openai_compatible/rules", **changes):
    role = {"model": model, "api_base": server.url, "max_tokens": 100}
    return spec(
        server,
        **{
            "source": {"use": "synthetic", "with": {"n_latents": LATENTS, "documents": 200}},
            "latents": {"n": LATENTS, "min_windows": 40},
            "llms": {"explainer": role, "judge": role},
            "baselines": ["shuffled_explanation", {"use": "top_tokens", "when": {"latents": 8}}],
            **changes,
        },
    )


def planned(task, **options):
    return plan(load_task(task, registry=Registry()), **options)


@pytest.mark.slow
def test_plan_comes_within_a_fifth_of_what_the_run_takes(tmp_path):
    with truthful_server() as server:
        server.tokens = pieces
        before = planned(many(server))
        assert not server.calls
        result = saeval.run(many(server), out=tmp_path / "run")
        after = planned(many(server))
    calls, taken, given = (
        sum(getattr(x, f) for x in result.ledger) for f in ("calls", "input_tokens", "output_tokens")
    )
    assert calls == len(server.calls) > 900
    assert after.total("calls") == pytest.approx(calls, rel=0.05)
    assert after.total("input_tokens") == pytest.approx(taken, rel=0.2)
    assert after.total("output_tokens") == pytest.approx(given, rel=0.2)
    assert before.total("calls") == pytest.approx(calls, rel=0.2)
    assert before.total("input_tokens") == pytest.approx(taken, rel=0.2)


def thousand(folder, server):
    """A task of a thousand latents, each of which fires on a word of its own; small windows and few."""
    words = ["".join("bdfgklmnpr"[i // 10**k % 10] + "aeiou"[i // 3**k % 5] for k in range(3)) for i in range(1000)]
    assert len(set(words)) == 1000
    rules = [{"latent": i, "explanation": f"the word {w}", "pattern": rf"\b{w}\b"} for i, w in enumerate(words)]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    rng = random.Random(0)
    texts = [" and ".join(rng.sample(words, len(words))) for _ in range(14)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = {"path": str(folder / "corpus.jsonl"), "context": 64}
    role = {"model": "openai_compatible/rules", "api_base": server.url, "max_tokens": 100}
    role |= {"usd_per_million_input": 1.0, "usd_per_million_output": 4.0}
    return spec(
        server, source={"use": "rules", "with": {"path": str(folder / "rules.yaml"), "corpus": corpus}},
        llms={"explainer": role, "judge": role}, latents={"n": 1000, "min_windows": 10},
        sampler={"use": "random", "with": {"window": 8, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        scorers={"detection": {"with": {"batch": 10}}}, baselines=[],
    )  # fmt: skip


@pytest.mark.slow
def test_plan_of_a_thousand_latents_comes_within_a_fifth(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    with truthful_server() as server:
        server.tokens = pieces
        task = thousand(tmp_path, server)
        before = planned(task)
        result = saeval.run(task, out=run)
        after = planned(task)
    assert result.cells[0].scores[0].n == 1000
    answers = (cache / "calls.sqlite").stat().st_size
    spent = {c: sum(getattr(x, c) for x in result.ledger) for c in ("calls", "input_tokens", "output_tokens", "usd")}
    spent["bytes"] = answers + sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert spent["calls"] == 2000
    for column, value in spent.items():
        assert after.total(column) == pytest.approx(value, rel=0.01 if column == "calls" else 0.2), column
    for column in ("calls", "input_tokens", "usd"):
        assert before.total(column) == pytest.approx(spent[column], rel=0.2), column
    (store,) = (step.bytes for step in before.steps if step.step == "collect")
    assert before.total("bytes") - store == pytest.approx(spent["bytes"], rel=0.2)


@pytest.mark.slow
def test_room_for_activations_comes_within_a_fifth(tmp_path):
    from tiny import tiny_corpus, tiny_model

    source = {
        "model": str(tiny_model(tmp_path / "model")), "hookpoint": "layers.1",
        "coder": {"use": "random_sae", "with": {"n_latents": 64, "k": 20}}, "corpus": {"path": str(tiny_corpus(tmp_path / "text.jsonl", 400)), "context": 64, "tokens": 8000},
    }  # fmt: skip
    with truthful_server() as server:
        task = many(
            server, source={"use": "transformers", "with": source}, latents={"n": 1, "min_windows": 5}, baselines=[]
        )
        (collecting,) = (step for step in planned(task).steps if step.step == "collect")
        saeval.run(task, out=tmp_path / "run", limit=1)
    (store,) = (Path(tmp_path) / "cache" / "stores").glob("*/")
    assert collecting.bytes == pytest.approx(sum(file.stat().st_size for file in store.iterdir()), rel=0.2)


# --- minutes


def ledger(run, *, began=1000.0, updated=1100.0, status="done", latents=10, collect=20.0, calls=()):
    """A run that was timed: calls are role, beginning, seconds, and whether the answer was in the cache."""
    run.mkdir()
    head = {"status": status, "began": began, "updated": updated, "seconds": {"collect": collect}}
    (run / "run.json").write_text(json.dumps(head))
    (run / "results.json").write_text(json.dumps({"cells": [{"counts": {"sampled": latents}}]}))
    rows = [
        {"role": role, "model": "openai_compatible/rules", "time": begin + seconds, "milliseconds": 1000 * seconds,
         "cached": cached, "status": "ok", "request": "", "answer": "", "attempts": 1, "usage": {}}
        for role, begin, seconds, cached in calls
    ]  # fmt: skip
    (run / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"time": 10')
    return run


def test_minutes_are_those_of_a_run_that_was_timed(tmp_path):
    """Calls under way at once share the time, pauses are nobody's, and what was in the cache took none."""
    explaining = [("explainer", 1020.0 + i, 2.0, False) for i in range(0, 10, 2)]  # 10 s without a gap: 2 s a call
    judging = [("judge", 1040.0 + i % 2, 4.0, False) for i in range(20)]  # all at once: 5 s
    pause = [("judge", 1060.0, 5.0, False)] * 20 + [("judge", 1070.0, 20.0, True)]  # 5 s more: 10 s for 40 calls
    run = ledger(tmp_path / "timed", calls=explaining + judging + pause)
    found = speed(run)
    assert found.call == {("explainer", "openai_compatible/rules"): 2.0, ("judge", "openai_compatible/rules"): 0.25}
    assert found.rest == pytest.approx((100 - 20 - 10 - 10) / 10)
    with truthful_server() as server:
        task = many(server, baselines=[], scorers={"detection": {}})
        likely, assumed = planned(task, limit=20, speed=found), planned(task, limit=20)
    seconds = {step.step: (step.seconds, step.measured) for step in likely.steps}
    assert seconds["explain"] == (20 * 2.0, True) and seconds["detection"] == (160 * 0.25, True)
    assert seconds["report"] == (pytest.approx(20 * 6.0), True)
    assert not any(step.measured for step in assumed.steps)


def test_speed_of_another_model_is_not_taken(tmp_path):
    run = ledger(tmp_path / "timed", calls=[("judge", 1020.0, 500.0, False)])
    with truthful_server() as server:
        found = planned(many(server, model="openai_compatible/other"), limit=5, speed=speed(run))
    assert not any(step.measured for step in found.steps if step.model)
    assert all(step.seconds < 100 for step in found.steps if step.model)


def test_run_that_was_resumed_does_not_tell_how_long_all_else_takes(tmp_path):
    assert speed(ledger(tmp_path / "timed", calls=[("judge", 900.0, 1.0, False)])).rest is None


def test_run_that_tells_no_speed_is_one_clear_sentence(tmp_path):
    ledger(tmp_path / "stopped", status="interrupted")
    for run, said in (("stopped", "is unfinished"), ("nowhere", "cannot be read")):
        with pytest.raises(InputError, match=said):
            speed(tmp_path / run)
        found = CliRunner().invoke(main, ["plan", "--task", "quickstart", "--like", str(tmp_path / run)])
        assert found.exit_code == 2 and said in found.output


def test_minutes_that_are_assumed_are_marked(tmp_path):
    with truthful_server() as server:
        task = tmp_path / "mine.yaml"
        task.write_text(yaml.safe_dump(many(server, baselines=[], scorers={"detection": {}})))
        run = ledger(tmp_path / "timed", calls=[("judge", 1020.0, 60.0, False)])
        said = [CliRunner().invoke(main, ["plan", "--task", str(task), "--limit", "20", *like]).output
                for like in ([], ["--like", str(run)])]  # fmt: skip
    rows = [{line.split()[0]: line for line in text.splitlines() if line} for text in said]
    assert "~" in rows[0]["detection"] and "~" in rows[0]["report"]
    assert "160.0" in rows[1]["detection"] and "~" not in rows[1]["detection"] and "~" in rows[1]["explain"]
    assert "unknown" in rows[0]["collect"] and "unknown" in rows[0]["total"]


# --- what more money would buy


def test_plan_says_whether_more_latents_or_more_windows_are_worth_more(tmp_path):
    with truthful_server() as server:
        task = tmp_path / "mine.yaml"
        task.write_text(yaml.safe_dump(many(server, baselines=[], scorers={"detection": {}})))
        told = {}
        for reliability in (0.95, 0.05):
            run = ledger(tmp_path / f"timed{reliability}")
            row = {"scorer": "detection", "variant": "explanation", "reliability": reliability}
            cell = {"counts": {"sampled": 10}, "scores": [row]}
            (run / "results.json").write_text(json.dumps({"cells": [cell]}))
            arguments = ["plan", str(task), "--limit", "20", "--like", str(run)]
            (more,) = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)["more_money"]
            said = CliRunner().invoke(main, arguments).output
            told[reliability] = more, " ".join(said.split())
    assert "choose more latents" in told[0.95][1] and "choose more windows per latent" in told[0.05][1]
    assert told[0.95][0]["latents"] == told[0.05][0]["latents"] == pytest.approx(1 - 1.1**-0.5)
    assert told[0.95][0]["windows"] < 0.005 < 0.047 < told[0.05][0]["windows"]


def test_seeds_multiply_all_but_collecting(tmp_path):
    with truthful_server() as server:
        one, three = (planned(many(server, run={"seeds": k}), limit=5) for k in (1, 3))
    assert three.total("calls") == 3 * one.total("calls")
    collecting = [[s for s in found.steps if s.step == "collect"] for found in (one, three)]
    assert collecting[0] == collecting[1]


# --- what it looks like


def test_plan_is_laid_out_as_the_run_is(tmp_path):
    with truthful_server() as server:
        found = planned(many(server, scorers={"detection": {}, "fuzzing": {"when": {"latents": 3}}}), limit=10)
    assert {(step.step, step.latents) for step in found.steps} == {
        ("collect", 0), ("explain", 10), ("explain (top_tokens)", 8), ("detection", 10), ("detection (shuffled_explanation)", 10),
        ("detection (top_tokens)", 8), ("fuzzing", 3), ("fuzzing (shuffled_explanation)", 3), ("fuzzing (top_tokens)", 3),
        ("report", 10),
    }  # fmt: skip
    calls = {step.step: step.calls for step in found.steps}
    assert (calls["explain"], calls["explain (top_tokens)"], calls["detection"], calls["fuzzing"]) == (10, 0, 80, 24)


def test_unknown_price_is_unknown_and_a_known_one_is_added_up(tmp_path):
    with truthful_server() as server:
        found = planned(many(server))
        assert found.total("usd") is None
        assert any("price unknown" in step.note for step in found.steps)
        role = {"model": "openai_compatible/x", "api_base": server.url, "max_tokens": 100}
        prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
        found = planned(many(server, llms={"explainer": role | prices, "judge": role | prices}))
    expected = (found.total("input_tokens") + 10 * found.total("output_tokens")) / 1e6
    assert found.total("usd") == pytest.approx(expected)
    assert found.total("bytes") is None  # this source does not tell how much it will write


@pytest.mark.slow
def test_prices_are_litellm_s_where_it_knows_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567890abcdef")
    with truthful_server() as server:
        known = planned(many(server, model="openai/gpt-4o-mini"), limit=2)
        unknown = planned(many(server, model="openai/some-finetune"), limit=2)
        assert not server.calls
    assert known.total("usd") == pytest.approx(
        known.total("input_tokens") * 0.15e-6 + known.total("output_tokens") * 0.6e-6
    )
    assert unknown.total("usd") is None


def test_step_that_cannot_be_tried_is_unknown_with_its_reason(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from saeval.plugin import Explainer\n"
        "class Odd(Explainer):\n"
        "    name = 'odd'\n"
        "    llm_role = 'explainer'\n"
        "    async def explain(self, examples, context):\n"
        "        raise RuntimeError('this one needs the moon')\n"
    )
    with truthful_server() as server:
        found = planned(many(server, explainer=f"{tmp_path}/odd.py:Odd"))
    (step,) = (step for step in found.steps if step.step == "explain")
    assert step.calls is None and "this one needs the moon" in step.note
    assert found.total("calls") is None


def collecting(server, corpus, **changes):
    options = {"model": "some/model", "hookpoint": "layers.1", "coder": "random_sae", "corpus": corpus}
    task = many(server, source={"use": "transformers", "with": options}, **changes)
    found = plan(load_task(task, registry=Registry(), check=False))
    return [step for step in found.steps if step.step == "collect"]


def test_collecting_is_told_from_the_corpus(tmp_path):
    (tmp_path / "text.txt").write_text("word " * 4000)
    (tmp_path / "lines.jsonl").write_text('{"text": "word word word word word word"}\n' * 100)
    with truthful_server() as server:
        (whole,) = collecting(server, {"path": f"{tmp_path}/text.txt"})
        (limited,) = collecting(server, {"path": f"{tmp_path}/text.txt", "tokens": 700})
        (short,) = collecting(server, {"path": f"{tmp_path}/lines.jsonl", "per_document": 3})
        (unknown,) = collecting(server, {"dataset": "some/dataset"})
        (streamed,) = collecting(server, {"dataset": "some/dataset", "tokens": 2_000_000})
    assert [step.input_tokens for step in (whole, limited, short, unknown, streamed)] == [
        5000,
        700,
        300,
        None,
        2_000_000,
    ]
    assert whole.seconds > 0 and whole.bytes > 0 and unknown.note


def test_minutes_of_collecting_are_those_of_the_models_size_its_place_and_the_device(tmp_path):
    (tmp_path / "text.txt").write_text("word " * 4000)
    (tmp_path / "m").mkdir()
    config = {"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
              "num_key_value_heads": 4, "intermediate_size": 4096, "vocab_size": 32000}  # fmt: skip
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with truthful_server() as server:
        options = {"model": "some/model-2b", "hookpoint": "layers.1", "coder": "random_sae", "device": "cpu",
                   "corpus": {"path": f"{tmp_path}/text.txt"}}  # fmt: skip
        task = many(server, source={"use": "transformers", "with": options}, baselines=[])
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
        shown = CliRunner().invoke(main, ["plan", str(tmp_path / "mine.yaml")]).output
        source = load_task(task, registry=Registry(), check=False).cells[0].source.plugin

    def pace(**changes):
        return throughput.collecting(source.model_copy(update=changes))

    folder = str(tmp_path / "m")
    whole, half = pace(model=folder, hookpoint="layers.15"), pace(model=folder, hookpoint="layers.7")
    assert half.first == pytest.approx(whole.first / 2, rel=0.01)
    assert "8 of 16 blocks" in half.about and "16 of 16" in whole.about and "CPU" in whole.about
    assert pace(model="some/model-9B").first == pytest.approx(4.5 * pace().first, rel=0.01)
    assert pace(model="some/model-9b", device="cuda", dtype="bfloat16").first < pace(model="some/model-9b").first / 50
    assert pace(model="some/model") is None
    assert "1.8 B parameters" in shown and "tokens per second" in shown.replace("\n  ", " ")
    row = next(line for line in shown.splitlines() if line.startswith("collect"))
    assert f"~{5000 * pace().first / 60:.1f}" in row


def test_block_parameters_are_those_of_the_model(tmp_path):
    import transformers
    from torch.nn import ModuleList

    from saeval.models import model_facts

    for kind in ("llama", "gpt2"):
        folder = tiny_model(tmp_path / kind, kind)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        blocks = next(m for m in model.modules() if isinstance(m, ModuleList))
        weights = sum(p.numel() for p in blocks.parameters() if p.ndim == 2)
        assert model_facts(str(folder)).parameters == weights, kind


def test_cells_that_share_a_pass_over_the_corpus_read_it_once(tmp_path):
    (tmp_path / "text.txt").write_text("word " * 4000)
    with truthful_server() as server:
        steps = collecting(server, {"path": f"{tmp_path}/text.txt"}, baselines=["random_sae", "neurons"])
        assert [step.input_tokens for step in steps] == [
            5000,
            0,
        ]  # the random SAE is the cell's own coder, and its store
        assert all(step.bytes for step in steps)


def test_plan_fits_eighty_columns(tmp_path):
    with truthful_server() as server:
        task = tmp_path / "mine.yaml"
        task.write_text(
            yaml.safe_dump(many(server, scorers={"a-scorer-with-a-label-that-is-long": {"use": "detection"}}))
        )
        shown = CliRunner().invoke(main, ["plan", "--task", str(task), "--limit", "20"]).output
    assert max(map(len, shown.splitlines())) <= 80 and "openai_compatible/rules" in shown
