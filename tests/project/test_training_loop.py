"""The example of a training loop runs on a tiny model, and checkpoints are compared latent by latent."""

from __future__ import annotations

import runpy

import pytest
from root import ROOT
from tiny import tiny_corpus, tiny_model

import saeval
from saeval import InputError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(place / "cache"))
        example = runpy.run_path(str(ROOT / "examples" / "training_loop.py"))
        model, corpus = str(tiny_model(place / "model", "llama")), tiny_corpus(place / "corpus.jsonl", documents=12)
        judge = saeval.RoleSpec(model="scripted/half", rules=[{"match": "Window 1: .*a", "reply": "[1]"}], reply="[0]")
        spec = example["spec_for"](model, "layers.0", corpus, judge)
        spec = spec.changed({"scorers.detection.with.batch": 1})
        x = example["activations"](model, "layers.0", corpus)
        return example["train"](x, spec, place / "out", n_latents=64, k=8, steps=40, every=20)


def test_every_checkpoint_is_scored_on_the_same_latents(runs):
    assert [path.parent.name for path in runs] == ["step-20", "step-40"]
    one, other = (saeval.read(path) for path in runs)
    assert (
        one.cells[0].coder["checksum"] != other.cells[0].coder["checksum"] if "checksum" in one.cells[0].coder else True
    )
    latents = [set(run.latents["latent"].to_pylist()) for run in (one, other)]
    assert len(latents[0] & latents[1]) >= 5
    assert one.cells[0].corpus == other.cells[0].corpus


def test_checkpoints_are_paired_where_requested_only(runs):
    by_data, requested = saeval.compare(*runs), saeval.compare(*runs, paired=True)
    assert not by_data.paired and "fire differently" in by_data.why
    assert requested.paired and "by number, as requested" in requested.why
    assert requested.contrasts[0].ci95 != by_data.contrasts[0].ci95 and not requested.agreement


def test_latents_that_are_not_the_same_cannot_be_paired(runs, tmp_path):
    from made_cells import cell_of, write_run

    for name, latents in (("a", range(10)), ("b", range(100, 110))):
        scores = {"detection.balanced_accuracy": {i: 0.5 + i % 3 / 10 for i in latents}}
        write_run(tmp_path / name, (cell_of("topk", scores), scores, {}))
    with pytest.raises(InputError, match="only 0 latent numbers are in both"):
        saeval.compare(tmp_path / "a", tmp_path / "b", paired=True)
