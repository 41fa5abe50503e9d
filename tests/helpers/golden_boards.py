"""Boards of two made-up runs in every format, kept word for word: `python tests/helpers/golden_boards.py` writes them again."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from click.testing import CliRunner
from made_run import cell, made_run, run_of, score_row
from rich.console import Console
from root import ROOT

from saeval._util import write_checksums
from saeval.cli.group import main
from saeval.records.results import Finding, JudgeCheck, JudgeRole, RunResult
from saeval.records.rows import Correlation, DecileShares
from saeval.report.reader import read
from saeval.report.terminal import render

GOLDEN = ROOT / "tests" / "golden"
FORMATS = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "json": "json"}


def odd_run() -> RunResult:
    """A run with all that makes boards hard: no score, no interval, less is better, large numbers, hostile names."""
    low = {"metric": "error", "higher_is_better": False, "range": (0.0, None)}
    cells = [
        cell("a_b|c", [
            score_row("detection", 0.7341, 0.051, lift=0.221, floor={"random_explanation": 0.513, "chance": 0.5}),
            score_row("steering", 12.3456, 0, **low, ci95=(11.2, 13.9), floor={}, lift=-0.003, usd=None),
        ], layer="9"),
        cell("dense", [
            score_row("detection", None, skipped=50, failed=0), score_row("steering", 0.0421, 0, **low, ci95=None, floor={}),
        ], layer="10"),
        cell("gone & lost", [score_row("detection", None, explanation_words=None, usd=None)], layer="9"),
        cell("neurons", [score_row("detection", -0.004, 0.009, n=5, coverage=0.1, range=(-1.0, 1.0), ci95=(-0.013, 0.005))], "neurons", layer="9"),
    ]  # fmt: skip
    cells[0].measures.update(d_sae=16384.0, fvu=0.21345)
    cells[0].deciles.append(
        DecileShares(
            scorer="detection", right=(*[0.9] * 9, None), n=(*[10] * 9, 0), negatives_right=0.75, negatives_n=40
        )
    )
    cells[0].correlations.append(Correlation(scorers=("detection", "steering"), n=48, pearson=0.512, spearman=None))
    check = JudgeCheck(
        model="openai/judge-1", task="judge-check", task_version="1", when="2026-01-31", latents=24,
        scores=[score_row("detection", 0.97), score_row("detection", 0.51, variant="shuffled_explanation")],
    )  # fmt: skip
    return run_of(
        *cells, run_id="odd", partial=True, warnings=[], correlations=cells[0].correlations,
        judges=[JudgeRole(role="judge", model="openai/judge-1", check=check), JudgeRole(role="other", model="m", check=None)],
        findings=[
            Finding(claim="a is above chance", outcome="shown", quantity="detection: a, less chance", difference=0.234,
                    ci95=(0.183, 0.285), n=(48,)),
            Finding(claim="nearer is more alike", outcome="not shown", quantity="rank correlation", difference=-0.3,
                    ci95=None, p=0.0414, n=(5,)),
            Finding(claim="b is better", outcome="cannot be told", quantity="b", difference=None, ci95=None, n=(3, 48),
                    reason="3 latents are too few to tell"),
        ],
    )  # fmt: skip


def boards() -> dict[str, str]:
    """Every board as text, by the name of its file."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        places = []
        for run in (made_run(), odd_run()):
            folder = Path(temporary) / run.run_id
            folder.mkdir()
            (folder / "results.json").write_text(run.model_dump_json(by_alias=True))
            write_checksums(folder)
            _command("report", folder)
            out = io.StringIO()
            render(read(folder), Console(file=out, width=80))
            found[f"{run.run_id}-terminal.txt"] = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
            found[f"{run.run_id}-report.md"] = (folder / "report" / "report.md").read_text()
            found[f"{run.run_id}-leaderboard.csv"] = (folder / "report" / "leaderboard.csv").read_text()
            found[f"{run.run_id}-page.txt"] = page_text((folder / "report" / "index.html").read_text())
            places.append(folder)
        for format_, ending in FORMATS.items():
            found[f"joined.{ending}"] = _command("leaderboard", *places, "--format", format_)
        _command("leaderboard", *places, "--html", places[0] / "board.html")
        data = re.search(r'id="joined">(.*?)</script>', (places[0] / "board.html").read_text())
        assert data is not None
        found["joined-page.json"] = data[1].replace("},{", "},\n{")
    return {name: text.rstrip() + "\n" for name, text in found.items()}


def page_text(page: str) -> str:
    """The words of a page that a reader sees, a line a cell of its tables; no style, script or drawing."""
    body = page[page.index("<main") :]
    body = re.sub(r"(?s)<(script|style|svg)\b.*?</\1>", " ", body)
    lines = (
        " ".join(re.sub(r"<[^>]*>", " ", line).split())
        for line in re.sub(r"</(td|th|p|h\d|li)>", "\n", body).split("\n")
    )
    return "\n".join(line for line in lines if line)


def _command(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


if __name__ == "__main__":
    for name, text in boards().items():
        (GOLDEN / name).write_text(text)
