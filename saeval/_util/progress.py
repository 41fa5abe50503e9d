"""Shows the progress of a run: rich, plain lines, JSON events or nothing."""

from __future__ import annotations

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from saeval._util.errors import InputError, did_you_mean
from saeval._util.text import counted

log = logging.getLogger("saeval")

Style = Literal["rich", "plain", "json", "none"]


@dataclass(frozen=True)
class Spending:
    """Number and cost of calls so far.

    Attributes:
        calls: Number of answered calls in this session.
        usd: Dollars over all sessions of the run, as far as prices are known.
        unknown: Number of calls of unknown price.
    """

    calls: int
    usd: float
    unknown: int = 0


class Display(ABC):
    """Base class of progress displays; receives the events of a run.

    Attributes:
        spending: Returns number and cost of the run's calls; None until a run sets it.
    """

    spending: Callable[[], Spending] | None = None
    _calling_since: float | None = None

    def count(self, spending: Callable[[], Spending]) -> None:
        """Set the function that returns number and cost of the run's calls."""
        self.spending = spending

    def spent(self) -> str:
        """Return calls, calls per second and dollars so far as text, empty before the first call."""
        now = self.spending() if self.spending is not None else None
        if now is None or not now.calls:
            return ""
        if self._calling_since is None:
            self._calling_since = time.monotonic()
        seconds = time.monotonic() - self._calling_since
        rate = f", {now.calls / seconds:.1f}/s" if seconds > 1 else ""
        price = f"${now.usd:.2f}"
        if now.unknown:
            price += f" and {counted(now.unknown, 'call')} of unknown price"
        return f"{counted(now.calls, 'call')}{rate}, {price}"

    @abstractmethod
    def begin(self, stage: str, total: int, unit: str) -> None:
        """Show that a stage starts."""

    @abstractmethod
    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Show the progress of a stage: items done, total, and failed."""

    @abstractmethod
    def end(self, stage: str) -> None:
        """Show that a stage has ended."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Show a message to the user."""

    def wait(self, text: str) -> None:
        """Show what the run waits for; there is no event for the end of the wait."""
        self.say(text)

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Activate the display within this context."""
        yield self

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "latents") -> Iterator[Stage]:
        """Show a stage within this context."""
        self.begin(name, total, unit)
        try:
            yield Stage(self, name, total)
        finally:
            self.end(name)


class FailsafeDisplay(Display):
    """Wraps another display; if that one raises an error, the run continues without it.

    Args:
        display: The display.
    """

    def __init__(self, display: Display):
        self._inner: Display | None = display

    def _pass_on(self, show: Callable[[Display], None]) -> None:
        if self._inner is None:
            return
        try:
            show(self._inner)
        except Exception as error:  # noqa: BLE001 - results do not depend on the display
            self._inner = None
            log.warning("progress is no longer shown (%s: %s)", type(error).__name__, error)

    def count(self, spending: Callable[[], Spending]) -> None:
        """Pass on."""
        self._pass_on(lambda display: display.count(spending))

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Pass on."""
        self._pass_on(lambda display: display.begin(stage, total, unit))

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Pass on."""
        self._pass_on(lambda display: display.update(stage, done, total, failed))

    def end(self, stage: str) -> None:
        """Pass on."""
        self._pass_on(lambda display: display.end(stage))

    def say(self, text: str) -> None:
        """Pass on."""
        self._pass_on(lambda display: display.say(text))

    def wait(self, text: str) -> None:
        """Pass on."""
        self._pass_on(lambda display: display.wait(text))

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Activate the display within this context."""
        with ExitStack() as shown:
            self._pass_on(lambda display: _enter(shown, display))
            try:
                yield self
            finally:
                self._pass_on(lambda display: shown.close())


def _enter(shown: ExitStack, display: Display) -> None:
    shown.enter_context(display.shown())


