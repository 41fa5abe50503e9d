"""The store keeps what is written, in bounded memory, and refuses what is damaged."""

from __future__ import annotations

import dataclasses
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from small_stores import dataset, dense, in_turns, write

from saeval import StoreError
from saeval.activations.store import chunks
from saeval.activations.store.chunks import Chunk, by_latent, merge, pair_type
from saeval.activations.store.reader import firings_between
from saeval.activations.store.writer import merge_budget
from saeval.plugin import ActivationStore, ActivationWriter, LatentId


@settings(deadline=None, max_examples=25)
@given(
    budget=st.integers(1, 3000), share=st.floats(0, 0.3), n_latents=st.sampled_from([1, 7, 40]), ragged=st.booleans()
)
def test_store_returns_exactly_what_was_written_whatever_the_memory_budget(
    tmp_path_factory, budget, share, n_latents, ragged
):
    data = dataset(ragged=ragged)
    activations = dense(data, n_latents, share)
    store = write(tmp_path_factory.mktemp("s") / "store", data, activations, budget=budget)
    flat = activations.reshape(-1, n_latents)
    for latent in range(n_latents):
        position, value = store.activations(latent)
        assert np.array_equal(position, np.nonzero(flat[:, latent])[0])
        assert np.allclose(value, flat[position, latent], rtol=1e-3)
    assert store.n_tokens == data.mask.sum()


def pieces(folder, n, nonzeros=200, n_latents=30):
    """Pieces of a corpus, in which latents fire at random."""
    folder.mkdir()
    rng, made = np.random.default_rng(0), []
    for number in range(n):
        pairs = np.zeros(nonzeros, dtype=pair_type(n * nonzeros))
        pairs["position"] = number * nonzeros + np.arange(nonzeros)
        pairs["value"] = rng.random(nonzeros) + 1
        made.append(Chunk(folder / str(number), n_latents, pairs.dtype))
        made[-1].write(*by_latent(rng.integers(n_latents, size=nonzeros).astype(np.uint16), pairs, n_latents))
    return made, pairs.dtype


def test_merging_takes_reads_in_proportion_to_the_nonzeros_and_gives_the_same_in_any_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_READ", 50)
    reads = []
    read = Chunk._read
    monkeypatch.setattr(Chunk, "_read", lambda self, *args: reads.append(1) or read(self, *args))
    counts = {}
    for n in (20, 80):
        parts, kind = pieces(tmp_path / str(n), n)
        found = []
        for budget in (400, 10**6):
            folder = tmp_path / f"{n}-{budget}"
            folder.mkdir()
            reads.clear()
            assert merge(parts, 30, kind, folder, budget) == n * 200
            counts[n, budget] = len(reads)
            found.append({f.name: f.read_bytes() for f in folder.iterdir()})
        assert found[0] == found[1] and set(found[0]) == {"indptr.npy", "position.npy", "value.npy"}
    assert counts[80, 400] < 6 * counts[20, 400]  # 16 times where each piece is read for each range of latents


def test_memory_for_merging_follows_what_is_free_within_bounds():
    assert [merge_budget(free) for free in (None, 0, 10**9, 10**12)] == [8_000_000, 2_000_000, 6_250_000, 32_000_000]


def test_places_that_just_exceed_32_bits_do_not_wrap():
    assert [pair_type(places)["position"] for places in (2**32 - 1, 2**32)] == [np.dtype("<u4"), np.dtype("<u8")]
    position = np.array([2**32 - 40, 2**32 - 32, 2**32 - 1], dtype=np.uint32)  # as earlier versions wrote them
    low, high = firings_between(position, np.array([2**32 - 64, 2**32 - 32]), 32)
    assert low.tolist() == [0, 1] and high.tolist() == [1, 3]


def test_positions_beyond_32_bits_are_merged_as_they_are(tmp_path):
    kind, places = pair_type(2**32 + 100), [2**32 - 1, 2**32, 2**32 + 7]
    for i, (position, latent) in enumerate(zip(places, (1, 0, 1), strict=True)):
        pairs = by_latent(np.array([latent], np.uint16), np.array([(position, 1.0)], kind), 2)
        Chunk(tmp_path / f"{i}", 2, kind).write(*pairs)
    (tmp_path / "merged").mkdir()
    assert merge([Chunk(tmp_path / f"{i}", 2, kind) for i in range(3)], 2, kind, tmp_path / "merged", 100) == 3
    merged = np.load(tmp_path / "merged" / "position.npy")
    assert merged.tolist() == [2**32, 2**32 - 1, 2**32 + 7]
    low, high = firings_between(merged[1:], np.array([2**32 - 32, 2**32]), 32)
    assert low.tolist() == [0, 1] and high.tolist() == [1, 2]


