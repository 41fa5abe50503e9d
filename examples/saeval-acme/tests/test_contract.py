"""Tests the contracts of scorers and samplers, and a known answer."""

from __future__ import annotations

import asyncio

from saeval_acme import Purity, Spread

from saeval.plugin import Explanation
from saeval.testing import check_sampler, check_scorer, context, make_examples


def test_contracts():
    check_scorer(Purity())
    check_sampler(Spread(n=10))


def test_latent_that_fires_on_one_word_is_pure():
    score = asyncio.run(Purity().score(Explanation(text="the word 'harbor'"), make_examples("harbor"), context()))
    assert score.values["purity"] == 1.0
