"""What users install: wheels of saeval and of a third party's package, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def sh(*command, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "examples" / "saeval-acme"):
        sh(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, project, cwd=out)
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheels):
    """A fresh environment with both wheels; heavy dependencies come from the one that runs the tests."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    own = Path(sh(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    # Installed first and named first: this environment's saeval goes before the other's.
    sh(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", own, *wheels, cwd=place)
    (own / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_types_prompts_tasks_and_their_data(wheels):
    names = zipfile.ZipFile(next(w for w in wheels if w.name.startswith("saeval-"))).namelist()
    for wanted in (
        "saeval/py.typed", "saeval/__init__.pyi", "saeval_plugins/prompts/detection.md", "saeval_plugins/_tasks/quickstart.yaml",
        "saeval_plugins/_tasks/quickstart/prose.jsonl", "saeval_plugins/_tasks/quickstart/sae-topk/sae_weights.safetensors",
    ):  # fmt: skip
        assert wanted in names
    assert not [n for n in names if n.startswith(("tests/", "docs/", "examples/", "plugins/", "tasks/"))]


def test_wheel_from_the_source_distribution_is_the_same(tmp_path, wheels):
    sh(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    first = next(w for w in wheels if w.name == again.name)
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(first).namelist())


def test_installed_third_party_is_listed_and_runs(environment, tmp_path):
    cache = {"SAEVAL_CACHE": str(tmp_path / "cache")}
    where = sh(environment, "-c", "import saeval; print(saeval.__file__)", cwd=tmp_path)
    assert str(environment.parents[1]) in where
    rows = json.loads(sh(environment, "-m", "saeval", "plugins", "--json", cwd=tmp_path))
    assert {(r["namespace"], r["status"]) for r in rows} >= {("saeval", "ok"), ("acme", "ok")}
    scorers = [
        r["name"] for r in json.loads(sh(environment, "-m", "saeval", "list", "scorers", "--json", cwd=tmp_path))
    ]
    assert "acme/purity" in scorers and "detection" in scorers
    tasks = [r["name"] for r in json.loads(sh(environment, "-m", "saeval", "list", "--json", cwd=tmp_path))]
    assert "acme/purity" in tasks and "quickstart" in tasks
    shown = sh(environment, "-m", "saeval", "run", "--task", "acme/purity", "--out", "run", cwd=tmp_path, **cache)
    assert "purity" in shown
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    (row,) = result["cells"][0]["scores"]
    assert (row["plugin"], row["n"], row["value"]) == ("acme/purity 0.3.0", 6, 1.0)


def test_results_are_read_without_the_plugin_that_made_them(environment, tmp_path):
    cache = {"SAEVAL_CACHE": str(tmp_path / "cache")}
    sh(environment, "-m", "saeval", "run", "--task", "acme/purity", "--out", "run", cwd=tmp_path, **cache)
    sh(environment, "-m", "saeval", "report", "run", cwd=tmp_path, SAEVAL_DISABLED_PLUGINS="*")


def test_plugin_package_that_is_broken_leaves_the_command_line_alone(environment, tmp_path):
    broken = tmp_path / "broken"
    info = broken / "saeval_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (broken / "saeval_broken.py").write_text("raise RuntimeError('no such luck')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saeval-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[saeval]\nbroken = saeval_broken\n")
    shown = sh(environment, "-m", "saeval", "plugins", cwd=tmp_path, PYTHONPATH=str(broken))
    assert "broken: RuntimeError: no such luck" in shown
    assert "detection" in sh(environment, "-m", "saeval", "list", "scorers", cwd=tmp_path, PYTHONPATH=str(broken))
