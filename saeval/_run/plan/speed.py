"""Measures the speed of a finished run, as a basis for plans of similar runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saeval._util import InputError, read_json
from saeval.llm import CallLedger, LoggedCall
from saeval.results import refuse_without_calls


@dataclass(frozen=True)
class Speed:
    """Measured speed of a run.

    Attributes:
        call: Seconds per call, by role and model; concurrent calls share the time.
        rest: Seconds per latent for everything except collecting and calls: sampling, steps without a language model,
            reports. None if the run took more than one session.
        output: Generated tokens per call, by role and model, including reasoning.
    """

    call: dict[tuple[str, str], float]
    rest: float | None
    output: dict[tuple[str, str], float] = field(default_factory=dict)


def speed(run_dir: Path) -> Speed:
    """Measure the speed of a run.

    Args:
        run_dir: A finished run; with thirty or more latents, it has as many concurrent calls as a large run.

    Raises:
        InputError: If it is not a run, is unfinished, or was imported or pulled.
    """
    if seeds := sorted(run_dir.glob("seed-*/run.json")):
        raise InputError(
            f"{run_dir}: pools several seeds; give the directory of one of them, such as {seeds[0].parent}"
        )
    refuse_without_calls(run_dir)
    try:
        head, results = read_json(run_dir / "run.json"), read_json(run_dir / "results.json")
        latents = sum(cell["counts"]["sampled"] for cell in results["cells"])
        began, whole = float(head["began"]), float(head["updated"]) - float(head["began"])
        collecting, done = float(head["seconds"].get("collect", 0.0)), head["status"] == "done"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run_dir}: cannot be read as a run ({type(error).__name__})") from None
    if not done:
        raise InputError(f"{run_dir}: this run is unfinished, so its speed is unknown")
    calls = [
        call
        for call in CallLedger(run_dir / "calls.jsonl").calls()
        if not (call.cached or call.probe) and call.status == "ok"
    ]
    by_role = defaultdict(list)
    for call in calls:
        by_role[call.role, call.model].append(call)
    one_session = latents and all(call.time - call.milliseconds / 1000 >= began for call in calls)
    tokens = {role: sum(call.usage.output_tokens for call in made) for role, made in by_role.items()}
    seconds = {role: _busy(made) / len(made) for role, made in by_role.items()}
    return Speed(
        call=seconds,
        output={role: tokens[role] / len(made) for role, made in by_role.items()},
        rest=max(0.0, whole - collecting - _busy(calls)) / latents if one_session else None,
    )


def _busy(calls: Sequence[LoggedCall]) -> float:
    """Return the seconds during which at least one of the calls was in flight."""
    total, until = 0.0, 0.0
    for begin, end in sorted((call.time - call.milliseconds / 1000, call.time) for call in calls):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
