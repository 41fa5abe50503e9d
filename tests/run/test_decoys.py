"""Wrong marks of fuzzing come from one other latent, so that only an explanation tells them from right ones."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fake_server import fake_server
from planted_run import spec, truthful
from saeval_plugins.samplers import SAEBench, saeval_samplers
from saeval_plugins.scorers.fuzzing import Fuzzing

import saeval
from saeval._run.decoys import Decoys, _ByFirings, _Search, _Texts
from saeval._run.mark_profiles import Kinds, profile_of, profiles_of
from saeval._util import SpecError, StoreError
from saeval.activations import TokenDataset
from saeval.activations.store import ActivationWriter
from saeval.plugin import LatentId, derive_rng
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.testing.planted import planted_store, planted_tokens
from saeval.testing.toys import ScriptedLLM, context, make_examples

RANDOM = saeval_samplers()[0]


def words(window: str) -> set[str]:
    return set(re.findall(r"\w+", " ".join(re.findall("<<(.*?)>>", window))))


def unmarked(window: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub("<<.*?>>", " ", window)))


def recurs(windows):
    return [any(words(w) & words(v) for v in windows if v is not w) for w in windows]


def in_most(windows):
    counts = Counter(word for w in windows for word in words(w))
    return [max(counts[word] for word in words(w)) > len(windows) / 2 for w in windows]


def never_unmarked(windows):
    return [not any(words(w) & unmarked(v) for v in windows) for w in windows]


def many(windows):
    return [w.count("<<") > 1 for w in windows]


def early(windows):
    return [w.index("<<") < len(w) / 2 for w in windows]


def long_words(windows):
    return [max(map(len, words(w))) > 6 for w in windows]


BLIND = [recurs, in_most, never_unmarked, many, early, long_words]
"""Judges that never read the explanation."""


def judging(blind):
    """An explainer that tells the truth, and a judge that goes by the marks alone."""

    def reply(messages):
        asked = messages[-1]["content"]
        if not asked.startswith("Explanation:"):
            return truthful(messages)
        windows = [m[1] for line in asked.splitlines() if (m := re.match(r"Window \d+: (.*)", line))]
        return str([int(yes) for yes in blind(windows)])

    return reply


def fuzzed(tmp_path, reply, **options):
    """Run fuzzing on planted latents; return its score."""
    with fake_server(reply) as server:
        task = spec(
            server,
            source={"use": "synthetic", "with": {"n_latents": 60, "documents": 160}},
            latents={"n": 60, "min_windows": 20},
            scorers={"fuzzing": {"with": options}},
            baselines=[],
            measure=[],
        )
        (row,) = (r for r in saeval.run(task, out=tmp_path / "run").cells[0].scores if r.metric == "balanced_accuracy")
    return row.value


@pytest.mark.parametrize("blind", BLIND)
def test_a_judge_that_never_reads_the_explanation_is_at_chance(blind, tmp_path):
    assert fuzzed(tmp_path, judging(blind)) == pytest.approx(0.5, abs=0.05)


def test_the_same_judge_lives_on_wrong_marks_that_do_not_recur(tmp_path):
    assert fuzzed(tmp_path, judging(recurs), negatives="matched") > 0.85


def test_a_judge_that_reads_the_explanation_is_right(tmp_path):
    assert fuzzed(tmp_path, truthful) > 0.99


# --- the other latent


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("decoys") / "store", n_latents=8, documents=80)


def record_of(store, latent=0):
    return RANDOM(explain=20, score=40, non_activating={"n": 30}).sample(
        store, LatentId("planted", latent), derive_rng(0, "sample", latent)
    )


def test_another_latents_windows_hold_none_of_this_ones_firings_and_none_of_its_other_text(store):
    for latent in range(8):
        record = Decoys(store)(record_of(store, latent), derive_rng(0, "decoy", latent))
        decoy = record.score.decoy
        assert decoy.latent.index != latent and len(decoy.activating) == 30
        own, other = (set(store.activations(i)[0].tolist()) for i in (latent, decoy.latent.index))
        explained = {e.document for e in (*record.explain.activating, *record.explain.non_activating)}
        seen = {e.id for side in (record.explain, record.score) for e in (*side.activating, *side.non_activating)}
        for window in decoy.activating:
            at = window.context * store.length + window.start
            fires = {at + int(i) for i in np.flatnonzero(window.activations)}
            assert fires and fires <= other and not fires & own
            assert window.document not in explained and window.id not in seen
        assert len({e.id for e in decoy.activating}) == 30


def test_marks_are_as_many_as_long_and_in_the_same_places(store):
    right, wrong = [], []
    for latent in range(8):
        record = Decoys(store)(record_of(store, latent), derive_rng(0, "decoy", latent))
        for found, windows in ((right, record.score.activating), (wrong, record.score.decoy.activating)):
            places = [np.flatnonzero(window.firing()) for window in windows]
            found += [[len(p), p[0], p[-1]] for p in places]
    (count, first, last), (count_, first_, last_) = np.mean(right, axis=0), np.mean(wrong, axis=0)
    assert count == pytest.approx(count_, abs=0.1)
    assert first == pytest.approx(first_, abs=1.5) and last == pytest.approx(last_, abs=1.5)


def test_the_draw_depends_on_its_seed_alone(store):
    first, again, other = (Decoys(store)(record_of(store), derive_rng(seed, "decoy")).score.decoy for seed in (0, 0, 1))
    assert [e.id for e in first.activating] == [e.id for e in again.activating] != [e.id for e in other.activating]


def test_copies_of_the_latent_are_no_decoys(tmp_path):
    """Two latents stand for words of their own; a hundred others fire where the first does."""
    dataset, planted = planted_tokens(2, 60, 0)
    writer = ActivationWriter(tmp_path / "store")
    writer.start(dataset, 102)
    flat = planted.reshape(-1)
    for latent, word in enumerate([0, 1, *[0] * 100]):
        position = np.flatnonzero(flat == word)
        writer.add(position, np.full(len(position), latent), np.full(len(position), 2.0, dtype=np.float32))
    writer.advance(len(planted))
    copies = writer.finish()
    for seed in range(5):
        assert Decoys(copies)(record_of(copies), derive_rng(seed, "decoy")).score.decoy.latent.index == 1


def test_a_dictionary_of_one_latent_is_asked_about_one_window_at_a_time(tmp_path):
    store = planted_store(tmp_path / "store", n_latents=1, documents=40)
    record = record_of(store)
    alone = Decoys(store)(record, derive_rng(0, "decoy"))
    assert alone is record and alone.score.decoy is None
    llm = ScriptedLLM("[1]")
    asyncio.run(Fuzzing(mode="list").score(saeval.Explanation(text="x"), alone.score, context(llm)))
    assert len(llm.requests) == len(record.score.activating) + len(record.score.non_activating)
    assert all("Window 2:" not in request.messages[-1].content for request in llm.requests)


def test_windows_centred_on_activations_are_marked_at_the_centre_whether_rightly_or_wrongly(store):
    sampler = SAEBench(leak=False, unverified=False, score_top=10, score_weighted=10, non_activating=20)
    for latent in range(8):
        record = sampler.sample(store, LatentId("planted", latent), derive_rng(0, "sample", latent))
        found = Decoys(store)(record, derive_rng(0, "decoy", latent))
        questions = Fuzzing().questions(found.score, context())
        centred = {True: [], False: []}
        for q in questions:
            centred[q.truth].append(q.shown.split("<<")[0].count(" ") == sampler.window // 2 - 1)
        assert np.mean(centred[True]) == np.mean(centred[False]) > 0.8


def test_listed_latents_are_collected_alone_only_where_no_step_needs_another():
    def alone(scorer, explainer=None, baselines=()):
        task = {
            "saeval": 1, "task": "t", "version": "1", "source": {"use": "synthetic"}, "sampler": {"use": "random"},
            "latents": {"select": "list", "indices": [3]}, "explainer": explainer or {"use": "top_tokens"},
            "scorers": {"s": scorer}, "baselines": list(baselines), "llms": {"judge": {"model": "scripted/x"}},
            "measure": [],
        }  # fmt: skip
        return load_task(task, registry=Registry(), check=False).cells[0].alone

    assert alone({"use": "detection"}) and alone({"use": "fuzzing", "with": {"negatives": "matched"}})
    assert not alone({"use": "fuzzing"})
    assert not alone({"use": "consistency", "with": {"scorer": {"use": "fuzzing"}}})
    senses = {"use": "senses", "with": {"explainer": {"use": "top_tokens"}}}
    assert not alone({"use": "detection"}, senses)
    assert not alone({"use": "detection"}, baselines=[senses])
    assert alone({"use": "detection"}, {"use": "senses", "with": {**senses["with"], "cofiring": 0}})


def test_windows_of_the_other_latent_are_asked_about_with_its_marks():
    examples = make_examples("harbor", activating=10, non_activating=10, decoy="lantern")
    questions = Fuzzing().questions(examples, context())
    assert [words(q.shown) for q in questions if q.truth] == [{"harbor"}] * 10
    assert [words(q.shown) for q in questions if not q.truth] == [{"lantern"}] * 10
    assert not any(q.alone for q in questions)
    assert all(q.alone for q in Fuzzing().questions(replace(examples, decoy=None), context()))


def test_wrong_marks_of_a_latent_without_a_decoy_have_no_weight_in_the_corpus():
    examples = make_examples("harbor", decoy=None)
    drawn = tuple(replace(window, weight=1.0) for window in examples.non_activating)
    examples = replace(examples, non_activating=drawn)
    weights = {
        mode: {q.example.weight for q in Fuzzing(negatives=mode).questions(examples, context()) if not q.truth}
        for mode in ("other", "matched")
    }
    assert weights == {"other": {None}, "matched": {1.0}}


def test_a_record_that_is_made_again_has_the_same_decoy(store):
    decoys = Decoys(store)
    for latent in range(8):
        first, again = (decoys(record_of(store, latent), derive_rng(0, "decoy", latent)) for _ in range(2))
        one, other = first.score.decoy, again.score.decoy
        assert (one.latent, one.max_activation) == (other.latent, other.max_activation)
        assert [(e.id, e.tokens, e.active, e.activations.tolist()) for e in one.activating] == [
            (e.id, e.tokens, e.active, e.activations.tolist()) for e in other.activating
        ]


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """A store in which tokens are parts of a character, contexts have a rest that is no window, and some are short."""
    rng = np.random.default_rng(0)
    contexts, length, n = 200, 75, 12
    pieces = [b"\xe2\x82", b"\xac", b"\xf0\x9f", b" \xc3", b"!", *(f" w{i}".encode() for i in range(20))]
    lengths = rng.integers(40, length + 1, size=contexts).astype(np.int32)
    mask = (np.arange(length) < lengths[:, None]) & (np.arange(length) > 0)
    tokens = rng.integers(len(pieces), size=(contexts, length), dtype=np.int32)
    documents = np.arange(contexts, dtype=np.int32)
    data = TokenDataset(tokens, lengths, mask, documents, tuple(map(str, documents)), dict(enumerate(pieces)), 1)
    writer = ActivationWriter(tmp_path_factory.mktemp("ragged") / "store")
    writer.start(data, n)
    position, latent = np.nonzero((rng.random((mask.size, n)) < 0.15) & mask.reshape(-1, 1))
    writer.add(position, latent, rng.standard_exponential(len(position), dtype=np.float32))
    writer.advance(contexts)
    return writer.finish()


def test_marks_look_the_same_in_the_store_as_in_windows_that_break_characters(ragged):
    store, window, n = ragged, 16, ragged.n_latents
    chosen = [store.windows(i, window).ids[:20] for i in range(n)]
    begins = store.begin_of(np.concatenate(chosen), window)
    edges = []
    for i, ids in enumerate(chosen):
        at, where = store.activations(i)[0], store.begin_of(ids, window)
        edges.append(store.indptr[i] + np.searchsorted(at, [where, where + window]))
    low, high = np.concatenate(edges, axis=1)
    kinds = Kinds(store)
    found = profiles_of(store, (low, high), begins, np.repeat(np.arange(n), 20), kinds, window)
    for i, ids in enumerate(chosen):
        alone = profile_of(store.examples(LatentId("x", i), ids, window), kinds)
        for name in ("recurs", "runs", "tokens", "words", "signs"):
            assert getattr(found, name)[i] == getattr(alone, name)[0]
        own = found.latent == i
        assert found.kind[own].tolist() == alone.kind.tolist() and found.times[own].tolist() == alone.times.tolist()
        assert alone.overlap(found)[i] == pytest.approx(1) and alone.distance(found)[i] == 0


def test_sampled_windows_of_candidates_hold_all_their_firings_and_are_drawn_evenly(ragged):
    window = 16
    sampler = RANDOM(window=window, explain=5, score=5, non_activating={"n": 5})
    record = sampler.sample(ragged, LatentId("planted", 0), derive_rng(0, "sample"))
    search, drawn = _Search(ragged, _Texts(ragged), record), Counter()
    for seed in range(200):
        found = search.sample(np.arange(1, ragged.n_latents), np.random.default_rng(seed))
        starts = ragged.begin_of(found.ids, window)
        for latent, start, low, high in zip(found.latents, starts, found.low, found.high, strict=True):
            position = ragged.activations(latent)[0]
            inside = np.flatnonzero((position >= start) & (position < start + window)) + ragged.indptr[latent]
            assert inside.tolist() == list(range(low, high))
        assert set(found.latents.tolist()) == set(range(1, ragged.n_latents))
        pairs = [*zip(found.latents.tolist(), found.ids.tolist(), strict=True)]
        assert len(set(pairs)) == len(pairs) and max(Counter(found.latents.tolist()).values()) <= 32
        drawn.update(pairs)
    ids = ragged.windows(3, window).ids
    assert {number for latent, number in drawn if latent == 3} == set(ids.tolist())  # each whole window, no other one
    position, starts = ragged.activations(3)[0], ragged.begin_of(ids, window)
    firings = np.searchsorted(position, starts + window) - np.searchsorted(position, starts)
    times = np.array([drawn[3, int(i)] for i in ids])
    assert times[firings == 1].mean() == pytest.approx(times[firings >= 4].mean(), rel=0.15)


def test_copies_of_the_latent_do_not_hide_the_most_similar_latents(tmp_path):
    """Three hundred copies of a latent fire on one word; ten latents fire anywhere, and five on words of their own."""
    dataset, planted = planted_tokens(8, 120, 0)
    flat, rng = planted.reshape(-1), np.random.default_rng(0)
    tokens = np.flatnonzero(np.asarray(dataset.mask).reshape(-1))
    words = [np.flatnonzero(flat == word) for word in range(8)]
    n = min(map(len, words))
    anywhere = [np.sort(rng.choice(tokens, n, replace=False)) for _ in range(10)]
    positions = [*[words[0][:n]] * 301, *anywhere, *(word[:n] for word in words[1:6])]
    writer = ActivationWriter(tmp_path / "store")
    writer.start(dataset, len(positions))
    for latent, position in enumerate(positions):
        writer.add(position, np.full(n, latent), np.full(n, 2.0, dtype=np.float32))
    writer.advance(len(planted))
    store = writer.finish()
    record = record_of(store)
    drawn = {Decoys(store)(record, derive_rng(seed, "decoy")).score.decoy.latent.index for seed in range(20)}
    assert min(drawn) > 310


def test_latents_that_fire_in_long_runs_are_compared_by_many_windows(tmp_path):
    n, length, run, window = 6, 129, 60, 32
    contexts = 30 * n
    tokens = np.random.default_rng(0).integers(50, size=(contexts, length), dtype=np.int32)
    mask = np.broadcast_to(np.arange(length) > 0, tokens.shape)
    documents = np.arange(contexts, dtype=np.int32)
    lengths = np.full(contexts, length, dtype=np.int32)
    words = {i: f" w{i}".encode() for i in range(50)}
    writer = ActivationWriter(tmp_path / "store")
    writer.start(TokenDataset(tokens, lengths, mask, documents, tuple(map(str, documents)), words, 1), n)
    for latent in range(n):
        position = (np.arange(latent, contexts, n)[:, None] * length + 20 + np.arange(run)).reshape(-1)
        writer.add(position, np.full(len(position), latent), np.ones(len(position), dtype=np.float32))
    writer.advance(contexts)
    store = writer.finish()
    record = RANDOM(window=window, explain=5, score=10, non_activating={"n": 10}).sample(
        store, LatentId("planted", 0), derive_rng(0, "sample")
    )
    found = _Search(store, _Texts(store), record).sample(np.arange(n), np.random.default_rng(0))
    assert min(Counter(found.latents.tolist()).values()) >= 16
    assert len({*zip(found.latents.tolist(), found.ids.tolist(), strict=True)}) == len(found.ids)


def test_a_candidate_whose_activations_are_damaged_is_named(tmp_path):
    store = planted_store(tmp_path / "store", n_latents=8, documents=80)
    record = record_of(store, 0)
    store.position = store.position.copy()
    store.position[store.indptr[5] : store.indptr[6]] += 10**6
    with pytest.raises(StoreError, match="the activations of latent 5 are out of order"):
        Decoys(store)(record, derive_rng(0, "decoy"))


def test_candidates_come_in_the_order_of_difference_plus_exponential_term(tmp_path):
    """The few that are looked at give the same law as a draw over the whole dictionary."""

    class Firings:
        firings = np.random.default_rng(1).integers(5, 3000, size=6000)

    draws = _ByFirings(Firings())
    own = 17
    apart = np.abs(np.log(Firings.firings) - np.log(Firings.firings[own]))
    found, expected = [], []
    for seed in range(60):
        batches = list(draws.draw(own, np.random.default_rng(seed)))
        drawn = np.concatenate(batches)
        assert len(set(drawn.tolist())) == len(drawn) >= 1000 and own not in drawn
        found.append([apart[batches[0]].mean(), apart[batches[-1]].mean()])
        order = np.argsort(apart + np.random.default_rng(1000 + seed).exponential(1.0, len(apart)), kind="stable")
        expected.append([apart[order[:64]].mean(), apart[order[960:1024]].mean()])
    assert np.mean(found, axis=0) == pytest.approx(np.mean(expected, axis=0), rel=0.06)


def test_marks_on_later_tokens_of_a_character_look_like_the_character(tmp_path):
    kinds = Kinds(planted_store(tmp_path / "store"))
    plain = make_examples(activating=4).activating

    def marking(characters, place):
        windows = []
        for window, character in zip(plain, characters, strict=True):
            strengths = np.zeros(len(window.tokens))
            strengths[1 + place] = 5.0
            windows.append(replace(window, tokens=("a", character, "", *window.tokens[3:]), activations=strengths))
        return profile_of(windows, kinds)

    first, later, other = marking("漢字大小", 0), marking("漢字大小", 1), marking("山川火水", 1)
    assert first.overlap(later).item() == 1 and later.overlap(other).item() == 0
    assert later.signs.item() == first.signs.item() and later.recurs.item() == first.recurs.item()


@pytest.mark.parametrize("threshold", [0.3, 0.05])
def test_marks_are_as_many_at_the_threshold_of_the_scorer(threshold, tmp_path):
    """All latents fire as often, a third of them at a tenth of their maximum, and the others at a fiftieth."""
    dataset, planted = planted_tokens(24, 120, 0)
    writer = ActivationWriter(tmp_path / "store")
    writer.start(dataset, 24)
    flat, mask = planted.reshape(-1), np.asarray(dataset.mask).reshape(-1)
    for latent in range(24):
        value = np.where(flat == latent, 5.0, 0.0)
        weak = 0.5 if latent % 3 == 0 else 0.1
        for after in (2, 4):
            value = np.maximum(value, np.roll(np.where(flat == latent, weak, 0.0), after) * mask)
        position = np.flatnonzero(value)
        writer.add(position, np.full(len(position), latent), value[position].astype(np.float32))
    writer.advance(len(planted))
    store = writer.finish()

    counts = []
    for latent in range(0, 24, 3):
        score = Decoys(store, threshold)(record_of(store, latent), derive_rng(0, "decoy", latent)).score
        sides = (score.activating, score.decoy.activating)
        counts.append([np.mean([sum(window.firing(threshold)) for window in windows]) for windows in sides])
    right, wrong = np.mean(counts, axis=0)
    assert right == pytest.approx(wrong, rel=0.15)


def test_scorers_that_mark_from_different_thresholds_on_share_no_cell():
    def loaded(**scorers):
        task = {
            "saeval": 1, "task": "t", "version": "1", "source": {"use": "synthetic"}, "sampler": {"use": "random"},
            "latents": {"n": 3}, "explainer": {"use": "top_tokens"}, "scorers": scorers,
            "llms": {"judge": {"model": "scripted/x"}}, "measure": [],
        }  # fmt: skip
        return load_task(task, registry=Registry())

    low = {"use": "fuzzing", "with": {"threshold": 0.1}}
    loaded(low=low, again={"use": "consistency", "with": {"scorer": low}})
    loaded(low=low, fuzzing={"with": {"negatives": "matched"}})
    with pytest.raises(SpecError, match="at the threshold 0.3, but low at 0.1"):
        loaded(low=low, fuzzing={})
