"""Estimates a run's calls, tokens, dollars, minutes and disk space in advance, step by step."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from saeval._run import work
from saeval._run.collect import store_path
from saeval._run.journal_entries import entry_of
from saeval._run.plan import disk_estimate, throughput
from saeval._run.plan.dry_run import CHARACTERS, EXPLANATION, Counter
from saeval._run.plan.speed import Speed
from saeval._run.plan.stand_ins import UnreadSource
from saeval._run.sampling import Records, choose_records
from saeval._run.state import CellState, RunState, Scored
from saeval._run.steps import prompt_texts, window_texts
from saeval._run.work import Item, StepWork
from saeval._util import LLMError, SaevalError, content_hash, without_hub
from saeval.activations import ActivationStore, Corpus
from saeval.llm import pack
from saeval.models import embedder
from saeval.plugin.base import Context, Explainer, Scorer
from saeval.records import MAIN, Explanation, LatentRecord, Outcome, Score, Usage
from saeval.task import Cell, RolePart, StepPart, Task
from saeval.testing import planted_store

_QUANTITIES = ("calls", "input_tokens", "output_tokens", "usd", "seconds", "bytes")
_TRIED = 12  # latents on which each step is tried; prompt lengths hardly differ between latents
_CALL, _IN_FLIGHT = 1.5, 16  # assumed seconds per call over HTTP, and calls in flight
_PER_SECOND = 400.0  # assumed tokens per second of a model in process, if its size is unknown
_COLLECTED = 1000.0  # assumed tokens per second and cell for collecting, if the model's size is unknown
_ACTIVE = 32  # assumed activations per token, if the coder has no `k`
_REST = 0.05  # assumed seconds per latent and cell for sampling and the report

ASSUMPTIONS = (
    f"Token counts come from real prompts for up to {_TRIED} latents per cell, with windows of the cached activations, "
    f"or placeholder text if activations are not cached yet. A token is {CHARACTERS:g} characters.",
    "Answers are as short as the examples in the prompts, or as long as in the run given by --like if that "
    "model reasons; without --like, reasoning tokens are not counted. Every reply is assumed to be readable.",
    f"Minutes with ~ are assumed: {_CALL:g} s per call over HTTP, {_IN_FLIGHT} calls at a time unless the role sets "
    "its concurrency; for a model in process two operations per parameter and token, at 60 GFLOP/s per CPU core, or "
    f"on a GPU 100 TFLOP/s in 16 bits and 15 in 32; for models of unknown size {_PER_SECOND:g} tokens per second, or "
    f"{_COLLECTED:g} for collecting; {_REST:g} s per latent for everything else, and more if sentences are embedded. "
    "Other minutes are measured in the run given by --like.",
    "Disk space is extrapolated from the written results of a few latents; activations take 6 bytes each "
    f"({_ACTIVE} per token, or the coder's `k`), and tokens 5 bytes each. Downloaded or unpacked models are not "
    "included.",
    "Cached answers and activations cost nothing.",
)
"""Assumptions of the estimates."""


@dataclass(frozen=True)
class StepPlan:
    """Estimates for one step; unknown values are None, never 0.

    Attributes:
        step: `collect`, `explain`, `report` (including all other work) or the scorer's label, followed by the baseline
            in parentheses.
        cell: The cell.
        model: The language model, as the spec names it; None if the step uses none.
        latents: Number of latents.
        calls: Number of calls to the model.
        input_tokens: Number of prompt tokens; for `collect`, tokens of the corpus.
        output_tokens: Number of generated tokens.
        usd: Dollars.
        seconds: Wall-clock seconds.
        measured: Whether the seconds are based on the measured speed of a run.
        bytes: Disk space in the cache and the run directory.
        note: Why a value is unknown, or the basis of the minutes of `collect`.
    """

    step: str
    cell: str
    model: str | None = None
    latents: int = 0
    calls: int | None = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    usd: float | None = 0.0
    seconds: float | None = 0.0
    measured: bool = False
    bytes: int | None = 0
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Estimates for a complete run, except for cached activations.

    Attributes:
        steps: Estimates by step.
    """

    steps: tuple[StepPlan, ...]

    def total(self, column: str) -> Any | None:
        """Return a column's sum, without tokens of the corpus; None if a part of it is unknown."""
        tokens = column == "input_tokens"
        values = [getattr(step, column) for step in self.steps if not (tokens and step.step == "collect")]
        return None if None in values else sum(values)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON data, with totals and assumptions."""
        return {
            "steps": [asdict(step) for step in self.steps],
            "total": {c: self.total(c) for c in _QUANTITIES},
            "assumptions": list(ASSUMPTIONS),
        }


def plan(task: Task, limit: int | None = None, speed: Speed | None = None) -> Plan:
    """Estimate a run's cost, time and disk space. No model is asked, loaded or downloaded, and nothing is collected.

    Every step is tried on a few latents with a placeholder model that counts requests. The results are written like in
    a run, to estimate disk space.

    Args:
        task: The task.
        limit: Maximum latents per cell.
        speed: Measured speed of another run, such as one of this task with a limit; None for assumed speeds.
    """
    steps: list[StepPlan] = []
    collected: set[str] = set()
    tries: list[_TrialCell] = []
    state = _Planned(task)
    with tempfile.TemporaryDirectory() as folder, without_hub():  # hashing a coder would download it
        for cell in task.cells:
            steps += _stored(cell, collected)
            tries.append(_TrialCell.of(task, cell, limit, Path(folder) / "store"))
            state.cells[cell.name] = tries[-1].outcome
        for tried in tries:
            steps += _plan_steps(state, tried, speed)
        steps.append(_plan_rest(state, tries, speed, Path(folder)))
    return Plan(tuple(_times(step, task.run.seeds) for step in steps))


def _times(step: StepPlan, seeds: int) -> StepPlan:
    """Return the estimates of a step for several seeds; activations are collected once."""
    if step.step == "collect":
        return step
    values = {name: getattr(step, name) for name in (*_QUANTITIES, "latents")}
    scaled: dict[str, Any] = {name: None if value is None else seeds * value for name, value in values.items()}
    return replace(step, **scaled)


def _stored(cell: Cell, collected: set[str]) -> list[StepPlan]:
    try:
        ActivationStore.open(store_path(cell.collected))
    except SaevalError:
        return _plan_collect(cell, collected)
    return []


class _Planned(RunState):
    """State of a trial run with a few latents, which keeps its results in memory instead of a journal."""

    def __init__(self, task: Task):
        super().__init__(task)
        self._results: dict[str, Any] = {}

    def key(self, item: Item, text: str = "") -> str:
        """Return the item itself as key, since a run's keys need files that may not exist yet."""
        return repr(item)

    def take(self, item: Item, result: Explanation | Score) -> None:
        """Add a result, like a run."""
        cell, latent = self.cells[item.cell], item.latent.index
        self._results[self.key(item)] = entry_of(result, Usage())
        if isinstance(result, Explanation):
            cell.explanations[item.variant, latent] = result
            return
        cell.explanations.setdefault((item.variant, latent), Explanation(text=EXPLANATION))
        cell.scored.setdefault((item.step, item.variant), Scored()).take(latent, result)
        cell.scored[item.step, item.variant].tried += 1

    def made(self, key: str) -> Any | None:
        """Return a result by key, like a journal."""
        return self._results.get(key)


