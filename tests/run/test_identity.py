"""Results depend on all that makes them: plugin code, precision, the SAE beside a baseline; nothing finished is taken away."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.sources.transformers import Transformers
from small_stores import dataset
from tiny import tiny_corpus, tiny_model, tiny_sae

import saeval
from saeval._run.collect import collect
from saeval._util.progress import Silent
from saeval.models import loading
from saeval.plugin import ActivationWriter, Corpus
from saeval.plugin.registry import Registry
from saeval.task import load_task

MINE = r"""
saeval: 1
task: mine
version: "1.0"
llms: {judge: {model: scripted/rule, reply: "[0]"}}
source: {use: synthetic, with: {n_latents: 6, documents: 60}}
latents: {n: 4, min_windows: 20}
sampler: {use: random, with: {explain: 10, score: 20, non_activating: {n: 20}}}
explainer: top_tokens
scorers: {detection: {with: {batch: 1}}}
baselines: []
"""
SCORER = """
from saeval.plugin import AUROC, Score, Scorer, hookimpl

class Good(Scorer):
    name = "good"
    metrics = (AUROC,)

    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 0.5})
"""
HOOK = """
@hookimpl
def saeval_scorers():
    return [Good]
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The metadata folder of an installed package, whose module is saeval_acme.py beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "saeval_acme.py").write_text(SCORER + HOOK)
    info = tmp_path / "saeval_acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saeval-acme\nVersion: 1.0\nRequires-Dist: saeval\n")
    (info / "entry_points.txt").write_text("[saeval]\nacme = saeval_acme\n")
    (info / "RECORD").write_text("saeval_acme.py,,\n")
    yield info
    sys.modules.pop("saeval_acme", None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def spec(**changes):
    return {**yaml.safe_load(MINE), **changes}


def auroc(run, scorer):
    return next(row.value for row in run.cells[0].scores if row.scorer == scorer and row.variant == "explanation")


# --- Code ---


@pytest.mark.parametrize("editable", [True, False])
def test_a_plugin_that_is_edited_in_its_folder_gives_its_new_scores(tmp_path, package, editable):
    (package / "direct_url.json").write_text(
        json.dumps({"url": f"file://{tmp_path}", "dir_info": {"editable": True} if editable else {}})
    )
    module = tmp_path / "saeval_acme.py"
    values = []
    for value in ("0.5", "0.75"):
        module.write_text((SCORER + HOOK).replace("0.5", value))
        sys.modules.pop("saeval_acme", None)  # as in another process
        run = saeval.run(spec(scorers={"acme/good": {}}), out=tmp_path / "run", registry=Registry())
        values.append(auroc(run, "acme/good"))
    assert values == [0.5, 0.75]


@pytest.mark.usefixtures("package")
def test_a_plugin_of_a_released_package_is_known_by_its_version():
    assert Registry().get("scorer", "acme/good").code is None


def test_a_single_file_is_known_by_its_content_and_that_of_the_files_it_imports_from(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text("from beside_mine import VALUE\n" + SCORER.replace("0.5", "VALUE"))
    values = []
    for value in ("0.5", "0.75"):
        (tmp_path / "beside_mine.py").write_text(f"class Constant(float):\n    pass\n\n\nVALUE = Constant({value})\n")
        sys.modules.pop("beside_mine", None)
        run = saeval.run(spec(scorers={"good": {"use": f"{tmp_path}/mine.py:Good"}}), out=tmp_path / "run")
        values.append(auroc(run, "good"))
    assert values == [0.5, 0.75]


# --- Precision ---


def test_auto_means_what_it_is_on_this_machine_before_anything_is_hashed(tmp_path, monkeypatch):
    source = Transformers(
        model=str(tiny_model(tmp_path / "m")), hookpoint="layers.1", coder=Neurons(), corpus=Corpus(path=tiny_corpus(tmp_path / "c.jsonl")),
    )  # fmt: skip
    without = source.fingerprint()
    assert source.model_copy(update={"dtype": "float32", "device": "cpu"}).fingerprint() == without
    monkeypatch.setattr(loading, "_has_gpu", lambda: True)
    assert source.fingerprint() != without
    assert source.model_copy(update={"dtype": "bfloat16", "device": "cuda"}).fingerprint() == source.fingerprint()


def test_a_pass_begun_in_one_precision_is_not_ended_in_another(tmp_path):
    data = dataset(contexts=8, documents=2)
    begun = ActivationWriter(tmp_path / "store")
    begun.start(data, 4, 4, made_with="torch.float32 cpu")
    begun.advance(4)
    assert ActivationWriter(tmp_path / "store").start(data, 4, 4, made_with="torch.float32 cpu") == 4
    assert ActivationWriter(tmp_path / "store").start(data, 4, 4, made_with="torch.bfloat16 cuda:0") == 0


# --- Limits ---


def test_a_limit_takes_nothing_away_from_a_finished_run(tmp_path):
    def latents(**options):
        run = saeval.run(spec(), out=tmp_path / "run", **options)
        return run.cells[0].counts["explained"], run.partial

    assert latents(limit=2) == (2, True)
    assert latents(limit=1) == (2, True)
    assert latents() == (4, False)
    assert latents(limit=2) == (4, False)


# --- Baselines beside SAEs ---


def cells(tmp_path, *saes, **random):
    model, corpus = tiny_model(tmp_path / "m"), tiny_corpus(tmp_path / "c.jsonl")
    coders = [{"id": sae.name, "use": "sae_lens", "with": {"path": str(sae)}} for sae in saes]
    source = {"model": str(model), "coder": "${matrix.coder}", "corpus": {"path": str(corpus)}}
    matrix = {"coder": [{"id": c["id"], "part": {"use": c["use"], "with": c["with"]}} for c in coders]}
    source["coder"] = "${matrix.coder.part}"
    document = spec(
        source={"use": "transformers", "with": source}, matrix=matrix, baselines=[{"use": "random_sae", "with": random}]
    )
    return {cell.name: cell for cell in load_task(document, registry=Registry()).cells}


def size(cell):
    coder = cell.source.plugin.coder
    made = coder.made_for()
    return made.latents, made.l0


def test_a_random_sae_without_options_has_the_size_of_the_sae_beside_it(tmp_path):
    one = tiny_sae(tmp_path / "one", k=3, d_sae=40)
    found = cells(tmp_path, one)
    assert size(found["coder=random_sae"]) == (40, 3)
    assert RandomSae().beside(SaeLens(path=one)).load("cpu", 16).encoder.shape == (16, 40)
    assert size(cells(tmp_path, one, k=5)["coder=random_sae"]) == (40, 5)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_a_random_sae_is_as_sparse_as_one_whose_files_tell_no_k(tmp_path, monkeypatch, architecture):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    found = cells(tmp_path, tiny_sae(tmp_path / "one", architecture), tiny_sae(tmp_path / "two", architecture, seed=3))
    assert [cell.name for cell in found.values() if cell.baseline] == ["coder=random_sae", "coder=random_sae-two"]
    stores = collect({name: cell.source for name, cell in found.items()}, Silent())
    l0 = {name: store.firings.sum() / store.n_tokens for name, store in stores.items()}
    assert l0["coder=random_sae"] == pytest.approx(l0["coder=one"], abs=1)
    assert l0["coder=random_sae-two"] == pytest.approx(l0["coder=two"], abs=1)
    assert stores["coder=random_sae"].n_latents == 40
    again = found["coder=random_sae"].source.plugin.weights()
    assert (again.n_latents, again.k) == (40, pytest.approx(l0["coder=one"], abs=1))


def test_saes_of_different_size_get_random_saes_of_their_own(tmp_path):
    found = cells(tmp_path, tiny_sae(tmp_path / "one", k=3, d_sae=40), tiny_sae(tmp_path / "two", k=6, d_sae=80))
    baselines = {name: size(cell) for name, cell in found.items() if cell.baseline}
    assert sorted(baselines.values()) == [(40, 3), (80, 6)] and "coder=random_sae-two" in baselines
    same = cells(
        tmp_path, tiny_sae(tmp_path / "three", k=3, d_sae=40), tiny_sae(tmp_path / "four", seed=1, k=3, d_sae=40)
    )
    assert sum(cell.baseline is not None for cell in same.values()) == 1
