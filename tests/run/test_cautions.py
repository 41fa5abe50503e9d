"""What a reader must know of a row stands beside it: ratings of nothing, too few hard windows, another divergence than asked for."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from saeval_plugins.explainers import lens
from saeval_plugins.explainers.lens import Lens
from saeval_plugins.scorers.intervention import InterventionScorer
from safetensors.torch import load_file, save_file
from tiny import tiny_corpus, tiny_model, tiny_sae

import saeval

SPEC = r"""
saeval: 1
task: cautious
version: "1.0"
llms: {judge: {model: scripted/rule, reply: "[0]"}}
source: {use: synthetic, with: {n_latents: 6, documents: 60}}
latents: {n: 4, min_windows: 20}
sampler: {use: random, with: {explain: 10, score: 20, non_activating: {n: 20}}}
explainer: top_tokens
scorers: {detection: {with: {batch: 1}}}
baselines: []
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def cautions(tmp_path, **changes):
    run = saeval.run({**yaml.safe_load(SPEC), **changes}, out=tmp_path / "run")
    (cell,) = run.cells
    assert all(f"{cell.cell}: {said}" in run.warnings for said in cell.cautions)
    return cell.cautions


def test_nothing_is_said_where_nothing_is_wrong(tmp_path):
    assert cautions(tmp_path) == []


def test_ratings_that_are_of_no_latent_of_the_run_are_said(tmp_path):
    (tmp_path / "ratings.csv").write_text("latent,rating,explanation\n500,3,\n501,2,\n0,4,some other explanation\n")
    latents = {"select": "list", "indices": [0, 1, 2]}
    said = cautions(
        tmp_path, latents=latents, scorers={"human": {"use": "human", "with": {"path": str(tmp_path / "ratings.csv")}}}
    )
    assert "human: 2 of 3 ratings in ratings.csv match no latent of this cell." in said
    assert any("no rating in ratings.csv matches an explanation of this cell" in caution for caution in said)


def test_latents_with_fewer_hard_windows_than_asked_for_are_said(tmp_path):
    silent = {"n": 5000}
    (said,) = cautions(
        tmp_path, sampler={"use": "random", "with": {"explain": 10, "score": 20, "non_activating": silent}}
    )
    assert "latents have fewer than the 5000 requested non-activating windows" in said


def test_a_divergence_off_by_more_than_the_tolerance_is_said():
    scorer = InterventionScorer(kl=0.1, tune=4)
    assert scorer.cautions({"nats": 1.0, "kl_reached": 0.109}, []) == scorer.cautions({}, []) == []
    (said,) = scorer.cautions({"nats": 1.0, "kl_reached": 0.53}, [])
    assert "0.53 nats on the scored windows, but 0.1 were requested" in said and "now 4" in said
    assert [(m.name, m.higher_is_better) for m in scorer.metrics] == [("nats", True), ("kl_reached", None)]


def test_a_lens_names_words_and_no_white_space(monkeypatch):
    tokens = ["\n\n", "\t", " sea", "\r", "sky", " SEA"]

    class Fake:
        def promoted(self, direction, tuned):
            return -torch.arange(float(len(tokens)))

        def text(self, ids):
            return tokens[ids[0]]

    monkeypatch.setattr(lens, "written", lambda context: (Fake(), None))
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, k: torch.return_types.topk((self, torch.arange(len(self)))))
    assert Lens(k=2)._words(None) == [" sea".strip(), "sky"] or Lens(k=2)._words(None) == [" sea", "sky"]


def test_similarity_leaves_dead_latents_out_and_counts_them(tmp_path):
    model, corpus = tiny_model(tmp_path / "m"), tiny_corpus(tmp_path / "c.jsonl")
    for seed, dead in ((0, 10), (1, 4)):
        weights = tiny_sae(tmp_path / f"sae{seed}", "jumprelu", seed=seed) / "sae_weights.safetensors"
        tensors = load_file(weights)
        tensors["threshold"] = torch.zeros(40).index_fill(0, torch.arange(dead), torch.inf)
        save_file(tensors, weights)
        source = {"model": str(model), "corpus": {"path": str(corpus), "context": 32}}
        source["coder"] = {"use": "sae_lens", "with": {"path": str(tmp_path / f"sae{seed}")}}
        sampler = {"window": 8, "explain": 5, "score": 5, "non_activating": {"n": 5}}
        spec = {
            **yaml.safe_load(SPEC), "source": {"use": "transformers", "with": source}, "latents": {"n": 1, "min_windows": 6},
            "sampler": {"use": "random", "with": sampler},
        }  # fmt: skip
        (tmp_path / f"{seed}.yaml").write_text(json.dumps(spec))
        saeval.run(tmp_path / f"{seed}.yaml", out=tmp_path / f"run{seed}")
    runs = [tmp_path / "run0", tmp_path / "run1"]
    (found,), _ = saeval.similarities(runs, by=["decoder"])
    assert found.dead == (10, 4) and found.latents == (30, 36) and found.matched == 30
    assert min(a for a, _, _ in found.pairs) >= 10 and min(b for _, b, _ in found.pairs) >= 4
