"""Runs a task: collects, samples, explains, scores, and writes the results."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from saeval._run import finished, judge_checks
from saeval._run.aggregate import summarise
from saeval._run.cell_files import write_cells
from saeval._run.claims import evaluate
from saeval._run.collect import store_path
from saeval._run.event_loop import run_async
from saeval._run.executors import Executor, executor
from saeval._run.failures import GaveUp
from saeval._run.journal_entries import facts_of, numbers
from saeval._run.local_models import asks_model_in_process
from saeval._run.pipeline import Pipeline, Retry
from saeval._run.progress_file import ProgressFile
from saeval._run.run_dir import RunDir
from saeval._run.sampling import Records, choose_records
from saeval._run.seeds import run_seeds, with_seed
from saeval._run.state import CellState, RunState
from saeval._run.tracking import followed, tell
from saeval._util import (
    BudgetExceeded,
    Display,
    FailsafeDisplay,
    InputError,
    SaevalError,
    Spending,
    Style,
    content_hash,
    counted,
    default_display,
    display as make_display,
    internal_error,
    plain_values,
    with_home,
    without_secrets,
)
from saeval.activations import ActivationStore
from saeval.llm import Budget, CallLedger, rare_garbage_collection, try_models
from saeval.models import directions, measure_fidelity, on_gpu, release_models, without_autocast
from saeval.plugin.registry import Registry
from saeval.records import Finding, RunResult
from saeval.report import Run, read
from saeval.task import Cell, Spec, Task, load_task

_log = logging.getLogger("saeval.run")

_STATUSES: dict[type[Exception], str] = {BudgetExceeded: "stopped at the cost limit", GaveUp: "gave up"}

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Options of one session of a run, besides its task; see `run`."""

    limit: int | None = None
    max_cost: float | None = None
    retry: Retry | None = None
    unpriced: bool = False
    allow_model_change: bool = False


def run(
    task: str | Path | Mapping[str, Any] | Spec,
    *,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    llms: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_cost: float | None = None,
    retry: Retry | None = None,
    unpriced: bool = False,
    allow_model_change: bool = False,
    display: Display | Style | None = None,
    registry: Registry | None = None,
) -> Run:
    """Run a task, resuming unfinished work, and write its reports.

    Running the same task with the same directory does only the missing work. Works in notebooks, too.

    Args:
        task: Name of a shipped task, path of a spec, or a spec as an object or a mapping.
        out: Run directory; default: `saeval-runs/<task>-<hash>`.
        overrides: Dotted keys of the spec to set.
        llms: Models by role, in place of the spec's.
        limit: Maximum latents per cell; marks the result as partial.
        max_cost: Spending limit in dollars; replaces the spec's limit.
        retry: `failed` to redo items that failed in an earlier session, and to ask again for replies that could not be
            parsed; all other results are kept.
        unpriced: Whether to run although the spending limit does not cover calls of unknown price.
        allow_model_change: Whether to resume although another model answers than in earlier sessions of the run.
        display: Progress display: `rich`, `plain`, `json`, `none`, or a `Display`; default: bars on a terminal and in
            notebooks, nothing elsewhere.
        registry: The plugin registry.

    Returns:
        The results and their tables, like `saeval.read`.

    Raises:
        SpecError: If the spec is wrong.
        InputError: If something it names is missing, or the directory cannot be used.
        BudgetExceeded: If the spending limit is reached; a partial result is written first.
        GaveUp: If latents fail repeatedly for the same reason, or a model is unavailable.
        InternalError: If an unexpected error occurred; the run's log contains the traceback.

    Example:
        >>> run = saeval.run("mine.yaml", out="try", limit=2)
        >>> run.partial, run.cells[0].counts["explained"]
        (True, 2)
        >>> run = saeval.run("mine.yaml", out="try")  # does the other latents only
        >>> [(row.metric, row.value, row.n) for row in run.cells[0].scores[:1]]
        [('balanced_accuracy', 1.0, 4)]
    """
    limit, max_cost = plain_values(limit), plain_values(max_cost)  # numpy's numbers, too
    _check_options(limit, max_cost, retry)
    _check_mappings(overrides=overrides, llms=llms)
    built = load_task(task, registry=registry or Registry(), overrides=overrides, llms=llms)
    path = with_home(out) if out is not None else default_path(built)
    shown = display if isinstance(display, Display) else make_display(display) if display else default_display()
    result = run_task(built, Session(limit, max_cost, retry, unpriced, allow_model_change), out=path, display=shown)
    return result if isinstance(result, Run) else read(path)


