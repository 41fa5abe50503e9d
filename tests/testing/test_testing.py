"""What plugin authors test with tells good plugins from broken ones, and its planted latents follow their rule."""

from __future__ import annotations

import asyncio
import itertools
from typing import ClassVar

import numpy as np
import pytest
from saeval_plugins.samplers import saeval_samplers
from saeval_plugins.scorers.detection import Detection
from saeval_plugins.scorers.fuzzing import Fuzzing
from saeval_plugins.sources.synthetic import Synthetic

from saeval import InputError, LLMError
from saeval.plugin import (
    ActivationSource,
    Coder,
    Explainer,
    Explanation,
    LatentId,
    LogprobRequest,
    Metric,
    Outcome,
    ParseError,
    Reply,
    Request,
    Sampler,
    Score,
    Scorer,
    Sparse,
    SparseCoder,
)
from saeval.testing.contracts import check_coder, check_explainer, check_sampler, check_scorer, check_source
from saeval.testing.planted import planted_explanation, planted_store, rule_explainer, rule_judge
from saeval.testing.toys import ScriptedLLM, context, make_example, make_examples, word_embeddings

# --- stand-ins


def test_scripted_llm_answers_and_remembers_what_it_was_asked():
    llm = ScriptedLLM(lambda request: request.messages[-1].content.upper())
    request = Request.of("hello")
    assert asyncio.run(llm.complete(request)).text == "HELLO"
    assert llm.requests == [request] and not llm.can_score
    assert asyncio.run(ScriptedLLM("fixed").complete(request)) == Reply("fixed")


def test_scripted_llm_breaks_as_real_ones_do():
    with pytest.raises(LLMError, match="empty"):
        asyncio.run(ScriptedLLM("").complete(Request.of("hello")))
    with pytest.raises(LLMError, match="cannot score"):
        asyncio.run(ScriptedLLM("a").logprobs(LogprobRequest(("a",), ("b",))))


def test_scripted_llm_scores_continuations_after_prefix_and_prompt():
    llm = ScriptedLLM(score=lambda prompt, continuation: -float(len(prompt + continuation)))
    reply = asyncio.run(llm.logprobs(LogprobRequest(("b", "bb"), ("c", "cc", ""), prefix="aaa")))
    assert llm.can_score and reply.logprobs == (((-5.0,), (-6.0,), (-4.0,)), ((-6.0,), (-7.0,), (-5.0,)))


def test_made_examples_join_to_their_text_and_fire_where_told():
    example = make_example(" The sea, the ship!\n", {"sea": 3.0, "!": 1.0}, context=4, start=9)
    assert example.text == " The sea, the ship!\n" and example.id == "4:9" and example.active
    assert [t for t, a in zip(example.tokens, example.activations, strict=True) if a] == [" sea", "!"]
    assert len(example.token_ids) == len(example.tokens) == len(example.activations)
    assert not make_example("no").active


def test_made_sets_of_examples_are_repeatable_ranked_and_verified():
    examples = make_examples("violin", activating=10, non_activating=7, window=12, first=100)
    assert [e.decile for e in examples.activating] == list(range(10))
    strengths = [e.max_activation for e in examples.activating]
    assert strengths == sorted(strengths, reverse=True) and max(strengths) <= examples.max_activation
    assert all("violin" in e.text and len(e.tokens) == 12 for e in examples.activating)
    assert all("violin" not in e.text and not e.activations.any() for e in examples.non_activating)
    assert sorted(e.context for e in (*examples.activating, *examples.non_activating)) == list(range(100, 117))
    assert [e.text for e in make_examples(seed=3).activating] == [e.text for e in make_examples(seed=3).activating]
    assert [e.text for e in make_examples(seed=3).activating] != [e.text for e in make_examples(seed=4).activating]


