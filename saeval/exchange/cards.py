"""Writes the dataset cards of pushed runs and stores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from saeval._util import safe_text
from saeval.records import RunResult

_TAGS = "tags:\n- saeval\n- sparse-autoencoders\n"
_OF_THIS_MACHINE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|\.{1,2}[/\\]|.*://")


def run_card(result: RunResult, tables: Iterable[str], *, has_spec: bool) -> str:
    """Return a run's dataset card: its report, and how to fetch and repeat the run.

    Args:
        result: The run.
        tables: Names of the tables in `tables/`.
        has_spec: Whether the run's spec is sent.
    """
    from saeval.report import markdown_report

    configs = "".join(f"- config_name: {name}\n  data_files: tables/{name}.parquet\n" for name in tables)
    again = (
        "\nsaeval run fetched/spec.yaml --out again  # repeats it"
        if has_spec
        else "\n# spec.yaml is not included, because it names files or servers of the machine it ran on"
    )
    return (
        f"---\n{_TAGS}- interpretability\nconfigs:\n{configs}---\n\n{markdown_report(result)}\n## Files\n\n"
        "`run/` is the run directory; `tables/` contains latents, explanations, scores and judgements of all cells as "
        "Parquet. To fetch it, with the name of this repository:\n\n"
        "```sh\nsaeval pull hf://datasets/OWNER/NAME fetched\nsaeval report fetched\n"
        f"saeval leaderboard fetched my-run  # beside your own{again}\n```\n"
    )


def is_shareable(spec: Any) -> bool:
    """Return whether a spec names no local file and no server."""
    return not any(_OF_THIS_MACHINE.match(text) for text in _texts(spec))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def read_spec(path: Path) -> Any:
    """Return the content of a run's `spec.yaml`; None if it is missing or not YAML."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def store_card(latents: int, tokens: int, facts: Mapping[str, Any]) -> str:
    """Return the dataset card of an activation store."""
    made_up = "**The activations are synthetic.** " if facts.get("synthetic") else ""
    return (
        f"---\n{_TAGS}- activations\n---\n# saeval activation store\n\n{latents:,} latents over {tokens:,} tokens of "
        f"{safe_text(facts.get('subject') or 'an unknown model')} at "
        f"{safe_text(facts.get('hookpoint') or 'an unknown place')}. {made_up}"
        "The store contains the text itself, so the text's licence also applies to it.\n\n"
        "`saeval pull` fetches it; `source: {use: recorded, with: {path: …}}` reads it.\n"
    )
