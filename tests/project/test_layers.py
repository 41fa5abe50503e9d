"""The layers of the design hold, and built-ins use nothing that third parties could not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from root import ROOT

import saeval
import saeval.plugin


def test_layers_import_only_what_is_below_them():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_built_ins_import_only_the_face_for_plugin_authors():
    for file in (ROOT / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "saeval":
                assert node.module == "saeval.plugin", f"{file.name}: from {node.module}"
                assert {a.name for a in node.names} <= set(saeval.plugin.__all__), file.name
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "saeval" for a in node.names), file.name


def test_folders_import_each_other_through_their_doors():
    open_rooms = {
        "saeval.plugin.base",
        "saeval.plugin.kinds",
        "saeval.plugin.registry",
        "saeval.plugin.scaffold",
        "saeval._run.plan",
    }
    doors = {f"saeval.{path.name}" for path in (ROOT / "saeval").iterdir() if path.is_dir()} | open_rooms
    for file in (ROOT / "saeval").rglob("*.py"):
        folder = file.relative_to(ROOT / "saeval").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            if not module or not module.startswith("saeval.") or module.split(".")[1] == folder:
                continue
            is_door = module in doors or module == "saeval._util.lazy"
            assert is_door, f"{file.relative_to(ROOT)}: import from the folder, not from {module}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/concepts.md"])
def test_the_map_of_the_folders_lists_them_in_their_order(page):
    shown = (ROOT / page).read_text().split("<!-- map -->")[1].split("<!-- /map -->")[0]
    contract = (ROOT / ".importlinter").read_text().split("layers =\n")[1].split("exhaustive")[0]
    folders = {path.name for path in (ROOT / "saeval").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert re.findall(r"^\| `(\w+)/`", shown, re.MULTILINE) == contract.split()
    assert set(contract.split()) == folders


def test_the_house_has_one_folder_per_stage():
    entries = [path.name for path in (ROOT / "saeval").iterdir() if not path.name.startswith("__pycache__")]
    assert len(entries) <= 20, sorted(entries)


def folders_in(place):
    return {path.name for path in place.iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_tests_lie_in_folders_named_as_those_of_the_code():
    tests = ROOT / "tests"
    packages = {folder.lstrip("_") for folder in folders_in(ROOT / "saeval")}
    assert folders_in(tests) == packages | {"plugins", "project", "helpers", "golden"}
    assert folders_in(tests / "plugins") <= folders_in(ROOT / "plugins" / "saeval_plugins")
    assert not [*tests.glob("test_*.py"), *(tests / "helpers").glob("test_*.py")]
    for file in tests.glob("*/**/*.py"):
        assert file.name.startswith("test_") or file.parent.name == "helpers", f"{file} belongs into tests/helpers"


def test_importing_every_module_of_the_built_ins_imports_nothing_heavy():
    heavy = (
        "torch", "transformers", "litellm", "sae_lens", "datasets", "sentence_transformers", "evaluate", "scipy",
        "pyarrow", "aiohttp",
    )  # fmt: skip
    program = (
        "import importlib, pkgutil, sys, saeval_plugins\n"
        "names = [m.name for m in pkgutil.walk_packages(saeval_plugins.__path__, 'saeval_plugins.')]\n"
        "for name in names: importlib.import_module(name)\n"
        f"print(len(names), [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, found = done.stdout.split(maxsplit=1)
    assert int(count) > 20 and found.strip() == "[]"


def test_code_imports_no_module_that_takes_longer_to_import_than_a_small_run_to_compute():
    for file in [*(ROOT / "saeval").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        assert not re.search(r"^\s*(?:from|import) scipy\.stats", file.read_text(), re.MULTILINE), (
            f"{file}: scipy.stats takes a second of every run; take scipy.special"
        )


def test_every_exported_name_is_there():
    for face in (saeval, saeval.plugin):
        for name in face.__all__:
            assert getattr(face, name) is not None
