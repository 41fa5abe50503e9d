"""Counts small faults in statistics and scorers that no test notices: `python -m benchmarks.mutants`.

Each mutant changes one operator, number or condition of a module. A child process imports the mutated module in place
of the real one and runs the module's tests; a mutant that no test kills survives. The command prints the survivors, and
fails if fewer than nine in ten are killed. Mutants that cannot change a result are listed in `equivalent_mutants.txt`,
with why.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from saeval.plugin import derive_rng

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
SCORERS = ("fuzzing", "intruder", "embedding", "simulation")
TESTS = {
    "saeval._compare.stats": ("tests/compare/test_lifts.py", "tests/compare/test_stats.py"),
    "saeval._compare.lifts": ("tests/compare/test_lifts.py",),
    "saeval._compare.lift_rows": ("tests/compare/test_lifts.py",),
    "saeval._compare.judge_errors": ("tests/compare/test_lifts.py",),
    "saeval._compare.leaderboard": ("tests/compare/test_lifts.py", "tests/compare/test_leaderboard.py"),
    "saeval._compare.score_rows": ("tests/compare/test_lifts.py",),
    "saeval._compare.natural": ("tests/compare/test_natural.py",),
    "saeval._compare.noise": ("tests/compare/test_noise.py",),
    "saeval._compare.power": ("tests/compare/test_power.py",),
    "saeval._run.floors": ("tests/run/test_floors.py",),
    "saeval.plugin.judge": ("tests/plugin/test_judge.py", "tests/plugins/scorers"),
    "saeval.plugin.outcomes": ("tests/plugin/test_judge.py", "tests/plugins/scorers"),
    **{f"saeval_plugins.scorers.{name}": ("tests/plugins/scorers",) for name in SCORERS},
}
"""Modules that are mutated, and the tests that should notice, the quickest first."""
PATIENCE = 300.0  # seconds after which a mutant that ends no loop counts as killed

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        module: Name of the module.
        line: Where it is.
        change: What it does, `<= to <` or `2.0 to 3.0`, in the statement that follows.
        source: Source of the whole mutated module.
    """

    module: str
    line: int
    change: str
    source: str

    @property
    def name(self) -> str:
        """What it is called in the list of equivalent ones: lines may move, statements do not."""
        return f"{self.module}: {self.change}"


def unmutated(module: str) -> Mutant:
    """Return a module as it is, which no test may kill."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Mutant(module, 0, "unmutated", Path(spec.origin).read_text(encoding="utf-8"))


def mutants(module: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    text = unmutated(module).source
    places = len(list(_places(ast.parse(text))))
    for place in range(places):
        tree = ast.parse(text)
        node, statement = list(_places(tree))[place]
        before = ast.unparse(statement).partition("\n")[0][:100]
        change = _mutate(node)
        yield Mutant(module, getattr(node, "lineno", statement.lineno), f"{change} in {before}", ast.unparse(tree))


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.stmt]]:
    """Yield what can be mutated, with its statement; type annotations and docstrings cannot."""
    for statement in ast.walk(tree):
        if not isinstance(statement, ast.stmt) or isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        for node in _own(statement):
            if (
                (isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE)
                or (isinstance(node, ast.BinOp) and type(node.op) in _BINARY)
                or isinstance(node, ast.BoolOp)
                or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub))
                or (isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float))
            ):
                yield node, statement


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the expressions of a statement that belong to no statement inside it, without annotations.

    `strict` of `zip` guards against mistakes in code that no input can make, so it is not mutated either.
    """
    for field, value in ast.iter_fields(statement):
        if field in ("annotation", "returns", "args", "decorator_list", "bases", "keywords"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.expr):
                guards = {id(n.value) for n in ast.walk(child) if isinstance(n, ast.keyword) and n.arg == "strict"}
                yield from (node for node in ast.walk(child) if id(node) not in guards)


def _mutate(node: ast.AST) -> str:
    """Change a node in its place, and return how."""
    if isinstance(node, ast.Compare):
        old, node.ops[0] = node.ops[0], _COMPARE[type(node.ops[0])]()
        return f"{type(old).__name__} to {type(node.ops[0]).__name__}"
    if isinstance(node, ast.BinOp):
        before, node.op = node.op, _BINARY[type(node.op)]()
        return f"{type(before).__name__} to {type(node.op).__name__}"
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return f"to {type(node.op).__name__}"
    if isinstance(node, ast.UnaryOp):
        gone = type(node.op).__name__
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        return f"without {gone}"
    assert isinstance(node, ast.Constant)
    value: Any = node.value
    node.value = not value if isinstance(value, bool) else value + 1
    return f"{value} to {node.value}"


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from another source."""

    def __init__(self, mutant: Mutant, origin: str):
        self.mutant, self.origin = mutant, origin

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.mutant.module:
            return None
        return importlib.util.spec_from_file_location(name, self.origin, loader=self)  # type: ignore[arg-type]

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.source, self.origin, "exec"), module.__dict__)


def killed(mutant: Mutant) -> bool:
    """Tell whether a test fails in a child process that has the mutant in place of the module."""
    child = os.fork()
    if child == 0:
        os._exit(_tests_pass(mutant))
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return True


def _tests_pass(mutant: Mutant) -> int:
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    spec = importlib.util.find_spec(mutant.module)
    assert spec is not None and spec.origin is not None
    tests = str(ROOT / "tests")
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("saeval", "saeval_plugins") or str(getattr(module, "__file__", "")).startswith(tests):
            del sys.modules[name]  # tests, too: what they imported is the module as it is
    sys.meta_path.insert(0, _Mutated(mutant, spec.origin))
    files = [str(ROOT / test) for test in TESTS[mutant.module]]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *files]))


def equivalent() -> set[str]:
    """Return the mutants that cannot change a result."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []
    return {line for line in lines if line and not line.startswith("#")}


def main() -> int:
    """Run the mutants that were asked for, print the survivors, and fail if they are too many."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--only", choices=TESTS, action="append", help="mutate this module only; may be repeated")
    parser.add_argument("--sample", type=int, help="mutants of each module, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    arguments = parser.parse_args()
    import hypothesis  # noqa: F401 - loaded once, not in every child
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401

    known, tried, survivors = equivalent(), 0, []
    for module in arguments.only or TESTS:
        if killed(unmutated(module)):
            sys.exit(f"{module}: {', '.join(TESTS[module])} fail on the module as it is; fix them first")
        found = [mutant for mutant in mutants(module) if mutant.name not in known]
        order = derive_rng(arguments.seed, "mutants", module).permutation(len(found))[: arguments.sample]
        alive = [found[place] for place in sorted(order) if not killed(found[place])]
        tried, survivors = tried + len(order), survivors + alive
        for mutant in alive:
            print(f"survived: {mutant.name} (line {mutant.line})")
        print(f"{module}: {len(order) - len(alive)} of {len(order)} killed", flush=True)
    share = 1 - len(survivors) / tried if tried else 1.0
    print(f"{tried - len(survivors)} of {tried} mutants killed ({share:.1%})")
    return int(share < 0.9)


if __name__ == "__main__":
    sys.exit(main())
