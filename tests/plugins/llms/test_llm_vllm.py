"""vLLM in process, held against a stand-in with its interface: what is asked, together with what, and what is read."""

from __future__ import annotations

import asyncio
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
from saeval_plugins.llms.vllm import VLLM

from saeval import InputError, LLMError
from saeval.plugin import FillRequest, LogprobRequest, Message, Request
from saeval.testing.contracts import check_llm

WORDS = {"<s>": 0}


def ids_of(text):
    return [WORDS.setdefault(word, len(WORDS)) for word in text.split()]


def entry(i):
    word = next(word for word, number in WORDS.items() if number == i)
    return SimpleNamespace(logprob=-i / 10, decoded_token=f" {word}")


def output(prompt, params, text):
    """What vLLM returns: every token's log-probability is minus a tenth of its number."""
    limit = params["max_tokens"]
    words = text.split()[:limit]
    ids = ids_of(" ".join(words))
    known = [{i: entry(i)} for i in ids] if params.get("logprobs") else None
    answer = SimpleNamespace(
        text=" ".join(words),
        token_ids=ids,
        logprobs=known,
        finish_reason="length" if len(text.split()) > len(words) else "stop",
    )
    echoed = None
    if params.get("prompt_logprobs") is not None:
        more = range(params["prompt_logprobs"])
        echoed = [None, *({j: entry(j) for j in (i, *more) if j < len(WORDS)} for i in prompt[1:])]
    return SimpleNamespace(prompt_token_ids=prompt, outputs=[answer], prompt_logprobs=echoed, num_cached_tokens=2)


class Engine:
    """Answers with the last message's words."""

    def __init__(self, **options):
        self.options, self.calls = options, []
        engines.append(self)

    def get_tokenizer(self):
        return SimpleNamespace(bos_token_id=0, encode=lambda text, add_special_tokens: ids_of(text))

    def chat(self, conversations, params, use_tqdm, **options):
        self.calls.append(("chat", len(conversations), options))
        if any("too long" in turns[-1]["content"] for turns in conversations):
            raise ValueError("the prompt is longer than the model takes")
        made = zip(conversations, params, strict=True)
        return [output(ids_of(turns[-1]["content"]), given, turns[-1]["content"]) for turns, given in made]

    def generate(self, prompts, params, use_tqdm):
        self.calls.append(("generate", len(prompts), {}))
        return [output(p["prompt_token_ids"], given, "x") for p, given in zip(prompts, params, strict=True)]


engines: list[Engine] = []


@pytest.fixture
def model(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    engines.clear()
    WORDS.clear()
    WORDS["<s>"] = 0
    return VLLM(model="some/model", engine={"quantization": "awq"})


def ask(*calls):
    async def together():
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(together())


def request(text, **options):
    return Request.of(text, **{"max_tokens": 20, **options})


def test_requests_that_wait_are_answered_together_and_each_gets_its_own(model):
    replies = ask(*(model.complete(request(f"say number {i}")) for i in range(50)))
    assert [reply.text for reply in replies] == [f"say number {i}" for i in range(50)]
    (engine,) = engines
    assert engine.calls == [("chat", 50, {})]
    assert engine.options["enable_prefix_caching"] and engine.options["quantization"] == "awq"
    assert replies[0].usage.cached_tokens == 2 and replies[0].usage.output_tokens == 3


def test_answer_that_is_cut_says_so_and_logprobs_come_with_their_tokens(model):
    cut, whole = ask(
        model.complete(request("one two three", max_tokens=2)), model.complete(request("a b", top_logprobs=1))
    )
    assert (cut.finish_reason, whole.finish_reason) == ("length", "stop")
    assert [token.token for token in whole.logprobs] == [" a", " b"] and cut.logprobs is None


def test_answer_that_is_begun_is_continued_apart_from_the_others(model):
    begun = Request((Message("user", "q"), Message("assistant", "it means")), max_tokens=9)
    ask(model.complete(begun), model.complete(request("other")))
    assert sorted(engines[0].calls, key=str) == [
        ("chat", 1, {"add_generation_prompt": False, "continue_final_message": True}),
        ("chat", 1, {}),
    ]


def test_request_that_fails_does_not_fail_those_beside_it(model):
    good, bad = ask(model.complete(request("fine")), model.complete(request("this is too long")))
    assert good.text == "fine"
    assert isinstance(bad, LLMError) and "longer than the model takes" in str(bad)


def test_continuations_are_scored_by_the_log_probabilities_of_their_tokens(model):
    asked = LogprobRequest(prefix="the sea", prompts=("is", "was"), continuations=("calm", "very rough"))
    (reply,) = ask(model.logprobs(asked))
    expected = tuple(tuple(-i / 10 for i in ids_of(text)) for text in asked.continuations)
    assert reply.logprobs == (expected, expected)
    assert engines[0].calls == [("generate", 4, {})]


def test_choices_in_gaps_are_weighed_and_those_that_vllm_does_not_name_are_impossible(model):
    ids_of("yes no filler far " + " ".join(f"w{i}" for i in range(30)) + " rare")
    asked = FillRequest(prefix="q", texts=(("a", "b"),), filler="filler", choices=("yes", "rare"))
    (reply,) = ask(model.fill(asked))
    yes = -WORDS["yes"] / 10
    assert reply.logprobs == (((yes, -math.inf), (yes, -math.inf)),)
    (failed,) = ask(model.fill(FillRequest(prefix="q", texts=(("a",),), filler="filler", choices=("two words",))))
    assert "single token" in str(failed)


def test_without_vllm_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"saeval\[vllm\].*openai_compatible"):
        VLLM(model="m").check()


def test_memory_and_number_of_gpus_do_not_change_what_results_depend_on():
    assert (
        VLLM(model="m", gpu_memory_utilization=0.5).fingerprint()
        == VLLM(model="m", tensor_parallel_size=2).fingerprint()
    )
    assert VLLM(model="m", dtype="float16").fingerprint() != VLLM(model="m").fingerprint()


def test_contract_holds(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    check_llm(model)