def test_contexts_are_seeded_and_have_no_language_model_unless_given_one():
    assert context(seed=1).rng.integers(1 << 60) == context(seed=1).rng.integers(1 << 60)
    assert context(seed=1).rng.integers(1 << 60) != context(seed=2).rng.integers(1 << 60)
    with pytest.raises(LLMError):
        asyncio.run(context().llm.complete(Request.of("hello")))


def test_word_embeddings_are_unit_vectors_that_share_words():
    sea, ships, tax = word_embeddings("any", ["the sea and ships", "ships of the sea", "a tax"])
    assert np.linalg.norm(sea) == pytest.approx(1) and sea @ ships > 0.7 > sea @ tax


# --- planted latents


def test_planted_latents_fire_on_their_word_and_nowhere_else(tmp_path):
    store = planted_store(tmp_path / "store", n_latents=9, documents=12)
    for index in range(9):
        word = planted_explanation(index).split("'")[1]
        ids = np.arange(len(store.tokens) * 4)
        whole = ids[(ids % 4 + 1) * 32 + 1 <= store.lengths[ids // 4]]
        for example in store.examples(LatentId("planted", index), whole, 32):
            fires = [token.strip() == word for token in example.tokens]
            assert fires == [bool(a) for a in example.activations]
        _, value = store.activations(index)
        assert len(value) > 10 and value.min() >= 1 and value.max() <= 4


def test_planted_stores_are_repeatable_and_seeded(tmp_path):
    first, again, other = (planted_store(tmp_path / str(i), documents=8, seed=s) for i, s in enumerate((0, 0, 1)))
    assert np.array_equal(first.position, again.position) and np.array_equal(first.value, again.value)
    assert not np.array_equal(first.tokens, other.tokens)


def test_more_latents_than_words_are_refused(tmp_path):
    with pytest.raises(InputError, match="64"):
        planted_store(tmp_path / "store", n_latents=65)


def test_the_synthetic_source_satisfies_the_contract_and_says_what_it_is(tmp_path):
    assert Synthetic.synthetic
    check_source(Synthetic(n_latents=5, documents=6), tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in saeval_samplers() if kind.name != "frozen"])  # needs a file
def test_the_built_in_samplers_satisfy_the_contract(kind):
    check_sampler(kind())


# --- scripted judges


def ask(llm, text):
    return asyncio.run(llm.complete(Request.of(text))).text


def test_the_rule_judge_reads_windows_and_marks():
    head = "Explanation: the word 'sea'\n"
    assert ask(rule_judge(), head + "Window 1: the sea\nWindow 2: the season\nGive 2.") == "[1, 0]"
    assert (
        ask(rule_judge(), head + "Window 1: the<< sea>>\nWindow 2: << the>> sea\nWindow 3: << sea>><< a>>")
        == "[1, 0, 0]"
    )
    assert ask(rule_judge(), "Explanation: The words: sea, ship\nWindow 1: a ship\nWindow 2: words") == "[1, 0]"
    assert ask(rule_judge(), "Explanation: names of ships\nWindow 1: names of ships") == "[0]"


def test_the_rule_explainer_names_the_word_that_is_marked_most():
    assert ask(rule_explainer(), "a<< sea>> and<< ship>> at<< sea>>") == "EXPLANATION: the word 'sea'"


# --- contracts catch broken plugins


class GoodScorer(Scorer):
    """Judges nothing and says so."""

    name = "good"

    async def score(self, explanation, examples, context):
        return Score.failed("no judge")


COUNTER = itertools.count()


class Unrepeatable(GoodScorer):
    async def score(self, explanation, examples, context):
        return Score(values={"balanced_accuracy": 1 / (2 + next(COUNTER))})


class OutOfRange(GoodScorer):
    async def score(self, explanation, examples, context):
        return Score(values={"balanced_accuracy": 1.5})


class Undeclared(GoodScorer):
    async def score(self, explanation, examples, context):
        return Score(values={"balanced_accuracy": 0.5, "surprise": 0.5})


class Headless(GoodScorer):
    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 0.5})


