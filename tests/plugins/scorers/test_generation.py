"""Texts are written from the explanation alone and read by the live model; the numbers are those of a loop by hand."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from latent_pages import judgements, latents_of
from saeval_plugins._frozen import read_frozen
from saeval_plugins.llms.frozen import FrozenLLM
from saeval_plugins.scorers.generation import PROMPT, Generation, Pair, is_minimal, parse_pairs
from saeval_plugins.sources.rules import Rules
from tiny import TEXT, tiny_source

import saeval
from saeval.cli.group import main
from saeval.plugin import (
    ActivationWriter,
    Corpus,
    CorpusFiring,
    Explanation,
    LatentId,
    LLMError,
    ParseError,
    Refused,
    auroc,
)
from saeval.testing import ScriptedLLM, check_scorer, check_source, context, make_examples, rule_writer
from saeval.testing.toys import FILLER, PLANTED

WORDS = 20
FIRING = CorpusFiring(0.05, np.linspace(1, 4, 31, dtype=np.float32))


def broad(latent):
    """Name ten words, one of which is the latent's."""
    return f"The words: {', '.join(PLANTED[(latent + i) % WORDS] for i in range(10))}"


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """Latent i fires on the i-th planted word, in any text."""
    folder = tmp_path_factory.mktemp("rules")
    rows = [{"latent": i, "explanation": f"the word '{w}'", "pattern": rf"\b{w}\b"} for i, w in enumerate(PLANTED[:WORDS])]  # fmt: skip
    (folder / "rules.yaml").write_text(yaml.safe_dump(rows))
    words = [*FILLER, *PLANTED[:WORDS]]
    rng = np.random.default_rng(0)
    texts = [{"text": " ".join(rng.choice(words, size=90))} for _ in range(30)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return Rules(path=folder / "rules.yaml", corpus=Corpus(path=folder / "corpus.jsonl", context=64))


def score(text, source, llm=None, latent=0, firing=FIRING, **options):
    lent = context(llm or rule_writer(), latent=LatentId("rules", latent), source=source)
    examples = replace(make_examples(), in_corpus=firing)
    return asyncio.run(Generation(**options).score(Explanation(text=text), examples, lent))


def mean(texts, rules, metric="auroc"):
    return np.mean([score(text, rules, latent=i).values[metric] for i, text in enumerate(texts)])


def test_true_explanations_are_told_from_shuffled_and_from_too_broad_ones(rules):
    true = [f"the word '{word}'" for word in PLANTED[:WORDS]]
    assert mean(true, rules) >= 0.95 and mean(true, rules, "clarity") >= 0.95
    assert mean([*true[1:], true[0]], rules) <= 0.55
    too_broad = [broad(i) for i in range(WORDS)]
    assert mean(too_broad, rules) <= mean(true, rules) - 0.2
    assert mean(too_broad, rules, "purity") < 0.3 < 0.95 < mean(true, rules, "purity")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A run on known latents, whose oracle writes from the explanation, with floors and corruptions."""
    folder = tmp_path_factory.mktemp("known")
    task = {
        "saeval": 1, "task": "known", "version": "1",
        "llms": {"writer": {"model": "oracle/writer", "max_tokens": 1000}},
        "source": {"use": "known", "with": {"documents": 220}},
        "latents": {"n": 12, "min_windows": 8},
        "sampler": {"use": "random", "with": {"window": 32, "explain": 5, "score": 8, "non_activating": {"n": 10}}},
        "explainer": "known", "scorers": {"generation": {"with": {"k": 6}}},
        "baselines": ["shuffled_explanation", "random_explanation", "ten_times_too_broad"],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        result = saeval.run(task, out=folder / "run")
    return folder / "run", result


def test_floors_and_corruptions_are_scored_through_it_in_a_run(known):
    _, result = known
    rows = {(r.variant, r.metric): r for r in result.cells[0].scores}
    assert rows["explanation", "auroc"].value >= 0.95 and rows["explanation", "clarity"].value >= 0.95
    assert rows["shuffled_explanation", "auroc"].value <= 0.55
    assert rows["ten_times_too_broad", "auroc"].value <= rows["explanation", "auroc"].value - 0.2
    assert rows["explanation", "auroc"].lift_ci95[0] > 0.2
    # The oracle does not know random explanations: a failed call is a status, never a score.
    assert rows["random_explanation", "auroc"].n == 0 and rows["random_explanation", "auroc"].failed == 12
    assert rows["explanation", "auroc"].windows == 2 * 6 * 12


def test_written_texts_are_in_the_results_and_on_the_latents_page(known):
    run, _ = known
    rows = pq.read_table(run / "cells" / "all" / "judgements.parquet").to_pylist()
    own = [row for row in rows if row["variant"] == "explanation"]
    assert {row["example"] for row in own} == {f"{kind} {i}" for kind in ("text", "twin") for i in range(1, 7)}
    for row in own:
        assert row["probability"] == pytest.approx(max(row["activations"])) and len(row["tokens"]) == 8
        assert (row["probability"] > 0) == row["active"] == row["predicted"]
    (file,) = (run / "report" / "latents").glob("*/0.js")
    detail = latents_of(file.read_text("utf-16"))[0]
    text = next(line for line in judgements(detail["judged"])["generation"]["explanation"] if line[0] == "text 1")
    tokens, (place, strength) = text[6]
    assert len(tokens) == 8 and strength == pytest.approx(text[3], abs=1e-3) and tokens[place].strip()


def test_values_are_those_of_a_loop_by_hand_on_a_tiny_transformer(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    sentences = [s.strip() for s in TEXT.replace(";", ".").split(".") if s.strip()]
    pairs = [Pair(f"{a} and {b}.", f"{b} or {a}.") for a, b in zip(sentences, reversed(sentences), strict=True)][:4]
    written = "\n".join(f"Text {i}: {p.text}\nTwin {i}: {p.twin}" for i, p in enumerate(pairs, 1))
    task = {
        "saeval": 1, "task": "tiny", "version": "1",
        "llms": {"writer": {"model": "scripted/writer", "reply": written}},
        "source": tiny_source(tmp_path),
        "latents": {"n": 4, "min_windows": 4},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 10, "non_activating": {"n": 10}}},
        "explainer": "top_tokens", "scorers": {"generation": {"with": {"k": 4, "tokens": 24}}},
    }  # fmt: skip
    saeval.run(task, out=tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "cells" / "all" / "latents.parquet").to_pylist()

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    sae = load_file(tmp_path / "sae" / "sae_weights.safetensors")

    def fires(text, keep):
        """Every latent's activations on the first tokens of a text after BOS, context by context."""
        ids, found = tokenizer(text, add_special_tokens=False)["input_ids"], []
        for start in range(0, len(ids), 32):
            tokens = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 32]]])
            with torch.no_grad():
                x = model(tokens, output_hidden_states=True).hidden_states[2][0, 1:]
            every = ((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]).relu()
            strongest = every.topk(4, dim=-1)
            found.append(torch.zeros_like(every).scatter(-1, strongest.indices, strongest.values))
        return torch.cat(found)[:keep].numpy()

    texts, twins = ([fires(pair[side], 24).max(axis=0) for pair in pairs] for side in (0, 1))
    corpus = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    windows = []
    for text in corpus:
        activations = fires(text, None)
        for context_start in range(0, len(activations), 32):
            part = activations[context_start : context_start + 32]
            windows += [part[k : k + 8].max(axis=0) for k in range(0, len(part) - 7, 8)]
    assert len(rows) == 4
    for row in rows:
        i = row["latent"]
        own, other, everywhere = ([float(v[i]) for v in values] for values in (texts, twins, windows))
        wins = [(a > b) + (a == b) / 2 for a in own for b in other]
        assert row["score.generation.auroc"] == pytest.approx(np.mean(wins))
        clear = [(a > b) + (a == b) / 2 for a in own for b in everywhere]
        assert row["score.generation.clarity"] == pytest.approx(np.mean(clear), abs=1e-3)
        assert row["score.generation.responsiveness"] == np.mean([a > 0 for a in own])
        firing = [v for v in everywhere if v > 0]
        for name, share in (("median", 0.5), ("top_decile", 0.9)):
            expected = np.mean([a >= np.quantile(firing, share) for a in own])
            assert row[f"score.generation.responsiveness_{name}"] == expected
        rate, area, before = len(firing) / len(everywhere), 0.0, 0.0
        for level in sorted(set(own), reverse=True):
            hits, alarms = (np.mean([v >= level for v in side]) for side in (own, other))
            area += (hits - before) * rate * hits / (rate * hits + (1 - rate) * alarms)
            before = hits
        assert row["score.generation.purity"] == pytest.approx(area)
    assert len({row["score.generation.auroc"] for row in rows}) > 1


