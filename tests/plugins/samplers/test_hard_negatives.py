"""Hard non-activating windows: silent, distinct, on the right side, and hard in the way that was asked for."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from pydantic import ValidationError
from root import ROOT
from saeval_plugins.samplers import Mix, Quantiles, RandomSampler, Top, neighbours as neighbouring, non_activating
from saeval_plugins.samplers.importance import Importance, hardness, inclusion
from saeval_plugins.samplers.neighbours import By, Directions, Neighbours, aligned, cooccurring, neighbours
from saeval_plugins.samplers.non_activating import Similar
from saeval_plugins.samplers.silent import Wanted
from saeval_plugins.sources.known import Known
from small_stores import dataset, dense, write

from saeval import InputError
from saeval.activations import ActivationWriter
from saeval.plugin import ActivationStore, LatentId, LinearCoder, ModuleCoder, NeuronCoder, derive_rng
from saeval.plugin.registry import options_error
from saeval.testing.contracts import check_sampler
from saeval.testing.toys import word_embeddings

WINDOW, TILES = 16, 4  # a context of 64 text tokens
SAMPLERS = [RandomSampler, Quantiles, Top, Mix]
OPTIONS = {"window": WINDOW, "explain": 10, "score": 30, "explain_non_activating": 6}
WAYS = [
    {"use": "random"},
    {"use": "neighbours", "by": "cooccurrence"},
    {"use": "neighbours", "by": "decoder"},
    {"use": "neighbours", "by": "encoder"},
    {"use": "similar"},
    {"use": "importance"},
]


@pytest.fixture(autouse=True, scope="module")
def embedder():
    """Texts are close where they share words; tests may look at what was embedded."""
    seen: list[list[str]] = []

    def embed(model, texts):
        seen.append(list(texts))
        return word_embeddings(model, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(non_activating, "embedder", lambda: embed)
        yield SimpleNamespace(seen=seen)


def lend(store: ActivationStore, decoder: np.ndarray, encoder: np.ndarray | None = None) -> ActivationStore:
    """Lend a store a coder of these directions.  [n_latents, d] each"""
    rows = torch.tensor(decoder, dtype=torch.float32)
    reads = rows if encoder is None else torch.tensor(encoder, dtype=torch.float32)
    store.coder = lambda: LinearCoder(reads.T, rows)
    return store


def everything(ids):
    return np.ones(len(ids), dtype=np.bool_)


def firing_in(store: ActivationStore, latent: int) -> set[int]:
    return set(store.windows(latent, WINDOW).ids.tolist())


def drawn_as(window) -> int:
    """Return the number of the window that was drawn, which is shifted by a quarter at most."""
    return window.context * TILES + (window.start - 1 + WINDOW // 2) // WINDOW


def draw(way, store, latent=0, n=20, keep=everything, seed=0):
    beside = store.windows(latent, WINDOW).ids
    wanted = Wanted(store, latent, WINDOW, n, keep, beside[keep(beside)])
    return way.draw(wanted, derive_rng(seed, "draw")).tolist()


# --- what holds whichever way ---


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data = dataset(contexts=120, documents=17, ragged=True)
    made = write(tmp_path_factory.mktemp("hard") / "store", data, dense(data, 6, 0.01))
    return lend(made, np.abs(np.random.default_rng(0).normal(size=(6, 8))))


@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(SAMPLERS),
    way=st.sampled_from(WAYS),
    latent=st.integers(0, 5),
    seed=st.integers(0, 10**6),
    explain=st.integers(5, 40),
    n=st.integers(5, 150),
)
def test_windows_are_silent_distinct_and_on_their_side_however_they_are_chosen(
    store, kind, way, latent, seed, explain, n
):
    sampler = kind(**{**OPTIONS, "explain": explain, "non_activating": {**way, "n": n}})
    record = sampler.sample(store, LatentId("h", latent), derive_rng(seed, "sample", latent))
    assume(record is not None)
    documents = [{e.document for e in (*s.activating, *s.non_activating)} for s in (record.explain, record.score)]
    assert not documents[0] & documents[1]
    fires = firing_in(store, latent)
    for part, most in ((record.explain, 6), (record.score, n)):
        ids = [drawn_as(e) for e in part.non_activating]
        assert len(set(ids)) == len(ids) <= most
        assert not fires & set(ids)
        assert not any(e.activations.any() for e in part.non_activating)
        assert all(e.start + WINDOW <= store.lengths[e.context] for e in part.non_activating)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
def test_every_sampler_keeps_its_contract_with_every_way(kind, way, monkeypatch):
    rows = torch.from_numpy(np.abs(np.random.default_rng(1).normal(size=(6, 8))))
    monkeypatch.setattr(ActivationStore, "coder", staticmethod(lambda: LinearCoder(rows.T, rows)))
    check_sampler(kind(non_activating=way))


def test_latent_is_skipped_where_its_neighbours_have_too_few_windows_though_random_ones_abound(tmp_path):
    data = dataset(contexts=120, documents=30)
    activations = dense(data, 2, 0.02)
    activations[..., 1] = 0
    first = np.flatnonzero(data.documents == 0)[0]
    activations[first, 1:9, 1] = activations[first, 1:9, 0] = 1.0  # near, but in one window only, where both fire
    store = write(tmp_path / "s", data, activations)
    sample = {
        use: RandomSampler(**OPTIONS, non_activating={"use": use}).sample(store, LatentId("h", 0), derive_rng(0, "x"))
        for use in ("random", "neighbours")
    }
    assert sample["random"] is not None and sample["neighbours"] is None


# --- neighbours ---


@pytest.fixture
def planted(tmp_path):
    """Latent 0 is near 1 by decoder, 2 by encoder, 3 by co-occurrence; 4 is near by nothing, 5 by all but never fires."""
    data = dataset(contexts=160, documents=40)
    activations = dense(data, 6, 0.01)
    activations[..., 5] = 0
    activations[..., 1:5] *= activations[..., :1] == 0
    both = (activations[..., 0] > 0) & (np.random.default_rng(0).random(data.tokens.shape) < 0.5)
    activations[both, 3] = 1.0
    decoder, encoder = -np.eye(6) - 0.5, -np.eye(6) - 0.5
    for rows, near in ((decoder, 1), (encoder, 2)):
        rows[0] = rows[5] = [1, 0, 0, 0, 0, 0]
        rows[near] = [3, 1, 0, 0, 0, 0]
    return lend(write(tmp_path / "planted", data, activations), decoder, encoder)


@pytest.mark.parametrize(("by", "near"), [("decoder", 1), ("encoder", 2), ("cooccurrence", 3)])
def test_windows_activate_the_neighbour_and_not_the_latent(planted, by, near):
    assert neighbours(planted, 0, 10, by) == (near,)
    sampler = RandomSampler(**OPTIONS, non_activating={"use": "neighbours", "by": by, "n": 20})
    record = sampler.sample(planted, LatentId("h", 0), derive_rng(0, "x"))
    for part, n in ((record.explain, 6), (record.score, 20)):
        ids = {drawn_as(e) for e in part.non_activating}
        assert len(ids) == n
        assert ids <= firing_in(planted, near) - firing_in(planted, 0)
        begins = [e.context * planted.length + e.start for e in part.non_activating]
        assert all(e.activations.any() for e in planted.examples_at(LatentId("h", near), begins, WINDOW))
        assert not any(e.activations.any() for e in planted.examples_at(LatentId("h", 0), begins, WINDOW))


def test_neighbours_take_turns_the_nearest_first(tmp_path):
    data = dataset(contexts=60)
    activations = np.zeros((*data.tokens.shape, 5), dtype=np.float32)
    for latent in range(5):  # each fires in the windows of its own contexts
        activations[latent * 12 : (latent + 1) * 12, 1:, latent] = 1.0
    activations[48:, 17:, 4] = 0  # the last in the first window of each only
    store = lend(write(tmp_path / "s", data, activations), [[1, 0], [1, 1], [1, 3], [1, 2], [1, 0.5]])
    assert neighbours(store, 0, 10, "decoder") == (4, 1, 3, 2)
    assert neighbours(store, 0, 3, "decoder") == (4, 1, 3)
    drawn = draw(Neighbours(by="decoder", k=3), store, n=50)
    owner = [window // (TILES * 12) for window in drawn]
    assert owner == [4, 1, 3] * 12 + [1, 3] * 7
    assert draw(Neighbours(by="decoder", k=3), store, n=50) == drawn
    assert draw(Neighbours(by="decoder", k=3), store, n=50, seed=1) != drawn
    assert draw(Neighbours(by="decoder", k=3), store, n=0) == []


def test_window_of_two_neighbours_is_drawn_once_and_costs_neither_its_turn(tmp_path):
    data = dataset(contexts=4)
    activations = np.zeros((*data.tokens.shape, 3), dtype=np.float32)
    activations[0, 1:17, 0] = 1.0
    activations[1, 1:33, 1:] = 1.0  # windows 4 and 5
    activations[2, 1:17, 2] = 1.0  # window 8
    store = lend(write(tmp_path / "s", data, activations), [[1, 0], [1, 0.1], [1, 0.2]])
    drawn = draw(Neighbours(by="decoder"), store)
    assert drawn[0] in (4, 5) and sorted(drawn) == [4, 5, 8]


def nearest(similarity: np.ndarray, k: int) -> list[list[int]]:
    """The plain definition: the k most similar others above 0, ties by number.  similarity [latents, latents]"""
    order = [np.argsort(-row, kind="stable") for row in similarity]
    return [[i for i in row.tolist() if i != one and similarity[one, i] > 0][:k] for one, row in enumerate(order)]


def listed(table: np.ndarray) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in table]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(2, 60),
    width=st.integers(1, 9),
    k=st.integers(1, 8),
    tile_bytes=st.integers(1, 3000),
    held=st.integers(1, 3000),
    seed=st.integers(0, 1000),
    half=st.booleans(),
)
def test_latents_near_by_direction_are_those_of_the_whole_matrix(n, width, k, tile_bytes, held, seed, half):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32))
    rows[rng.integers(n, size=n // 3)] = rows[0].clone()  # equal ones tie
    rows[n // 2] = 0  # a dead latent's direction
    rows = rows.bfloat16() if half else rows
    fires = rng.random(n) < 0.9
    exact = rows.double().numpy()
    lengths = np.maximum(np.linalg.norm(exact, axis=1), 1e-30)
    whole = np.round(exact @ exact.T / np.outer(lengths, lengths), 6) * fires
    k = min(k, n)
    for stored in (rows, rows.T.contiguous().T):
        found = aligned(Directions.of(stored), np.arange(n), k, fires, tile_bytes, held)
        assert listed(found) == nearest(whole, k)


def test_nearest_of_a_small_dictionary_are_those_of_a_dense_comparison(tmp_path):
    data = dataset(contexts=60)
    store = write(tmp_path / "s", data, dense(data, 40, 0.01))
    rows = np.random.default_rng(3).normal(size=(40, 6))
    lend(store, rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for latent in range(40):
        cosine = unit @ unit[latent]
        expected = [i for i in np.argsort(-cosine) if i != latent and cosine[i] > 0][:7]
        assert list(neighbours(store, latent, 7, "decoder")) == expected


def test_scaling_of_directions_changes_no_neighbour(tmp_path):
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(30, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    scaled = LinearCoder(rows.T, rows * lengths, scale_by_decoder_norm=True)
    two = np.array([0, 17])
    fires = np.ones(30, dtype=np.bool_)
    found = [aligned(Directions.of(some), two, 5, fires).tolist() for some in (scaled.directions(), rows)]
    assert found[0] == found[1]
    for latent in two:
        assert torch.allclose(scaled.direction(latent), rows[latent] / rows[latent].norm(), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    share=st.floats(0, 0.4),
    firings=st.integers(1, 400),
    n_latents=st.integers(1, 7),
    k=st.integers(1, 7),
    seed=st.integers(0, 100),
)
def test_latents_near_by_cooccurrence_are_those_of_the_sets_of_tokens(
    tmp_path_factory, share, firings, n_latents, k, seed
):
    data = dataset(contexts=6)
    activations = dense(data, n_latents, share, seed)
    activations[..., n_latents // 2] *= seed % 2  # now and then a latent that never fires
    activations[..., -1] = activations[..., 0]  # equal ones tie
    store = write(tmp_path_factory.mktemp("j") / "s", data, activations)
    tokens = [set(np.flatnonzero(activations.reshape(-1, n_latents)[:, i]).tolist()) for i in range(n_latents)]
    plain = np.array([[len(one & other) / max(1, len(one | other)) for other in tokens] for one in tokens])
    k = min(k, n_latents)
    assert listed(cooccurring(store, np.arange(n_latents), k, firings)) == nearest(plain, k)


def test_neighbours_found_together_are_those_found_alone_and_are_found_once(tmp_path, monkeypatch):
    data = dataset(contexts=20)
    path = write(tmp_path / "s", data, dense(data, 30, 0.03)).path
    alone = [neighbours(ActivationStore.open(path), latent, 4, "cooccurrence") for latent in range(30)]
    searched = []
    search = neighbouring.cooccurring
    monkeypatch.setattr(
        neighbouring, "cooccurring", lambda s, latents, k: searched.extend(latents.tolist()) or search(s, latents, k)
    )
    store = ActivationStore.open(path)
    sampler = RandomSampler(**OPTIONS, non_activating={"use": "neighbours", "k": 4})
    for some in ([3, 1], list(range(25))):
        sampler.prepare(store, some)
    for _step in range(3):
        assert [neighbours(store, latent, 4, "cooccurrence") for latent in range(30)] == alone
    assert sorted(searched) == list(range(30))


def test_without_directions_to_compare_the_error_says_why_and_what_to_do(tmp_path):
    data = dataset()
    path = write(tmp_path / "s", data, dense(data, 4, 0.1)).path

    def failing(coder, by="decoder"):
        store = ActivationStore.open(path)
        if coder is not None:
            store.coder = lambda: coder
        with pytest.raises(InputError) as error:
            draw(Neighbours(by=by), store)
        return str(error.value)

    unknown = ModuleCoder(torch.relu, 4, 8, "odd", decoder=torch.eye(4, 8))
    assert "this source has no coder; set `by: cooccurrence`" in failing(None)
    assert "neurons are orthogonal" in failing(NeuronCoder(4))
    assert "'odd' has no encoder directions; set `by: cooccurrence`" in failing(unknown, "encoder")
    assert "5 latents, the activations 4" in failing(LinearCoder(torch.ones(3, 5), torch.ones(5, 3)))


def test_only_directions_need_the_coder():
    needs = {by: RandomSampler(non_activating={"use": "neighbours", "by": by}).needs() for by in By.__args__}
    assert needs == {"decoder": {"coder"}, "encoder": {"coder"}, "cooccurrence": frozenset()}
    assert RandomSampler().needs() == RandomSampler(non_activating={"use": "similar"}).needs() == frozenset()


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from small_stores import dataset
from saeval.plugin import ActivationWriter, LinearCoder
from saeval_plugins.samplers.neighbours import neighbours

n, d = 131_072, 256
data = dataset()
writer = ActivationWriter(Path(sys.argv[1]))
writer.start(data, n)
writer.add(np.full(n, 5), np.arange(n), np.ones(n, dtype=np.float32))
writer.advance(len(data.tokens))
store = writer.finish()
rows = torch.randn(n, d)
store.coder = lambda: LinearCoder(rows.T, rows)
torch.ones(500, 500) @ torch.ones(500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for by in ("decoder", "encoder"):
    assert len(neighbours(store, 7, 10, by)) == len(neighbours(store, 8, 10, by)) == 10
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (1024 if sys.platform == "linux" else 1 << 20))
"""