class _TrialCell(NamedTuple):
    """A cell whose steps are tried on a few latents.

    Attributes:
        outcome: State of the cell.
        wanted: Number of latents in a complete run.
        why: Why no latent could be sampled.
    """

    outcome: CellState
    wanted: int
    why: str

    @classmethod
    def of(cls, task: Task, cell: Cell, limit: int | None, stand_in: Path) -> _TrialCell:
        """Sample the latents; from placeholder text if nothing is collected yet."""
        listed = cell.latents.select == "list"
        wanted = len(cell.latents.indices) if listed else cell.latents.n
        wanted = wanted if limit is None else min(wanted, limit)
        sampled = cell
        try:
            store = ActivationStore.open(store_path(cell.collected))
        except SaevalError:
            store = ActivationStore.open(stand_in) if stand_in.exists() else planted_store(stand_in, documents=300)
            easy = cell.latents.model_copy(update={"select": "random", "min_windows": 2})
            sampled = replace(cell, latents=easy)
        else:
            eligible = int((store.firings >= cell.latents.min_windows).sum())
            wanted = wanted if listed else min(wanted, eligible)
        records, why = Records(), ""
        try:
            records, _ = choose_records(sampled, store, task.run.seed, min(_TRIED, wanted))
        except Exception as error:  # noqa: BLE001 - samplers may need what the placeholder lacks
            why = f"no window could be sampled for a trial: {error}"
        counts = {"requested": wanted, "eligible": wanted, "sampled": wanted}
        return cls(CellState(cell, store, records, counts, base=""), wanted, why)


