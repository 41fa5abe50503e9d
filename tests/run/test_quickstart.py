"""The main job, for real: Gemma 3 270M, the shipped SAEs, the shipped prose; offline, with no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart on two latents a cell, run as a user types it, without network."""
    place = tmp_path_factory.mktemp("quickstart")
    env = {
        **os.environ,
        "SAEVAL_CACHE": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "saeval", "run", "--task", "quickstart", "--limit", "2", "--out", "run"]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place, env, command, done


def test_quickstart_compares_two_real_saes_with_both_floors(finished):
    place, _, _, done = finished
    result = json.loads((place / "run" / "results.json").read_text())
    cells = {c["axes"]["coder"]: c for c in result["cells"]}
    assert list(cells) == ["topk", "random_sae", "neurons", "batchtopk"]
    assert not result["synthetic"] and result["reproducible"] and result["partial"]
    for name in ("topk", "batchtopk"):
        assert cells[name]["measures"]["fvu"] < 0.15
        assert 25 < cells[name]["measures"]["l0"] < 40
        assert cells[name]["measures"]["frac_alive"] > 0.8
    assert cells["random_sae"]["measures"]["fvu"] > 1
    for cell in cells.values():
        for scorer in ("embedding", "detection", "fuzzing"):
            own = next(r for r in cell["scores"] if r["scorer"] == scorer and r["variant"] == "explanation")
            assert own["tried"] == 2 and own["n"] + own["failed"] == 2 and own["n"] > 0
            assert own["ci95"][0] < own["ci95"][1] and {"random_explanation", "chance"} <= set(own["floor"])
    assert "PARTIAL" in done.stdout and "batchtopk" in done.stdout
    for name in ("report.md", "leaderboard.csv", "leaderboard.parquet"):
        assert (place / "run" / "report" / name).stat().st_size > 500


def test_second_run_loads_no_model_and_changes_nothing(finished):
    place, env, command, _ = finished
    before = json.loads((place / "run" / "results.json").read_text())["cells"]
    began = time.monotonic()
    subprocess.run(command, cwd=place, env=env, capture_output=True, check=True)
    assert time.monotonic() - began < 30
    assert json.loads((place / "run" / "results.json").read_text())["cells"] == before


def test_sae_of_the_wrong_width_for_its_place_is_refused_before_anything_is_collected(finished):
    place, env, _, _ = finished
    arguments = [
        "run",
        "--task",
        "quickstart",
        "--set",
        "source.with.hookpoint=layers.9.mlp.down_proj.input",
        "--out",
        "wrong",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "saeval", *arguments], cwd=place, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "width 640" in done.stderr and "2048" in done.stderr
    assert "Traceback" not in done.stderr
