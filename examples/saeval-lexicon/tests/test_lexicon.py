"""The contract that saeval asks of every explainer, and known answers."""

from __future__ import annotations

import asyncio

import pytest
from saeval_lexicon import Lexicon

from saeval.plugin import Examples, InputError, LatentId
from saeval.testing import check_explainer, context, make_example


def explain(fires: dict[str, float], **options):
    window = make_example(" the red and the green kettle", fires)
    return asyncio.run(Lexicon(**options).explain(Examples(LatentId("toy", 0), (window,), (), 5.0), context()))


def test_contract():
    check_explainer(Lexicon())


def test_class_that_covers_most_is_named_with_its_strongest_words():
    assert explain({"green": 2.0, "red": 3.0, "kettle": 1.0}).text == "colours, such as 'red', 'green'"


def test_latent_that_fires_on_no_one_class_is_not_explained():
    result = explain({"red": 1.0, "kettle": 1.0, "the": 1.0})
    assert result.status == "failed"
    assert result.reason == "no class of the lexicon covers enough: 50% of the activation falls on articles"


def test_lexicon_of_ones_own(tmp_path):
    (tmp_path / "mine.txt").write_text("kitchen: kettle\n")
    assert explain({"kettle": 1.0}, path=tmp_path / "mine.txt").text == "kitchen, such as 'kettle'"
    (tmp_path / "mine.txt").write_text("kitchen\n")
    with pytest.raises(InputError, match="'kitchen' should be a line such as"):
        Lexicon(path=tmp_path / "mine.txt").check()