@pytest.mark.slow
def test_neighbours_in_a_dictionary_of_131k_latents_take_less_memory_than_a_copy_of_it(tmp_path):
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "s"], capture_output=True, text=True, cwd=ROOT / "tests" / "helpers"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # MB; the directions are 134 MB, all pairs would be 69 GB


# --- similar ---


@pytest.fixture
def topics(tmp_path):
    """Even contexts are of ten words, odd ones of ten others; the latent fires in half of the windows of even ones."""
    data = dataset(contexts=120, documents=40)
    rng = np.random.default_rng(0)
    data.tokens[::2, 1:] = rng.integers(1, 11, size=(60, 64))
    data.tokens[1::2, 1:] = rng.integers(11, 21, size=(60, 64))
    activations = np.zeros((*data.tokens.shape, 2), dtype=np.float32)
    for context in range(0, 120, 2):
        for tile in rng.choice(TILES, size=2, replace=False):
            activations[context, 1 + tile * WINDOW + rng.integers(WINDOW), 0] = 1.0
    activations[1::2, 5, 1] = 1.0
    return write(tmp_path / "topics", data, activations)


def test_similar_windows_share_words_with_the_activating_ones(topics):
    def share_of_topic(use):
        sampler = RandomSampler(**OPTIONS, non_activating={"use": use, "n": 20})
        record = sampler.sample(topics, LatentId("h", 0), derive_rng(0, "x"))
        assert len(record.explain.non_activating) == 6 and len(record.score.non_activating) == 20
        shown = (*record.explain.non_activating, *record.score.non_activating)
        return np.mean([e.context % 2 == 0 for e in shown])

    assert share_of_topic("similar") == 1
    assert share_of_topic("random") < 0.7