class Meddling(GoodScorer):
    async def score(self, explanation, examples, context):
        for example in examples.activating:
            example.activations[:] = 0
        return Score.failed("no judge")


class Global(GoodScorer):
    llm_role = "judge"

    async def score(self, explanation, examples, context):
        await context.llm.complete(Request.of("hello"))
        return Score(values={"balanced_accuracy": 0.5})


class MadeUp(GoodScorer):
    llm_role = "judge"

    async def score(self, explanation, examples, context):
        try:
            await context.llm.complete(Request.of("hello"))
        except LLMError:
            return Score(values={"balanced_accuracy": 0.5})
        return Score(values={"balanced_accuracy": 1.0})


class Silent(GoodScorer):
    async def score(self, explanation, examples, context):
        return Score(status="failed")


class BadName(GoodScorer):
    name = "Bad-Name"


class CautionsOfText(GoodScorer):
    def cautions(self, values, latents):
        return "few windows"


class NeedsOfList(GoodScorer):
    def needs(self):
        return ["text"]


class UnknownNeed(GoodScorer):
    def needs(self):
        return frozenset({"money"})


class LimitOfText(GoodScorer):
    metrics = (Metric("balanced_accuracy", high="1"),)


class Plain(GoodScorer):
    def score(self, explanation, examples, context):
        return Score(values={"balanced_accuracy": 0.5})


class Number(GoodScorer):
    async def score(self, explanation, examples, context):
        return 0.5


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Unrepeatable, "same seed"),
        (OutOfRange, "outside"),
        (Undeclared, "not declared"),
        (Headless, "headline"),
        (Meddling, "changed"),
        (MadeUp, "replies give a score"),
        (Silent, "reason"),
        (BadName, "lower case"),
        (CautionsOfText, "not a list of sentences"),
        (NeedsOfList, "not a frozenset"),
        (UnknownNeed, "'money'"),
        (LimitOfText, "has high='1'; write a number"),
        (Plain, "`score` is not async; write `async def score`"),
        (Number, "`score` returned float instead of Score"),
    ],
)
def test_the_scorer_contract_catches(kind, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_scorer(kind())


def test_the_scorer_contract_lets_no_exception_pass_for_a_status():
    check_scorer(GoodScorer())
    with pytest.raises((AssertionError, LLMError)):
        check_scorer(Global())
    with pytest.raises(AssertionError, match="given model"):
        check_scorer(GoodScorer(), lambda: ScriptedLLM("yes"))


class Judging(GoodScorer):
    """Judges every window rightly, with changes to the outcomes."""

    def changed(self, outcomes):
        return outcomes

    async def score(self, explanation, examples, context):
        windows = (*examples.activating, *examples.non_activating)
        outcomes = [Outcome(example=w.id, active=w.active, predicted=w.active) for w in windows]
        return Score.of(self.changed(outcomes))


class Few(Judging):
    def changed(self, outcomes):
        return [outcomes[0], *outcomes[-2:]]


class Repeating(Judging):
    def changed(self, outcomes):
        return outcomes * 2


class Inverted(Judging):
    def changed(self, outcomes):
        return [outcome.model_copy(update={"active": not outcome.active}) for outcome in outcomes]


class Drawing(Few):
    metrics = (Metric("found"),)

    async def score(self, explanation, examples, context):
        score = await super().score(explanation, examples, context)
        return score.model_copy(update={"values": {"found": 1.0}} if score.status == "ok" else {})


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (Few, r"(\d+) of (\d+) windows have no outcome, such as \d+:\d+, so coverage does not count them"),
        (Repeating, r"(\d+) windows of \1 have several outcomes with the same `active`"),
        (Inverted, r"`active` contradicts (\d+) windows of \1, such as"),
    ],
)
def test_the_scorer_contract_warns_of_outcomes_that_are_not_one_true_one_per_window(kind, note):
    with pytest.warns(UserWarning, match=note) as warned:
        check_scorer(kind())
    assert len(warned) == 1 and warned[0].filename == __file__


