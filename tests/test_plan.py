"""A plan tells what a run will take, closely enough to decide by, and never says nothing where it does not know."""

from __future__ import annotations

import pytest
from fake_server import pieces
from planted_run import spec, truthful_server

import saeval
from saeval.plan import plan
from saeval.plugins import Registry
from saeval.task import load_task

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
    assert calls == len(server.calls) > 1000
    assert after.total("calls") == pytest.approx(calls, rel=0.05)
    assert after.total("input_tokens") == pytest.approx(taken, rel=0.2)
    assert after.total("output_tokens") == pytest.approx(given, rel=0.2)
    assert before.total("calls") == pytest.approx(calls, rel=0.2)
    assert before.total("input_tokens") == pytest.approx(taken, rel=0.2)


def test_plan_is_laid_out_as_the_run_is(tmp_path):
    with truthful_server() as server:
        found = planned(many(server, scorers={"detection": {}, "fuzzing": {"when": {"latents": 3}}}), limit=10)
    assert {(step.step, step.latents) for step in found.steps} == {
        ("collect", 0), ("explain", 10), ("explain (top_tokens)", 8), ("detection", 10), ("detection (shuffled_explanation)", 10),
        ("detection (top_tokens)", 8), ("fuzzing", 3), ("fuzzing (shuffled_explanation)", 3), ("fuzzing (top_tokens)", 3),
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
        "from saeval import Explainer\n"
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


def test_cells_that_share_a_pass_over_the_corpus_read_it_once(tmp_path):
    (tmp_path / "text.txt").write_text("word " * 4000)
    with truthful_server() as server:
        steps = collecting(server, {"path": f"{tmp_path}/text.txt"}, baselines=["random_sae", "neurons"])
        assert [step.input_tokens for step in steps] == [
            5000,
            0,
        ]  # the random SAE is the cell's own coder, and its store
        assert all(step.bytes for step in steps)