def test_contract(rules):
    check_scorer(Generation(), rule_writer, source=rules)
    assert Generation().needs() == {"text", "in_corpus"} and Generation.llm_role == "writer"


def test_the_writer_sees_the_explanation_and_no_window(rules):
    llm = rule_writer()
    for latent in (0, 1):
        score("the word 'harbor'", rules, llm, latent)
    assert llm.requests[0] == llm.requests[1]
    question = llm.requests[0].messages[-1].content
    assert question == "Explanation: the word 'harbor'\nWrite 10 pairs, each text of at most 14 words."


def test_replies_are_read_line_by_line_and_texts_differ():
    reply = """Here are the pairs:
**Text 1:** "A harbor at dawn"
**Twin 1:** "A garden at dawn"
- Text 2: a HARBOR  at dawn
- Twin 2: a street at dawn
Text 3: one line\\nand a harbor
Twin 3: one line\\nand a hill
Text 4: harbor
Text 5: "Harbor," he said, "is far."
Twin 5: "Home," he said, "is far."
"""
    assert parse_pairs(reply, 3) == [
        Pair("A harbor at dawn", "A garden at dawn"),
        Pair("one line\nand a harbor", "one line\nand a hill"),
        Pair('"Harbor," he said, "is far."', '"Home," he said, "is far."'),
    ]
    with pytest.raises(ParseError, match="3 of 4 pairs of different texts"):
        parse_pairs(reply, 4)
    with pytest.raises(ParseError, match="0 of 1 pairs"):
        parse_pairs("Text 1: same\nTwin 1: Same", 1)
    with pytest.raises(ParseError, match="0 of 1 pairs"):
        parse_pairs(f"Text 1: {'a ' * 400}\nTwin 1: b", 1)