def test_windows_of_a_corpus_beyond_32_bits_are_those_of_a_smaller_one(tmp_path, monkeypatch):
    data = dataset(ragged=True)
    activations = dense(data, 2, 0.1)
    small = write(tmp_path / "small", data, activations)
    monkeypatch.setattr("saeval.activations.store.writer.pair_type", lambda places: pair_type(2**32 + places))
    large = write(tmp_path / "large", data, activations)
    assert (small.position.dtype, large.position.dtype) == (np.uint32, np.uint64)
    ids = small.windows(1, 8).ids
    assert np.array_equal(ids, large.windows(1, 8).ids)
    for one, other in zip(*(store.examples(LatentId("here", 1), ids, 8) for store in (small, large)), strict=True):
        assert np.array_equal(one.token_ids, other.token_ids) and np.array_equal(one.activations, other.activations)
        assert one.activations.any()


def test_latents_beyond_16_bits_are_sorted_too(tmp_path):
    data = dataset()
    writer = ActivationWriter(tmp_path / "s")
    writer.start(data, 200_000)
    latents = np.array([199_999, 3, 70_000, 65_539, 3])
    writer.add(np.array([1, 2, 3, 4, 5]), latents, np.ones(5, dtype=np.float32))
    writer.advance(len(data.tokens))
    store = writer.finish()
    assert [store.activations(i)[0].tolist() for i in (3, 65_539, 70_000, 199_999)] == [[2, 5], [4], [3], [1]]


def test_values_that_float16_cannot_hold_are_kept_in_float32(tmp_path):
    data = dataset()
    for name, value in (("large", 70_000.0), ("tiny", 1e-7)):
        writer = ActivationWriter(tmp_path / name)
        writer.start(data, 1)
        writer.add(np.array([1]), np.array([0]), np.array([value], dtype=np.float32))
        writer.advance(len(data.tokens))
        assert writer.finish().activations(0)[1][0] == np.float32(value)


def test_float16_keeps_each_value_to_a_two_thousandth_of_the_latents_peak_and_makes_none_zero(tmp_path):
    data = dataset()
    value = np.array([5.0, 1e-5, 1e-9, 1e-12, 0.333333], dtype=np.float32)
    writer = ActivationWriter(tmp_path / "s")
    writer.start(data, 2)
    writer.add(np.arange(5), np.zeros(5, dtype=np.int64), value)
    writer.advance(len(data.tokens))
    store = writer.finish()
    kept = store.activations(0)[1]
    assert store.value.dtype == np.float16
    assert (np.abs(kept - value) < 5.0 / 2000).all() and np.array_equal(np.sign(kept), np.sign(value))


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        ("mask", lambda d: d.mask[:, :-1], "mask has the shape"),
        ("lengths", lambda d: d.lengths[1:], "lengths has the shape"),
        ("document_names", lambda d: d.document_names[:-1], "give every document a name"),
        ("vocabulary", lambda d: {**d.vocabulary, 3: " the"}, "' the' as a token's text; give bytes"),
        ("vocabulary", lambda d: {}, "lacks the token .* give the bytes"),
    ],
)
def test_parts_of_a_corpus_that_do_not_fit_together_are_refused_before_anything_is_collected(
    tmp_path, part, changed, said
):
    data = dataset()
    data.check()
    with pytest.raises(StoreError, match=said):
        ActivationWriter(tmp_path / "s").start(dataclasses.replace(data, **{part: changed(data)}), 1)


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        ("lengths", lambda d: d.lengths + 1, "lengths has the numbers 65 to 66, but a context has 65 tokens"),
        ("lengths", lambda d: d.lengths - 66, "lengths has the numbers -2 to -1"),
        ("mask", lambda d: d.mask.astype(np.int32), "mask is an array of int32; give one of True and False"),
        ("tokens", lambda d: np.where(d.tokens == 7, -2, d.tokens), "tokens has -2 where the mask is True"),
        ("tokens", lambda d: d.tokens.astype(np.float32), "tokens is an array of float32; give one of integers"),
        ("tokens", lambda d: d.tokens.ravel(), r"tokens has the shape \(780,\); give one row per context"),
        ("documents", lambda d: d.documents.tolist(), "documents is a list; give a NumPy array of integers"),
    ],
)
def test_parts_of_a_corpus_with_values_that_cannot_be_are_refused(part, changed, said):
    data = dataset()
    data = dataclasses.replace(data, lengths=data.lengths - (np.arange(12) == 0))
    data.check()
    with pytest.raises(StoreError, match=rf"TokenDataset\.{said}"):
        dataclasses.replace(data, **{part: changed(data)}).check()


