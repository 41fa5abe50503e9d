"""Trained coders against controls: a difference planted in one stratum is found there, and its absence is a null."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import norm
from small_stores import dataset, write

import saeval
from saeval import SpecError
from saeval._compare import ControlCell, control_contrasts
from saeval.cli.group import main
from saeval.plugin import AUROC, derive_rng
from saeval.plugin.registry import Registry
from saeval.records import read_result
from saeval.task import load_task

LATENTS, SINGLE = 40, 20  # latents of a store; the first of them fire on one token

SCORER = """
from saeval.plugin import AUROC, Score, Scorer, derive_rng

class Planted(Scorer):
    "Scores about .6, and more where latents fire on one token."
    name = "planted"
    metrics = (AUROC,)
    more: float

    async def score(self, explanation, examples, context):
        latent = examples.latent.index
        noise = derive_rng(0, str(self.more), latent).normal(0, 0.04)
        return Score(values={"auroc": 0.6 + noise + self.more * (latent < 20)})
"""


def activations(data, seed):
    """The first half of the latents fires on a token each, the others on any."""
    rng = np.random.default_rng(seed)
    found = rng.random((*data.tokens.shape, LATENTS)) < 0.05
    for latent in range(SINGLE):
        found[..., latent] = data.tokens == 1 + latent
    return np.round(found * data.mask[..., None] * (1 + rng.random(found.shape)), 3).astype(np.float32)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    (folder / "planted.py").write_text(SCORER)
    data = dataset(contexts=60, text=64, documents=30)
    for name, seed in (("trained", 0), ("shuffled", 1), ("frozen", 2)):
        write(folder / name, data, activations(data, seed))
    sparse = activations(data, 3)
    sparse[..., ::2] = 0
    write(folder / "sparse", data, sparse)
    coders = [
        {"id": "trained", "more": 0.15},
        {"id": "shuffled", "more": 0.0},
        {"id": "frozen", "more": 0.001},
        {"id": "sparse", "more": 0.01},
    ]
    return {
        "saeval": 1, "task": "stood-against", "version": "1",
        "matrix": {"coder": coders},
        "source": {"use": "recorded", "with": {"path": f"{folder}/${{matrix.coder.id}}"}},
        "latents": {"n": LATENTS, "min_windows": 10},
        "sampler": {"use": "random", "with": {"window": 16, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "explainer": "top_tokens",
        "scorers": {"planted": {"use": f"{folder}/planted.py:Planted", "with": {"more": "${matrix.coder.more}"}}},
        "controls": ["shuffled", "frozen", "sparse"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        yield folder / "run", saeval.run({**spec, "run": {"seeds": 3}}, out=folder / "run")


def test_a_planted_difference_is_found_in_its_stratum_with_its_power_and_nowhere_else(run):
    folder, pooled = run
    for result in (read_result(folder / "seed-0"), pooled):
        found = {(c.stratum.partition(", ")[2], c.control): c for c in result.controls}
        for control in ("shuffled", "frozen"):
            planted, absent = found["one token", control], found["several tokens", control]
            assert planted.outcome == "above" and planted.difference == pytest.approx(0.15, abs=0.04)
            assert planted.ci95[0] < planted.difference < planted.ci95[1] and planted.p_holm < 0.01
            assert absent.outcome == "null" and abs(absent.difference) < absent.detectable < 0.06
        assert found["all latents", "sparse"].outcome == "too few"  # its L0 is another one
        assert {c.stratum.partition(",")[0] for c in result.controls} == {"L0 2"}
    assert pooled.controls[3].n == (60, 60) and read_result(folder / "seed-0").controls[3].n == (20, 20)
    assert [cell.baseline for cell in pooled.cells] == [None, "shuffled", "frozen", "sparse"]


def test_every_report_says_where_trained_latents_stand_above_controls(run):
    folder, _ = run
    pages = {name: (folder / "report" / name).read_text(encoding="utf-8") for name in ("report.md", "index.html")}
    shown = CliRunner().invoke(main, ["report", str(folder)], catch_exceptions=False).output
    for text in (*pages.values(), " ".join(shown.split())):
        assert "planted, L0 2, several tokens: not distinguishable from shuffled (+0.0" in text
        assert "planted, L0 2, one token: above shuffled (+0.1" in text
        assert "; too few latents against sparse" in text
    assert "| planted | L0 2, one token | shuffled | 0.7" in pages["report.md"]
    assert "Trained against controls" in pages["index.html"]


def test_a_latent_counts_once_however_many_cells_explain_it(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    one = saeval.run(spec, out=tmp_path / "one")
    explainers = [{"id": f"{k}-tokens", "k": k} for k in (3, 5)]
    twice = {
        **spec,
        "matrix": {**spec["matrix"], "explainer": explainers},
        "explainer": {"use": "top_tokens", "with": {"k": "${matrix.explainer.k}"}},
    }
    both = saeval.run(twice, out=tmp_path / "both")
    assert len(both.cells) == 2 * len(one.cells)
    assert [(c.n, c.p) for c in both.controls] == [(c.n, c.p) for c in one.controls]
    assert both.controls[0].ci95 == pytest.approx(one.controls[0].ci95)


def cells(rng, n, differences):
    """A trained coder and controls whose latents score that much less, with a standard deviation of .1."""

    def cell(name, less):
        scores = dict(enumerate(rng.normal(0.7 - less, 0.1, n)))
        return ControlCell(name, 32.0, scores, dict.fromkeys(scores, 0.9))

    return [cell(None, 0.0), *(cell(f"c{i}", less) for i, less in enumerate(differences))]


def test_detectable_differences_are_those_found_with_their_power():
    n, found = 60, []
    for draw in range(8):
        rng = derive_rng(0, draw)
        contrasts = control_contrasts("s", AUROC, cells(rng, n, [0.0, 0.0]), rng)
        found.append(contrasts[0].detectable)
        assert len([c for c in contrasts if c.outcome != "too few"]) == 4  # two strata have the same latents, one none
    expected = 0.1 * (2 / n) ** 0.5 * (norm.isf(0.025 / 4) + norm.isf(0.2))
    assert np.mean(found) == pytest.approx(expected, rel=0.05)
    outcomes = []
    for draw in range(25):
        rng = derive_rng(1, draw)
        outcomes += [c.outcome for c in control_contrasts("s", AUROC, cells(rng, n, [expected, 0.0]), rng)]
    share = [np.mean([o == "above" for o in outcomes[i::6]]) for i in (0, 1)]
    assert share[0] >= 0.6 and share[1] <= 0.1


def test_controls_that_are_no_cell_are_refused(spec):
    def refused(**changes):
        with pytest.raises(SpecError) as error:
            load_task({**spec, **changes}, registry=Registry())
        return str(error.value)

    assert "no cell has the name 'shufled', did you mean 'shuffled'?" in refused(controls=["shufled"])
    assert "every cell is a control" in refused(controls=["trained", "shuffled", "frozen", "sparse"])