@pytest.mark.parametrize("scorer", [Judging(), Drawing(), Detection(), Fuzzing()])
def test_scorers_that_judge_every_window_or_draw_some_pass_without_a_warning(scorer, recwarn):
    check_scorer(scorer)
    assert [str(warning.message) for warning in recwarn] == []


class Raising(GoodScorer):
    llm_role = "judge"

    async def score(self, explanation, examples, context):
        reply = await context.llm.complete(Request.of(explanation.text))
        if not reply.text.startswith("A"):
            raise ParseError("neither A nor B")
        return Score(values={"balanced_accuracy": 1.0})


class RaisingExplainer(Explainer):
    name = "raising"
    llm_role = "explainer"

    async def explain(self, examples, context):
        return Explanation(text=(await context.llm.complete(Request.of("hello"))).text)


def test_contracts_take_replies_without_an_answer_and_failed_calls_for_failures_as_runs_do():
    check_scorer(Raising(), lambda: ScriptedLLM("A"))
    check_explainer(RaisingExplainer())


class WithoutRole(GoodScorer):
    async def score(self, explanation, examples, context):
        if context.llm.can_score:
            return Score.failed("can score")
        try:
            await context.llm.complete(Request.of("hello"))
        except LLMError as error:
            return Score.failed(str(error))
        return Score(values={"balanced_accuracy": 1.0})


class ExplainerWithoutRole(RaisingExplainer):
    llm_role = None


def test_contracts_lend_no_model_to_a_step_without_a_role_and_refuse_one_that_asks():
    with pytest.raises(AssertionError, match="it asks a language model, but declares no `llm_role`"):
        check_scorer(WithoutRole())
    with pytest.raises(AssertionError, match="declares no `llm_role`"):
        check_scorer(WithoutRole(), lambda: ScriptedLLM("yes", lambda prompt, continuation: -1.0))
    with pytest.raises(AssertionError, match="declares no `llm_role`"):
        check_explainer(ExplainerWithoutRole())


class Inventive(Explainer):
    name = "inventive"
    llm_role = "explainer"

    async def explain(self, examples, context):
        try:
            return Explanation(text=(await context.llm.complete(Request.of("hello"))).text)
        except LLMError:
            return Explanation(text="could not be parsed")


class Blank(Explainer):
    name = "blank"

    async def explain(self, examples, context):
        return Explanation(text=" ")


class Text(Explainer):
    name = "text"

    async def explain(self, examples, context):
        return "a text"


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Inventive, "give an explanation"),
        (Blank, "with text"),
        (Text, "`explain` returned str instead of Explanation"),
    ],
)
def test_the_explainer_contract_catches(kind, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_explainer(kind())


class BrokenSampler(Sampler):
    """Wraps a built-in sampler and spoils its record."""

    name = "broken"
    fault: str = "none"

    def sample(self, store, latent, rng):
        good = next(k for k in saeval_samplers() if k.name == "random")()
        record = good.sample(store, latent, np.random.default_rng() if self.fault == "unseeded" else rng)
        if record is None:
            return None
        if self.fault == "type":
            return [record]
        if self.fault == "leak":
            object.__setattr__(record, "explain", record.score)
        if self.fault == "values":
            window = record.score.activating[0]
            window.activations = window.activations + 1
        if self.fault == "count":
            object.__setattr__(record, "firings", 3)
        return record


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("unseeded", "same seed"),
        ("leak", "both explain and score"),
        ("values", "not the store's"),
        ("count", "firings"),
        ("type", "`sample` returned list instead of LatentRecord"),
    ],
)
def test_the_sampler_contract_catches(fault, complaint):
    check_sampler(BrokenSampler())
    with pytest.raises(AssertionError, match=complaint):
        check_sampler(BrokenSampler(fault=fault))


