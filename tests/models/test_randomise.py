"""Models whose weights are shuffled: the values stay, their places do not, and nobody else's model changes."""

from __future__ import annotations

import pytest
import torch
from tiny import KINDS, tiny_model

from saeval._util import file_sha256
from saeval.plugin import LiveModel

TOKENS = torch.arange(3, 27).reshape(2, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind, tie_word_embeddings=True) for kind in KINDS}


def activations(live):
    point = live.hookpoint(live.blocks()[1])
    return live.capture(TOKENS, [point])[point]


def changed(a, b):
    """Names of the parameters that differ; all hold the same values, in whatever order."""
    there = dict(b.model.named_parameters())
    for name, matrix in a.model.named_parameters():
        assert torch.equal(matrix.flatten().sort().values, there[name].flatten().sort().values), name
    return {name for name, matrix in a.model.named_parameters() if not torch.equal(matrix, there[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_each_matrix_keeps_its_values_and_loses_their_places_and_vectors_stay(folders, kind):
    name = str(folders[kind])
    true = LiveModel.load(name)
    matrices = {n for n, p in true.model.named_parameters() if sum(size > 1 for size in p.shape) > 1}
    weights, tokens, both = (LiveModel.load(name, randomise=what) for what in ("weights", "embeddings", "all"))
    in_blocks = {n for n in matrices if f"{true.blocks()[0]}." in n}
    assert in_blocks <= changed(true, weights) == matrices - changed(true, tokens)
    assert in_blocks
    assert changed(true, both) == matrices
    table = true.model.get_input_embeddings().weight
    assert {n for n, p in true.model.named_parameters() if p is table} <= changed(true, tokens)
    assert not torch.allclose(activations(true), activations(weights), atol=0.1)


def test_tied_embeddings_are_shuffled_once_and_stay_tied(folders):
    live = LiveModel.load(str(folders["llama"]), randomise="embeddings")
    head, table = live.model.get_output_embeddings().weight, live.model.get_input_embeddings().weight
    assert head is table
    alone = tiny_model(folders["llama"].parent / "untied", "llama", tie_word_embeddings=False)
    untied = LiveModel.load(str(alone), randomise="embeddings")
    assert changed(LiveModel.load(str(alone)), untied) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_the_order_is_that_of_seed_and_name_alone_in_any_precision(folders):
    name = str(folders["llama"])

    def order(dtype, seed=0):
        true, live = (LiveModel.load(name, dtype=dtype, randomise=r, randomise_seed=seed) for r in (None, "weights"))
        path = "model.layers.0.mlp.up_proj.weight"
        return true.model.get_parameter(path), live.model.get_parameter(path)

    (true, full), (_, half) = order("float32"), order("bfloat16")
    assert torch.equal(full.bfloat16(), half)
    # The first entry's new place, the same on every machine.
    assert (full.flatten() == true.flatten()[0]).nonzero().tolist() == [[105]]
    first = activations(LiveModel.load(name, randomise="weights"))
    assert torch.equal(first, activations(LiveModel.load(name, randomise="weights", randomise_seed=0)))
    assert not torch.allclose(first, activations(LiveModel.load(name, randomise="weights", randomise_seed=1)), atol=0.1)


def test_neither_files_nor_a_model_in_use_change(tmp_path):
    folder = tiny_model(tmp_path / "model")
    before = {file.name: file_sha256(file) for file in folder.iterdir()}
    true = LiveModel.load(str(folder))
    seen = activations(true)
    shuffled = LiveModel.load(str(folder), randomise="all")
    assert shuffled is LiveModel.load(str(folder), randomise="all") is not true
    assert LiveModel.load(str(folder)) is true
    assert torch.equal(activations(true), seen)
    assert {file.name: file_sha256(file) for file in folder.iterdir()} == before
    assert shuffled.name == f"{folder} (all shuffled, seed 0)"
