"""Run a task: collect, sample, explain, score, and write it all down."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import JsonValue

from saeval import judge_checks
from saeval.assets import cache_dir
from saeval.calls import Budget, CallLog, CallStore
from saeval.collect import collect, store_path
from saeval.embed import embedder
from saeval.errors import BudgetExceeded, InputError, LLMError, SaevalError, StoreError
from saeval.gateway import Gateway
from saeval.interfaces import Context, Explainer, Scorer
from saeval.llm import FillReply, FillRequest, LanguageModel, LogprobReply, LogprobRequest, Reply, Request, Usage
from saeval.plugins import Registry
from saeval.progress import Display, Silent, Stage
from saeval.records import LatentId, LatentRecord
from saeval.results import Explanation, RunResult, Score
from saeval.run_dir import RunDir
from saeval.sampling import choose_records
from saeval.secrets import without_secrets
from saeval.seeding import content_hash, derive_rng
from saeval.store import ActivationStore
from saeval.summary import MAIN, CellOutcome, Scored, summarise, write_cells
from saeval.task import SHUFFLED, Cell, StepPart, Task, load_task

T = TypeVar("T")
R = TypeVar("R", Explanation, Score)
A = TypeVar("A", Reply, LogprobReply, FillReply)
Retry = Literal["failed"]


class Explained(NamedTuple):
    """A latent to be scored, with one of its explanations and the place where the score goes."""

    record: LatentRecord
    explanation: Explanation
    scored: Scored


_STOPS = (BudgetExceeded, InputError, StoreError)  # of a call: no other one can be made or written down
_IN_FLIGHT = 32  # latents at a time for `concurrency: auto`; the gateway bounds the calls

log = logging.getLogger("saeval")


class GaveUp(SaevalError):
    """The first latents of a step all failed alike, or its model is gone, so going on would only fail more. Resumable."""


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
) -> RunResult:
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
        The result, as `results.json` holds it.

    Raises:
        SpecError: If the spec is wrong.
        InputError: If something it names is missing, or the directory cannot be used.
        BudgetExceeded: If the spending limit is reached; a partial result is written first.
        GaveUp: If every latent fails alike, or a model is gone.
    """
    built = load_task(task, registry=registry or Registry(), overrides=overrides, llms=llms)
    path = Path(out) if out is not None else default_path(built)
    return run_task(built, out=path, limit=limit, max_cost=max_cost, retry=retry, display=display or Silent())


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
        return _Run(task, folder, display, limit, max_cost, retry).go()


