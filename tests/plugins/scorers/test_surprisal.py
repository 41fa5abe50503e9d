"""Information values are sums over all tokens of a window, and rank windows as the explanation deserves."""

from __future__ import annotations

import asyncio
import math
import re
from importlib.resources import files

import pytest
from saeval_plugins.llms import HF
from saeval_plugins.samplers import saeval_samplers
from saeval_plugins.scorers.surprisal import Surprisal
from tiny import tiny_model
from word_tokenizer import word_tokenizer

from saeval.plugin import Explanation, LatentId, Refused, auroc, derive_rng
from saeval.testing.contracts import check_scorer
from saeval.testing.planted import planted_explanation, planted_store
from saeval.testing.toys import ScriptedLLM, context, make_examples

TRUE, WRONG = Explanation(text="the word 'harbor'"), Explanation(text="the word 'velvet'")


def score(scorer, examples, llm, explanation=TRUE):
    return asyncio.run(scorer.score(explanation, examples, context(llm)))


def expect(prompt, continuation):
    """Expect a window that holds a word of the last description's more than one that does not."""
    described = re.findall(r"'(\w+)'", prompt.rpartition("\n\n")[2])
    return -80.0 - len(continuation) + 5.0 * any(word in continuation.split() for word in described)


def reader():
    return ScriptedLLM("", expect)


def test_contract():
    check_scorer(Surprisal(), reader)
    assert Surprisal().needs() == {"logprobs"} and Surprisal.llm_role == "base"


def test_true_explanations_beat_wrong_ones_on_planted_latents(tmp_path):
    store = planted_store(tmp_path / "store", n_latents=3, documents=40)
    for index in range(3):
        record = saeval_samplers()[0]().sample(store, LatentId("planted", index), derive_rng(0, "test", index))
        right, wrong = (
            score(Surprisal(), record.score, reader(), Explanation(text=planted_explanation(latent)))
            for latent in (index, (index + 1) % 3)
        )
        assert right.values["auroc"] == 1 and abs(wrong.values["auroc"] - 0.5) < 0.2
        assert {o.probability for o in right.outcomes} == {0.0, 5.0}


def test_explanation_that_is_the_generic_one_tells_nothing():
    found = score(Surprisal(generic="the word 'harbor'"), make_examples(), reader())
    assert found.values == {"auroc": 0.5} and {o.probability for o in found.outcomes} == {0.0}


def test_generic_request_is_the_same_for_every_explanation():
    llm = reader()
    for explanation in (TRUE, WRONG):
        score(Surprisal(), make_examples(), llm, explanation)
    assert llm.scored[1] == llm.scored[3] and llm.scored[0] != llm.scored[2]
    assert all(len(request.prompts) == 1 and request.prefix == llm.scored[0].prefix for request in llm.scored)


def test_windows_and_explanation_cannot_pose_as_structure():
    examples = make_examples(activating=1, non_activating=1)
    llm = reader()
    score(Surprisal(), examples, llm, Explanation(text="a\n\nWhat they have in common: b"))
    assert llm.scored[0].prompts[0].count("\n") == 2
    assert not any("\n" in text for text in llm.scored[0].continuations)


def test_calls_that_fail_and_impossible_windows_are_statuses():
    def refuse(prompt, continuation):
        raise Refused("no")

    found = score(Surprisal(), make_examples(), ScriptedLLM("", refuse))
    assert found.status == "failed" and found.count("refused") == 40 and "no" in found.reason
    assert score(Surprisal(), make_examples(), ScriptedLLM("x")).status == "failed"

    examples = make_examples(activating=3, non_activating=3)
    lost = examples.activating[0].text.strip()
    found = score(Surprisal(), examples, ScriptedLLM("", lambda p, c: -math.inf if c.strip() == lost else expect(p, c)))
    assert [o.status for o in found.outcomes] == ["unparsed"] + ["ok"] * 5 and found.values["auroc"] == 1
    nothing = score(Surprisal(), examples, ScriptedLLM("", lambda p, c: -math.inf))
    assert nothing.status == "failed" and "no probability" in nothing.reason


# --- against a plain forward pass


@pytest.fixture(scope="module", params=["llama", "gpt2", "words"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    if request.param == "gpt2":
        return HF(model=str(tiny_model(folder, "gpt2", n_positions=4096)))
    if request.param == "llama":
        return HF(model=str(tiny_model(folder, "llama", max_position_embeddings=4096)))
    tokenizer = word_tokenizer()
    tiny_model(folder, "llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    tokenizer.save_pretrained(folder)
    return HF(model=str(folder))


def by_hand(llm, window, description):
    """Sum a window's log-probabilities after the whole prompt, in one forward pass of its own."""
    import torch

    tokenizer, transformer = llm._live.tokenizer, llm._live.model
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    prompt = files("saeval_plugins.prompts").joinpath("surprisal.md").read_text().removesuffix("\n")
    at = prompt.rindex("\n\n") + 2
    before = [tokenizer.bos_token_id, *ids(prompt[:at]), *ids(prompt[at:].replace("{{explanation}}", description))]
    own = ids(" " + window.text.strip())
    with torch.inference_mode():
        logits = transformer(torch.tensor([before + own]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(before) - 1 + i, token]) for i, token in enumerate(own))


def test_surprisal_equals_a_plain_forward_pass_for_each_window(model):
    examples = make_examples(activating=4, non_activating=4, window=8)
    windows = (*examples.activating, *examples.non_activating)
    generic = Surprisal().generic
    values = [by_hand(model, w, TRUE.text) - by_hand(model, w, generic) for w in windows]
    assert len(set(values)) == len(values)
    for llm in (model, model, HF(model=model.model)):  # kept prefixes, in whatever order they came, change nothing
        found = score(Surprisal(), examples, llm)
        assert [o.probability for o in found.outcomes] == pytest.approx(values, abs=2e-4)  # a difference of two sums
        assert found.values["auroc"] == auroc([w.active for w in windows], values)


def test_model_that_cannot_take_the_windows_fails_with_its_reason(tmp_path):
    found = score(Surprisal(), make_examples(), HF(model=str(tiny_model(tmp_path, "gpt2"))))  # 128 positions
    assert found.status == "failed" and "but the model's context is 128" in found.reason