class Stage:
    """Counts the finished items of one stage.

    Attributes:
        done: Number of finished items.
        failed: Number of items that ended without a result.
        moved: When the count last changed, by the monotonic clock.
    """

    def __init__(self, display: Display, name: str, total: int):
        self._display, self._name, self._total = display, name, total
        self.done = self.failed = 0
        self.moved = time.monotonic()

    def advance(self, *, failed: bool = False) -> None:
        """Count one more finished item."""
        self.failed += failed
        self.reach(self.done + 1)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set the number of finished items; `total` corrects the initial total."""
        self.done = done
        self.moved = time.monotonic()
        self._total = total if total is not None else self._total
        self._display.update(self._name, done, self._total, self.failed)


class Silent(Display):
    """Shows nothing."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Show nothing."""

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Show nothing."""

    def end(self, stage: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


class Plain(Display):
    """Plain lines on standard error, one per stage every few seconds; suitable for logs."""

    def __init__(self, every: float = 10.0):
        self._every = every
        self._totals: dict[str, tuple[int, str]] = {}
        self._state: dict[str, tuple[int, int]] = {}
        self._last = self._began = time.monotonic()
        self._stages: dict[str, float] = {}

    def _write(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f}s] {text}", file=sys.stderr, flush=True)  # noqa: T201

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Store the total and the unit."""
        self._totals[stage] = (total, unit)
        self._last = self._stages[stage] = time.monotonic()

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Write a line if the last one is long enough ago."""
        self._state[stage] = (done, failed)
        self._totals[stage] = (total, self._totals[stage][1])
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._line(stage, left=remaining(time.monotonic() - self._stages[stage], done, total))

    def _line(self, stage: str, left: str = "") -> None:
        total, unit = self._totals[stage]
        done, failed = self._state.get(stage, (0, 0))
        counts = f"{stage}: {done:,}/{total:,} {unit}" + (f", {failed} failed" if failed else "")
        self._write("; ".join(filter(None, (counts, left, self.spent()))))

    def end(self, stage: str) -> None:
        """Write the final count of the stage."""
        self._line(stage)

    def say(self, text: str) -> None:
        """Write the text."""
        self._write(text)


class Events(Display):
    """JSON lines on standard error, one per event."""

    def _write(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, "time": time.time(), **fields}), file=sys.stderr, flush=True)  # noqa: T201

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Write an event."""
        self._write("begin", stage=stage, total=total, unit=unit)

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Write an event."""
        self._write("update", stage=stage, done=done, total=total, failed=failed)

    def end(self, stage: str) -> None:
        """Write an event."""
        self._write("end", stage=stage)

    def say(self, text: str) -> None:
        """Write an event."""
        self._write("message", text=text)

    def wait(self, text: str) -> None:
        """Write an event."""
        self._write("wait", text=text)


class Rich(Display):
    """A live bar per stage on standard error, with time, failures, calls and cost; fits 80 columns."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column
        from rich.text import Text

        console = Console(stderr=True)
        rest = 8 + 20 + 7 + 7 + 8 + 5  # columns of the bar, counts, times, failures, and blanks between them
        narrow = Column(no_wrap=True, overflow="ellipsis", width=max(24, min(60, console.width - rest)))
        shown = self

        class Bars(Progress):
            def get_renderables(self) -> Iterator[Any]:
                yield from super().get_renderables()
                yield Text(shown.spent(), style="dim")

        self._progress = Bars(
            TextColumn("{task.description}", table_column=narrow),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[counts]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[red]{task.fields[failed]}", table_column=Column(no_wrap=True)),
            console=console,
        )
        self._bars: dict[str, Any] = {}
        self._units: dict[str, str] = {}

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Keep the bars on screen."""
        with self._progress:
            yield self

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Add a bar."""
        from rich.markup import escape

        self._units[stage] = unit
        counts = f"0/{total:,} {unit}"
        self._bars[stage] = self._progress.add_task(escape(stage), total=total, counts=counts, failed="")

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Move the bar."""
        counts = f"{done:,}/{total:,} {self._units[stage]}"
        trouble = f"{failed} failed" if failed else ""
        self._progress.update(self._bars[stage], completed=done, total=total, counts=counts, failed=trouble)

    def end(self, stage: str) -> None:
        """Leave the bar as it is."""
        self._progress.stop_task(self._bars[stage])

    def say(self, text: str) -> None:
        """Print above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


class Notebook(Display):
    """One block of text in a notebook's output, redrawn twice a second at most."""

    _EVERY = 0.5

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._units: dict[str, str] = {}
        self._said: list[str] = []
        self._handle: Any = None
        self._last = 0.0

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Add a line."""
        self._began[stage], self._units[stage] = time.monotonic(), unit
        self.update(stage, 0, total, 0)

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Change the stage's line."""
        trouble = f", {failed} failed" if failed else ""
        left = remaining(time.monotonic() - self._began[stage], done, total)
        self._lines[stage] = f"{stage}: {done:,}/{total:,} {self._units[stage]}{trouble}" + (
            f"; {left}" if left else ""
        )
        if time.monotonic() - self._last >= self._EVERY:
            self._draw()

    def end(self, stage: str) -> None:
        """Draw the final count of the stage."""
        self._draw()

    def say(self, text: str) -> None:
        """Add a line above the stages."""
        self._said.append(text)
        self._draw()

    def _draw(self) -> None:
        from html import escape

        from IPython import display as shown

        self._last = time.monotonic()
        text = "\n".join([*self._said[-5:], *self._lines.values(), self.spent()]).rstrip()
        block = shown.HTML(f"<pre>{escape(text)}</pre>")  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = shown.display(block, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(block)


def remaining(seconds: float, done: int, total: int) -> str:
    """Return the estimated remaining time of a stage as text; empty if unknown."""
    if not 0 < done < total or seconds < 1:
        return ""
    left = seconds / done * (total - done)
    return f"~{left / 60:.0f} min left" if left >= 90 else f"~{left:.0f} s left"


def display(style: Style | None = None) -> Display:
    """Return the display of a style; default: `rich` on a terminal and in notebooks, else `plain`.

    Raises:
        InputError: If there is no such style.
    """
    styles: dict[str, type[Display]] = {"rich": Rich, "plain": Plain, "json": Events, "none": Silent}
    chosen = style or ("rich" if _on_terminal() else "plain")
    if chosen not in styles:
        known = ", ".join(get_args(Style))
        raise InputError(f"display {chosen!r}: no such style{did_you_mean(str(chosen), [*styles])}; available: {known}")
    return Notebook() if chosen == "rich" and in_notebook() else styles[chosen]()


def default_display() -> Display:
    """Return the display for calls from Python: bars on a terminal, a block in a notebook, nothing elsewhere."""
    return display("rich") if in_notebook() or _on_terminal() else Silent()


def _on_terminal() -> bool:
    """Return whether standard error is a terminal; it is None or closed in daemons and some kernels."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        return False


def in_notebook() -> bool:
    """Return whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
