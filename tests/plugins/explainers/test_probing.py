"""The probing explainer tests what it claims on the live model, sees what the model did, and never a scoring window."""

from __future__ import annotations

import asyncio
import re

import pytest
import yaml
from saeval_plugins._frozen import read_frozen
from saeval_plugins.explainers.probing import PROPOSE, REVISE, WRITE, Probing, parse_probes
from saeval_plugins.llms.frozen import FrozenLLM
from saeval_plugins.samplers import saeval_samplers
from saeval_plugins.sources.known import Known
from saeval_plugins.sources.rules import Rules
from tiny import tiny_source

from saeval import LLMError, SpecError
from saeval._run.plan import plan
from saeval.plugin import ActivationWriter, Explanation, LatentId, ParseError, derive_rng, parse_explanation
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.testing.contracts import check_explainer
from saeval.testing.toys import ScriptedLLM, context, make_example, make_examples

MODEL = {"model": "openai_compatible/x", "api_base": "http://127.0.0.1:1", "max_tokens": 200}
VESSELS = r"\b(harbor|lantern|violin)\b"


def rules(folder, pattern=VESSELS):
    (folder / "rules.yaml").write_text(yaml.safe_dump([{"latent": 0, "explanation": "x", "pattern": pattern}]))
    (folder / "text.txt").write_text("no such words")
    return Rules(path=folder / "rules.yaml", corpus={"path": folder / "text.txt"})


def task(**source):
    return {
        "saeval": 1, "task": "t", "version": "1", "llms": {"explainer": MODEL},
        "source": source, "latents": {"n": 7}, "explainer": {"use": "probing", "with": {"calls": 6}},
        "scorers": {"detection": {"llm": "explainer"}},
    }  # fmt: skip


def explain(explainer, llm, source, examples=None, latent=0):
    examples = examples or make_examples("harbor", activating=6)
    return asyncio.run(explainer.explain(examples, context(llm, latent=LatentId("toy", latent), source=source)))


def scripted(texts="ACTIVE: the harbor at night\nSILENT: the lantern at night"):
    """A model that proposes 'harbor', writes given texts, and revises to all words that it sees marked."""

    def reply(request):
        asked = request.messages[-1].content
        if "Earlier texts:" in asked:
            return texts(asked) if callable(texts) else texts
        if "Expected silent, but active:" in asked:
            words = sorted({word.strip() for word in re.findall("<<(.*?)>>", asked)})
            return f"EXPLANATION: the words {', '.join(words)}"
        return "EXPLANATION: the words harbor"

    return ScriptedLLM(reply)


def in_turn(*texts):
    """Texts for one round after the other."""
    rounds = iter(texts)
    return lambda asked: next(rounds)


def test_a_meaning_that_windows_did_not_show_is_found_by_experiment(tmp_path):
    llm = scripted(
        in_turn(
            "ACTIVE: he saw a harbor\nSILENT: he saw a lantern\nSILENT: he saw a tree",
            "ACTIVE: a lantern again\nSILENT: a violin again",
            "ACTIVE: a last violin\nSILENT: a last tree",
        )
    )
    made = explain(Probing(), llm, rules(tmp_path))
    assert made.text == "the words harbor, lantern, violin" and made.notes["calls"] == 6
    assert made.notes["rounds"] == [
        {"explanation": "the words harbor", "agreement": 0.75},
        {"explanation": "the words harbor, lantern", "agreement": 0.5},
        {"explanation": made.text, "agreement": 1.0},
    ]
    did = {probe["text"]: (probe["expected"], probe["active"]) for probe in made.notes["probes"]}
    assert did == {
        "he saw a harbor": (True, True), "he saw a lantern": (False, True), "he saw a tree": (False, False),
        "a lantern again": (True, True), "a violin again": (False, True),
        "a last violin": (True, True), "a last tree": (False, False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        ("ACTIVE: a tree\nACTIVE: a lantern again\nSILENT: a violin\nSILENT: one more violin", 0),  # worse: .25
        ("ACTIVE: a tree\nACTIVE: a lantern again\nSILENT: a wall\nSILENT: one violin", 1),  # as good: .5
    ],
)
def test_of_the_explanations_that_texts_tested_the_best_is_kept(later, kept, tmp_path):
    llm = scripted(in_turn("ACTIVE: a harbor\nSILENT: a lantern", later))
    made = explain(Probing(calls=5), llm, rules(tmp_path))
    assert len(made.notes["rounds"]) == 2 and made.notes["rounds"][0]["agreement"] == 0.5
    assert made.text == made.notes["rounds"][kept]["explanation"]
    assert made.notes["calls"] == 4, "a revision that no call is left to test is not asked for"


