"""Example embedding: windows that are alike score high, chance is a half, and the explanation plays no part."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from saeval_plugins.scorers.embedding import Embedding
from saeval_plugins.scorers.example_embedding import ExampleEmbedding

from saeval import InputError
from saeval._compare import score_noise
from saeval._compare.score_rows import latent_score_rows
from saeval.plugin import AUROC, Explanation, derive_rng
from saeval.records import JudgedWindows
from saeval.testing.contracts import check_scorer
from saeval.testing.toys import context, make_examples, word_embeddings


def score(examples, explanation="anything", **options):
    return asyncio.run(ExampleEmbedding().score(Explanation(text=explanation), examples, context(**options)))


def embedding_of(rows):
    """An `Embed` that gives these unit vectors, whatever the texts."""
    return lambda _, texts: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)[: len(texts)]


def test_example_embedding_satisfies_the_contract():
    check_scorer(ExampleEmbedding())
    assert ExampleEmbedding.metrics == (AUROC,) and ExampleEmbedding.llm_role is None


def test_windows_that_share_a_word_lie_closer_to_each_other_than_to_others():
    def share(_, texts):
        return word_embeddings("", [" ".join(w for w in t.split() if w == "harbor" or len(w) > 5) for t in texts])

    assert score(make_examples(), embed=share).values["auroc"] > 0.95


@pytest.mark.parametrize("spread", [1, 1 / np.arange(1, 31)])  # the second has few directions that matter, like text
@pytest.mark.parametrize(("activating", "non_activating"), [(20, 20), (50, 10), (5, 40)])
def test_windows_that_are_all_of_a_kind_score_a_half(activating, non_activating, spread):
    """Leaving both windows of a pair out of the means takes away the head start that either would have."""
    found = []
    for seed in range(60):
        rows = derive_rng(seed, "null").normal(size=(activating + non_activating, 30)) * spread + 1
        examples = make_examples(activating=activating, non_activating=non_activating)
        found.append(score(examples, embed=embedding_of(rows)).values["auroc"])
    assert np.mean(found) == pytest.approx(0.5, abs=3.5 * np.std(found) / 60**0.5)


def test_equal_windows_score_a_half_exactly():
    examples = make_examples(activating=7, non_activating=11)
    rows = np.tile(derive_rng(0, "rows").normal(size=(1, 5)), (18, 1))
    assert score(examples, embed=embedding_of(rows)).values["auroc"] == 0.5


def test_values_are_mean_cosines_over_the_other_windows():
    rows = derive_rng(0, "rows").normal(size=(9, 5))
    examples = make_examples(activating=4, non_activating=5)
    found = score(examples, embed=embedding_of(rows))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for i, (outcome, value) in enumerate(zip(found.outcomes, found.notes["nearer"], strict=True)):
        near = np.mean([unit[i] @ unit[j] for j in range(4) if j != i])
        far = np.mean([unit[i] @ unit[j] for j in range(4, 9) if j != i])
        assert value == pytest.approx(near - far, abs=1e-6)
        assert outcome.active == (i < 4) and outcome.predicted is None
    assert found.values["auroc"] == np.mean([won(unit, i, j) for i in range(4) for j in range(4, 9)])


def won(unit, i, j):
    """Whether activating window i is nearer its own kind than window j, leaving both out of the means."""
    near, far = (np.mean([unit[k] for k in range(*side) if k not in (i, j)], axis=0) for side in ((0, 4), (4, 9)))
    return unit[i] @ (near - far) > unit[j] @ (near - far)


@pytest.mark.parametrize("apart", [0.0, 5.0])  # windows of a kind, and windows that are told apart without an error
def test_no_noise_is_stated_since_windows_share_the_means_that_they_are_compared_with(apart):
    rows = derive_rng(3, "noise").normal(size=(16, 6))
    rows[:8, 0] += apart
    found = score(make_examples(activating=8, non_activating=8), embed=embedding_of(rows))
    assert score_noise(found) is None
    (row,) = latent_score_rows(0, "example_embedding", "explanation", found, JudgedWindows.of(found.outcomes))
    assert row["value"] == found.values["auroc"] and row["low"] is row["high"] is None
    assert [outcome.active for outcome in found.outcomes] == [True] * 8 + [False] * 8


def test_the_explanation_plays_no_part():
    assert score(make_examples(), "one") == score(make_examples(), "two")
    assert not ExampleEmbedding.reads_explanation and Embedding.reads_explanation


@pytest.mark.parametrize("sides", [(1, 20), (20, 1), (0, 20)])
def test_a_window_with_none_to_be_compared_with_is_a_reason_to_skip(sides):
    assert score(make_examples(activating=sides[0], non_activating=sides[1])).status == "skipped"


def test_model_is_checked_and_hashed_like_that_of_embedding(tmp_path):
    for kind in (Embedding, ExampleEmbedding):
        with pytest.raises(InputError):
            kind(model=str(tmp_path / "nothing")).check()
        before = kind(model=str(tmp_path)).fingerprint()
        (tmp_path / "model.safetensors").write_text(kind.name)
        assert kind(model=str(tmp_path)).fingerprint() != before
        (tmp_path / "model.safetensors").unlink()


def test_order_of_windows_does_not_matter():
    examples = make_examples(seed=3)
    turned = replace(examples, activating=examples.activating[::-1], non_activating=examples.non_activating[::-1])
    assert score(turned).values["auroc"] == pytest.approx(score(examples).values["auroc"])
