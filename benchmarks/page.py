"""The page of measured figures, docs/benchmarks.md, and the facts of the machine they were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure

_TITLES = {
    "collect": "Collecting activations",
    "store": "The activation store",
    "sample": "Sampling windows",
    "call": "Calling language models",
    "pipeline": "Keeping a language model busy",
    "end_to_end": "Explaining and scoring beside eai-delphi",
    "summarise": "Summarising scores",
    "start": "Starting",
    "latents": "What a run costs per latent",
    "hard_negatives": "Hard negatives",
    "merge": "Merging stores",
}
_HEAD = """# Benchmarks

Written by `python -m benchmarks.run`; `--quick --json` is a small version that takes less than five minutes. The
compared programs alternate in one run, each in its own process; a figure is the median of its rounds, with the lowest
and the highest. CPU seconds count all threads. eai-delphi runs unchanged in its own environment (modules it imports
but does not use on the measured paths are replaced by empty ones, see `benchmarks/delphi/`). Benchmarks are not
tests: a slow machine fails no test.

No figure was measured on a GPU: code for CUDA is tested on the CPU with substitutes, and its speed is unknown
([decision 13](decisions/0013-where-collecting-spends-its-time.md)).

`python -m benchmarks.gpu --out gpu-out` measures collecting on a GPU in one session of eight minutes, with random
weights of the shapes of Gemma 2 9B and GPT-2 small, without files or hub: products in float32, TF32 and bfloat16,
screening (`run.screen`), sizes of batches, backing off when memory runs out, an in-process judge. It writes one line of
JSON per figure. `--tiny` is a dry run of seconds on a CPU, which the tests do. No figures are published until it has
run on a GPU.
"""


def machine(delphi_python: Path | None) -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, versions."""
    asked = [str(delphi_python), "-c", "import importlib.metadata as m; print(m.version('eai-delphi'))"]
    delphi = {}
    if delphi_python is not None:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
        delphi = {"eai-delphi": done.stdout.strip()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": platform.system(),
        "python": platform.python_version(),
        "saeval": version("saeval"),
        **delphi,
        **{name: version(name) for name in ("torch", "transformers", "numpy", "aiohttp", "litellm")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def page(figures: Mapping[str, Sequence[Figure]], facts: Mapping[str, Any]) -> str:
    """Return docs/benchmarks.md."""
    parts = [_HEAD, "Measured on: " + ", ".join(f"{name} {value}" for name, value in facts.items()) + ".\n"]
    for area, group in figures.items():
        parts.append(f"## {_TITLES[area]}\n")
        parts.append("| figure | median | lowest – highest | target | |\n|---|---:|---:|---:|---|")
        parts += [_row(figure) for figure in group]
        parts.append("")
        parts += [_method(figure) for figure in group]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _row(figure: Figure) -> str:
    sign = "≤" if figure.lower_is_better else "≥"
    target = "" if figure.target is None else f"{sign} {_number(figure.target)}"
    met = {None: "", True: "met", False: "missed"}[figure.met]
    unit = "" if figure.unit == "×" else f" {figure.unit}"
    times = " ×" if figure.unit == "×" else unit
    spread = f"{_number(min(figure.values))} – {_number(max(figure.values))}"
    return f"| `{figure.name}` | {_number(figure.median)}{times} | {spread} | {target} | {met} |"


def _method(figure: Figure) -> str:
    sides = "; ".join(
        f"{label}: {_number(sorted(values)[len(values) // 2])}" for label, values in (figure.sides or {}).items()
    )
    return f"- `{figure.name}`: {figure.method}." + (f" Medians: {sides}." if sides else "")


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