@dataclass
class Meter(LanguageModel):
    """A language model that adds up what is asked through it; one for each step on each latent.

    Attributes:
        model: The model; None for a step that has none.
        spent: What its answers took.
        fault: The first call that failed through no fault of the question: an outage, a wrong key, a spent budget.
    """

    model: LanguageModel | None
    spent: Usage = field(default_factory=lambda: Usage(usd=0.0))
    fault: SaevalError | None = None

    @property
    def can_score(self) -> bool:
        """Whether the model scores continuations."""
        return self.model is not None and self.model.can_score

    def _asked(self) -> LanguageModel:
        if self.model is None:
            raise LLMError("this step declares no llm_role, so the spec gives it no language model")
        return self.model

    async def complete(self, request: Request) -> Reply:
        """Pass on, and count."""
        return await self._count(self._asked().complete(request))

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Pass on, and count."""
        return await self._count(self._asked().logprobs(request))

    async def fill(self, request: FillRequest) -> FillReply:
        """Pass on, and count."""
        return await self._count(self._asked().fill(request))

    async def _count(self, call: Awaitable[A]) -> A:
        try:
            reply = await call
        except SaevalError as error:
            if isinstance(error, _STOPS) or (isinstance(error, LLMError) and (error.retryable or error.lasting)):
                self.fault = self.fault or error
            raise
        self.spent += reply.usage
        return reply


class Made(NamedTuple, Generic[R]):
    """What a step made of one latent.

    Attributes:
        result: The explanation or score.
        usage: What it took.
        fault: Whether it failed because calls did, so that nothing is known of the latent.
    """

    result: R
    usage: Usage
    fault: bool


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
        self.task, self.folder, self.display, self.limit, self.retry = task, folder, display, limit, retry
        self.seed = task.run.seed
        self.calls = CallLog(folder.path / "calls.jsonl")
        self.budget = Budget(task.run.max_cost_usd if max_cost is None else max_cost, self.calls.spent())
        self.outcomes: dict[str, CellOutcome] = {}
        self.seconds: dict[str, float] = {}
        self.embed = embedder()

    def go(self) -> RunResult:
        began = time.time()
        self._write_spec("running", began)
        status = "failed"
        try:
            with self.display.shown():
                self._collect_and_sample()
                _run_async(self._explain_and_score)
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
        return result

    # --- collect and sample ---

    def _collect_and_sample(self) -> None:
        stores = self._timed("collect", lambda: collect({c.name: c.source for c in self.task.cells}, self.display))
        self._timed("sample", lambda: self._sample(stores))

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began

    def _sample(self, stores: Mapping[str, ActivationStore]) -> None:
        with self.display.stage("sample windows", len(self.task.cells), "cells") as stage:
            for cell in self.task.cells:
                self.outcomes[cell.name] = self._outcome(cell, stores[cell.name])
                stage.advance()

    def _outcome(self, cell: Cell, store: ActivationStore) -> CellOutcome:
        records, counts = choose_records(cell, store, self.seed, self.limit)
        base = content_hash(store_path(cell.source).name, cell.sampler.identity, self.seed)
        return CellOutcome(cell, store, records, counts, base)

    # --- explain and score ---

    async def _explain_and_score(self) -> None:
        async with AsyncExitStack() as at_the_end:
            at_the_end.callback(self.calls.close)
            gateways = self._gateways(at_the_end)
            began = time.monotonic()
            for cell in self.task.cells:
                await self._explain(self.outcomes[cell.name], gateways)
            self.seconds["explain"] = time.monotonic() - began
            began = time.monotonic()
            for cell in self.task.cells:
                await self._score(self.outcomes[cell.name], gateways)
            self.seconds["score"] = time.monotonic() - began

    def _gateways(self, at_the_end: AsyncExitStack) -> dict[str, Gateway]:
        if not self.task.roles:
            return {}
        answers = CallStore(cache_dir() / "calls.sqlite")
        at_the_end.callback(answers.close)
        gateways = {
            name: Gateway(
                name, role.part.plugin, model=role.model, identity=role.identity, settings=role.settings,
                calls=answers, log=self.calls, budget=self.budget,
            )
            for name, role in self.task.roles.items()
        }  # fmt: skip
        for name, gateway in gateways.items():
            at_the_end.push_async_callback(self.task.roles[name].part.plugin.aclose)
            at_the_end.push_async_callback(gateway.finish)
        return gateways

    def _context(
        self, cell: Cell, step: StepPart[Any], latent: LatentId, gateways: Mapping[str, LanguageModel], *keys: str
    ) -> tuple[Context, Meter]:
        meter = Meter(gateways.get(step.role) if step.role else None)
        rng = derive_rng(self.seed, *keys, str(latent))
        return Context(latent, rng, meter, self.embed, cell.source.plugin), meter

    def _identity(self, step: StepPart[Any]) -> JsonValue:
        role = self.task.roles[step.role].identity if step.role else None
        return [step.part.identity, role]

    async def _explain(self, outcome: CellOutcome, gateways: Mapping[str, LanguageModel]) -> None:
        cell = outcome.cell
        steps = {MAIN: cell.explainer, **{k: s for k, s in cell.alternatives.items() if s is not None}}
        for variant, step in steps.items():
            await self._step(
                _title("explain", cell, variant),
                outcome.records[: step.latents],
                key=partial(self._explain_key, outcome, variant, step),
                make=partial(self._make_explanation, cell, variant, step, gateways),
                take=partial(_take_explanation, outcome, variant),
            )
        if SHUFFLED in cell.alternatives:
            self._shuffle(outcome)

    def _explain_key(self, outcome: CellOutcome, variant: str, step: StepPart[Explainer], record: LatentRecord) -> str:
        return content_hash("explain", outcome.base, str(record.latent), variant, self._identity(step))

    async def _make_explanation(
        self,
        cell: Cell,
        variant: str,
        step: StepPart[Explainer],
        gateways: Mapping[str, LanguageModel],
        record: LatentRecord,
    ) -> Made[Explanation]:
        context, meter = self._context(cell, step, record.latent, gateways, "explain", variant)
        return await _made(step.part.plugin.explain, Explanation, meter, record.explain, context)

    def _shuffle(self, outcome: CellOutcome) -> None:
        """Give each latent the explanation of another one of the same cell."""
        # All records are put in order, so that a latent more or less that was explained changes two of them only.
        latents = [record.latent.index for record in outcome.records[: outcome.cell.explainer.latents]]
        order = [latents[i] for i in derive_rng(self.seed, "shuffle").permutation(len(latents))]
        order = [latent for latent in order if outcome.explanation(MAIN, latent)]
        for latent, other in zip(order, order[1:] + order[:1], strict=True):
            if latent != other:
                outcome.explanations[SHUFFLED, latent] = outcome.explanations[MAIN, other]

    async def _score(self, outcome: CellOutcome, gateways: Mapping[str, LanguageModel]) -> None:
        cell = outcome.cell
        for label, step in cell.scorers.items():
            items: list[Explained] = []
            baselines = cell.alternatives if step.part.plugin.reads_explanation else ()
            for variant in (MAIN, *(a for a in baselines if step.baselines is None or a in step.baselines)):
                limits = [x for x in (step.latents, outcome.limit(variant)) if x is not None]
                scored = outcome.scored[label, variant] = Scored()
                items += _explained(outcome, variant, scored, min(limits, default=None))
            # All explanations of a latent in a row: models in process keep what they computed for its windows.
            place = {record.latent: i for i, record in enumerate(outcome.records)}
            items.sort(key=lambda item: place[item.record.latent])
            await self._step(
                f"{label} {cell.name}",
                items,
                key=partial(self._score_key, outcome, label, step),
                make=partial(self._make_score, cell, label, step, gateways),
                take=_take_score,
            )

    def _score_key(self, outcome: CellOutcome, label: str, step: StepPart[Scorer], item: Explained) -> str:
        latent, text = str(item.record.latent), item.explanation.text
        return content_hash("score", outcome.base, latent, label, text, self._identity(step))

    async def _make_score(
        self, cell: Cell, label: str, step: StepPart[Scorer], gateways: Mapping[str, LanguageModel], item: Explained
    ) -> Made[Score]:
        context, meter = self._context(cell, step, item.record.latent, gateways, "score", label)
        made = await _made(step.part.plugin.score, Score, meter, item.explanation, item.record.score, context)
        return made._replace(result=_checked(made.result, step.part.plugin))

    async def _step(
        self,
        name: str,
        items: Sequence[T],
        *,
        key: Callable[[T], str],
        make: Callable[[T], Awaitable[Made[R]]],
        take: Callable[[T, Any, Usage], None],
    ) -> None:
        """Do one step on every item, a bounded number at a time, and write down each as soon as it is done.

        Args:
            name: Name of the step, as progress shows it.
            items: What to do it on.
            key: Key of an item in the journal; what is finished there is not done again.
            make: Does the step on an item.
            take: Receives each result, as JSON data, and what it took.

        Raises:
            GaveUp: If the first items all fail alike, or calls fail for so many items in a row.
            BudgetExceeded: If the spending limit is reached.
            StoreError, InputError: If there is no room to write anything down.
        """
        in_flight = self.task.run.concurrency
        gate = asyncio.Semaphore(_IN_FLIGHT if in_flight == "auto" else in_flight)
        failures = _Failures(name, self.task.run.give_up_after)

        async def one(item: T, stage: Stage) -> None:
            async with gate:
                item_key = key(item)
                done = self.folder.finished(item_key)
                if done is None or (self.retry == "failed" and done["result"]["status"] == "failed"):
                    made = await make(item)
                    done = {"result": made.result.model_dump(mode="json"), "usage": asdict(made.usage)}
                    failures.note(made, partial(self.folder.finish, item_key, done))
                take(item, done["result"], Usage(**done["usage"]))
                stage.advance(failed=done["result"]["status"] == "failed")

        with self.display.stage(name, len(items)) as stage:
            tasks = [asyncio.ensure_future(one(item, stage)) for item in items]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            failures.settle()

    # --- write down ---

    def _result(self, *, incomplete: bool) -> RunResult:
        return summarise(
            self.task, self.outcomes, self.calls.totals(), run_id=self.folder.path.name, partial=incomplete, seconds=self.seconds,
        )  # fmt: skip

    def _write_reports(self, result: RunResult) -> None:
        from saeval.report import write_reports

        write_cells(self.outcomes, self.folder.cell)
        self.folder.write_json("results.json", result.model_dump(mode="json", by_alias=True))
        write_reports(result, self.folder.path / "report")

    def _write_spec(self, status: str, began: float) -> None:
        import platform

        import yaml

        from saeval.files import write_atomic
        from saeval.spec import plain

        text = yaml.safe_dump(plain(self.task.resolved, absolute=True), sort_keys=False, allow_unicode=True)
        write_atomic(self.folder.path / "spec.yaml", text)
        self.folder.write_json("run.json", {
            "status": status, "task": self.task.name, "spec_sha": self.task.sha, "began": began, "updated": time.time(),
            "python": platform.python_version(), "platform": platform.platform(), "seconds": self.seconds,
        })  # fmt: skip


class _Failure(NamedTuple):
    reason: str
    fault: bool
    write: Callable[[], None]


class _Failures:
    """Watches a step for latents that all fail alike; until one succeeds, such failures are not written down.

    At the beginning of a step any failures count; later, only those of calls, for an outage may come at any time.
    """

    def __init__(self, step: str, give_up_after: int):
        self._step, self._limit = step, give_up_after
        self._held: list[_Failure] = []
        self._any_success = False

    def note(self, made: Made[Any], write: Callable[[], None]) -> None:
        """Take one result: write it down, or hold it back while nothing but failures came.

        Raises:
            GaveUp: If as many as `run.give_up_after` were held back and are alike, or all of calls.
        """
        if made.result.status != "failed":
            self._any_success = True
            self._write(self._held)
            write()
        elif self._any_success and not made.fault:
            write()
        else:
            self._held.append(_Failure(made.result.reason, made.fault, write))
            if len(self._held) >= self._limit and (
                all(f.fault for f in self._held) or len({_digitless(f.reason) for f in self._held}) == 1
            ):
                which = f"{self._limit} latents in a row" if self._any_success else f"the first {self._limit} latents"
                raise GaveUp(
                    f"{self._step}: {which} all failed alike: {made.result.reason}. "
                    "Nothing is lost; mend it and run the same command again."
                )

    def settle(self) -> None:
        """Write down what was held back, at the end; but where no call succeeded at all, nothing is known of a latent."""
        self._write(f for f in self._held if self._any_success or not f.fault)

    def _write(self, failures: Iterable[_Failure]) -> None:
        for failure in failures:
            failure.write()
        self._held = []


def _digitless(reason: str) -> str:
    """Return a reason without numbers: waiting times and identifiers of requests differ from call to call."""
    return re.sub(r"\w*\d[\w.-]*", "#", reason)


def _title(step: str, cell: Cell, variant: str) -> str:
    return f"{step} {cell.name}" + ("" if variant == MAIN else f" ({variant})")


def _take_explanation(outcome: CellOutcome, variant: str, record: LatentRecord, result: Any, usage: Usage) -> None:
    outcome.explanations[variant, record.latent.index] = Explanation.model_validate(result)
    outcome.spend(variant, usage)


def _explained(outcome: CellOutcome, variant: str, scored: Scored, limit: int | None) -> list[Explained]:
    """Return the latents whose explanation can be scored; those whose explaining failed count as failed scores."""
    todo = []
    for record in outcome.records[:limit]:
        explanation = outcome.explanations.get((variant, record.latent.index))
        if explanation is None:
            continue  # a lone explanation has nothing to be shuffled with
        scored.tried += 1
        if explanation.status == "ok":
            todo.append(Explained(record, explanation, scored))
        else:
            scored.scores[record.latent.index] = Score.failed(f"no explanation: {explanation.reason}")
    return todo


def _take_score(item: Explained, result: Any, usage: Usage) -> None:
    item.scored.scores[item.record.latent.index] = Score.model_validate(result)
    item.scored.usage += usage


async def _made(call: Callable[..., Awaitable[R]], kind: type[R], meter: Meter, *arguments: Any) -> Made[R]:
    """Call a plugin; whatever it raises, or returns instead of `kind`, becomes a failed result of this latent.

    So does a result that was made without an answer which an undisturbed run would have had.

    Raises:
        SaevalError: If the run has to stop: the budget is spent, or there is no room to write answers down.
    """
    result = await _guarded(call, kind, *arguments)
    if meter.fault is None:
        return Made(result, meter.spent, fault=False)
    if isinstance(meter.fault, _STOPS):
        raise meter.fault
    if result.status == "ok":
        changes: dict[str, Any] = {"text": ""} if isinstance(result, Explanation) else {"values": {}}
        reason = f"a call failed: {without_secrets(meter.fault)}"
        result = result.model_copy(update={**changes, "status": "failed", "reason": reason})
    return Made(result, meter.spent, fault=True)


async def _guarded(call: Callable[..., Awaitable[R]], kind: type[R], *arguments: Any) -> R:
    try:
        made = await call(*arguments)
    except asyncio.CancelledError:
        raise
    except SaevalError as error:
        return kind.failed(without_secrets(error))
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it costs its latent, not the run
        log.error("a plugin raised\n%s", traceback.format_exc())
        return kind.failed(without_secrets(f"{type(error).__name__}: {error}"))
    if not isinstance(made, kind):
        return kind.failed(f"the plugin returned {type(made).__name__} instead of {kind.__name__}")
    return made


def _checked(score: Score, scorer: Scorer) -> Score:
    """Refuse a score whose values are missing, not finite, or outside their metric's range."""
    if score.status != "ok":
        return score
    headline = scorer.metrics[0]
    if headline.name not in score.values:
        return Score.failed(f"the scorer gave no {headline.name}")
    for metric in scorer.metrics:
        value = score.values.get(metric.name)
        if value is not None and not metric.low - 1e-9 <= value <= metric.high + 1e-9:
            return Score.failed(f"the scorer gave {metric.name} = {value}, outside {metric.low} to {metric.high}")
    return score


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
