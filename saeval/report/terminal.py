"""The leaderboard on a terminal, with interval, floor, n and coverage beside every score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saeval.report import safe_text
from saeval.report.leaderboard import OWN, Leaderboard, Standing

if TYPE_CHECKING:
    from rich.console import Console

    from saeval.results import RunResult, ScoreRow


def number(value: float | None) -> str:
    """Write a score: `.612`, `-.020`, `1.00`; `–` for none."""
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def with_interval(row: ScoreRow | None) -> str:
    """Write a score and its interval: `.612 [.55 .67]`."""
    if row is None or row.value is None or row.ci95 is None:
        return "–"
    low, high = (number(x)[:-1] if abs(x) < 1 else f"{x:.1f}" for x in row.ci95)
    return f"{number(row.value)} [{low} {high}]"


def render(run: RunResult, console: Console | None = None) -> None:
    """Print the leaderboard; plain text where there is no terminal.

    Args:
        run: The run.
        console: Where to; standard output when left out.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal and console.width < 100:
        console.width = 100
    board = Leaderboard.of(run)
    judges = dict.fromkeys(r.judge for c in run.cells for r in c.scores if r.judge)
    subjects = dict.fromkeys(c.subject for c in run.cells if c.subject)

    def say(text: str, style: str = "") -> None:
        console.print(Text(safe_text(text), style=style))

    say(f"{run.task} {run.task_version}" + ("  PARTIAL" if run.partial else "") + ("  SYNTHETIC" if run.synthetic else ""), "bold")
    say(f"subject {', '.join(subjects) or '–'}")
    if judges:
        say(f"judge   {', '.join(judges)}")
    say(f"explained by {run.cells[0].explainer}; mean over latents [95 % interval]; ranked by {run.rank_by} ↑")

    def table(title: str, columns: list[str]) -> Any:
        made = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            made.add_column(column, no_wrap=True)
        return made

    axes = list(dict.fromkeys(axis for c in run.cells for axis in c.axes)) or ["cell"]
    per_table = max(1, (console.width - 8 - 14 * len(axes) - 14) // 20)
    for begin in range(0, len(board.scorers), per_table):
        scorers = board.scorers[begin : begin + per_table]
        main = table("", ["rank", *map(safe_text, axes), "L0", "alive", *(_heading(board, s) for s in scorers)])
        for standing in board.standings:
            main.add_row(
                standing.rank_text or "–", *_names(standing, axes), _measure(standing, "l0", ".1f"), _measure(standing, "frac_alive", ".2f"),
                *(with_interval(standing.row(s)) for s in scorers), style="dim" if standing.cell.baseline else "",
            )  # fmt: skip
        console.print(main)
    for scorer in board.scorers:
        first = next((row for s in board.standings if (row := s.row(scorer))), None)
        if first is None:
            continue
        chance = f", chance {number(first.floor['chance'])}" if "chance" in first.floor else ""
        say("")
        detail = table(f"{safe_text(scorer)}: {first.metric}{chance}", [*map(safe_text, axes), "explanation", "score", "n", "covered", "lift", "$"])
        for standing in board.standings:
            for variant in (OWN, *board.variants):
                row = standing.row(scorer, variant)
                if row is not None:
                    name = "its own" if variant == OWN else safe_text(variant)
                    lift = f"{row.lift:+.3f}" if row.lift is not None else ""
                    usd = "?" if row.usd is None else f"{row.usd:.2f}"
                    detail.add_row(*_names(standing, axes), name, with_interval(row), f"{row.n}/{row.tried}", f"{row.coverage:.0%}", lift, usd,
                                   style="" if variant == OWN else "dim")  # fmt: skip
        console.print(detail)
    say("")
    if board.smallest_difference is not None:
        say(f"smallest difference in {run.rank_by} that two contestants' intervals could show (80 % power): {number(board.smallest_difference)}")
    say("lift: above the best explanation that knows nothing of the latent, on the same latents; ranks are ranges where intervals do not separate")
    for warning in run.warnings:
        say(f"! {warning}", "yellow")


def _heading(board: Leaderboard, scorer: str) -> str:
    first = next((row for s in board.standings if (row := s.row(scorer))), None)
    return safe_text(scorer) + (f" n={first.n}" if first else "")


def _names(standing: Standing, axes: list[str]) -> list[str]:
    if axes == ["cell"]:
        return [safe_text(standing.cell.cell)]
    return [safe_text(standing.cell.axes.get(axis, "")) for axis in axes]


def _measure(standing: Standing, name: str, form: str) -> str:
    value = standing.cell.measures.get(name)
    return "–" if value is None else format(value, form)
