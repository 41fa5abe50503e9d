"""Run the benchmarks: `python -m benchmarks.run` writes docs/benchmarks.md, `--quick --json` prints a small version.

`--scale` measures what decides how large a run can be, and prints it as a page or, with `--json`, as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Bench, Figure, delphi_environment
from benchmarks.page import machine, page

AREAS = ("collect", "store", "sample", "call", "pipeline", "end_to_end", "summarise", "start")
SCALE = ("summarise", "latents", "hard_negatives", "merge")
"""What decides how large a run can be; apart from the others, since it takes longer."""
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Measure what was asked for, and write or print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of it: under five minutes in all")
    parser.add_argument("--scale", action="store_true", help="what decides how large a run can be; nothing else")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of writing the page")
    parser.add_argument("--only", choices=(*AREAS, *SCALE[1:]), action="append", help="this area only; may be repeated")
    parser.add_argument("--rounds", type=int, help="how often the sides take turns; 5, or 2 with --quick")
    parser.add_argument("--delphi", type=Path, help="folder of the environment for eai-delphi, made if missing")
    parser.add_argument("--folder", type=Path, help="folder for generated data, kept; default: a temporary one")
    arguments = parser.parse_args()

    python = None
    if not arguments.scale:
        python = delphi_environment(arguments.delphi or Path.home() / ".cache" / "saeval-benchmarks" / "delphi")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            arguments.quick, folder, arguments.rounds or (2 if arguments.quick else 1 if arguments.scale else 5), python
        )
        figures = {area: _measure(area, bench) for area in arguments.only or (SCALE if arguments.scale else AREAS)}
    facts = machine(python) | {"minutes": round((time.monotonic() - began) / 60, 1), "quick": arguments.quick}
    if arguments.json:
        flat = {figure.name: round(figure.median, 4) for group in figures.values() for figure in group}
        print(json.dumps(flat | {"machine": facts}))
    elif arguments.scale:
        print(page(figures, facts))
    else:
        PAGE.write_text(page(figures, facts), encoding="utf-8")
        print(f"wrote {PAGE}", file=sys.stderr)


def _measure(area: str, bench: Bench) -> list[Figure]:
    print(f"measuring {area} …", file=sys.stderr)
    figures: list[Figure] = importlib.import_module(f"benchmarks.{area}").measure(bench)
    return figures


if __name__ == "__main__":
    main()