def test_padding_may_have_any_token_and_hides_no_token_without_bytes():
    data = dataset(ragged=True)
    padded = np.where(np.arange(65) < data.lengths[:, None], data.tokens, -1)
    dataclasses.replace(data, tokens=padded).check()
    vocabulary = {**data.vocabulary, -1: b""}
    del vocabulary[20]
    with pytest.raises(StoreError, match="vocabulary lacks the token 20"):
        dataclasses.replace(data, tokens=padded, vocabulary=vocabulary).check()


def test_positions_outside_the_corpus_are_refused(tmp_path):
    data = dataset()
    for position in (-1, data.tokens.size):
        writer = ActivationWriter(tmp_path / "s")
        writer.start(data, 1)
        with pytest.raises(
            StoreError, match=f"outside the dictionary or the corpus: the source gave the position {position}"
        ):
            writer.add(np.array([position]), np.array([0]), np.ones(1, dtype=np.float32))


@pytest.mark.parametrize(("latents", "allowed"), [(0, "none"), (1, "0 to 0")])
def test_latent_outside_the_dictionary_is_refused_with_those_allowed(tmp_path, latents, allowed):
    writer = ActivationWriter(tmp_path / "s")
    writer.start(dataset(), latents)
    with pytest.raises(StoreError, match=f"the source gave the latent 3, but `writer.start` allows {allowed}$"):
        writer.add(np.array([1]), np.array([3]), np.ones(1, dtype=np.float32))


def test_interrupted_writer_resumes_after_its_last_chunk_and_gives_the_same_store(tmp_path):
    data = dataset()
    activations = dense(data, 9, 0.2)
    whole = write(tmp_path / "whole", data, activations, budget=300)
    assert write(tmp_path / "cut", data, activations, budget=300, stop_after=7) is None
    resumed_at = ActivationWriter(tmp_path / "cut").start(data, 9)
    assert 0 < resumed_at <= 7
    resumed = write(tmp_path / "cut", data, activations, budget=300)
    for name in ("indptr", "position", "value"):
        assert np.array_equal(getattr(resumed, name), getattr(whole, name))


def test_unfinished_truncated_and_flipped_stores_are_refused(tmp_path):
    data = dataset()
    with pytest.raises(StoreError, match="not a finished store"):
        ActivationStore.open(tmp_path / "nothing")
    path = write(tmp_path / "s", data, dense(data, 3, 0.2)).path
    value = path / "value.npy"
    good = value.read_bytes()
    value.write_bytes(good[:-1])
    with pytest.raises(StoreError, match="bytes instead of"):
        ActivationStore.open(path)
    value.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match="checksum"):
        ActivationStore.open(path, verify=True)
    (path / "manifest.json").write_text(json.dumps({"format": "other/9"}))
    with pytest.raises(StoreError, match="other/9"):
        ActivationStore.open(path)


def test_activations_that_are_not_finite_are_refused(tmp_path):
    writer = ActivationWriter(tmp_path / "s")
    writer.start(dataset(), 1)
    with pytest.raises(StoreError, match="NaN or infinite"):
        writer.add(np.array([1]), np.array([0]), np.array([np.inf], dtype=np.float32))


@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.5"), (0.0, "0")])
def test_activations_that_are_not_above_0_are_refused_with_the_remedy(tmp_path, value, shown):
    writer = ActivationWriter(tmp_path / "s", source="own/source")
    writer.start(dataset(), 1)
    said = rf"the source own/source gave the activation {shown}; a latent fires only above 0.* \(`keep = value > 0`\)"
    with pytest.raises(StoreError, match=said):
        writer.add(np.array([1, 2]), np.array([0, 0]), np.array([2.0, value], dtype=np.float32))


