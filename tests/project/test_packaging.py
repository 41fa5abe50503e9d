"""What users install: wheels of saeval and of a third party's package, in an environment of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from environments import new_environment, sh
from root import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "examples" / "saeval-acme"):
        sh(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, project, cwd=out)
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheels):
    return new_environment(tmp_path_factory.mktemp("environment"), *wheels)


def test_wheel_holds_every_file_of_the_packages_and_the_tasks(wheels):
    names = zipfile.ZipFile(next(w for w in wheels if w.name.startswith("saeval-"))).namelist()
    folders = {"saeval": "saeval", "plugins/saeval_plugins": "saeval_plugins", "tasks": "saeval_plugins/_tasks"}
    files = {
        (Path(inside) / file.relative_to(ROOT / folder)).as_posix()
        for folder, inside in folders.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {n for n in names if ".dist-info/" not in n} == files
    assert files >= {
        "saeval/py.typed", "saeval/__init__.pyi", "saeval_plugins/prompts/detection.md", "saeval_plugins/_tasks/quickstart.yaml"
    }  # fmt: skip


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


def test_one_command_runs_a_spec_that_pairs_a_third_party_with_built_ins(environment, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{saeval: 1, task: mine, version: '1', source: {use: synthetic, with: {n_latents: 6, documents: 60}}, "
        "latents: {n: 4, min_windows: 20}, sampler: acme/spread, explainer: top_tokens, scorers: {purity: {use: acme/purity}}}"
    )
    command = [environment.parent / "saeval", "run", "--task", "mine.yaml", "--out", "run"]
    sh(*command, cwd=tmp_path, SAEVAL_CACHE=str(tmp_path / "cache"))
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["cells"][0]["scores"][0]["plugin"] == "acme/purity 0.3.0"


def test_editable_install_lists_the_same_as_the_wheel(environment, tmp_path):
    editable = new_environment(
        tmp_path / "editable", "--editable", ROOT, "--editable", ROOT / "examples" / "saeval-acme"
    )
    where = "import saeval, saeval_acme; print(saeval.__file__, saeval_acme.__file__)"
    assert sh(editable, "-c", where, cwd=tmp_path).count(f"{ROOT}{os.sep}") == 2

    def listed(python, *what):
        return [
            {k: v for k, v in row.items() if k not in ("file", "path")}
            for row in json.loads(sh(python, "-m", "saeval", *what, "--json", cwd=tmp_path))
        ]

    for what in (["plugins"], ["list"], ["list", "scorers"]):
        assert listed(editable, *what) == listed(environment, *what)


def test_contract_tests_of_the_third_party_pass_on_what_is_installed(environment, tmp_path):
    tests = tmp_path / "tests"
    shutil.copytree(ROOT / "examples" / "saeval-acme" / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    assert "2 passed" in sh(environment, "-m", "pytest", "-p", "no:cacheprovider", "tests", cwd=tmp_path)


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


def test_files_that_ci_installs_have_the_versions_of_the_constraints_and_a_hash():
    def pinned(text):
        found = re.findall(r"^([\w.-]+)==([^\s+]+)", text, re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}

    lock = (ROOT / ".ci" / "requirements.txt").read_text()
    constraints, locked = pinned((ROOT / "constraints.txt").read_text()), pinned(lock)
    assert {name: locked.get(name) for name in constraints} == constraints, "run .ci/lock again"
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    assert len(locked) > 100 and all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lines)
