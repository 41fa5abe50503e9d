"""Explain and score windows never meet, labels are verified, and deciles are even."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from saeval_plugins.samplers import Mix, Quantiles, RandomSampler, SAEBench, Top
from saeval_plugins.samplers.delphi import DelphiSampler
from saeval_plugins.samplers.windows import draw_each, strongest_first
from scipy.stats import chisquare
from small_stores import dataset, dense, in_turns, write

from saeval.plugin import LatentId, derive_rng

SAMPLERS = [RandomSampler, Quantiles, Top, Mix]
OPTIONS = {"window": 16, "explain": 10, "score": 30, "explain_non_activating": 6, "non_activating": {"n": 20}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data = dataset(contexts=120, documents=17)
    return write(tmp_path_factory.mktemp("samplers") / "store", data, dense(data, 6, 0.01))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(SAMPLERS),
    latent=st.integers(0, 5),
    seed=st.integers(0, 10**6),
    explain=st.integers(5, 60),
    score=st.integers(5, 200),
)
def test_explain_and_score_windows_share_no_document(store, kind, latent, seed, explain, score):
    sampler = kind(**{**OPTIONS, "explain": explain, "score": score})
    record = sampler.sample(store, LatentId("h", latent), derive_rng(seed, "sample", latent))
    if record is None:
        return
    sides = [{e.document for e in (*s.activating, *s.non_activating)} for s in (record.explain, record.score)]
    assert not sides[0] & sides[1]
    for part in (record.explain, record.score):
        ids = [e.id for e in (*part.activating, *part.non_activating)]
        assert len(set(ids)) == len(ids)
        assert all(e.active and e.max_activation > 0 for e in part.activating)
        assert all(not e.active and not e.activations.any() for e in part.non_activating)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_same_key_same_windows_and_another_key_others(store, kind):
    def ids(seed):
        record = kind(**OPTIONS).sample(store, LatentId("h", 1), derive_rng(seed, "x"))
        return [[e.id for e in (*s.activating, *s.non_activating)] for s in (record.explain, record.score)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_samplers_that_show_other_windows_are_scored_on_the_same_ones(store):
    def sides(kind, **options):
        record = kind(**{**OPTIONS, **options}).sample(store, LatentId("h", 1), derive_rng(0, "x"))
        return [[e.id for e in (*s.activating, *s.non_activating)] for s in (record.explain, record.score)]

    found = [sides(kind) for kind in SAMPLERS] + [sides(RandomSampler, explain_non_activating=0)]
    assert all(scored == found[0][1] for _, scored in found)
    assert len({tuple(shown) for shown, _ in found}) == len(found)


def test_saebench_with_sides_apart_scores_the_same_windows_however_many_top_ones_are_shown(store):
    def scored(weighted):
        # The split is by explain_top + explain_weighted, so their sum stays.
        sampler = SAEBench(leak=False, unverified=False, explain_top=8 - weighted, explain_weighted=weighted)
        return [e.id for e in sampler.sample(store, LatentId("h", 1), derive_rng(0, "x")).score.activating]

    assert scored(2) == scored(4)


def test_scoring_windows_come_in_equal_parts_from_each_decile(store):
    record = RandomSampler(**OPTIONS).sample(store, LatentId("h", 0), derive_rng(0, "x"))
    deciles = [e.decile for e in record.score.activating]
    assert [deciles.count(d) for d in range(10)] == [3] * 10
    strongest = [np.mean([e.max_activation for e in record.score.activating if e.decile == d]) for d in range(10)]
    assert strongest == sorted(strongest, reverse=True)


def test_top_shows_the_strongest_windows_of_its_side(store):
    shown = Top(**OPTIONS).sample(store, LatentId("h", 0), derive_rng(0, "x")).explain.activating
    levels = [e.max_activation for e in shown]
    assert levels == sorted(levels, reverse=True)
    everything = Top(**{**OPTIONS, "explain": 500, "score": 1500}).sample(store, LatentId("h", 0), derive_rng(0, "x"))
    assert levels[0] == max(e.max_activation for e in everything.explain.activating)


def test_latent_that_fires_in_one_document_only_is_skipped(tmp_path):
    data = dataset(contexts=60, documents=6)
    activations = np.zeros((*data.tokens.shape, 1), dtype=np.float32)
    activations[data.documents == 2, 1:] = 1.0
    store = write(tmp_path / "s", data, activations)
    assert RandomSampler(**OPTIONS).sample(store, LatentId("h", 0), derive_rng(0, "x")) is None


def test_latent_that_is_never_silent_is_skipped(tmp_path):
    data = dataset(contexts=60, documents=6)
    activations = np.ones((*data.tokens.shape, 1), dtype=np.float32) * data.mask[..., None]
    store = write(tmp_path / "s", data, activations)
    assert RandomSampler(**OPTIONS).sample(store, LatentId("h", 0), derive_rng(0, "x")) is None


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    data = in_turns(dataset(contexts=400, documents=80, ragged=True), 14)
    roles = {"roles": ["assistant"]}
    store = write(tmp_path_factory.mktemp("chat") / "store", data, dense(data, 12, 0.03), facts=roles)
    return store, data.mask


@pytest.mark.parametrize(
    "sampler",
    [
        *(RandomSampler(**{**OPTIONS, "window": 8, "non_activating": {"use": use, "n": 20}})
          for use in ("random", "neighbours", "importance")),
        *(DelphiSampler(window=8, leak=leak, score=20, non_activating=20) for leak in (True, False)),
        *(SAEBench(window=7, leak=leak, unverified=leak) for leak in (True, False)),
    ],
    ids=str,
)  # fmt: skip
def test_windows_of_either_label_show_no_turn_of_another_role(chat, sampler):
    store, mask = chat
    record = sampler.sample(store, LatentId("h", 0), derive_rng(0, "x"))
    for part in (record.explain, record.score):
        for e in (*part.activating, *part.non_activating):
            assert mask[e.context, e.start : e.start + sampler.window].all()
    assert record.score.activating and record.score.non_activating


def test_windows_are_moved_within_their_turn(chat):
    store, _ = chat
    ids = store.windows(0, 8).ids
    moved = store.shifted(0, ids, 8, store.shifts_around(0, ids, 8)) - store.begin_of(ids, 8)
    assert np.abs(moved).max() == 2 and len(np.unique(moved)) == 5
    assert store.counts_at(store.begin_of(ids, 8) + moved, 8).all()


@pytest.mark.parametrize(("window", "turn"), [(32, None), (16, None), (8, 14)])
def test_edges_of_texts_do_not_tell_which_windows_activate(tmp_path, window, turn):
    data = dataset(contexts=1200, documents=1200)
    place = np.arange(data.tokens.shape[1])
    lengths = np.random.default_rng(0).choice([40, 48, 56, 65], size=1200).astype(np.int32)
    data = replace(data, lengths=lengths, mask=(place > 0) & (place < lengths[:, None]))
    data = in_turns(data, turn) if turn else data
    facts = {"roles": ["assistant"]} if turn else {}
    store = write(tmp_path / "s", data, dense(data, 40, 0.02), budget=10**7, facts=facts)
    text = np.pad(data.mask, ((0, 0), (0, 1)))

    def at_an_edge(windows):  # whether it begins a text, and whether it ends one
        begins = np.mean([not text[e.context, e.start - 1] for e in windows])
        return np.array([begins, np.mean([not text[e.context, e.start + window] for e in windows])])

    sampler = RandomSampler(window=window, explain=10, score=100, non_activating={"n": 100})
    records = [sampler.sample(store, LatentId("h", i), derive_rng(0, "x", i)) for i in range(40)]
    told = [at_an_edge(r.score.activating) - at_an_edge(r.score.non_activating) for r in records]
    error = np.std(told, axis=0, ddof=1) / np.sqrt(len(told))
    assert (error < 0.015).all()
    assert (np.abs(np.mean(told, axis=0)) < 3.5 * error).all()


@pytest.mark.parametrize("way", ["random", "neighbours", "importance"])
def test_windows_of_either_label_begin_between_tiles_and_show_the_ends_of_documents_alike(tmp_path, way):
    data = dataset(contexts=500, documents=500)
    lengths = np.random.default_rng(0).choice([45, 60, 65], size=500).astype(np.int32)
    data = replace(data, lengths=lengths, mask=data.mask & (np.arange(65) < lengths[:, None]))
    store = write(tmp_path / "s", data, dense(data, 40, 0.02), budget=10**7)

    def shown(windows):  # share of windows that begin between tiles, and that show text after the last whole tile
        between = np.mean([(e.start - 1) % 8 > 0 for e in windows])
        return np.array([between, np.mean([e.start + 7 > (store.lengths[e.context] - 1) // 8 * 8 for e in windows])])

    sampler = RandomSampler(window=8, explain=10, score=100, non_activating={"use": way, "n": 100})
    records = [sampler.sample(store, LatentId("h", i), derive_rng(0, "x", i)) for i in range(40)]
    own = np.mean([shown(r.score.activating) for r in records], axis=0)
    other = np.mean([shown(r.score.non_activating) for r in records], axis=0)
    assert own[0] > 0.3 and own[1] > 0.02
    assert other == pytest.approx(own, rel=0.2)


def test_random_windows_of_saebench_are_from_short_contexts_as_often_as_activating_ones(tmp_path):
    data = dataset(contexts=600, documents=600)
    lengths = np.random.default_rng(0).choice([25, 65], size=600).astype(np.int32)
    data = replace(data, lengths=lengths, mask=data.mask & (np.arange(65) < lengths[:, None]))
    store = write(tmp_path / "s", data, dense(data, 20, 0.02), budget=10**7)
    sampler = SAEBench(leak=False, unverified=False, score_top=20, score_weighted=20, non_activating=40)
    records = [sampler.sample(store, LatentId("h", i), derive_rng(0, "x", i)) for i in range(20)]
    own, other = (
        np.mean([lengths[e.context] == 25 for r in records for e in getattr(r.score, side)])
        for side in ("activating", "non_activating")
    )
    assert own == pytest.approx(other, abs=0.04) and own < 0.15


def test_all_ways_to_draw_from_several_ranges_are_equally_likely():
    ways = Counter(tuple(draw_each([0, 4, 9, 11], [2, 3, 0], derive_rng(0, i)).tolist()) for i in range(12_000))
    assert set(ways) == {(*a, *b) for a in combinations(range(4), 2) for b in combinations(range(4, 9), 3)}
    assert chisquare(list(ways.values())).pvalue > 1e-3


def test_all_silent_windows_are_equally_likely_to_be_drawn(tmp_path):
    data = dataset(contexts=1500)
    activations = np.zeros((*data.tokens.shape, 1), dtype=np.float32)
    activations[:, 20] = 1.0  # fires in the third window of eight
    store = write(tmp_path / "s", data, activations)
    drawn = Counter(i for key in range(600) for i in store.silent_windows(0, 8, 50, derive_rng(0, key)).tolist())
    assert {i % 8 for i in drawn} == {0, 1, 3, 4, 5, 6, 7}
    assert chisquare([drawn[i] for i in range(12_000) if i % 8 != 2]).pvalue > 1e-3


@given(
    st.sampled_from([(-1e4, 32), (-1e4, 16), (0, 16)]).flatmap(  # activations are mostly positive, and float16 on disk
        lambda kind: st.lists(st.floats(kind[0], 1e4, width=kind[1]).map(lambda x: x + 0.0), max_size=60)
    ),
    st.sampled_from([1, 200]),  # few are ranked in another way than many
)
def test_windows_are_ranked_by_their_maximum_and_ties_by_number(values, times):
    maxima = np.tile(np.array(values, dtype=np.float32), times)
    expected = np.lexsort((np.arange(len(maxima)), -maxima))
    assert strongest_first(maxima).tolist() == expected.tolist()