def test_activations_of_contexts_that_are_complete_are_refused_with_the_remedy(tmp_path):
    data, one = dataset(), np.ones(1, dtype=np.float32)
    length = data.tokens.shape[1]
    writer = ActivationWriter(tmp_path / "s", budget=1, source="own/source")
    writer.start(data, 3)
    writer.add(np.array([length + 2]), np.array([0]), one)
    writer.advance(2)
    said = rf"own/source gave activations at position {length + 3} \(context 1, token 3\), which was complete"
    with pytest.raises(StoreError, match=said):
        writer.add(np.array([length + 3]), np.array([1]), one)
    resumed = ActivationWriter(tmp_path / "s", budget=1)
    assert resumed.start(data, 3) == 2
    with pytest.raises(StoreError, match="context 0, token 1.* from the one that `writer.start` returns"):
        resumed.add(np.array([1]), np.array([1]), one)


def test_latents_of_one_position_come_in_any_order_and_in_several_calls(tmp_path):
    writer = ActivationWriter(tmp_path / "s")
    writer.start(dataset(), 5)
    for latents in ([4, 0, 2], [3]):
        writer.add(np.full(len(latents), 7), np.array(latents), np.ones(len(latents), dtype=np.float32))
    writer.advance(len(dataset().tokens))
    store = writer.finish()
    assert [store.activations(latent)[0].tolist() for latent in range(5)] == [[7], [], [7], [7], [7]]


def test_source_that_stops_early_does_not_make_a_store(tmp_path):
    writer = ActivationWriter(tmp_path / "s")
    writer.start(dataset(), 1)
    writer.advance(5)
    with pytest.raises(StoreError, match="5 of 12 contexts"):
        writer.finish()
    assert not (tmp_path / "s").exists()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), window=st.sampled_from([8, 16, 21]), ragged=st.booleans())
def test_windows_agree_with_brute_force(tmp_path_factory, seed, window, ragged):
    data = dataset(ragged=ragged)
    activations = dense(data, 2, 0.05, seed)
    store = write(tmp_path_factory.mktemp("s") / "store", data, activations)
    tiles = 64 // window
    expected, silent = {}, set()
    for context in range(len(data.tokens)):
        for tile in range(tiles):
            low = 1 + tile * window
            if low + window <= data.lengths[context]:
                top = activations[context, low : low + window, 1].max()
                if top > 0:
                    expected[context * tiles + tile] = top
                else:
                    silent.add(context * tiles + tile)
    windows = store.windows(1, window)
    assert windows.ids.tolist() == sorted(expected)
    assert np.allclose(windows.maxima, [expected[i] for i in windows.ids.tolist()], rtol=1e-3)
    drawn = store.silent_windows(1, window, 1000, np.random.default_rng(0))
    assert set(drawn.tolist()) == silent


def test_examples_carry_text_activations_and_place(tmp_path):
    data = dataset()
    activations = dense(data, 1, 0.05)
    store = write(tmp_path / "s", data, activations)
    window = store.windows(0, 16)
    (example,) = store.examples(LatentId("here", 0), window.ids[:1], 16)
    context, tile = divmod(int(window.ids[0]), 4)
    part = slice(1 + tile * 16, 17 + tile * 16)
    assert example.text == "".join(f" w{t}" for t in data.tokens[context, part])
    assert np.allclose(example.activations, activations[context, part, 0], rtol=1e-3)
    assert (example.context, example.document, example.active) == (context, int(data.documents[context]), True)
    assert example.max_activation == pytest.approx(float(window.maxima[0]))


@pytest.mark.parametrize("turn", [None, 30])
def test_windows_of_several_latents_are_shifted_at_once_as_those_of_each(tmp_path, turn):
    data = dataset(contexts=60, ragged=True)
    data = data if turn is None else in_turns(data, turn)
    store = write(tmp_path / "s", data, dense(data, 5, 0.05), facts={"roles": ["user"]} if turn else None)
    ids = [store.windows(latent, 8).ids for latent in range(5)]
    # as samplers shift the windows of one latent
    shifts = [store.shifts_around(latent, ids[latent], 8) for latent in range(5)]
    expected = np.concatenate([store.shifted(latent, ids[latent], 8, shifts[latent]) for latent in range(5)])
    latents, together = np.repeat(np.arange(5), [len(x) for x in ids]), np.concatenate(ids)
    begins = store.begin_of(together, 8)
    fires = (store.activations(latent)[0] for latent in latents)
    found = [np.searchsorted(position, (begin, begin + 8)) for position, begin in zip(fires, begins, strict=True)]
    low, high = np.transpose(found) + store.indptr[latents]
    assert np.array_equal(store.begins_around(latents, together, (low, high), 8), expected)
    assert (expected != begins).any()


