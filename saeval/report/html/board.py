"""Writes the pages of a public board: all SAEs with filters, a board per judge and corpus, a page per SAE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import saeval
from saeval._compare import join
from saeval._util import content_hash, file_name, interval, number, sort_key
from saeval.records import MAIN, CellResult, RunResult, ScoreRow
from saeval.report.html.joined import joined_page
from saeval.report.html.pages import render
from saeval.report.html.plots import layer_of
from saeval.results import Line, estimate, score_columns


class BoardRun(NamedTuple):
    """A run on a board.

    Attributes:
        folder: Folder of its `results.json`.
        result: Its results.
        made: Day on which the run ended, `2026-01-31`.
        origin: Address on the hub; empty for a local folder.
    """

    folder: Path
    result: RunResult
    made: str
    origin: str


class _Comparable(NamedTuple):
    """Facts that results must share to be ranked together."""

    task: str
    version: str
    rank_by: str
    synthetic: bool
    recorded: bool
    subject: str
    corpus: str
    judge: str

    @property
    def page(self) -> str:
        """Name of the board's page."""
        return file_name(f"{self.task}-{self.version}-{content_hash(*self)[:8]}").replace(" ", "-")


class _Place(NamedTuple):
    """A contestant of a run."""

    run: BoardRun
    cell: CellResult
    board: str


def board_pages(runs: Sequence[BoardRun], title: str) -> dict[str, str]:
    """Return the pages by name: `index.html`, `boards/….html` and `saes/….html`.

    Nothing is ranked across judges, corpora, subjects, or versions of a task: each combination has its own board.
    """
    groups: dict[_Comparable, dict[str, BoardRun]] = {}
    places = []
    for run in runs:
        for cell in run.result.cells:
            if cell.baseline is None:
                key = _comparable(run.result, cell)
                groups.setdefault(key, {})[run.result.run_id] = run
                places.append(_Place(run, cell, key.page))
    pages, boards = {}, []
    for key, group in groups.items():
        keep = [f"subject={key.subject}", f"corpus={key.corpus}", f"judge={key.judge}"]
        joined = join.join([run.folder for run in group.values()], keep=keep)
        pages[f"boards/{key.page}.html"] = joined_page(joined)
        boards.append(_board(key, len(group), joined))
    saes: dict[str, list[_Place]] = {}
    for place in sorted(places, key=lambda p: p.run.made, reverse=True):
        saes.setdefault(_sae_name(place.cell), []).append(place)
    shared = {"title": title, "version": saeval.__version__}
    for name, history in saes.items():
        context = {**shared, "sae": _sae(history[0]), "facts": _facts(history[0].cell), "rows": _rows(history, "../")}
        pages[f"saes/{name}.html"] = render("board_sae.html.j2", context, "board.js")
    rows = [row for name, history in saes.items() for row in _rows(history, "", f"saes/{name}.html")]
    filters = [(key, label, sorted({row[key] for row in rows}, key=sort_key)) for key, label in _FILTERS.items()]
    listed: dict[str, Any] = {
        **shared,
        "boards": boards,
        "rows": rows,
        "saes": len(saes),
        "runs": len(runs),
        "filters": filters,
    }
    pages["index.html"] = render("board.html.j2", listed, "board.js")
    return pages


_FILTERS = {"model": "Model", "layer": "Layer", "scorer": "Scorer", "judge": "Judge", "corpus": "Corpus"}


def _comparable(result: RunResult, cell: CellResult) -> _Comparable:
    judges = dict.fromkeys(row.judge for row in cell.scores if row.judge)
    marks = result.rank_by, result.synthetic, result.recorded
    facts = cell.subject, cell.corpus[:8] or "unknown", ", ".join(judges)
    return _Comparable(result.task, result.task_version, *marks, *facts)