def test_short_lists_examples_of_the_prompt_and_failed_calls_are_statuses(rules):
    short = ScriptedLLM("Text 1: a harbor\nTwin 1: a hill")
    found = score("the word 'harbor'", rules, short, k=2)
    assert found.status == "failed" and found.reason.startswith("1 of 2 pairs") and not found.values
    assert len(short.requests) == 2  # asked once more
    own = ScriptedLLM(lambda request: request.messages[2].content)
    assert score("names of musical instruments", rules, own, k=2).reason.startswith("0 of 2 pairs")

    def broken(request):
        raise LLMError("server error 500")

    def declined(request):
        raise Refused("no")

    assert score("x", rules, ScriptedLLM(broken)).reason == "call failed: server error 500"
    assert score("x", rules, ScriptedLLM(declined)).reason == "refused: no"


def test_texts_are_read_up_to_the_length_of_the_sampled_windows(rules):
    pairs = [(f"{'so ' * n}harbor", f"{'so ' * n}hill") for n in (3, 30)]
    llm = ScriptedLLM("\n".join(f"Text {i}: {a}\nTwin {i}: {b}" for i, (a, b) in enumerate(pairs, 1)))
    found = score("the word 'harbor'", rules, llm, k=2)
    assert [len(o.written.tokens) for o in found.outcomes] == [4, 4, 24, 24]
    assert found.values["responsiveness"] == 0.5 and found.values["auroc"] == 0.75
    assert score("the word 'harbor'", rules, llm, k=2, tokens=31).values["responsiveness"] == 1