def test_drawing_silent_windows_from_a_large_corpus_needs_no_list_of_all_windows(tmp_path):
    data = dataset(contexts=3000)
    activations = np.zeros((*data.tokens.shape, 1), dtype=np.float32)
    activations[:, 5] = 1.0  # fires in the first window of every context
    store = write(tmp_path / "s", data, activations)
    drawn = store.silent_windows(0, 8, 50, np.random.default_rng(1))
    assert len(set(drawn.tolist())) == 50
    assert all(i % 8 != 0 for i in drawn)


@settings(deadline=None, max_examples=15)
@given(window=st.sampled_from([4, 8, 9]), turn=st.integers(5, 30), ragged=st.booleans())
def test_windows_of_roles_are_counted_where_they_are_drawn_from(tmp_path_factory, window, turn, ragged):
    data = in_turns(dataset(contexts=30, ragged=ragged), turn)
    folder, facts = tmp_path_factory.mktemp("s"), {"roles": ["assistant"]}
    store = write(folder / "store", data, dense(data, 1, 0.05), facts=facts)
    tiles = 64 // window
    counted = data.mask[:, 1 : 1 + tiles * window].reshape(-1, window).all(axis=1)
    assert store.window_count(window) == counted.sum()
    drawn = store.draw_windows(window, 10_000, np.random.default_rng(0))
    assert sorted(drawn.tolist()) == np.flatnonzero(counted).tolist()
    silent = store.silent_windows(0, window, 10_000, np.random.default_rng(0))
    assert len(store.windows(0, window).ids) + len(silent) == store.window_count(window)


@pytest.mark.parametrize("excerpts", [False, True])
def test_silent_windows_are_found_however_few_of_a_large_corpus_they_are(tmp_path, excerpts):
    data = dataset(contexts=1500)
    activations = np.zeros((*data.tokens.shape, 1), dtype=np.float32)
    known = None
    if excerpts:
        known = np.zeros(7, dtype=np.int64), np.arange(0, 1400, 200)
    else:
        activations[:, 1::8] = 1.0  # in every window but those of seven contexts
        activations[:1400:200] = 0.0
    store = write(tmp_path / "s", data, activations, known=known)
    silent = {context * 8 + tile for context in range(0, 1400, 200) for tile in range(8)}
    drawn = store.silent_windows(0, 8, 50, np.random.default_rng(1))
    assert len(set(drawn.tolist())) == 50 and silent.issuperset(drawn.tolist())
    rest = store.silent_windows(0, 8, 100, np.random.default_rng(1), lambda ids: ids % 8 > 0)
    assert sorted(rest.tolist()) == sorted(i for i in silent if i % 8 > 0)


def test_character_split_between_tokens_belongs_to_the_token_that_begins_it(tmp_path):
    data = dataset(contexts=2)
    pieces = {**data.vocabulary, 1: "é".encode()[:1], 2: "é".encode()[1:], 3: " ü".encode()}
    tokens = np.where(np.arange(65) % 2 == 0, 2, 1).astype(np.int32) * np.ones((2, 1), dtype=np.int32)
    tokens[1] = 3
    data = replace(data, tokens=tokens, vocabulary=pieces)
    store = write(tmp_path / "s", data, dense(data, 1, 0.05))
    halves, broken, whole = store.examples_at(LatentId("here", 0), [1, 2, 66], 4)
    assert halves.tokens == ("é", "", "é", "")
    assert "".join(broken.tokens) == "\N{REPLACEMENT CHARACTER}é\N{REPLACEMENT CHARACTER}"
    assert whole.tokens == (" ü",) * 4


def test_examples_can_be_changed_pickled_and_shown(tmp_path):
    data = dataset()
    store = write(tmp_path / "s", data, dense(data, 1, 0.05))
    assert store.examples(LatentId("here", 0), [], 16) == ()
    (example,) = store.examples(LatentId("here", 0), [5], 16, [3])
    context, tile = divmod(5, 4)
    assert np.array_equal(example.token_ids, data.tokens[context, 1 + tile * 16 : 17 + tile * 16])
    assert repr(example).startswith("Example(tokens=(' w")
    for other in (replace(example, decile=4), pickle.loads(pickle.dumps(example))):
        assert (other.id, other.tokens) == (example.id, example.tokens)
        assert np.array_equal(other.token_ids, example.token_ids)
        assert np.array_equal(other.activations, example.activations)
    assert (replace(example, decile=4).decile, pickle.loads(pickle.dumps(example)).decile) == (4, 3)