def _board(key: _Comparable, runs: int, joined: join.Joined) -> dict[str, Any]:
    """Return the facts about a board that the list of boards shows."""
    board = joined.groups(None)[""]
    contestants = [x for x in board.standings if x.cell.baseline is None]
    marks = _marks(synthetic=key.synthetic, recorded=key.recorded)
    return {
        "page": f"boards/{key.page}.html",
        "task": f"{key.task} {key.version}",
        "subject": key.subject,
        "judge": key.judge or "–",
        "corpus": key.corpus,
        "runs": runs,
        "saes": len(contestants),
        "ranked": board.title,
        "best": contestants[0].cell.cell,
        "marks": marks,
    }


def _marks(**marks: bool) -> list[str]:
    return [mark for mark, on in marks.items() if on]


def _sae_name(cell: CellResult) -> str:
    """Return the name of an SAE's page: the same for every run that scored it."""
    coder = {key: value for key, value in cell.coder.items() if key != "plugin"}
    plugin = str(cell.coder.get("plugin", "")).partition(" ")[0]
    label = file_name(f"{_title(cell)}").replace(" ", "-")[:60]
    return f"{label}-{content_hash(cell.subject, plugin, coder)[:8]}"


def _title(cell: CellResult) -> str:
    metadata = cell.coder.get("metadata")
    known: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    listed = [known.get("neuronpedia_id"), "/".join(filter(None, (_str(known, "release"), _str(known, "sae_id"))))]
    axes = " ".join(cell.axes.values())
    return next((str(name) for name in (*listed, axes) if name), str(cell.coder.get("architecture") or "SAE"))


def _str(known: Mapping[str, Any], key: str) -> str:
    return known[key] if isinstance(known.get(key), str) else ""


def _sae(place: _Place) -> dict[str, str]:
    cell = place.cell
    return {"title": _title(cell), "model": cell.subject or "–", "hookpoint": str(cell.coder.get("hookpoint") or "–")}


def _facts(cell: CellResult) -> dict[str, str]:
    """Return what is known of a coder, as texts."""
    shown = {key: str(value) for key, value in cell.coder.items() if isinstance(value, str | int | float)}
    return {**shown, **{name: number(value, ".4g") for name, value in cell.measures.items()}}


def _rows(history: Iterable[_Place], up: str, page: str = "") -> list[dict[str, Any]]:
    """Return a row per result and headline metric, the newest first."""
    found = []
    for place in history:
        heads: dict[str, ScoreRow] = {}
        for row in place.cell.scores:
            if row.variant == MAIN:
                heads.setdefault(row.scorer, row)
        found += [_row(place, row, up, page) for row in heads.values()]
    return found


def _row(place: _Place, row: ScoreRow, up: str, page: str) -> dict[str, Any]:
    cell, result = place.cell, place.run.result
    beside = {c.name: c.value(Line(result, cell, row)) or "" for c in score_columns("report")}
    layer = layer_of(cell)
    marks = _marks(synthetic=result.synthetic, recorded=result.recorded, partial=result.partial)
    between = interval(row.ci95) if row.ci95 else ""
    if row.value is None:
        between = estimate(row).why
    return {
        **_sae(place),
        "page": page,
        "cell": cell.cell,
        "layer": "–" if layer is None else str(layer),
        "scorer": row.scorer,
        "metric": row.metric,
        "judge": row.judge or "–",
        "corpus": cell.corpus[:8] or "unknown",
        "architecture": str(cell.coder.get("architecture") or "–"),
        "l0": cell.measures.get("l0"),
        "l0_text": number(cell.measures.get("l0"), ".1f"),
        "value": number(row.value),
        "n": f"{row.n}/{row.tried}",
        "between": between,
        "lift": beside["lift_text"],
        "verdict": beside["judge_text"],
        "task": f"{result.task} {result.task_version}",
        "made": place.run.made,
        "run": result.run_id,
        "origin": place.run.origin,
        "board": f"{up}boards/{place.board}.html",
        "explainer": cell.explainer,
        "marks": marks,
    }
