"""The main job, for real: Gemma 3 270M, the shipped SAEs, the shipped prose; offline, with no key."""

from __future__ import annotations

import json
import time

import pytest
from command import run_command
from saeval_plugins.scorers import saeval_scorers

pytestmark = pytest.mark.slow

LESS = "source.with.corpus.per_document=256"
"""One context of each document, which takes two fifths of the time."""
SMALLER = (
    LESS,
    "sampler.with.score=5",
    "sampler.with.non_activating.n=5",
    "scorers.fuzzing.when.latents=1",
    "llms.explainer.max_tokens=12",
)
"""Changes that shorten the quickstart, as its user could make them."""
SHORT_TOUR = (
    LESS,
    "sampler.with.score=5",
    "sampler.with.non_activating.n=5",
    "scorers.intruder.with.questions=2",
    "scorers.simulation.with.windows=2",
    "scorers.generation.with.k=2",
    *(
        f"scorers.{name}.with.{option}={n}"
        for name in ("intervention", "steering")
        for option, n in {"tune": 2, "score_on": 2, "tokens": 4}.items()
    ),
    *(
        f"scorers.{name}.baselines=[]"  # other explanations are read in the quickstart
        for name in ("detection", "fuzzing", "fuzzing_active", "simulation", "surprisal", "intervention")
    ),
)
"""Changes that shorten `methods-tour`, as its user could make them."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart on two latents per cell and few windows, run as a user types it, without network."""
    place = tmp_path_factory.mktemp("quickstart")
    env = {"SAEVAL_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9"}
    command = ["run", "--task", "quickstart", "--limit", "2", "--out", "run"]
    for change in SMALLER:
        command += ["--set", change]
    return place, env, command, run_command(*command, cwd=place, env=env)


def test_quickstart_compares_two_real_saes_with_both_floors(finished):
    place, _, _, done = finished
    result = json.loads((place / "run" / "results.json").read_text())
    cells = {c["axes"]["coder"]: c for c in result["cells"]}
    assert list(cells) == ["topk", "random_sae", "neurons", "batchtopk"]
    assert not result["synthetic"] and result["reproducible"] and result["partial"]
    for name in ("topk", "batchtopk"):
        assert cells[name]["measures"]["fvu"] < 0.15
        assert 25 < cells[name]["measures"]["l0"] < 40
        assert cells[name]["measures"]["frac_alive"] > 0.75
    assert cells["random_sae"]["measures"]["fvu"] > 1
    for cell in cells.values():
        for scorer in ("embedding", "detection", "fuzzing"):
            own = next(r for r in cell["scores"] if r["scorer"] == scorer and r["variant"] == "explanation")
            assert own["n"] == own["tried"] == (1 if scorer == "fuzzing" else 2)
            assert own["n"] == 1 or own["ci95"][0] < own["ci95"][1]
            assert {"random_explanation", "chance"} <= set(own["floor"])
    assert "PARTIAL" in done.stdout and "batchtopk" in done.stdout
    for name in ("report.md", "leaderboard.csv", "leaderboard.parquet"):
        assert (place / "run" / "report" / name).stat().st_size > 500


def test_second_run_loads_no_model_and_changes_nothing(finished):
    place, env, command, _ = finished
    before = json.loads((place / "run" / "results.json").read_text())["cells"]
    began = time.monotonic()
    run_command(*command, cwd=place, env=env)
    assert time.monotonic() - began < 30
    assert json.loads((place / "run" / "results.json").read_text())["cells"] == before


def test_every_scorer_runs_on_gemma_and_the_quickstart_sae(finished, tmp_path):
    _, env, _, _ = finished  # whose cache holds the activations
    (tmp_path / "ratings.csv").write_text("latent,rating\n" + "".join(f"{i},3\n" for i in range(2048)))
    rated = f"scorers.human={{with: {{path: {tmp_path / 'ratings.csv'}}}}}"
    command = ["run", "methods-tour", "--limit", "1", "--out", "run", "--set", rated]
    for change in SHORT_TOUR:
        command += ["--set", change]
    run_command(*command, cwd=tmp_path, env=env)
    (cell,) = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    own = {}
    for row in cell["scores"]:
        if row["variant"] == "explanation":
            own.setdefault(row["scorer"], row)
    named = {row["plugin"].partition(" ")[0].removeprefix("saeval/") for row in own.values()}
    elsewhere = {"evaluate", "consistency", "injection", "frozen", "again", "half"}
    assert named == {cls.name for cls in saeval_scorers()} - elsewhere
    assert own["human"]["value"] == 3
    for label, row in own.items():
        assert row["tried"] == 1 and (row["n"] == 1 or label in ("generation", "intruder", "steering")), (label, row)
        assert row["n"] == 0 or row["explanation_words"] >= 1
    assert own["intervention"]["range"] == [None, None] and own["intervention"]["ci95"] is None  # of one latent
