"""What a call took is never unknown where it can be estimated, never lower than it was, and says that it is an estimate."""

from __future__ import annotations

import json
import math

import pytest
from fake_server import body, fake_server, pieces
from gateways import BOTH_DOORS, ask, direct, gateway
from planted_run import spec, truthful_server
from saeval_plugins.llms import LiteLLM

import saeval
from saeval import LLMError
from saeval.llm.pricing import estimated_tokens
from saeval.plugin import Request, Usage

PRICES = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
PROMPT = (
    "Which of these 5 windows activate the latent? Explanation: words about the sea.\nWindow 1: the tide » rose\n" * 3
)
ANSWER = "[0, 1, 0, 0, 1]"
HONEST = Usage(pieces(PROMPT) + 4, pieces(ANSWER))

ODD = {
    "no usage": None, "null": {"prompt_tokens": None, "completion_tokens": None}, "text": {"prompt_tokens": "many", "completion_tokens": "few"},
    "a list": [100, 10], "below zero": {"prompt_tokens": -100, "completion_tokens": -10},
    "one below zero": {"prompt_tokens": -100, "completion_tokens": HONEST.output_tokens}, "zero": {"prompt_tokens": 0, "completion_tokens": 0},
    "only the prompt": {"prompt_tokens": HONEST.input_tokens}, "NaN": {"prompt_tokens": math.nan, "completion_tokens": math.inf},
    "nested": {"prompt_tokens": {"text": 100}, "completion_tokens": [10]}, "beyond all sense": {"prompt_tokens": 1e300, "completion_tokens": 10**30},
    "true": {"prompt_tokens": True, "completion_tokens": True}, "negative cost": {"cost": -5, "prompt_tokens": -1},
    "no cost": {"cost": 0, "prompt_tokens": HONEST.input_tokens, "completion_tokens": 0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


def reply_with(usage, text=ANSWER, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return body(json.dumps({**whole, "usage": usage} if usage is not None else whole))


def honest_price(prices=(1.0, 10.0)):
    return (HONEST.input_tokens * prices[0] + HONEST.output_tokens * prices[1]) / 1e6


@pytest.mark.parametrize("usage", ODD.values(), ids=ODD)
def test_odd_counts_cost_no_answer_and_lower_no_bill(tmp_path, usage):
    with fake_server() as server:
        server.always = reply_with(usage)
        (reply,) = ask(gateway(tmp_path, direct(server), **PRICES), Request.of(PROMPT))
    assert reply.text == ANSWER
    assert honest_price() <= reply.usage.usd < 4 * honest_price()
    assert reply.usage.estimated and reply.usage.price_source == "spec, estimated tokens"


@pytest.mark.parametrize("usage", ODD.values(), ids=ODD)
def test_odd_counts_through_litellm_are_priced_by_its_list(tmp_path, usage):
    with fake_server() as server:
        server.always = reply_with(usage)
        (reply,) = ask(gateway(tmp_path, LiteLLM(model="openai/gpt-4o-mini", api_base=server.url)), Request.of(PROMPT))
    assert reply.text == ANSWER
    assert honest_price((0.15, 0.6)) <= reply.usage.usd < 4 * honest_price((0.15, 0.6))


def test_counts_and_costs_that_make_sense_are_the_server_s(tmp_path):
    with fake_server() as server:
        server.faults = [
            reply_with({"prompt_tokens": 50, "completion_tokens": 5}), reply_with({"prompt_tokens": 50, "completion_tokens": 5, "cost": 0.25}),
        ]  # fmt: skip
        gate = gateway(tmp_path, direct(server), concurrency=1, **PRICES)
        first, second = ask(gate, Request.of("a"), Request.of("b"))
    assert (first.usage.usd, first.usage.price_source, first.usage.estimated) == (1e-4, "spec", False)
    assert (second.usage.usd, second.usage.price_source, second.usage.estimated) == (0.25, "server", False)


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_what_openrouter_s_provider_bills_to_the_user_s_own_key_counts(tmp_path, client):
    upstream = {
        "cost": 0.001,
        "cost_details": {"upstream_inference_cost": 0.02},
        "prompt_tokens": 50,
        "completion_tokens": 5,
    }
    with fake_server() as server:
        server.faults = [
            reply_with(upstream | told)
            for told in ({"is_byok": True}, {"is_byok": False}, {"is_byok": True, "cost": 0})
        ]
        gate = gateway(tmp_path, client(server), concurrency=1)
        replies = ask(gate, *map(Request.of, "abc"))
    assert sorted(reply.usage.usd for reply in replies) == pytest.approx([0.001, 0.02, 0.021])


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_counts_as_text_are_counts_through_either_client(tmp_path, client):
    with fake_server() as server:
        details = {"cached_tokens": "30"}
        server.always = reply_with(
            {"prompt_tokens": "50", "completion_tokens": "5.0", "prompt_tokens_details": details}
        )
        (reply,) = ask(gateway(tmp_path, client(server), **PRICES), Request.of(PROMPT))
    usage = reply.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.estimated) == (50, 30, 5, False)


def test_answer_that_used_up_its_tokens_is_billed_for_all_of_them(tmp_path):
    with fake_server() as server:
        server.always = reply_with(None, "", "length")
        gate = gateway(tmp_path, direct(server), max_tokens=300, max_tokens_if_cut=1, **PRICES)
        (failed,) = ask(gate, Request.of(PROMPT))
    assert (
        isinstance(failed, LLMError)
        and gate._caller._budget.spent >= 300 * 10 / 1e6
        and gate._caller._budget.unknown == 0
    )


def test_spending_limit_holds_without_counts_and_the_results_say_that_it_is_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        whole = server._completion
        server._completion = lambda *given: {**whole(*given), "usage": {"prompt_tokens": "n/a"}}
        task = spec(server, baselines=[], scorers={"detection": {}}, latents={"n": 2, "min_windows": 20})
        task["llms"] = {role: {**options, **PRICES} for role, options in task["llms"].items()}
        with pytest.raises(saeval.BudgetExceeded):
            saeval.run(task, out=tmp_path / "run", max_cost=0.001)
        result = saeval.run(task, out=tmp_path / "run", max_cost=10)
    assert sum(row.usd for row in result.ledger) > 0.001
    assert [w for w in result.warnings if "estimated from the length of the text" in w and w.startswith("judge: ")]


@pytest.mark.parametrize(
    "text",
    [
        "plain English words, a sentence or two.",
        "[0, 1, 1, 0]",
        "Größenwahn über Österreich",
        "日本語の文章です",
        "x = 12345.678",
    ],
)
def test_estimates_are_rather_more_than_tokenizers_count(text):
    litellm = pytest.importorskip("litellm")  # which carries the vocabulary of cl100k_base
    assert len(litellm.encoding.encode(text)) <= estimated_tokens(text)