def _check_options(limit: object, max_cost: Any, retry: object) -> None:
    """Check options as the command line does.

    Raises:
        InputError: If one has a wrong type or value.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InputError(f"limit is {limit!r}; give a whole number of at least 1, or None for all latents")
    is_number = isinstance(max_cost, int | float) and not isinstance(max_cost, bool)
    if max_cost is not None and not (is_number and max_cost >= 0):  # nan is not >= 0
        raise InputError(f"max_cost is {max_cost!r}; give a number of dollars of at least 0, or None")
    if retry not in (None, "failed"):
        raise InputError(f"retry is {retry!r}; give 'failed' or None")


def _check_mappings(**given: object) -> None:
    """Check that options which name keys of the spec are mappings.

    Raises:
        InputError: If one is not.
    """
    examples = {"overrides": "{'run.seed': 1}", "llms": "{'judge': 'openai/gpt-4o-mini'}"}
    for name, value in given.items():
        if value is not None and not isinstance(value, Mapping):
            raise InputError(f"{name} is {value!r}; give a mapping, such as {examples[name]}")


def default_path(task: Task) -> Path:
    """Return the default run directory of a task, which is the same for the same task."""
    seeds = f"-{task.run.seeds}-seeds" if task.run.seeds > 1 else ""
    return Path("saeval-runs") / f"{task.name}-{task.sha[:6]}{seeds}"


def run_task(task: Task, session: Session, *, out: Path, display: Display, elsewhere: float = 0.0) -> RunResult:
    """Run a loaded task; see `run`. `elsewhere` are the dollars that other runs under the same limit have spent."""
    if task.run.seeds > 1:
        run_one = partial(run_task, session=session, display=display)
        return run_seeds(task, out, shared_limit=session.max_cost is not None, elsewhere=elsewhere, run_one=run_one)
    with _failures_logged(out) as folder:
        tells_others = task.checks or task.trackers
        known = None if session.retry or tells_others else finished.find(folder.path, task, session.limit)
        if known is not None:
            return known
        begun = _Run(task, session, folder, FailsafeDisplay(display), elsewhere)
        begun.first_calls()
        with rare_garbage_collection():
            return begun.go()


def collect_task(task: Task, *, out: Path, display: Display) -> dict[str, Path]:
    """Collect the activations of a task, without asking language models. `run_task` resumes from there.

    Returns:
        The folder of each cell's store in the cache.
    """
    if task.run.seeds > 1:  # all seeds use the same activations
        with RunDir(out):
            return collect_task(with_seed(task, task.run.seed), out=out / f"seed-{task.run.seed}", display=display)
    with _failures_logged(out) as folder:
        return _Run(task, Session(), folder, FailsafeDisplay(display)).collect()


@contextmanager
def _failures_logged(out: Path) -> Iterator[RunDir]:
    """Open a run directory; within this context, log errors to its log, and compute without autocast."""
    with RunDir(out) as folder, folder.log(), without_autocast():
        try:
            yield folder
        except SaevalError as error:
            _log.error("%s", error)
            raise
        except Exception as error:
            raise internal_error(error, folder.path / "logs" / "run.log") from error


class _Run:
    def __init__(self, task: Task, session: Session, folder: RunDir, display: Display, elsewhere: float = 0.0):
        self.task, self.session, self.folder = task, session, folder
        self.limit = _effective_limit(session.limit, folder, task)
        self.seed = task.run.seed
        self.calls = CallLedger(folder.path / "calls.jsonl")
        most = task.run.max_cost_usd if session.max_cost is None else session.max_cost
        self.budget = Budget(most, self.calls.spent() + elsewhere)
        self.state = RunState(task)
        self.display = ProgressFile(display, folder.path / "logs" / "progress.json", self.state)
        self.seconds: dict[str, float] = {}
        self.findings: list[Finding] = []
        self.lacking: dict[str, str] = {}  # by cell whose directions were read: facts that are missing, with the reason
        self.display.count(lambda: Spending(self.budget.calls, self.budget.spent - elsewhere, self.budget.unknown))

    def first_calls(self) -> None:
        """Check that every model answers and that the spending limit can be enforced, before collecting."""
        earlier = self.calls.earlier()
        if not self.session.allow_model_change:
            self.calls.expected = earlier.served
        used = self.task.roles_asked()
        askers = [role.asker for name, role in self.task.roles.items() if name in used]
        run_async(
            partial(
                try_models,
                askers,
                self.calls,
                self.budget,
                earlier,
                patience=self.task.run.patience,
                unpriced=self.session.unpriced,
                tell=self.display.wait,
            )
        )
        self.calls.close()

    def collect(self) -> dict[str, Path]:
        """Collect activations only."""
        began, status = time.time(), "failed"
        before = self.folder.read_json("run.json").get("status")
        try:
            with self.display.shown(), executor(self.task, self.calls, self.budget, self.display) as workplace:
                stores = self._timed("collect", workplace.collect)
            status = "collected"
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = "interrupted"
            raise
        finally:
            if before != "done":  # a finished run keeps its status
                self._write_head(status, began)
        return {name: store.path for name, store in stores.items()}

    def go(self) -> RunResult:
        """Run all stages and write the results, also those of an unfinished run."""
        began = time.time()
        finished.forget(self.folder.path)
        self._write_head("running", began)
        status, reason = "failed", ""
        try:
            self._run_stages()
            status = "done"
        except Exception as error:
            status, reason = _STATUSES.get(type(error), "failed"), str(error)
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = "interrupted"
            raise
        finally:
            with _delay_interrupt():
                result = self._conclude(status, reason, began)
            if status == "done" or self.state.cells:
                tell(self.task.trackers, result, self.folder.path, self.display)
        if self.limit == self.session.limit and self.folder.journal.whole and not any(self.lacking.values()):
            finished.keep(self.folder.path, self.task, self.limit)
        return result

    def _run_stages(self) -> None:
        with (
            self.display.shown(),
            followed(self.task, self.folder.path, lambda: self.display.last, self.display),
            executor(self.task, self.calls, self.budget, self.display) as workplace,
        ):
            if self.limit != self.session.limit:
                self.display.say(
                    f"this run has finished with more than {self.session.limit} latents per cell, so --limit has no "
                    "effect"
                )
            self._collect_and_sample(workplace)
            self._timed("explain_and_score", lambda: run_async(partial(self._explain_and_score, workplace)))
            self._timed("directions", self._read_directions)
            if self.task.findings:
                self.findings = self._timed("findings", lambda: evaluate(self.task, self.state.cells))

    def _conclude(self, status: str, reason: str, began: float) -> RunResult:
        """Summarise, write the reports and the judge's check, and last the status with which the stages ended."""
        complete = status == "done"
        try:
            result = self._result(incomplete=not complete or self.limit is not None)
            if complete or self.state.cells:
                self._write_reports(result)
            if self.task.checks and not result.partial:
                judge_checks.keep(self.task, result)
        except Exception as error:
            status, reason = "failed", str(error)
            raise
        finally:
            self._write_head(status, began, reason)
        return result

    # --- collect and sample ---

    def _collect_and_sample(self, workplace: Executor) -> None:
        stores = self._timed("collect", workplace.collect)
        self._timed("sample", lambda: self._sample(stores))
        if "ce_recovered" in self.task.measures:
            self._timed("measure", self._measure)
        if on_gpu() and not asks_model_in_process(self.task):  # a local model server may need the memory
            self._timed("directions", self._read_directions)
            release_models()

    def _measure(self) -> None:
        """Measure the loss recovered by each coder; show a message for coders that cannot be measured."""
        with self.display.stage("measure fidelity", len(self.state.cells), "cells") as stage:
            for outcome in self.state.cells.values():
                try:
                    outcome.measured = self._fidelity(outcome)
                except InputError as error:
                    self.display.say(f"{outcome.cell.name}: no ce_recovered: {error}")
                stage.advance()

    def _fidelity(self, outcome: CellState) -> dict[str, float]:
        source = outcome.cell.source.plugin
        if not source.offers() >= {"subject", "coder"}:
            raise InputError("the source has no model and no coder")
        key = content_hash("fidelity", store_path(outcome.cell.source).name)
        done: dict[str, float] | None = self.folder.journal.finished(key)
        if done is None or not numbers(done, ("ce_recovered", "ce_clean", "ce_spliced", "ce_ablated")):
            lent = source.model_copy()  # a copy, so that weights are freed afterwards
            found = measure_fidelity(lent.subject(), lent.weights(), outcome.store)
            done = {
                "ce_recovered": found.recovered,
                "ce_clean": found.clean,
                "ce_spliced": found.spliced,
                "ce_ablated": found.ablated,
            }
            self.folder.journal.finish(key, done)
        return done

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began

    def _sample(self, stores: Mapping[str, ActivationStore]) -> None:
        room = Records.KEPT
        with self.display.stage("sample windows", len(self.task.cells), "cells") as stage:
            for cell in self.task.cells:
                outcome = self.state.cells[cell.name] = self._outcome(cell, stores[cell.name], room)
                room -= outcome.records.kept
                stage.advance()

    def _outcome(self, cell: Cell, store: ActivationStore, keep: int) -> CellState:
        records, counts = choose_records(cell, store, self.seed, self.limit, keep)
        base = content_hash(store_path(cell.source).name, cell.sampler.identity, self.seed)
        return CellState(cell, store, records, counts, base)

    async def _explain_and_score(self, workplace: Executor) -> None:
        try:
            async with workplace.working():
                await Pipeline(self.state, self.folder.journal, workplace, self.display, self.session.retry).run()
        finally:
            self.calls.close()

    def _read_directions(self) -> None:
        """Compute neighbours and promoted tokens of latents, except of those that earlier sessions computed."""
        for name, outcome in self.state.cells.items():
            if name in self.lacking:
                continue  # computed before the models were released
            key = content_hash("directions 5", store_path(outcome.cell.source).name)
            known = facts_of(self.folder.journal.finished(key))
            new = [latent.index for latent in outcome.records.latents if latent.index not in known]
            self.lacking[name] = ""
            if new:
                size = int(outcome.store.facts.get("d_in") or 0) * outcome.store.n_latents
                found, missing = directions(outcome.cell.source.plugin, new, size)
                known |= zip(new, found, strict=False)
                if missing:
                    self.lacking[name] = f"{counted(len(new), 'latent has', 'latents have')} no {missing}"
                elif found:
                    self.folder.journal.finish(key, {"result": known})
            outcome.directions = known

    # --- results ---

    def _result(self, *, incomplete: bool) -> RunResult:
        used = self.task.roles_asked()
        models = {(name, role.model) for name, role in self.task.roles.items() if name in used}
        ledger, oddities = self.calls.account(models)
        missing = self.calls.missing()
        lacking = [
            f"{name}: {text}; rerun the same command when it can be loaded."
            for name, text in self.lacking.items()
            if text
        ]
        return summarise(
            self.state,
            ledger,
            run_id=self.folder.path.name,
            partial=incomplete,
            seconds=self.seconds,
            findings=self.findings,
            warnings=[*([f"{missing}."] if missing else []), *oddities, *lacking],
        )

    def _write_reports(self, result: RunResult) -> None:
        self.folder.clear_results(keep=[cell.cell for cell in result.cells])
        write_cells(self.state, self.folder.journal, self.folder.cell)
        self.folder.write_results(self.task, result)

    def _write_head(self, status: str, began: float, reason: str = "") -> None:
        """Write `run.json`, and the spec unless there are results of an earlier one, which it must describe."""
        import platform

        if not (self.folder.path / "results.json").exists():
            self.folder.write_spec(self.task)
        self.folder.write_json(
            "run.json",
            {
                "status": status,
                "reason": without_secrets(reason),
                "task": self.task.name,
                "spec_sha": self.task.sha,
                "began": began,
                "updated": time.time(),
                "limit": self.limit,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "seconds": self.seconds,
            },
        )


def _effective_limit(limit: int | None, folder: RunDir, task: Task) -> int | None:
    """Return the limit, raised to that of an earlier finished run (None: all latents), so that no latent is dropped."""
    if limit is None:
        return None
    before = folder.read_json("run.json")
    if before.get("status") != "done" or before.get("spec_sha") != task.sha or "limit" not in before:
        return limit
    return None if before["limit"] is None else max(limit, before["limit"])


@contextmanager
def _delay_interrupt() -> Iterator[None]:
    """Within this context, delay the first Ctrl-C so that results are written completely; a second one stops."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt
