"""Finds names in a spec that its cells do not have: roles, scores, axes and controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from saeval._util import did_you_mean
from saeval.records import split_ranking
from saeval.task.parts import Cell
from saeval.task.spec import FindingSpec, Spec, score_reference
from saeval.task.spec.document import KeyPath


def wrong_names(spec: Spec, cells: Sequence[Cell]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the place of each name that the cells do not have, and what is wrong with it."""
    if spec.checks is not None and spec.checks not in spec.llms:
        yield ("checks",), f"there is no role {spec.checks!r} under llms"
    if cells:
        for i, finding in enumerate(spec.findings):
            for place, mistake in _in_finding(finding, cells[0]):
                yield ("findings", i, *place), mistake
        yield from _in_controls(spec.controls, cells)


def _in_finding(finding: FindingSpec, cell: Cell) -> Iterator[tuple[KeyPath, str]]:
    names: list[tuple[KeyPath, object]] = [(("score",), finding.score), (("than",), finding.than)]
    names += [(("correlation", k), name) for k, name in enumerate(finding.correlation or ())]
    names += [(("tokens", k), name) for k, name in enumerate(finding.tokens or ())]
    for place, name in names:
        if isinstance(name, str) and name != "chance" and (trouble := _no_such_score(name, cell)):
            yield place, trouble
    axes = [("cells", axis) for axis in finding.cells] + [("than_cells", axis) for axis in finding.than_cells or {}]
    axes += [("along", finding.along)] if finding.along is not None else []
    known = ["baseline", *cell.axes]
    for key, axis in axes:
        if axis not in known:
            yield (key,), f"no axis {axis!r}{did_you_mean(axis, known)}; available: {', '.join(known)}"


def _in_controls(controls: Sequence[str], cells: Sequence[Cell]) -> Iterator[tuple[KeyPath, str]]:
    for i, name in enumerate(controls):
        if all(cell.baseline != name for cell in cells):
            ids = dict.fromkeys(value for cell in cells for value in (cell.baseline, *cell.axes.values()) if value)
            yield (
                ("controls", i),
                f"no cell has the name {name!r}{did_you_mean(name, list(ids))}; give a baseline coder or an id on "
                f"an axis of the matrix: {', '.join(ids)}",
            )
    if controls and all(cell.baseline is not None for cell in cells):
        yield ("controls",), "every cell is a control; keep one to compare them with"


def ranking(spec: Spec, cell: Cell) -> tuple[str, str]:
    """Return the score that ranks the leaderboard, and why the cell does not have it; empty if it has."""
    label, step = next(iter(cell.scorers.items()))
    wanted = spec.leaderboard.rank_by
    if wanted is None:
        return f"{label}.{step.part.plugin.metrics[0].name}", ""
    wanted, by = split_ranking(wanted)
    label, _, metric = wanted.partition(".")
    if label not in cell.scorers:
        return "", f"no scorer {label!r}{did_you_mean(label, list(cell.scorers))}"
    known = [m.name for m in cell.scorers[label].part.plugin.metrics]
    metric = metric or known[0]
    mistake = ""
    if metric not in known:
        mistake = f"{label} has no metric {metric!r}; it has: {', '.join(known)}"
    elif by == "lift":
        mistake = _no_lift(label, cell)
    return f"{label}.{metric}" + (f".{by}" if by else ""), mistake


def _no_lift(label: str, cell: Cell) -> str:
    """Return why a scorer has no lift; empty if it has one."""
    scorer = cell.scorers[label]
    if not scorer.part.plugin.reads_explanation:
        return f"{label} does not measure the explanation, so it has no lift; rank by {label} or another scorer"
    if not any(scorer.baselines is None or name in scorer.baselines for name in cell.floors):
        return f"{label} has no floor, so it has no lift; add shuffled_explanation to its baselines"
    return ""


def _no_such_score(name: str, cell: Cell) -> str:
    """Return which part of `LABEL.METRIC of EXPLANATION` a cell does not have; empty if it has all."""
    label, metric, explanation = score_reference(name)
    if label not in cell.scorers:
        return f"no scorer {label!r}{did_you_mean(label, list(cell.scorers))}; available: {', '.join(cell.scorers)}"
    metrics = [m.name for m in cell.scorers[label].part.plugin.metrics]
    if metric is not None and metric not in metrics:
        return f"{label} has no metric {metric!r}{did_you_mean(metric, metrics)}; it has: {', '.join(metrics)}"
    explanations = ["explanation", *cell.alternatives]
    if explanation not in explanations:
        have = ", ".join(explanations)
        return f"no explanation baseline {explanation!r}{did_you_mean(explanation, explanations)}; available: {have}"
    return ""
