"""A run read back gives its results, and its tables whole, for data frames."""

from __future__ import annotations

import shutil

import pytest
from planted_run import spec, truthful_server

import saeval


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory):
    """A run of two cells, of which only the second has fuzzing on all of its latents."""
    folder = tmp_path_factory.mktemp("read")
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        source = {"use": "synthetic", "with": {"n_latents": "${matrix.n}", "documents": 60}}
        saeval.run(
            spec(server, source=source, matrix={"n": [6, 8]}, latents={"n": 4, "min_windows": 20}), out=folder / "run"
        )
    return folder / "run"


def test_run_read_by_a_relative_path_outlives_a_change_of_folder(two_cells, tmp_path, monkeypatch):
    monkeypatch.chdir(two_cells.parent)
    run = saeval.read(two_cells.name)
    monkeypatch.chdir(tmp_path)
    assert len(run.latents) == 8
    assert "svg" in run.plot()._repr_html_()


def test_tables_hold_every_cell_and_agree_with_each_other(two_cells):
    run = saeval.read(two_cells)
    names = {cell.cell for cell in run.cells}
    tables = [run.scores, run.latents, run.latent_scores, run.explanations, run.examples, run.judgements, run.calls]
    assert all(set(table["cell"].to_pylist()) == names for table in tables)
    latents, scores = run.latents.to_pandas(), run.scores.to_pandas()
    means = latents.groupby("cell")["score.detection.balanced_accuracy"].mean()
    of_own = "scorer == 'detection' and metric == 'balanced_accuracy' and variant == 'explanation'"
    assert means.to_dict() == scores.query(of_own).set_index("cell").value.to_dict()
    assert len(latents) == 8
    long = run.latent_scores.to_pandas().query(of_own)
    assert long.groupby("cell").value.mean().to_dict() == means.to_dict()
    assert len(run.explanations) == sum(cell.counts["explained"] for cell in run.cells) + 3 * 8
    windows = run.examples.to_pandas().query("role == 'score'")
    detected = run.judgements.to_pandas().query("scorer == 'detection' and variant == 'explanation'")
    assert len(windows) == len(detected) == 8 * 40


def test_run_gives_what_read_gives_and_a_copy_elsewhere_is_equal(two_cells, tmp_path):
    run = saeval.read(two_cells)
    assert run == saeval.read(two_cells / "results.json")
    shutil.copytree(two_cells, tmp_path / "copy")
    assert saeval.read(tmp_path / "copy") == run
    assert saeval.plugin.RunResult.model_validate_json(run.model_dump_json(by_alias=True)) == run
    assert run != run.model_copy(update={"seed": 1})


def test_table_that_is_not_there_is_one_sentence_and_the_rest_can_be_read(two_cells, tmp_path):
    shutil.copy(two_cells / "results.json", tmp_path / "results.json")
    run = saeval.read(tmp_path)
    assert len(run.scores) > 10
    with pytest.raises(saeval.InputError, match=r"latents.parquet: does not exist; give the complete run directory"):
        _ = run.latents


def test_run_without_cells_has_empty_tables(two_cells):
    run = saeval.read(two_cells)
    empty = saeval.Run.model_construct(**{**dict(run), "cells": []})
    assert [len(table) for table in (empty.scores, empty.latents, empty.explanations)] == [0, 0, 0]
