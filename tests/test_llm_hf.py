"""The in-process model gives the numbers of a plain forward pass, whatever it keeps and whatever is in flight."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tiny import tiny_model

from saeval import LLMError, LogprobRequest, Message, Request
from saeval_plugins.llms import HF

PREFIX = "The old captain walked slowly along the deck and looked at the grey sea. Nobody spoke. "
PROMPTS = ("In the year 1851 a ship left", "peace", "My fellow citizens, the state of the union is good; plenty", "the deck")
CONTINUATIONS = (" at home", " two dogs and 40 barrels", " s")


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text", "mamba", "opt"])
def model(request, tmp_path_factory):
    return HF(model=str(tiny_model(tmp_path_factory.mktemp("model"), request.param)))


def brute_force(llm, prefix, prompt, continuation):
    """One sequence at a time, the whole of it, without any cache."""
    live = llm._live
    before = llm._bos + llm._ids(prefix) + llm._ids(prompt)
    after = llm._ids(continuation)
    with torch.inference_mode():
        logits = live.model(torch.tensor([before + after]), use_cache=False).logits[0].float().log_softmax(-1)
    return [float(logits[len(before) - 1 + i, token]) for i, token in enumerate(after)]


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_scores_equal_a_plain_forward_pass_one_at_a_time(model, prefix):
    reply = asyncio.run(model.logprobs(LogprobRequest(PROMPTS, CONTINUATIONS, prefix)))
    for prompt, row in zip(PROMPTS, reply.logprobs, strict=True):
        for continuation, values in zip(CONTINUATIONS, row, strict=True):
            assert values == pytest.approx(brute_force(model, prefix, prompt, continuation), abs=1e-4)


def test_same_request_gives_the_same_bits_whatever_came_before(model):
    request = LogprobRequest(PROMPTS, CONTINUATIONS[:1], PREFIX)
    first = asyncio.run(model.logprobs(request)).logprobs

    async def many():
        others = [LogprobRequest((f"{i} ships",), CONTINUATIONS[1:2], f"{i}. ") for i in range(6)]
        return await asyncio.gather(*(model.logprobs(r) for r in [*others, request, request]))

    assert asyncio.run(many())[-1].logprobs == first
    fresh = HF(model=model.model)
    assert asyncio.run(fresh.logprobs(request)).logprobs == first


def test_what_requests_share_is_computed_once(tmp_path):
    llm = HF(model=str(tiny_model(tmp_path, "llama")))
    seen = []
    llm._live.model.base_model.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True)
    ask = lambda c: asyncio.run(llm.logprobs(LogprobRequest(PROMPTS, (c,), PREFIX)))  # noqa: E731
    ask(CONTINUATIONS[1])
    first = sum(seen)
    seen.clear()
    ask(" another one")
    assert sum(seen) <= len(PROMPTS) * 12 < first / 3


def test_greedy_answers_equal_those_of_transformers(model):
    messages = (Message("system", "Once there was"), Message("user", "a ship"))
    request = Request(messages, max_tokens=12, temperature=0.0)
    ids = torch.tensor([model._bos + model._ids("Once there was\n\n") + model._ids("a ship\n\n")])
    made = model._live.model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=2)
    expected = model._live.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    if not expected.strip():  # a random model may end at once; an empty answer is an error, never a reply
        with pytest.raises(LLMError, match="the answer is empty"):
            asyncio.run(model.complete(request))
        return
    reply = asyncio.run(model.complete(request))
    assert reply.text == expected.lstrip().split("\n\n")[0].strip()
    assert asyncio.run(model.complete(request)) == reply


def test_answer_ends_at_a_stop_string_or_the_token_limit(tmp_path):
    llm = HF(model=str(tiny_model(tmp_path, "llama")))
    base = asyncio.run(llm.complete(Request.of("a ship", max_tokens=12, temperature=0.0)))
    assert base.finish_reason == "length"
    stop = next(s for i in range(1, len(base.text)) if base.text.find(s := base.text[i : i + 2]) > 0)
    cut = asyncio.run(llm.complete(Request.of("a ship", max_tokens=12, temperature=0.0, stop=(stop,))))
    assert cut.text == base.text[: base.text.find(stop)].strip()
    assert cut.finish_reason == "stop"


def test_sampling_depends_on_the_request_alone(model):
    def ask(repeat):
        return asyncio.run(model.complete(Request.of("a ship", max_tokens=8, temperature=1.0, repeat=repeat))).text

    texts = [ask(i) for i in range(4)]
    assert texts == [ask(i) for i in range(4)]
    assert len(set(texts)) > 1


def test_alternatives_are_reported_with_their_log_probabilities(model):
    reply = asyncio.run(model.complete(Request.of("a ship", max_tokens=3, temperature=1.0, top_logprobs=300)))
    assert reply.logprobs is not None
    for entry in reply.logprobs:
        assert entry.token in [text for text, _ in entry.top]
        assert [v for _, v in entry.top] == sorted((v for _, v in entry.top), reverse=True)


def test_chat_template_is_used_where_there_is_one(tmp_path):
    llm = HF(model=str(tiny_model(tmp_path, "llama")))
    llm._live.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    before, last, chat = llm._conversation((Message("system", "Be brief."), Message("user", "Hello")))
    assert chat
    decode = llm._live.tokenizer.decode
    assert (decode(before), decode(last)) == ("[system]Be brief.", "[user]Hello[assistant]")
