"""The layers of the design hold, and built-ins use nothing that third parties could not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import saeval

ROOT = Path(__file__).parents[1]


def test_layers_import_only_what_is_below_them():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_built_ins_import_from_saeval_only_what_it_exports():
    for file in (ROOT / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "saeval":
                assert node.module == "saeval", f"{file.name}: from {node.module}"
                assert {a.name for a in node.names} <= set(saeval.__all__), file.name
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "saeval" for a in node.names), file.name


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


def test_every_exported_name_is_there():
    for name in saeval.__all__:
        assert getattr(saeval, name) is not None