def test_similar_windows_are_near_different_activating_ones(topics):
    drawn = draw(Similar(), topics, n=120)
    assert len(drawn) == 120 and all(window // TILES % 2 == 0 for window in drawn)  # all that there are
    assert len(draw(Similar(), topics, n=200)) == 200  # then those of other words
    store_of = {i: e for i, e in zip(drawn, topics.examples(LatentId("h", 0), drawn, WINDOW), strict=True)}
    beside = topics.examples(LatentId("h", 0), topics.windows(0, WINDOW).ids, WINDOW)
    near = word_embeddings("", [e.text for e in beside]) @ word_embeddings("", [e.text for e in store_of.values()]).T
    assert near[0].argmax() == 0  # the first is the nearest to the first of the activating windows


def test_similar_windows_do_not_depend_on_the_key(topics):
    assert draw(Similar(), topics, seed=0) == draw(Similar(), topics, seed=1)


def test_pool_is_embedded_once_for_all_latents(topics, embedder):
    way = Similar(pool=300)
    del embedder.seen[:]
    for latent in (0, 1, 0):
        assert draw(way, topics, latent)
    sizes = [len(texts) for texts in embedder.seen]
    assert sizes == [300, *(len(topics.windows(latent, WINDOW).ids) for latent in (0, 1, 0))]


def test_similar_windows_come_from_the_pool_alone(topics):
    wide, narrow = draw(Similar(), topics, n=400), draw(Similar(pool=40), topics, n=400)
    assert len(narrow) < 40 < len(wide)


def test_similar_windows_of_excerpts_do_not_depend_on_the_other_latents_in_the_file(tmp_path):
    data = dataset(contexts=600, documents=600)
    activations = np.zeros((*data.tokens.shape, 1), dtype=np.float32)
    activations[:10, 5] = 1.0
    store = write(tmp_path / "s", data, activations, known=(np.zeros(10, dtype=np.int64), np.arange(10)))
    assert sorted(draw(Similar(pool=200), store, n=40)) == [i for i in range(10 * TILES) if i % TILES]


def test_latent_without_enough_similar_windows_on_its_side_is_skipped(topics):
    sampler = RandomSampler(**OPTIONS, non_activating={"use": "similar", "pool": 5})
    assert sampler.sample(topics, LatentId("h", 0), derive_rng(0, "x")) is None


def test_embedding_model_that_is_not_there_is_told_before_anything_heavy(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        RandomSampler(non_activating={"use": "similar", "model": str(tmp_path / "nowhere")}).check()
    with pytest.raises(InputError, match="no asset"):
        RandomSampler(non_activating={"use": "similar", "model": "package:no-such-model"}).check()
    RandomSampler(non_activating={"use": "similar"}).check()


# --- importance ---


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Latents of known meaning, whose windows often activate the next latent, too."""
    writer = ActivationWriter(tmp_path_factory.mktemp("known") / "store")
    Known(documents=250, rate=0.01, together=0.8).collect(writer)
    return writer.finish()


def test_hard_windows_are_those_that_activate_what_fires_with_the_latent(known):
    silent = np.setdiff1d(np.arange(known.window_count(32)), known.windows(0, 32).ids)
    hard = hardness(known, 0, silent, 32)
    beside = np.isin(silent, known.windows(1, 32).ids)
    assert hard[beside].min() > 0 and hard[~beside].mean() < 0.2 * hard[beside].mean()


def test_weights_give_back_what_all_windows_would(known):
    keep = lambda ids: ids >= 0  # noqa: E731
    beside = known.windows(1, 32).ids
    shares, hits = [], 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        wanted = Wanted(known, 0, 32, 20, keep, known.windows(0, 32).ids)
        ids, weights = Importance(pool=600).weighted(wanted, rng)
        assert len(np.unique(ids)) == 20
        hits += np.isin(ids, beside).sum()
        shares.append(weights @ np.isin(ids, beside) / 20)
    everything = known.window_count(32)
    silent = np.setdiff1d(np.arange(everything), known.windows(0, 32).ids)
    true = np.isin(silent, beside).mean()
    assert np.mean(shares) == pytest.approx(true, abs=4 * np.std(shares) / len(shares) ** 0.5)
    assert hits > 5 * 20 * len(shares) * true  # found many times more often than by chance


def test_probabilities_of_inclusion_add_up_and_none_exceeds_one():
    shares = np.array([0.7, 0.2, 0.05, 0.03, 0.02])
    found = inclusion(shares, 3)
    assert found.sum() == pytest.approx(3) and found.max() == 1.0 and (np.diff(found) <= 0).all()


def test_weights_of_scored_windows_are_kept_and_unknown_ones_are_not_made_up(known):
    weights = {}
    for use in ("random", "importance"):
        sampler = RandomSampler(explain=5, score=10, non_activating={"use": use, "n": 10})
        record = sampler.sample(known, LatentId("known", 0), derive_rng(0, "x"))
        weights[use] = [e.weight for e in record.score.non_activating]
        assert all(e.weight is None for e in record.score.activating)
    assert weights["random"] == [1.0] * 10 and len(set(weights["importance"])) > 1
    assert Similar().weighted(Wanted(known, 0, 32, 5, lambda ids: ids >= 0, np.array([], dtype=int)), None)[1] is None


# --- options ---


def test_random_is_meant_where_nothing_is_said_and_is_fingerprinted_alike():
    short, long_ = (RandomSampler(non_activating=way) for way in ({"n": 20}, {"use": "random", "n": 20}))
    assert short == long_
    options = {"window": 32, "explain": 40, "explain_non_activating": 20, "score": 100}
    plain = ["random", {**options, "non_activating": {"use": "random", "n": 20}}, []]
    assert short.fingerprint() == long_.fingerprint() == [plain, 8]  # the eighth way of drawing


def test_fingerprint_depends_on_every_option_and_on_the_weights_of_a_local_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    local = {"use": "similar", "model": str(tmp_path)}
    ways = [
        *WAYS, {"use": "neighbours", "k": 3}, {"use": "neighbours", "n": 30}, {"use": "similar", "pool": 50}, local,
    ]  # fmt: skip
    prints = [repr(RandomSampler(non_activating=way).fingerprint()) for way in ways]
    (tmp_path / "model.safetensors").write_bytes(b"other")
    prints.append(repr(RandomSampler(non_activating=local).fingerprint()))
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("given_", "place", "message"),
    [
        ({"use": "nearest"}, "use", "should be one of 'random', 'neighbours', 'similar', 'importance' (got 'nearest')"),
        ({"use": "neighbours", "kk": 3}, "kk", "no such option, did you mean 'k'?; non_activating has: use, n, k, by"),
        ({"use": "neighbours", "by": "x"}, "by", "should be 'decoder', 'encoder' or 'cooccurrence' (got 'x')"),
        ({"k": 3}, "k", "no such option; non_activating has: use, n"),
    ],
)
def test_wrong_choice_is_told_with_what_there_is(given_, place, message):
    with pytest.raises(ValidationError) as error:
        RandomSampler(non_activating=given_)
    assert options_error(RandomSampler, error.value) == [(("non_activating", place), message)]