def test_a_revision_that_could_not_be_tested_does_not_replace_one_that_was(tmp_path):
    made = explain(Probing(), scripted(in_turn("ACTIVE: a harbor\nSILENT: a lantern", "no", "no")), rules(tmp_path))
    assert made.text == "the words harbor" and made.notes["ended"].startswith("no texts were written")


def test_it_ends_when_the_latent_does_all_that_was_expected(tmp_path):
    llm = scripted("ACTIVE: the harbor at night\nSILENT: the mountain at night")
    made = explain(Probing(calls=9), llm, rules(tmp_path))
    assert (made.text, made.notes["calls"], len(llm.requests)) == ("the words harbor", 2, 2)
    assert "behaved as expected" in made.notes["ended"]


@pytest.mark.parametrize("calls", [4, 5, 6, 9])
@pytest.mark.parametrize("texts", ["new", "unreadable"])
def test_calls_are_bounded_whatever_the_model_answers(calls, texts, tmp_path):
    count = iter(range(100))

    def written(asked):
        n = next(count)
        return f"ACTIVE: mountain {n}\nSILENT: harbor {n}" if texts == "new" else "Sorry, what?"

    llm = scripted(written)
    made = explain(Probing(calls=calls), llm, rules(tmp_path))
    assert made.status == "ok" and len(llm.requests) == made.notes["calls"] <= calls
    assert len(llm.requests) == (calls - calls % 2 if texts == "new" else 3)


def test_a_weak_activation_counts_as_silence(tmp_path):
    source = rules(tmp_path)
    examples = make_examples("harbor", activating=6)  # whose maximum is 10, where rules give 1 to 4
    for active_at, active in ((0.0, True), (0.5, False)):
        made = explain(Probing(calls=4, active_at=active_at), scripted(), source, examples)
        assert [probe["active"] for probe in made.notes["probes"]][:2] == [active, active]


def test_only_explain_windows_and_texts_of_its_own_are_used(tmp_path):
    source = Known(documents=60, rate=0.03)
    writer = ActivationWriter(tmp_path / "store")
    source.collect(writer)
    store, latent = writer.finish(), LatentId("known", 3)
    record = saeval_samplers()[0](explain=8, score=20).sample(store, latent, derive_rng(0, "test"))
    read = []
    plain = Known.activations_on

    class Watched(Known):
        def activations_on(self, text, latent):
            read.append((text, latent))
            return plain(self, text, latent)

    llm = scripted()
    explain(Probing(), llm, Watched(documents=60, rate=0.03), record.explain, latent=3)
    asked = "\n".join(message.content for request in llm.requests for message in request.messages)
    asked = asked.replace("<<", "").replace(">>", "")
    assert read[:2] == [("the harbor at night", 3), ("the lantern at night", 3)]
    assert all(window.text.strip() in asked for window in record.explain.activating)
    scored = (*record.score.activating, *record.score.non_activating)
    assert len(scored) > 20 and not any(window.text.strip() in asked for window in scored)


