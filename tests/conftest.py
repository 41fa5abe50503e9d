"""What holds for all tests: long files first, and what is slow to make is made once for all processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import build_wheels, new_environment
from filelock import FileLock
from root import ROOT

# Under `pytest -n 2 --dist loadfile`, a file that takes minutes has to begin while there is other work left. xdist
# would begin with the files that have the most tests, and these have few.
LONGEST = (
    "run/test_quickstart.py", "project/test_packaging.py", "run/test_executors.py", "run/test_kills.py",
    "plugins/test_methods.py", "plugin/test_scaffold.py", "run/test_faults.py", "run/test_plan.py",
    "report/test_html_report.py", "project/test_examples.py", "project/test_security.py", "compare/test_stats.py",
    "models/test_subjects.py", "run/test_judge_check.py", "plugins/llms/test_llms.py",
)  # fmt: skip

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a folder once for all processes of the tests: `made_once(name, make)` returns it, made by `make(folder)`."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (folder / "made").exists():
                folder.mkdir()
                make(folder)
                (folder / "made").touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def gemma_cache(made_once: MadeOnce) -> Path:
    """A cache for the tasks that read Gemma 3 270M, so that activations they have in common are collected once."""
    return made_once("gemma-cache", lambda folder: None)


@pytest.fixture(scope="session")
def wheels(made_once: MadeOnce) -> list[Path]:
    """The wheels of saeval and of the example packages."""
    return sorted(made_once("wheels", build_wheels).glob("*.whl"))


@pytest.fixture(scope="session")
def installed(made_once: MadeOnce, wheels: list[Path]) -> Path:
    """The Python of an environment in which saeval and the example packages are installed; tests install nothing there."""
    return (
        made_once("installed", lambda folder: new_environment(folder / "environment", *wheels))
        / "environment/bin/python"
    )
