"""The contract that saeval asks of every source, and known answers."""

from __future__ import annotations

import pytest
from saeval_wordvec import WordVectors

from saeval.plugin import ActivationWriter, Corpus, InputError
from saeval.testing import check_source


def collect(tmp_path, vectors, text="The cat saw a cat. The dog sat by a cat.", name="store"):
    (tmp_path / "vectors.txt").write_text(vectors)
    (tmp_path / "text.txt").write_text(text)
    source = WordVectors(path=tmp_path / "vectors.txt", corpus=Corpus(path=tmp_path / "text.txt", context=8))
    writer = ActivationWriter(tmp_path / name)
    source.collect(writer)
    return writer.finish()


def test_contract(tmp_path):
    check_source(WordVectors(**WordVectors.contract_options), tmp_path)


def test_dimension_fires_on_the_words_whose_vectors_are_positive_there(tmp_path):
    store = collect(tmp_path, "cat 1.5 -1\ndog 0.5 0\nzebra 9 9\n")
    positions, values = store.activations(0)
    assert positions.tolist() == [1, 4, 7, 11] and values.tolist() == [1.5, 1.5, 0.5, 1.5]
    assert store.firings.tolist() == [4, 0]
    assert store.facts["unknown_words"] == round(9 / 13, 4)  # full stops have no vectors, too


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        ("", "holds no vectors"),
        ("cat 1 2\ndog 1 2 3\n", ":2: 3 numbers, the first line has 2"),
        ("cat 1 x\n", ":1: should be"),
    ],
)
def test_malformed_vectors_are_one_clear_sentence(tmp_path, vectors, complaint):
    with pytest.raises(InputError, match=complaint):
        collect(tmp_path, vectors)
