"""What a run shows of itself while it goes: rich, plain lines, JSON events, or nothing."""

from __future__ import annotations

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

log = logging.getLogger("saeval")

Style = Literal["rich", "plain", "json", "none"]


class Display(ABC):
    """Receives what happens in a run."""

    @abstractmethod
    def begin(self, stage: str, total: int, unit: str) -> None:
        """A stage starts."""

    @abstractmethod
    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """A stage got on: items done in all, of how many, and how many of them failed."""

    @abstractmethod
    def end(self, stage: str) -> None:
        """A stage is over."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Something a user should read."""

    def wait(self, text: str) -> None:
        """The run waits, and this says for what; there is no end of it but that the stage goes on."""
        self.say(text)

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Show for as long as the block lasts."""
        yield self

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "latents") -> Iterator[Stage]:
        """Show one stage for as long as the block lasts."""
        self.begin(name, total, unit)
        try:
            yield Stage(self, name, total)
        finally:
            self.end(name)


class Undisturbed(Display):
    """Shows what another display shows; where that one fails, the run goes on without it.

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
        except Exception as error:  # noqa: BLE001 - whatever a display raises, no result depends on it
            self._inner = None
            log.warning("progress is no longer shown (%s: %s)", type(error).__name__, error)

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
        """Show for as long as the block lasts."""
        with ExitStack() as shown:
            self._pass_on(lambda display: _enter(shown, display))
            try:
                yield self
            finally:
                self._pass_on(lambda display: shown.close())


def _enter(shown: ExitStack, display: Display) -> None:
    shown.enter_context(display.shown())


class Stage:
    """Counts what is done in one stage.

    Attributes:
        done: Items done.
        failed: Items that ended without a result.
        moved: When the count changed last, by the monotonic clock.
    """

    def __init__(self, display: Display, name: str, total: int):
        self._display, self._name, self._total = display, name, total
        self.done = self.failed = 0
        self.moved = time.monotonic()

    def advance(self, *, failed: bool = False) -> None:
        """One more item is done."""
        self.failed += failed
        self.reach(self.done + 1)

    def reach(self, done: int, total: int | None = None) -> None:
        """So many items are done in all; `total` corrects the number known at the beginning."""
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
    """Lines on standard error, one every few seconds a stage: fit for logs."""

    def __init__(self, every: float = 10.0):
        self._every = every
        self._totals: dict[str, tuple[int, str]] = {}
        self._state: dict[str, tuple[int, int]] = {}
        self._last = self._began = time.monotonic()

    def _write(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f}s] {text}", file=sys.stderr, flush=True)  # noqa: T201

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Remember the total."""
        self._totals[stage] = (total, unit)
        self._last = time.monotonic()

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Write a line if the last one is long enough ago."""
        self._state[stage] = (done, failed)
        self._totals[stage] = (total, self._totals[stage][1])
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._line(stage)

    def _line(self, stage: str) -> None:
        total, unit = self._totals[stage]
        done, failed = self._state.get(stage, (0, 0))
        self._write(f"{stage}: {done:,}/{total:,} {unit}" + (f", {failed} failed" if failed else ""))

    def end(self, stage: str) -> None:
        """Write how far the stage came."""
        self._line(stage)

    def say(self, text: str) -> None:
        """Write the text."""
        self._write(text)


class Events(Display):
    """JSON lines on standard error, one an event."""

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
    """A live bar a stage on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description:<42}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("[red]{task.fields[failed]}"), console=Console(stderr=True),
        )  # fmt: skip
        self._bars: dict[str, Any] = {}

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Keep the bars on screen."""
        with self._progress:
            yield self

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Add a bar."""
        from rich.markup import escape

        self._bars[stage] = self._progress.add_task(escape(stage), total=total, unit=unit, failed="")

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Move the bar."""
        self._progress.update(
            self._bars[stage], completed=done, total=total, failed=f"{failed} failed" if failed else ""
        )

    def end(self, stage: str) -> None:
        """Leave the bar as it is."""
        self._progress.stop_task(self._bars[stage])

    def say(self, text: str) -> None:
        """Print above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


def display(style: Style | None = None) -> Display:
    """Return the display of a style; without one, `rich` on a terminal and `plain` elsewhere."""
    if style is None:
        style = "rich" if sys.stderr.isatty() else "plain"
    styles: dict[Style, type[Display]] = {"rich": Rich, "plain": Plain, "json": Events, "none": Silent}
    return styles[style]()
