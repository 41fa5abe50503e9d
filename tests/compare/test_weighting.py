"""Means weighted by firing rate or energy appear on a joined board where requested, with intervals that hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cell_files import write_latents
from click.testing import CliRunner
from made_cells import cell_of, write_run
from small_stores import dataset, dense, write

import saeval
from saeval import InputError
from saeval._compare.stats import weighted_mean
from saeval.activations import mean_square
from saeval.cli.group import main
from saeval.plugin import derive_rng

VALUES = {0: 0.5, 1: 0.9, 2: 0.7}
DENSITY = {0: 0.3, 1: 0.1, 2: 0.0}


def latents(folder, **more):
    write_latents(folder / "cells" / "topk" / "latents.parquet", [
        {"latent": i, "firings": 1, "windows": 30, "density": DENSITY[i], "max_activation": 2.0,
         "explanation_status": "ok", "score.detection.balanced_accuracy": x,
         **{name: by_latent[i] for name, by_latent in more.items()}}
        for i, x in VALUES.items()
    ])  # fmt: skip


@pytest.fixture
def run(tmp_path):
    scores = {"detection.balanced_accuracy": VALUES}
    write_run(tmp_path / "run", (cell_of("topk", scores), scores, {}))
    latents(tmp_path / "run")
    return tmp_path / "run"


def board(run, *options):
    done = CliRunner().invoke(main, ["leaderboard", str(run), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_weighted_mean_is_beside_the_plain_one_only_where_requested(run):
    assert "weighted" not in board(run)
    text = board(run, "--weights", "firing_rate")
    assert ".700" in text and ".600 [" in text and "each weighted by the share of tokens" in " ".join(text.split())
    assert "weighted" in board(run, "--weights", "firing_rate", "-f", "markdown")
    assert "weighted" not in board(run, "-f", "markdown")
    (row,) = json.loads(board(run, "--weights", "firing_rate", "-f", "json"))["boards"][0]["rows"][0]["scores"]
    assert row["weighted"] == pytest.approx((0.3 * 0.5 + 0.1 * 0.9) / 0.4)
    assert row["weighted_n"] == pytest.approx(0.4**2 / (0.3**2 + 0.1**2))
    low, high = row["weighted_ci95"]
    assert 0 <= low < 0.6 < high <= 1


def test_energy_weighs_by_squared_activation_and_decoder_length_and_says_when_it_cannot(run):
    with pytest.raises(InputError, match="no mean_square and decoder_norm"):
        saeval.join([run], weights="energy")
    latents(run, mean_square={0: 1.0, 1: 1.0, 2: 0.0})
    with pytest.raises(InputError, match="has no decoder_norm, so .* rerun its command where its coder can be loaded"):
        saeval.join([run], weights="energy")
    latents(run, mean_square={0: 1.0, 1: 1.0, 2: 0.0}, decoder_norm={0: 1.0, 1: 2.0, 2: 1.0})
    (standing,) = saeval.join([run], weights="energy").groups(None)[""].standings
    assert standing.cell.scores[0].weighted == pytest.approx((0.5 + 4 * 0.9) / 5)


def test_energy_is_the_squared_error_that_leaving_a_latent_out_adds_to_a_least_squares_decoder(tmp_path):
    """By hand: sparse activations of a store, inputs with noise, a decoder fitted to them, each latent left out."""
    rng = derive_rng(7)
    n_latents, width, data = 6, 4, dataset(ragged=True)
    a = dense(data, n_latents, share=0.3)
    store = write(tmp_path / "store", data, a)
    inside = a[data.mask].astype(np.float64)
    x = inside @ rng.normal(size=(n_latents, width)) + rng.normal(size=(len(inside), width))
    decoder = np.linalg.lstsq(inside, x, rcond=None)[0]

    def error(left_out=None):
        kept = [i for i in range(n_latents) if i != left_out]
        return float(np.square(x - inside[:, kept] @ decoder[kept]).sum(axis=1).mean())

    energies = [mean_square(store, i) * np.square(decoder[i]).sum() for i in range(n_latents)]
    added = [error(i) - error() for i in range(n_latents)]
    assert energies == pytest.approx(added, rel=1e-3)  # values are kept in half precision


@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_interval_covers_the_mean_of_latents_with_such_weights(spread):
    rng, covered, n = derive_rng(3), 0, 200
    for _ in range(n):
        weights = np.exp(rng.normal(0, spread, 30))
        expected = 0.7 - 0.05 * np.log(weights)
        values = np.clip(expected + 0.6 * (rng.beta(2, 2, 30) - 0.5), 0, 1)
        low, high = weighted_mean(values, weights, rng, low=0, high=1, resamples=400).ci95
        covered += low <= weights @ expected / weights.sum() <= high
    assert covered / n > 0.9


def test_equal_scores_prove_as_little_as_few_latents_do():
    even = weighted_mean([1.0] * 10, [1.0] * 10, derive_rng(0), low=0, high=1)
    uneven = weighted_mean([1.0] * 10, [100.0, *[1.0] * 9], derive_rng(0), low=0, high=1)
    assert uneven.ci95[0] < even.ci95[0] < 0.8