def _plan_steps(state: _Planned, tried: _TrialCell, speed: Speed | None) -> Iterator[StepPlan]:
    """Try each step of a cell, add its results to the state, and yield its estimates for all latents."""
    task, cell = state.task, tried.outcome
    for step in work.steps(cell.cell, range(tried.wanted), task.run.seed):
        if not step.latents:
            continue
        title = step.step if step.variant == MAIN else f"{step.step} ({step.variant})"
        found = StepPlan(title, cell.cell.name, latents=len(step.latents))
        if step.part.role is None:
            records = cell.records.first(found.latents)
            results = {record.latent.index: _placeholder_result(step.part, record) for record in records}
        else:
            role = task.roles[step.part.role]
            plugin = role.part.plugin
            counter = Counter(plugin.can_score, role.settings.max_tokens, plugin.scores_singly)
            results, why = _try_step(task, step, tried, counter)
            found = replace(found, model=role.model)
            if results:
                found = _plan_calls(found, role, counter, len(results), speed)
            else:
                unknown: dict[str, Any] = dict.fromkeys(_QUANTITIES)
                found = replace(found, **unknown, note=why)
        if results and found.bytes is not None:
            each = sum(map(disk_estimate.journal, results.values())) / len(results)
            found = replace(found, bytes=found.bytes + round(each * found.latents))
        yield found
        for latent, result in results.items():
            state.take(cell.item(step.step, step.variant, latent), result)


def _placeholder_result(step: StepPart[Any], record: LatentRecord) -> Explanation | Score:
    """Return a placeholder result of a step without a language model; it is not run, since it may need other models."""
    if isinstance(step.part.plugin, Explainer):
        return Explanation(text=EXPLANATION)
    windows = (*record.score.activating, *record.score.non_activating)
    outcomes = [Outcome(example=w.id, active=w.active, decile=w.decile, probability=0.123456789012345) for w in windows]
    values = {metric.name: 0.5 for metric in step.part.plugin.metrics}
    return Score(values=values, outcomes=tuple(outcomes))


def _plan_rest(state: _Planned, tries: list[_TrialCell], speed: Speed | None, folder: Path) -> StepPlan:
    """Return the estimates for the rest: sampling, steps without a language model, and writing results."""
    latents = sum(tried.wanted for tried in tries)
    rest = speed.rest if speed else None
    seconds = latents * (_REST if rest is None else rest)
    found = StepPlan("report", "", latents=latents, seconds=seconds, measured=rest is not None)
    if not all(tried.outcome.records for tried in tries):
        return replace(found, bytes=None, note="the report's size is unknown because no window could be sampled")
    try:
        return replace(found, bytes=disk_estimate.reports(state, state, latents, folder))
    except SaevalError:  # the report contains the hash of a coder's files
        return replace(found, bytes=None, note="the report's size is unknown until a coder's files are downloaded")


def _plan_collect(cell: Cell, collected: set[str]) -> list[StepPlan]:
    """Return the estimates for collecting activations, if the source's options determine the amount of text.

    Args:
        cell: The cell.
        collected: Names of stores and model passes of earlier cells; extended by this cell's.
    """
    store, shared = _store_name(cell), content_hash(cell.source.loaded.id, _shares(cell))
    if store in collected:
        return []
    in_one_pass = shared in collected
    collected |= {store, shared}
    corpus = getattr(cell.source.plugin, "corpus", None)
    tokens = _corpus_tokens(corpus) if isinstance(corpus, Corpus) else None
    known = StepPlan("collect", cell.name)
    if tokens is None:
        note = "the source does not say how much text it reads"
        return [replace(known, input_tokens=None, seconds=None, bytes=None, note=note)]
    active = next((k for part in cell.source.nested if (k := getattr(part.plugin, "k", None))), _ACTIVE)
    stored = 6 * active + 5
    pace = throughput.collecting(cell.source.plugin)
    if in_one_pass:
        seconds = tokens * pace.further if pace else 0.0
        return [replace(known, seconds=seconds, bytes=tokens * stored, note="in one pass with a cell above")]
    seconds, about = (tokens * pace.first, pace.about) if pace else (tokens / _COLLECTED, "")
    return [replace(known, input_tokens=tokens, seconds=seconds, bytes=tokens * stored, note=about)]


def _store_name(cell: Cell) -> str:
    """Return the name of a cell's store; if the coder's files are not available, a hash of the source's options."""
    try:
        return store_path(cell.collected).name
    except SaevalError:
        return content_hash(repr(cell.source.plugin))


def _shares(cell: Cell) -> JsonValue:
    """Return a value shared by cells of the same model pass; the cell's name if the coder's files are missing."""
    try:
        return cell.source.plugin.shares()
    except SaevalError:
        return cell.name