ODD_ADDS = {
    "negative": lambda position, latent, value: (position, latent, -value),
    "backwards": lambda *columns: [column[::-1] for column in columns],
    "twice": lambda *columns: [np.concatenate([column, column[-1:]]) for column in columns],
    "uneven": lambda position, latent, value: (position, latent[:-1], value),
}
"""What a faulty source gives `writer.add` instead of the right columns."""


class BrokenSource(ActivationSource):
    """Collects planted latents, with a fault."""

    name = "broken"
    fault: str = "none"
    calls: ClassVar[list[int]] = []

    def collect(self, writer):
        if self.fault == "unseeded":
            self.calls.append(1)
        if self.fault == "restarts":
            start = writer.start
            writer.start = lambda *args: start(*args) * 0
        if self.fault == "no start":
            writer.add(np.array([1]), np.array([0]), np.ones(1, dtype=np.float32))
        if self.fault == "silent":
            writer.progress = lambda *_: None
        if self.fault == "special":
            add = writer.add
            writer.add = lambda position, latent, value: add(position[:1] - position[:1] % 129, latent[:1], value[:1])
        if self.fault in ODD_ADDS:
            given = writer.add
            writer.add = lambda *columns: given(*ODD_ADDS[self.fault](*columns))
        Synthetic(n_latents=4, documents=6, seed=len(self.calls)).collect(writer)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("unseeded", "collecting twice"),
        ("restarts", "interruption"),
        ("silent", "advance"),
        ("special", "special tokens"),
        ("negative", "the source broken gave the activation -"),
        ("backwards", r"gave latent \d at position \d+ .* before position \d+ .*; give .* with ascending positions"),
        ("twice", r"gave latent \d twice at position \d+ \(context 0, token \d+\)"),
        ("uneven", r"gave \d+ positions, \d+ latents and \d+ values in one"),
        ("no start", "the source broken called `writer.add` before `writer.start`; call `start` first"),
    ],
)
def test_the_source_contract_catches(fault, complaint, tmp_path, monkeypatch):
    monkeypatch.setattr(BrokenSource, "calls", [])
    with pytest.raises(AssertionError, match=complaint):
        check_source(BrokenSource(fault=fault), tmp_path)


class ToyCoder(Coder):
    """A ReLU coder of fixed weights, with a fault."""

    name = "toy"
    fault: str = "none"

    def load(self, device, d_in):
        import torch

        fault = self.fault

        class Toy(SparseCoder):
            n_latents, architecture = 20, "toy"

            def __init__(self):
                self.d_in = d_in
                self.weights = torch.randn(d_in, 20, generator=torch.Generator().manual_seed(0))

            def encode(self, x):
                if fault == "batch":
                    x = x - x.mean(0)
                if fault == "meddles":
                    x.mul_(2)
                z = x @ self.weights
                z = z if fault == "infinite" else z.relu()
                rows, latents = z.nonzero(as_tuple=True)
                values = z[rows, latents]
                if fault == "zeros":
                    values = values * (values > 1)
                if fault == "infinite":
                    values = values / 0
                if fault == "unordered":
                    rows, latents, values = rows.flip(0), latents.flip(0), values.flip(0)
                if fault == "latents":
                    latents = latents + 1
                return Sparse(rows, latents, values)

        return torch.eye(d_in) if fault == "tensor" else Toy()


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("batch", "others in the batch"),
        ("meddles", "changes its input"),
        ("zeros", "zero"),
        ("infinite", "finite"),
        ("unordered", "ascend"),
        ("latents", "out of range"),
        ("tensor", "`load` returned Tensor instead of SparseCoder"),
    ],
)
def test_the_coder_contract_catches(fault, complaint):
    check_coder(ToyCoder(), d_in=6)
    with pytest.raises(AssertionError, match=complaint):
        check_coder(ToyCoder(fault=fault), d_in=6)