def test_twins_that_are_no_minimal_ones_are_counted_and_said(rules):
    assert is_minimal(Pair("the old harbor wall", "the old garden wall"))
    assert is_minimal(Pair("in a harbor", "in harbor")) and is_minimal(Pair("harbor", "harbors"))
    assert not is_minimal(Pair("the harbor is an old one", "a garden is a new one"))
    llm = ScriptedLLM("Text 1: one harbor here\nTwin 1: and now for other words\nText 2: harbor\nTwin 2: hill")
    assert score("the word 'harbor'", rules, llm, k=2).values["minimal_twins"] == 0.5
    (said,) = Generation().cautions({"minimal_twins": 0.5}, [])
    assert "only 50% of the twins" in said and not Generation().cautions({"minimal_twins": 0.9}, [])


def test_without_the_corpus_there_are_no_numbers_that_need_it(rules):
    values = score("the word 'harbor'", rules, firing=None).values
    assert values == {"auroc": 1.0, "responsiveness": 1.0, "minimal_twins": 1.0}


def test_rules_fire_on_any_text_where_collecting_finds_them_to_fire(rules, tmp_path):
    check_source(rules, tmp_path)
    writer = ActivationWriter(tmp_path / "store")
    rules.collect(writer)
    store = writer.finish()
    texts = [json.loads(line)["text"] for line in rules.corpus.path.read_text().splitlines()]
    for latent in (0, 7):
        position, _ = store.activations(latent)
        row, found = 0, []
        for text in texts:
            for words, values in rules.activations_on(text, latent):
                assert len(words) == len(values) <= 64
                found += [row * store.length + store.lead + int(k) for k in np.flatnonzero(values)]
                row += 1
        assert found == position.tolist()
    with pytest.raises(saeval.InputError, match="no latent 20 among 20 rules"):
        rules.activations_on("a harbor", 20)


def test_ties_count_half_in_the_ranking(rules):
    llm = ScriptedLLM("Text 1: a harbor\nTwin 1: a hill\nText 2: a road\nTwin 2: a street")
    found = score("the word 'harbor'", rules, llm, k=2)
    assert found.values["auroc"] == 0.75 == auroc([o.active for o in found.outcomes], [o.probability for o in found.outcomes])  # fmt: skip


def test_plan_counts_one_call_per_explanation_and_answers_of_full_length(known, monkeypatch):
    run, _ = known
    monkeypatch.setenv("SAEVAL_CACHE", str(run.parent / "cache"))
    planned = CliRunner().invoke(main, ["plan", str(run / "spec.yaml"), "--json"])
    own = next(step for step in json.loads(planned.output)["steps"] if step["step"] == "generation")
    assert own["calls"] == own["latents"] == 12
    assert 200 < own["input_tokens"] / 12 < 700 and 100 < own["output_tokens"] / 12 < 400


def test_texts_recorded_for_the_tour_answer_the_present_prompt_with_minimal_twins():
    recorded = read_frozen(FrozenLLM(model="methods-tour-writer").path).cells["writer"].latents[0].judged
    written = {explanation: asked for (scorer, explanation), (asked,) in recorded.items() if scorer == "generation"}
    assert len(written) == 8
    for explanation, asked in written.items():
        question = PROMPT.messages(explanation=explanation, k="4", words="10")
        assert asked.messages == question
        assert all(is_minimal(pair) for pair in parse_pairs(asked.reply, 4))