def _corpus_tokens(corpus: Corpus) -> int | None:
    """Estimate the tokens of a corpus from its options and the size of its files; None if unknown."""
    files = []
    if corpus.path is not None:
        files = [corpus.path] if corpus.path.is_file() else sorted(corpus.path.glob("*.txt"))
    if not files or corpus.path is None or corpus.path.suffix == ".parquet":
        return corpus.tokens
    most = inf if corpus.per_document is None else corpus.per_document
    found = 0.0
    for file in files:
        documents = 1 if file.suffix == ".txt" else sum(1 for _ in file.open("rb"))
        found += min(file.stat().st_size / CHARACTERS, documents * most)
    return int(min(found, corpus.tokens or inf))


def _try_step(
    task: Task, step: StepWork, tried: _TrialCell, counter: Counter
) -> tuple[dict[int, Explanation | Score], str]:
    """Try a step on a few latents of a cell.

    Args:
        task: The task.
        step: The step.
        tried: The cell.
        counter: Stands for the language model, and counts what it is asked.

    Returns:
        The results by latent, and why there are none for other latents.
    """
    results: dict[int, Explanation | Score] = {}
    why = tried.why
    for record in tried.outcome.records.first(len(step.latents)):
        rng = work.rng(task.run.seed, step.step, step.variant, record.latent)
        try:
            result = asyncio.run(
                _run_step(step.part, record, Context(record.latent, rng, counter, embedder(), UnreadSource()))
            )
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything over placeholder answers
            why = f"could not be tried: {error}"
            continue
        windows = window_texts(record.explain if step.step == work.EXPLAIN else record.score)
        asked, counter.asked = pack(counter.asked, windows, prompt_texts(step.part.part.plugin)), []
        results[record.latent.index] = result.model_copy(update={"asked": asked})
    return results, why


def _plan_calls(found: StepPlan, role: RolePart, counter: Counter, tried: int, speed: Speed | None) -> StepPlan:
    """Return the estimates of a step with those of its calls.

    Args:
        found: The estimates so far.
        role: The language model.
        counter: What it was asked about some of the latents.
        tried: Number of these latents.
        speed: Measured speed of the model.
    """
    share = found.latents / tried
    calls, taken, given = (round(n * share) for n in (counter.calls, counter.taken, counter.given))
    written = speed.output.get((role.role, role.model), 0.0) if speed else 0.0
    given = max(given, round(calls * written))
    usd = _price(role, taken, given)
    note = "" if usd is not None else "price unknown; give the role usd_per_million_input and usd_per_million_output"
    measured = speed.call.get((role.role, role.model)) if speed else None
    lines = disk_estimate.call(role.role, role.model) + disk_estimate.answer(counter.kept // max(1, counter.calls))
    return replace(
        found,
        calls=calls,
        input_tokens=taken,
        output_tokens=given,
        usd=usd,
        bytes=calls * lines,
        note=note,
        seconds=_assumed_seconds(role, calls, counter.fresh * share, given) if measured is None else calls * measured,
        measured=measured is not None,
    )


async def _run_step(step: StepPart[Any], record: LatentRecord, context: Context) -> Explanation | Score:
    plugin: Explainer | Scorer = step.part.plugin
    try:
        if isinstance(plugin, Explainer):
            return await plugin.explain(record.explain, context)
        text = f"{EXPLANATION} {record.latent.index}"  # different for each latent, as in a run
        return await plugin.score(Explanation(text=text), record.score, context)
    except LLMError as error:
        return Explanation.failed(str(error)) if isinstance(plugin, Explainer) else Score.failed(str(error))


def _assumed_seconds(role: RolePart, calls: int, fresh: float, given: float) -> float:
    """Return the assumed seconds for asking a role's model, without a measured speed."""
    if role.part.plugin.in_process:
        known = throughput.asking(role.part.plugin, fresh, given)
        return (fresh + given) / _PER_SECOND if known is None else known
    at_once = _IN_FLIGHT if role.settings.concurrency == "auto" else role.settings.concurrency
    return calls * _CALL / at_once


def _price(role: RolePart, taken: int, given: int) -> float | None:
    """Return the price in dollars, as the run would compute it: from the provider's prices, else from the spec's."""
    if role.part.plugin.in_process:
        return 0.0
    listed = role.part.plugin.prices()
    per_input, per_output = listed or (role.settings.usd_per_million_input, role.settings.usd_per_million_output)
    return None if per_input is None or per_output is None else (taken * per_input + given * per_output) / 1e6
