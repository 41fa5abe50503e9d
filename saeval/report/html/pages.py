"""Renders templates, style and script to pages that fetch nothing and run only their own script."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from saeval._compare import Leaderboard
from saeval._util import interval, measured, number, rounded, visible
from saeval.records import CellResult, RunResult
from saeval.report.html.latents import CellTables
from saeval.report.html.paged import in_parts
from saeval.report.html.text import script_json


def render(template: str, context: Mapping[str, Any], script: str = "report.js") -> str:
    """Return a page. All values in it are escaped, and control characters made visible, unless they are markup."""
    files = {"style": Markup(_style()), "script": Markup(_asset(script))}  # noqa: S704 - of this package
    return _environment().get_template(template).render(policy=policy(script), **files, **context) + "\n"


def policy(script_file: str = "report.js") -> str:
    """Return the content security policy of the pages, which allows only their own style and script."""
    style, script = _style(), _asset(script_file)
    # strict-dynamic lets the page's script load the files beside it, even from disk, where 'self' has no effect.
    return (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)} 'strict-dynamic'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _style() -> str:
    return _asset("report.css") + _asset("plots.css")


def plot_style() -> str:
    """Return only the style of plots, in light colours and without variables, for self-contained files."""
    root = _asset("report.css").split("}", 1)[0]
    colours = dict(re.findall(r"--(\w+): (#\w+)", root))
    rules = []
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]+)\}", _asset("plots.css")):
        if "--c:" in body:
            continue
        for style in re.findall(r"\b[sb]\d\b", " ".join(colours)) if "var(--c)" in body else [""]:
            names = ", ".join(f"{name.strip()}{style and '.' + style}" for name in selectors.split(","))
            plain = body.replace("var(--c)", colours.get(style, ""))
            plain = re.sub(r"var\(--(\w+)\)", lambda m: colours[m[1]], plain)
            rules.append(f"{names} {{{plain}}}")
    return "\n".join(rules)


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else "" if value is None else visible(value),
    )
    made.filters["value"] = number
    made.filters["interval"] = interval
    made.filters["measure"] = measured
    return made


def neuronpedia(cell: CellResult) -> str:
    """Return the Neuronpedia address to which a latent's number is appended; empty if unknown."""
    facts = cell.coder.get("metadata")
    known = facts.get("neuronpedia_id") if isinstance(facts, dict) else None
    if cell.coder.get("made_by") == "Neuronpedia":
        known = f"{cell.subject}/{cell.coder.get('hookpoint')}"
    return f"https://www.neuronpedia.org/{known}/" if re.fullmatch(r"[\w.@-]+/[\w.@-]+", str(known), re.ASCII) else ""


def _why(explanation: Mapping[str, Any] | None) -> str:
    """Return why a latent has no explanation; empty if it has one."""
    if explanation is None:
        return "not explained"
    return "" if explanation.get("status") == "ok" else explanation.get("reason") or "failed"


def latents_page(
    run: RunResult, board: Leaderboard, tables: CellTables, name: str, per_file: int, *, large: bool
) -> tuple[str, Iterable[tuple[str, str]]]:
    """Return the page of a cell with one line per latent, and further files as names and contents.

    Windows and judgements are in other files. A large cell's lines are in the further files.
    """
    cell, numbers = tables.cell, tables.numbers
    own = [tables.own(i) for i in numbers]
    texts = [row.get("text", "") if row else "" for row in own]
    hookpoint = cell.coder.get("hookpoint")
    scorers = []
    for r in tables.ranked:
        found: dict[str, Any] = {"low": None, "high": None, "mean": None, "floor": {}}
        if (row := board.row(cell, r.scorer)) is not None:
            floor = {name: rounded(value, 9) for name, value in row.floor.items()}
            found = {"low": row.range[0], "high": row.range[1], "mean": rounded(row.value, 9), "floor": floor}
        lows, highs = tables.intervals(r)
        scorers.append(
            {
                "label": r.scorer,
                "metric": r.metric,
                "higher": r.higher_is_better,
                **found,
                "values": tables.column(r.key),
                "lows": lows,
                "highs": highs,
            }
        )
    data = {
        **{key: tables.column(key) for key in ("density", "firings", "windows", "max_activation", "histogram_top")},
        "cell": cell.cell, "run": run.run_id, "sha": run.spec_sha, "folder": name, "perFile": per_file,
        "hookpoint": hookpoint if isinstance(hookpoint, str) else "", "scorers": scorers, "latent": numbers,
        "gap": tables.gaps, "calls": tables.has_calls, "neuronpedia": neuronpedia(cell),
        "text": texts, "why": [*map(_why, own)],
    }  # fmt: skip
    parts: Iterable[tuple[str, str]] = ()
    if large:
        data, parts = in_parts(data)
    return render("latents.html.j2", {"run": run, "cell": cell, "data": script_json(data)}), parts
