"""Writes the table of docs/choosing-a-scorer.md: which faults of an explanation each scorer sees.

    python -m benchmarks.scorer_check          # prints it
    python -m benchmarks.scorer_check --write  # writes it into the page

It runs `scorer-check` twice: with an oracle that makes no error, and with one that misses 5 % of the fitting windows
and accepts 1 % of the others. About two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import saeval
from saeval._util import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "choosing-a-scorer.md"
BEGIN, END = "<!-- scorer-check -->", "<!-- /scorer-check -->"
ERRORS = {"llms.judge.sensitivity": 0.95, "llms.judge.specificity": 0.99}
_UNASKED = ("simulation", "surprisal", "embedding", "generation")  # scorers that do not ask the judge


def table(folder: Path) -> str:
    """Return a line per scorer and kind of windows, with power and mean difference by corruption, as Markdown."""
    noisy = ERRORS | {f"scorers.{name}.when.latents": 0 for name in _UNASKED}
    rows: list[list[str]] = []
    variants: dict[str, None] = {}
    for mark, overrides in (("", {}), (", judge with errors", noisy)):
        run = saeval.run("scorer-check", overrides=overrides, out=folder / f"run{len(rows)}")
        for cell in run.cells:
            texts: dict[str, list[str]] = {}
            for power in cell.powers:
                variants[power.variant.replace("_", " ")] = None
                text = f"{power.power:.2f} ({power.difference:+.3f})"
                texts.setdefault(power.scorer, []).append(text)
            rows += [[f"{scorer}{mark}", *cell.axes.values(), *found] for scorer, found in texts.items()]
    axes = run.cells[0].axes
    return markdown_table(("scorer", *axes, *variants), rows)


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    with tempfile.TemporaryDirectory() as folder:
        found = table(Path(folder))
    if not parser.parse_args().write:
        print(found)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
