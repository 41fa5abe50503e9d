"""Keeps a public board: a folder with the results of many runs, from which a static site is built."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from saeval._util import InputError, claim, file_name, read_json, write_atomic, write_checksums
from saeval.exchange.board_facts import run_ended
from saeval.exchange.hub import hub_place, pull
from saeval.records import RunResult, read_result
from saeval.results import finished_runs

BOARD_FORMAT = "saeval.board/1"
_INDEX, _RUNS, _SITE = "board.json", "runs", "site"


def add_runs(board: Path, runs: Iterable[str]) -> list[str]:
    """Add the results of runs to a board, which is created if it does not exist.

    Only `results.json` is copied, without windows, prompts and explanations. Adding a run again replaces its results.

    Args:
        board: The folder.
        runs: Run directories, folders of them, or `hf://datasets/OWNER/NAME`.

    Returns:
        Names of the runs on the board.

    Raises:
        InputError: If a run cannot be read, has nothing scored, or the folder is not a board.
    """
    claim(board, "a board")
    index = _read(board)
    added = []
    with TemporaryDirectory() as temporary:
        for number, reference in enumerate(runs):
            origin = reference if hub_place(reference) else ""
            for place in _at_hand(reference, Path(temporary) / str(number)):
                added.append(_add(board, index, place, origin))
    write_atomic(board / _INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return added


def build(board: Path) -> Path:
    """Build a board's site, and return its first page.

    Raises:
        InputError: If there is no board, or it is empty.
    """
    from saeval.report import BoardRun, board_pages

    index = _read(board)
    runs = []
    for name, facts in sorted(index["runs"].items()):
        folder = board / _RUNS / name
        runs.append(BoardRun(folder, read_result(folder), facts["made"], facts["from"]))
    if not runs:
        raise InputError(f"{board}: has no runs; add some with `saeval board add RUN… --to {board}`")
    site = board / _SITE
    for old in site.rglob("*.html"):
        old.unlink()
    for name, page in board_pages(runs, index["title"]).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(site / name, page)
    return site / "index.html"


def _read(board: Path) -> dict[str, Any]:
    if not (board / _INDEX).exists():
        return {"format": BOARD_FORMAT, "title": "Leaderboard of SAEs", "runs": {}}
    index = read_json(board / _INDEX)
    if not isinstance(index, dict) or index.get("format") != BOARD_FORMAT or not isinstance(index.get("runs"), dict):
        raise InputError(f"{board / _INDEX}: does not have the format {BOARD_FORMAT}; give the folder of a board")
    for name, facts in index["runs"].items():
        if file_name(name) != name or not isinstance(facts, dict) or {"sha", "made", "from"} - facts.keys():
            raise InputError(f"{board / _INDEX}: lists {name!r:.80}, which is not a run; remove it")
    return index


def _at_hand(reference: str, folder: Path) -> list[Path]:
    if not hub_place(reference):
        return finished_runs(Path(reference))
    pull(reference, folder)
    return [folder]


def _add(board: Path, index: dict[str, Any], place: Path, origin: str) -> str:
    result = read_result(place)
    if not any(row.value is not None for cell in result.cells for row in cell.scores):
        raise InputError(f"{place}: has no scores yet")
    name = _name(index["runs"], result)
    folder = board / _RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    named = result.model_copy(update={"run_id": name})
    write_atomic(folder / "results.json", named.model_dump_json(by_alias=True, indent=1))
    write_checksums(folder)
    root = place if place.is_dir() else place.parent
    made = run_ended(root) or time.time()
    day = time.strftime("%Y-%m-%d", time.gmtime(made))
    index["runs"][name] = {"sha": _identity(result), "made": day, "from": origin}
    return name


def _name(runs: dict[str, Any], result: RunResult) -> str:
    """Return the run's name on the board: its id, with a number appended if another run has this name."""
    base, n = file_name(result.run_id), 1
    name = base
    while name in runs and runs[name]["sha"] != _identity(result):
        n += 1
        name = f"{base}-{n}"
    return name


def _identity(result: RunResult) -> str:
    """Return a hash of spec and cells, which distinguishes runs with the same name."""
    from saeval._util import content_hash

    return content_hash(result.spec_sha, result.run_id.rpartition("-")[0], [c.coder for c in result.cells])
