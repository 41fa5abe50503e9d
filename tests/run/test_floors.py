"""Floors are made of latents that fire independently, on a half of the latents that nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest

from saeval._run.floors import Partners, _common, in_order, judged, number
from saeval.activations.store import ActivationWriter
from saeval.activations.tokens import TokenDataset
from saeval.plugin import derive_rng

CONTEXTS, WINDOW = 400, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Latents by the windows (one per context) in which they fire: 0 and 1 together, 2 where 0 does not, others at random."""
    rng = derive_rng(0, "floors")
    fires = rng.random((10, CONTEXTS)) < 0.4
    fires[1] = fires[0] ^ (rng.random(CONTEXTS) < 0.02)
    fires[2] = ~fires[0]
    tokens = np.ones((CONTEXTS, WINDOW), dtype=np.int32)
    dataset = TokenDataset(
        tokens=tokens, lengths=np.full(CONTEXTS, WINDOW, dtype=np.int32), mask=np.ones_like(tokens, dtype=bool),
        documents=np.arange(CONTEXTS, dtype=np.int32), document_names=tuple(map(str, range(CONTEXTS))),
        vocabulary={1: b" a"}, lead=0,
    )  # fmt: skip
    writer = ActivationWriter(tmp_path_factory.mktemp("floors") / "store")
    begin = writer.start(dataset, len(fires))
    for row in range(begin, CONTEXTS):
        latents = np.flatnonzero(fires[:, row])
        writer.add(np.full(len(latents), row * WINDOW), latents, np.ones(len(latents), dtype=np.float32))
        writer.advance(row + 1)
    return writer.finish()


def test_near_duplicates_and_opposites_come_after_independent_latents(store):
    partners = Partners(store, WINDOW, range(10), seed=0)
    order = list(partners.of(0))
    assert sorted(order) == list(range(1, 10))
    assert {*order[-2:]} == {1, 2} and order[-1] == 2  # never together is further from chance than always
    assert not partners.independent(0, 1) and not partners.independent(0, 2) and not partners.independent(2, 1)
    assert all(partners.independent(0, i) for i in range(3, 10))


def test_dependence_is_the_log_ratio_to_chance_with_a_window_added_to_both(store):
    a, b = (store.windows(i, WINDOW).ids for i in (3, 4))
    together, expected = len(np.intersect1d(a, b)), len(a) * len(b) / CONTEXTS
    found = Partners(store, WINDOW, range(10), seed=0).dependence(3, 4)
    assert found == pytest.approx(abs(np.log((together + 1) / (expected + 1))))
    assert store.window_count(WINDOW) == CONTEXTS and store.window_count(3) == CONTEXTS and store.window_count(2) == 800


def test_independent_latents_follow_in_the_order_of_the_ring_and_dependent_ones_by_dependence(store):
    partners = Partners(store, WINDOW, range(3, 10), seed=0)
    ring = in_order(range(3, 10), seed=0)
    for place, latent in enumerate(ring):
        assert list(partners.of(latent)) == [*ring[place + 1 :], *ring[:place]]
    for seed in range(6):  # in whatever order they come
        least, most = list(Partners(store, WINDOW, [0, 1, 2], seed=seed).of(0))
        assert (least, most) == (1, 2)
        assert list(Partners(store, WINDOW, [0, 1, 2], seed=seed).of(2)) == [1, 0]  # 1 fires with it at times


def test_so_many_latents_are_compared_and_no_more(store, monkeypatch):
    monkeypatch.setattr("saeval._run.floors._LOOKS", 3)
    ring = in_order(range(3, 10), seed=0)
    assert list(Partners(store, WINDOW, range(3, 10), seed=0).of(ring[0])) == ring[1:4]


def test_common_windows_are_counted():
    few, many, none = np.array([2, 5, 9]), np.array([1, 2, 3, 9]), np.array([], dtype=np.int64)
    assert _common(few, many) == _common(many, few) == 2
    assert _common(none, many) == _common(many, none) == 0


def test_explanations_serve_about_once_each(store):
    partners = Partners(store, WINDOW, range(10), seed=0)
    first = [next(iter(partners.of(latent))) for latent in range(10)]
    assert len(set(first)) >= 7
    assert first == [next(iter(Partners(store, WINDOW, range(10), seed=0).of(latent))) for latent in range(10)]
    assert first != [next(iter(Partners(store, WINDOW, range(10), seed=1).of(latent))) for latent in range(10)]


def test_a_single_latent_has_no_partner_and_two_have_each_other(store):
    assert list(Partners(store, WINDOW, [5], seed=0).of(5)) == []
    assert list(Partners(store, WINDOW, [0, 1], seed=0).of(0)) == [1]


def test_half_of_the_latents_are_judged_twice_but_twenty_at_least():
    assert [number(n) for n in (0, 1, 7, 20, 21, 39, 40, 41, 100, 1001)] == [0, 1, 7, 20, 20, 20, 20, 21, 50, 501]
    half = judged(range(100), seed=0)
    assert len(half) == 50 and half != frozenset(range(50)) and half == judged(range(99, -1, -1), seed=0)
    assert half != judged(range(100), seed=1)


def test_one_latent_more_moves_no_other():
    order = in_order(range(50), seed=3)
    assert [i for i in in_order(range(51), seed=3) if i != 50] == order
    assert len(judged(range(101), 0) ^ judged(range(100), 0)) <= 2
