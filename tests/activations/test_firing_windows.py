"""A latent over the whole corpus, whatever was sampled of it."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted_run import cache_in, spec, truthful_server

import saeval
from saeval._run.collect import store_path
from saeval.activations import ActivationStore
from saeval.plugin.registry import Registry
from saeval.task import load_task


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("firing")
    with cache_in(folder), truthful_server() as server:
        task = spec(server, baselines=[], scorers={"detection": {}}, latents={"n": 2, "min_windows": 20})
        saeval.run(task, out=folder / "run")
        store = ActivationStore.open(store_path(load_task(task, registry=Registry()).cells[0].source))
    return folder / "run", store


def test_the_histogram_counts_every_activation_in_the_store(made):
    run, store = made
    for row in pq.read_table(run / "cells" / "all" / "latents.parquet").to_pylist():
        _, values = store.activations(row["latent"])
        assert row["histogram_top"] == pytest.approx(float(values.max()))
        expected = np.histogram(values, bins=len(row["histogram"]), range=(0, values.max()))[0]
        assert row["histogram"] == expected.tolist() and sum(row["histogram"]) == row["firings"]


def test_strongest_windows_and_fifths_come_from_all_windows_in_their_order(made):
    run, store = made
    rows = pq.read_table(run / "cells" / "all" / "activations.parquet").to_pylist()
    for latent in {row["latent"] for row in rows}:
        maxima = np.sort(store.windows(latent, 32).maxima)[::-1]
        mine = [row for row in rows if row["latent"] == latent]
        strongest = {group: [max(r["activations"]) for r in mine if r["group"] == group] for group in ("top", *"12345")}
        assert strongest["top"] == pytest.approx(maxima[:10].tolist())
        fifths = np.array_split(maxima, 5)
        for k, fifth in enumerate(fifths):
            values = strongest[str(k + 1)]
            assert len(values) == 4 and values == sorted(values, reverse=True)
            assert fifth[-1] <= min(values) and max(values) <= fifth[0]
