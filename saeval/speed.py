"""How fast a run went, by what it wrote down: what a plan can count on for another run like it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeval.errors import InputError


@dataclass(frozen=True)
class Speed:
    """How fast a run went.

    Attributes:
        call: Seconds a call, by role and model, while the model was being asked; calls under way at once share the time.
        rest: Seconds a latent that all else took but collecting: sampling, steps without a language model, reports.
            None where the run was not done at one sitting.
    """

    call: dict[tuple[str, str], float]
    rest: float | None


def speed(run_dir: Path) -> Speed:
    """Return how fast a run went.

    Args:
        run_dir: A run that is done; one of thirty latents or more has as many calls under way as a large one.

    Raises:
        InputError: If it is no run, or is not done.
    """
    try:
        head = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
        latents = sum(cell["counts"]["sampled"] for cell in results["cells"])
        calls = [call for call in _ledger(run_dir / "calls.jsonl") if not call["cached"] and call["status"] == "ok"]
        began, whole = head["began"], head["updated"] - head["began"]
        collecting, done = head["seconds"].get("collect", 0.0), head["status"] == "done"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run_dir}: cannot be read as a run ({type(error).__name__})") from None
    if not done:
        raise InputError(f"{run_dir}: this run is not done, so it does not tell how long one takes")
    by_role = defaultdict(list)
    for call in calls:
        by_role[call["role"], call["model"]].append(call)
    one_sitting = latents and all(call["time"] - call["milliseconds"] / 1000 >= began for call in calls)
    return Speed(
        call={role: _busy(made) / len(made) for role, made in by_role.items()},
        rest=max(0.0, whole - collecting - _busy(calls)) / latents if one_sitting else None,
    )


def _ledger(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of the ledger; one that a kill cut short is passed over."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)


def _busy(calls: Sequence[Mapping[str, float]]) -> float:
    """Return the seconds in which at least one of the calls was under way."""
    total, until = 0.0, 0.0
    for begin, end in sorted((call["time"] - call["milliseconds"] / 1000, call["time"]) for call in calls):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