def test_activations_shown_are_those_of_the_model(tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = load_task(task(**tiny_source(tmp_path)), registry=Registry()).cells[0].source.plugin
    texts = ["Nobody spoke for a while", "two dogs and a ship", "the grey sea", "my two barrels of water"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")

    def by_hand(text):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            x = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, 1:]
        every = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
        strongest = every.topk(4, dim=-1)
        return torch.zeros_like(every).scatter(-1, strongest.indices, strongest.values)

    expected = [by_hand(text) for text in texts]
    latent = int(torch.stack([e.max(dim=0).values for e in expected]).var(dim=0).argmax())
    maxima = [float(e[:, latent].max()) for e in expected]
    assert max(maxima) > 0 == min(maxima)
    windows = (make_example("a window", {"window": max(maxima)}),)
    examples = make_examples(activating=1)
    examples = type(examples)(examples.latent, windows, (), max_activation=max(maxima))
    llm = scripted("\n".join(f"{kind}: {text}" for kind, text in zip(["ACTIVE", "SILENT"] * 2, texts, strict=True)))
    made = explain(Probing(calls=4, active_at=0), llm, source, examples, latent)
    found = {probe["text"]: probe["max_activation"] for probe in made.notes["probes"]}
    assert found == {text: pytest.approx(value, rel=2e-3) for text, value in zip(texts, maxima, strict=True)}
    asked = [request.messages[-1].content for request in llm.requests]
    (shown,) = [question for question in asked if "Expected active, and active:" in question]
    for text, values in zip(texts, expected, strict=True):
        strong = values[:, latent] >= 0.3 * max(float(values[:, latent].max()), 1e-9)
        pieces = [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        marked = "".join(f"<<{p}>>" if s else p for p, s in zip(pieces, strong.tolist(), strict=True))
        assert f": {marked.replace('>><<', '')}" in shown


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("ACTIVE: a b\nSILENT: c d", [(True, "a b"), (False, "c d")]),
        ("- **ACTIVE:** a <<b>>\n\n2. silent: c d\nDone.", [(True, "a b"), (False, "c d")]),
        ("ACTIVE: a\nACTIVE: a\nSILENT: a\nSILENT: old\nSILENT: c", [(True, "a"), (False, "c")]),
        ("ACTIVE: a\nACTIVE: b\nACTIVE: c\nSILENT: d", [(True, "a"), (True, "b"), (False, "d")]),
        (f"ACTIVE: {'a' * 301}\nACTIVE: b\nSILENT: c", [(True, "b"), (False, "c")]),
    ],
)
def test_written_texts_are_read_from_replies(reply, found):
    assert parse_probes(reply, 2, ["old"]) == found


@pytest.mark.parametrize(
    "reply", ["ACTIVE: a", "SILENT: b", "I cannot do that", "ACTIVE:\nSILENT: x", "ACTIVE: old\nSILENT: b"]
)
def test_replies_without_texts_of_both_kinds_are_not_read(reply):
    with pytest.raises(ParseError, match="no lines ACTIVE: and SILENT:"):
        parse_probes(reply, 5, ["old"])


def test_a_call_that_fails_keeps_the_last_explanation_and_says_so(tmp_path):
    def texts(asked):
        raise LLMError("server error 500")

    made = explain(Probing(), scripted(texts), rules(tmp_path))
    assert isinstance(made, Explanation) and made.notes["ended"] == "no texts were written: server error 500"


def test_contract_is_kept(tmp_path):
    check_explainer(Probing(), scripted, source=rules(tmp_path))


def test_replies_recorded_for_the_tour_answer_the_present_prompts():
    recorded = read_frozen(FrozenLLM(model="methods-tour-writer").path).cells["writer"].latents[0].judged
    asked = [(kind.removeprefix("probing "), one) for (kind, _), (one,) in recorded.items() if "probing" in kind]
    assert {kind: sum(k == kind for k, _ in asked) for kind, _ in asked} == {"propose": 3, "write": 5, "revise": 2}
    for kind, one in asked:
        prompt = {"propose": PROPOSE, "write": WRITE, "revise": REVISE}[kind]
        slots = dict.fromkeys(re.findall(r"\{\{(\w+)\}\}", prompt.text), "")
        assert one.messages[:-1] == prompt.messages(**slots)[:-1]
        assert len(parse_probes(one.reply, 3)) == 6 if kind == "write" else parse_explanation(one.reply)


def test_a_source_that_reads_no_texts_is_refused():
    with pytest.raises(SpecError, match="saeval/probing needs a model that reads any text"):
        load_task(task(use="synthetic"), registry=Registry())


def test_a_plan_counts_its_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path))
    found = plan(load_task(task(use="known"), registry=Registry()))
    (step,) = [step for step in found.steps if step.step == "explain"]
    assert step.calls == 6 * 7 and step.input_tokens > 6 * 7 * 300


def test_the_shipped_comparison_costs_the_same_for_each_explainer(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path))
    found = plan(load_task("explainers-equal-cost", registry=Registry()), limit=3)
    tokens = {step.cell: step.input_tokens for step in found.steps if step.step == "explain"}
    assert [*tokens] == ["explainer=default", "explainer=refine", "explainer=probing"]
    assert max(tokens.values()) < 1.2 * min(tokens.values())
