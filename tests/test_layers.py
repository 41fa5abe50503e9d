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
                assert node.module in ("saeval", "saeval.testing"), f"{file.name}: from {node.module}"
                assert {a.name for a in node.names} <= set(saeval.__all__) or node.module == "saeval.testing"
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "saeval" for a in node.names), file.name


def test_every_exported_name_is_there():
    for name in saeval.__all__:
        assert getattr(saeval, name) is not None
