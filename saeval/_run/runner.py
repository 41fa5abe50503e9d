"""Run a task: collect, sample, explain, score, and write it all down."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import JsonValue

from saeval._run import judge_checks
from saeval._run.aggregate import CellOutcome, Scored, summarise, write_cells
from saeval._run.claims import evaluate
from saeval._run.collect import store_path
from saeval._run.executors import Executor, executor
from saeval._run.failures import Failures, GaveUp
from saeval._run.journal import RunDir
from saeval._run.restoring import Usable, numbers, rows, usable_explanation, usable_score
from saeval._run.sampling import Records, choose_records
from saeval._run.steps import Work
from saeval._run.tracking import tell
from saeval._util import (
    BudgetExceeded,
    Display,
    InputError,
    SaevalError,
    Silent,
    Stage,
    Undisturbed,
    content_hash,
    derive_rng,
    internal_error,
    memory_left,
)
from saeval.activations import ActivationStore
from saeval.llm import Budget, CallLog
from saeval.models import directions, measure_fidelity
from saeval.plugin.registry import Registry
from saeval.records import MAIN, Explanation, Finding, LatentId, RunResult, Score, Usage
from saeval.results import Run, read
from saeval.task import SHUFFLED, Cell, StepPart, Task, load_task

_LITTLE_MEMORY = 0.02  # of what there is
_GATHERED = 2000  # latents in flight where models gather their requests

T = TypeVar("T")
Retry = Literal["failed"]


class Item(NamedTuple):
    """A latent to be explained or scored, and which of its explanations is meant."""

    latent: LatentId
    variant: str


def run(
    task: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    llms: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_cost: float | None = None,
    retry: Retry | None = None,
    display: Display | None = None,
    registry: Registry | None = None,
) -> Run:
    """Run a task, or what is missing of it, and write its reports.

    The same task into the same directory does only what is not there yet. Works in a notebook too.

    Args:
        task: Name of a shipped task, path of a spec, or a spec as a mapping.
        out: Run directory; `saeval-runs/<task>-<hash>` when left out.
        overrides: Dotted keys of the spec to set.
        llms: Models by role, in place of the spec's.
        limit: Latents a cell at most; marks the result partial.
        max_cost: Dollars to spend at most, in place of the spec's limit.
        retry: `failed` to do again what an earlier sitting of the run failed at; all else is kept.
        display: Where progress is shown; nowhere when left out.
        registry: Where plugins are found.

    Returns:
        The results and their tables, as `saeval.read` gives them.

    Raises:
        SpecError: If the spec is wrong.
        InputError: If something it names is missing, or the directory cannot be used.
        BudgetExceeded: If the spending limit is reached; a partial result is written first.
        GaveUp: If every latent fails alike, or a model is gone.
        InternalError: If something failed that nobody foresaw; the run's log holds the traceback.

    Example:
        >>> run = saeval.run("mine.yaml", out="try", limit=2)
        >>> run.partial, run.cells[0].counts["explained"]
        (True, 2)
        >>> run = saeval.run("mine.yaml", out="try")  # does the other latents only
        >>> [(row.metric, row.value, row.n) for row in run.cells[0].scores[:1]]
        [('balanced_accuracy', 1.0, 4)]
    """
    built = load_task(task, registry=registry or Registry(), overrides=overrides, llms=llms)
    path = Path(out) if out is not None else default_path(built)
    run_task(built, out=path, limit=limit, max_cost=max_cost, retry=retry, display=display or Silent())
    return read(path)


def default_path(task: Task) -> Path:
    """Return the run directory of a task: always the same for the same task."""
    return Path("saeval-runs") / f"{task.name}-{task.sha[:6]}"


def run_task(
    task: Task,
    *,
    out: Path,
    limit: int | None,
    max_cost: float | None,
    display: Display,
    retry: Retry | None = None,
) -> RunResult:
    """Run a task that is already built; see `run`."""
    with RunDir(out) as folder, folder.log():
        try:
            return _Run(task, folder, Undisturbed(display), limit, max_cost, retry).go()
        except SaevalError:
            raise
        except Exception as error:
            raise internal_error(error, folder.path / "logs" / "run.log") from error


class _Run:
    def __init__(
        self,
        task: Task,
        folder: RunDir,
        display: Display,
        limit: int | None,
        max_cost: float | None,
        retry: Retry | None,
    ):
        self.task, self.folder, self.display, self.retry = task, folder, display, retry
        self.asked_limit, self.limit = limit, _unshrunk(limit, folder, task)
        self.seed = task.run.seed
        self.calls = CallLog(folder.path / "calls.jsonl")
        self.budget = Budget(task.run.max_cost_usd if max_cost is None else max_cost, self.calls.spent())
        self.outcomes: dict[str, CellOutcome] = {}
        self.seconds: dict[str, float] = {}
        self.findings: list[Finding] = []

    def go(self) -> RunResult:
        began = time.time()
        self._write_spec("running", began)
        status = "failed"
        try:
            with self.display.shown(), executor(self.task, self.calls, self.budget, self.display) as workplace:
                if self.limit != self.asked_limit:
                    self.display.say(
                        f"this run finished with more than {self.asked_limit} latents per cell, and keeps them (--limit)"
                    )
                self._collect_and_sample(workplace)
                _run_async(partial(self._explain_and_score, workplace))
                self._timed("directions", self._read_directions)
                if self.task.findings:
                    self.findings = self._timed("findings", lambda: evaluate(self.task, self.outcomes))
            status = "done"
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = "interrupted"
            raise
        except BudgetExceeded:
            status = "stopped at the cost limit"
            raise
        except GaveUp:
            status = "gave up"
            raise
        finally:
            with _to_the_end():
                complete = status == "done"
                result = self._result(incomplete=not complete or self.limit is not None)
                if complete or self.outcomes:
                    self._write_reports(result)
                if self.task.checks and not result.partial:
                    judge_checks.keep(self.task.roles[self.task.checks], result)
                self._write_spec(status, began)
            if complete or self.outcomes:
                tell(self.task.trackers, result, self.folder.path, self.display)
        return result

    # --- collect and sample ---

    def _collect_and_sample(self, workplace: Executor) -> None:
        stores = self._timed("collect", workplace.collect)
        self._timed("sample", lambda: self._sample(stores))
        if "ce_recovered" in self.task.measures:
            self._timed("measure", self._measure)

    def _measure(self) -> None:
        """Measure what needs the model; a coder that cannot be measured is said, and costs no more."""
        with self.display.stage("measure fidelity", len(self.outcomes), "cells") as stage:
            for outcome in self.outcomes.values():
                try:
                    outcome.measured = self._fidelity(outcome)
                except InputError as error:
                    self.display.say(f"{outcome.cell.name}: no ce_recovered: {error}")
                stage.advance()

    def _fidelity(self, outcome: CellOutcome) -> dict[str, float]:
        source = outcome.cell.source.plugin
        if not source.offers() >= {"subject", "coder"}:
            raise InputError("the source lends no model and no coder")
        key = content_hash("fidelity", store_path(outcome.cell.source).name)
        done: dict[str, float] | None = self.folder.finished(key)
        if done is None or not numbers(done, ("ce_recovered", "ce_clean", "ce_spliced", "ce_ablated")):
            found = measure_fidelity(source.subject(), source.weights(), outcome.store)
            done = {
                "ce_recovered": found.recovered,
                "ce_clean": found.clean,
                "ce_spliced": found.spliced,
                "ce_ablated": found.ablated,
            }
            self.folder.finish(key, done)
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
                outcome = self.outcomes[cell.name] = self._outcome(cell, stores[cell.name], room)
                room -= outcome.records.kept
                stage.advance()

    def _outcome(self, cell: Cell, store: ActivationStore, keep: int) -> CellOutcome:
        records, counts = choose_records(cell, store, self.seed, self.limit, keep)
        base = content_hash(store_path(cell.source).name, cell.sampler.identity, self.seed)
        return CellOutcome(cell, store, records, counts, base, partial(self._whole, cell.name))

    def _whole(self, cell: str, label: str, variant: str, latent: int) -> Explanation | Score | None:
        """Return what came of a step on a latent, with all that was asked, as it was written down."""
        outcome = self.outcomes[cell]
        item = Item(LatentId(outcome.records.latents[0].hookpoint, latent), variant)
        explains = label == "explain"
        made = self.folder.made(self._explain_key(outcome, item) if explains else self._score_key(outcome, label, item))
        return made and (Explanation if explains else Score).model_validate(made["result"])

    # --- explain and score ---

    async def _explain_and_score(self, workplace: Executor) -> None:
        try:
            async with workplace.working():
                began = time.monotonic()
                for cell in self.task.cells:
                    await self._explain(self.outcomes[cell.name], workplace)
                self.seconds["explain"] = time.monotonic() - began
                began = time.monotonic()
                for cell in self.task.cells:
                    await self._score(self.outcomes[cell.name], workplace)
                self.seconds["score"] = time.monotonic() - began
        finally:
            self.calls.close()

    def _identity(self, step: StepPart[Any]) -> JsonValue:
        role = self.task.roles[step.role].identity if step.role else None
        return [step.part.identity, role]

    async def _explain(self, outcome: CellOutcome, workplace: Executor) -> None:
        cell = outcome.cell
        for variant, step in cell.explainers.items():
            await self._step(
                _title("explain", cell, variant),
                workplace,
                [Item(latent, variant) for latent in outcome.records.latents[: step.latents]],
                key=partial(self._explain_key, outcome),
                work=partial(_explaining, outcome),
                usable=usable_explanation,
                take=partial(_take_explanation, outcome),
            )
        if SHUFFLED in cell.alternatives:
            self._shuffle(outcome)

    def _explain_key(self, outcome: CellOutcome, item: Item) -> str:
        step = outcome.cell.explainers[item.variant]
        return content_hash("explain", outcome.base, str(item.latent), item.variant, self._identity(step))

    def _shuffle(self, outcome: CellOutcome) -> None:
        """Give each latent the explanation of another one of the same cell."""
        # All latents are put in order, so that one more or less that was explained changes two of them only.
        latents = [latent.index for latent in outcome.records.latents[: outcome.cell.explainer.latents]]
        order = [latents[i] for i in derive_rng(self.seed, "shuffle").permutation(len(latents))]
        order = [latent for latent in order if outcome.explanation(MAIN, latent)]
        for latent, other in zip(order, order[1:] + order[:1], strict=True):
            if latent != other:
                outcome.explanations[SHUFFLED, latent] = outcome.explanations[MAIN, other]

    async def _score(self, outcome: CellOutcome, workplace: Executor) -> None:
        cell = outcome.cell
        for label, step in cell.scorers.items():
            items: list[Item] = []
            baselines = cell.alternatives if step.part.plugin.reads_explanation else ()
            for variant in (MAIN, *(a for a in baselines if step.baselines is None or a in step.baselines)):
                limits = [x for x in (step.latents, outcome.limit(variant)) if x is not None]
                outcome.scored[label, variant] = Scored()
                items += _explained(outcome, label, variant, min(limits, default=None))
            # All explanations of a latent in a row: models in process keep what they computed for its windows.
            place = {latent: i for i, latent in enumerate(outcome.records.latents)}
            items.sort(key=lambda item: place[item.latent])
            await self._step(
                f"{label} {cell.name}",
                workplace,
                items,
                key=partial(self._score_key, outcome, label),
                work=partial(_scoring, outcome, label),
                usable=partial(usable_score, metrics=step.part.plugin.metrics),
                take=partial(_take_score, outcome, label),
            )

    def _score_key(self, outcome: CellOutcome, label: str, item: Item) -> str:
        latent, text = str(item.latent), outcome.explanations[item.variant, item.latent.index].text
        return content_hash("score", outcome.base, latent, label, text, self._identity(outcome.cell.scorers[label]))

    def _at_a_time(self, workplace: Executor, items: int) -> int:
        """Return how many items are in flight: many where models gather their requests, for those they wait for are not."""
        if self.task.run.concurrency != "auto":
            return self.task.run.concurrency
        gathered = any(role.part.plugin.batches for role in self.task.roles.values())
        return min(items, _GATHERED) if gathered else workplace.in_flight

    async def _step(
        self,
        name: str,
        workplace: Executor,
        items: Sequence[Item],
        *,
        key: Callable[[Item], str],
        work: Callable[[Item], Work],
        usable: Usable,
        take: Callable[[Item, Any, Usage], None],
    ) -> None:
        """Do one step on every item, a bounded number at a time, and write down each as soon as it is done.

        Args:
            name: Name of the step, as progress shows it.
            workplace: Where it is done.
            items: What to do it on.
            key: Key of an item in the journal; what is finished there is not done again.
            work: Says what is to be done on an item.
            usable: Whether an entry of the journal can be used; another version's, or a damaged one, is done again.
            take: Receives each result, as JSON data, and what it took.

        Raises:
            GaveUp: If the first items all fail alike, or calls fail for so many items in a row.
            BudgetExceeded: If the spending limit is reached.
            StoreError, InputError: If there is no room to write anything down.
        """
        failures = Failures(name, self.task.run.give_up_after)

        async def one(item: Item, stage: Stage) -> None:
            item_key = key(item)
            done = self.folder.finished(item_key)
            if done is None or not usable(done) or (self.retry == "failed" and done["result"]["status"] == "failed"):
                made = await workplace.make(work(item))
                done = {"result": made.result.model_dump(mode="json"), "usage": asdict(made.usage)}
                self.folder.keep(item_key, done)
                failures.note(made, partial(self.folder.finish, item_key, done))
            take(item, done["result"], Usage(**done["usage"]))
            stage.advance(failed=done["result"]["status"] == "failed")
            _mind_memory()

        async def some(left: Iterator[Item], stage: Stage) -> None:
            for item in left:
                await one(item, stage)

        with self.display.stage(name, len(items)) as stage:
            left = iter(items)
            tasks = [asyncio.ensure_future(some(left, stage)) for _ in range(self._at_a_time(workplace, len(items)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            failures.settle()

    def _read_directions(self) -> None:
        """Find out what the directions of latents tell, while models are still in memory."""
        for outcome in self.outcomes.values():
            latents = [latent.index for latent in outcome.records.latents]
            key = content_hash("directions", outcome.base, latents)
            done = self.folder.finished(key)
            if done is None or not rows(done, len(latents)):
                size = int(outcome.store.facts.get("d_in") or 0) * outcome.store.n_latents
                done = {"result": directions(outcome.cell.source.plugin, latents, size)}
                if done["result"]:
                    self.folder.finish(key, done)
            outcome.directions = dict(zip(latents, done["result"], strict=False))

    # --- write down ---

    def _result(self, *, incomplete: bool) -> RunResult:
        ledger, missing = self.calls.totals(), self.calls.missing()
        return summarise(
            self.task, self.outcomes, ledger, run_id=self.folder.path.name, partial=incomplete, seconds=self.seconds,
            findings=self.findings, warnings=[f"{missing}."] if missing else [],
        )  # fmt: skip

    def _write_reports(self, result: RunResult) -> None:
        from saeval.report import write_reports

        write_cells(self.outcomes, self.folder.cell)
        self.folder.write_json("results.json", result.model_dump(mode="json", by_alias=True))
        write_reports(result, self.folder.path / "report")

    def _write_spec(self, status: str, began: float) -> None:
        import platform

        import yaml

        from saeval._util import write_atomic
        from saeval.task import plain

        spec = plain(self.task.resolved, absolute=True)
        if not _holds(self.folder.path / "spec.yaml", spec):  # one that says the same may have comments in it
            text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
            write_atomic(self.folder.path / "spec.yaml", text)
        self.folder.write_json("run.json", {
            "status": status, "task": self.task.name, "spec_sha": self.task.sha, "began": began, "updated": time.time(),
            "limit": self.limit, "python": platform.python_version(), "platform": platform.platform(), "seconds": self.seconds,
        })  # fmt: skip


def _unshrunk(limit: int | None, folder: RunDir, task: Task) -> int | None:
    """Return a limit that takes nothing away from a run that finished with more latents, or with all (None)."""
    if limit is None:
        return None
    before = folder.read_json("run.json")
    if before.get("status") != "done" or before.get("spec_sha") != task.sha or "limit" not in before:
        return limit
    return None if before["limit"] is None else max(limit, before["limit"])


def _holds(file: Path, spec: Any) -> bool:
    """Tell whether a YAML file holds just this spec."""
    import yaml

    try:
        return bool(yaml.safe_load(file.read_text(encoding="utf-8")) == spec)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False


def _mind_memory() -> None:
    """Stop while there is still memory to stop with: a new process begins with what a leak has taken.

    Raises:
        GaveUp: If there is hardly any left.
    """
    left = memory_left()
    if left is not None and left < _LITTLE_MEMORY:
        raise GaveUp(
            f"memory is nearly used up ({left:.1%} left); what is finished is kept. Run the same command again, which begins "
            "with fresh memory; if it happens soon again, a model or plugin needs more than this machine has"
        )


def _title(step: str, cell: Cell, variant: str) -> str:
    return f"{step} {cell.name}" + ("" if variant == MAIN else f" ({variant})")


def _explaining(outcome: CellOutcome, item: Item) -> Work:
    return Work(outcome.cell.name, item.variant, outcome.records[item.latent].explain)


def _scoring(outcome: CellOutcome, label: str, item: Item) -> Work:
    explanation = outcome.explanations[item.variant, item.latent.index]
    return Work(outcome.cell.name, label, outcome.records[item.latent].score, explanation)


def _take_explanation(outcome: CellOutcome, item: Item, result: Any, usage: Usage) -> None:
    explanation = Explanation.model_validate({**result, "asked": ""})
    outcome.explanations[item.variant, item.latent.index] = explanation
    outcome.spend(item.variant, usage)


def _explained(outcome: CellOutcome, label: str, variant: str, limit: int | None) -> list[Item]:
    """Return the latents whose explanation can be scored; those whose explaining failed count as failed scores."""
    todo, scored = [], outcome.scored[label, variant]
    for latent in outcome.records.latents[:limit]:
        explanation = outcome.explanations.get((variant, latent.index))
        if explanation is None:
            continue  # a lone explanation has nothing to be shuffled with
        scored.tried += 1
        if explanation.status == "ok":
            todo.append(Item(latent, variant))
        else:
            scored.take(latent.index, Score.failed(f"no explanation: {explanation.reason}"))
    return todo


def _take_score(outcome: CellOutcome, label: str, item: Item, result: Any, usage: Usage) -> None:
    scored = outcome.scored[label, item.variant]
    scored.take(item.latent.index, Score.model_validate(result))
    scored.usage += usage


@contextmanager
def _to_the_end() -> Iterator[None]:
    """Write whole what is written at the end: Ctrl-C takes effect after it, and a second one at once."""
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


def _run_async(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine to its end, in a thread of its own where a loop is already running (notebooks)."""

    async def start() -> None:
        await main()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(start())
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, start()).result()
