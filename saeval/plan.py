"""What a run would take, told before anything is spent: calls, tokens, dollars, minutes and disk, step by step."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saeval.collect import store_path
from saeval.embed import embedder
from saeval.errors import LLMError, SaevalError
from saeval.interfaces import Context, Explainer
from saeval.llm import FillReply, FillRequest, LanguageModel, LogprobReply, LogprobRequest, Reply, Request
from saeval.records import LatentRecord
from saeval.results import Explanation
from saeval.sampling import choose_records
from saeval.seeding import derive_rng
from saeval.store import ActivationStore
from saeval.summary import MAIN
from saeval.task import SHUFFLED, Cell, RolePart, StepPart, Task
from saeval.testing import planted_store

_TRIED = 5  # latents a step is tried on; requests hardly differ in length from latent to latent
_CHARACTERS = 4.0  # of English text, a token
_TURN = 4  # tokens around a turn of a conversation
_ANSWER = "EXPLANATION: words that name a kind of place where people meet\n[0, 1, 0, 0, 1]"
_EXPLANATION = "words that name a kind of place where people meet"
_ANSWERED = 20  # tokens of such an answer, of a judge's list and of an explanation alike
_SECONDS = {"over HTTP": 1.5, "in process": 0.0}  # a call, whatever its length
_IN_FLIGHT = 16  # calls at a time over HTTP
_PER_SECOND = {"over HTTP": 60.0, "in process": 400.0}  # tokens generated; tokens of any kind
_COLLECTED = 1000.0  # tokens a second and cell, of a small model on two cores
_NONZEROS, _BYTES = 40, 6  # activations a token, and what each takes in a store

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class StepPlan:
    """What one step would take.

    Attributes:
        step: `collect`, `explain`, or the scorer's label; with the baseline it is run on.
        cell: The cell.
        role: Role it asks; None for steps that ask no language model.
        model: Model of the role.
        latents: Latents it runs on.
        calls: Calls to the model; None where unknown.
        input_tokens: Tokens of prompts; of the corpus for `collect`. None where unknown.
        output_tokens: Tokens generated.
        usd: Dollars; None where the price is unknown, which is never the same as 0.
        seconds: Wall-clock seconds; None where unknown.
        note: Why something is unknown.
    """

    step: str
    cell: str
    role: str | None = None
    model: str | None = None
    latents: int = 0
    calls: int | None = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    usd: float | None = 0.0
    seconds: float | None = 0.0
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run would take, if nothing of it were in the cache.

    Attributes:
        steps: Step by step.
        disk_bytes: Room that activations would take; None where unknown.
        cached: Names of cells whose activations are already there.
        assumptions: What the numbers rest on, a sentence each.
    """

    steps: tuple[StepPlan, ...]
    disk_bytes: int | None
    cached: tuple[str, ...]
    assumptions: tuple[str, ...]

    def total(self, name: str) -> Any | None:
        """Return a column summed over steps; None where any part of it is unknown."""
        values = [getattr(step, name) for step in self.steps if name != "input_tokens" or step.step != "collect"]
        return None if None in values else sum(values)

    def totals(self) -> dict[str, Any]:
        """Return calls, tokens, dollars and seconds of the whole run."""
        return {name: self.total(name) for name in ("calls", "input_tokens", "output_tokens", "usd", "seconds")}

    def as_json(self) -> dict[str, Any]:
        """Return it all as JSON data."""
        return {**asdict(self), "totals": self.totals()}


def plan(task: Task, limit: int | None = None) -> Plan:
    """Tell what a run would take. No model is asked or loaded, and nothing is collected.

    Every step is carried out on a few latents with a model that only counts what it is asked. Their windows come
    from the activations in the cache; where there are none yet, windows of made-up text of the same length stand in.

    Args:
        task: The task.
        limit: Latents a cell at most.
    """
    steps: list[StepPlan] = []
    disk: int | None = 0
    cached = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in task.cells:
            store = _cached(cell)
            if store is None:
                tokens = _corpus_tokens(cell)
                steps.append(_collecting(cell, tokens))
                disk = None if disk is None or tokens is None else disk + tokens * (_NONZEROS * _BYTES + 4)
            else:
                cached.append(cell.name)
            steps += _cell_steps(task, cell, store, limit, Path(folder))
    return Plan(tuple(steps), disk, tuple(cached), tuple(_assumptions(len(cached) == len(task.cells))))


def _cached(cell: Cell) -> ActivationStore | None:
    try:
        return ActivationStore.open(store_path(cell.source))
    except (SaevalError, OSError):
        return None


def _corpus_tokens(cell: Cell) -> int | None:
    """Tokens that the source would read, as far as its options tell."""
    corpus = getattr(cell.source.plugin, "corpus", None)
    tokens = getattr(corpus, "tokens", None)
    path = getattr(corpus, "path", None)
    on_disk = int(Path(path).stat().st_size / _CHARACTERS) if path and Path(path).is_file() else None
    known = [n for n in (tokens, on_disk) if n is not None]
    return min(known) if known else None


def _collecting(cell: Cell, tokens: int | None) -> StepPlan:
    note = "" if tokens is not None else "the source does not say how much text it reads"
    seconds = None if tokens is None else tokens / _COLLECTED
    return StepPlan("collect", cell.name, input_tokens=tokens, seconds=seconds, note=note)


# --- trying steps out ---


@dataclass
class _Counter(LanguageModel):
    """A language model that counts what it is asked, and gives an answer in which most readers find something."""

    scores: bool
    most: int
    """Most tokens of an answer."""
    calls: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    seen: set[Any] = field(default_factory=set)

    @property
    def can_score(self) -> bool:
        return self.scores

    def _count(self, request: Any, characters: int, turns: int, answered: int) -> None:
        if request not in self.seen:  # equal ones are asked once
            self.seen.add(request)
            self.calls += 1
            self.input_tokens += characters / _CHARACTERS + turns * _TURN
            self.output_tokens += answered

    async def complete(self, request: Request) -> Reply:
        answered = min(_ANSWERED, self.most, request.max_tokens or self.most)
        self._count(request, sum(len(m.content) for m in request.messages), len(request.messages), answered)
        return Reply(_answer_to(request))

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        each = sum(len(c) for c in request.continuations)
        begun = sum(len(request.prefix) + len(p) for p in request.prompts) * len(request.continuations)
        self._count(request, begun + each * len(request.prompts), 0, 0)
        return LogprobReply(tuple(tuple((-1.0,) for _ in request.continuations) for _ in request.prompts))

    async def fill(self, request: FillRequest) -> FillReply:
        characters = len(request.prefix) * len(request.texts)
        characters += sum(len(part) + len(request.filler) for text in request.texts for part in text)
        self._count(request, characters, 0, 0)
        return FillReply(tuple(tuple(tuple(-1.0 for _ in request.choices) for _ in text) for text in request.texts))


def _answer_to(request: Request) -> str:
    """Return an answer of the kind that the worked examples of the conversation show, or else one of two kinds at once."""
    shown = [m.content for m in request.messages[:-1] if m.role == "assistant"]
    return _ANSWER if not shown else f"{shown[-1]}\n{_ANSWER.partition(chr(10))[2]}" if "[" in shown[-1] else _ANSWER


def _cell_steps(
    task: Task, cell: Cell, store: ActivationStore | None, limit: int | None, folder: Path
) -> list[StepPlan]:
    """Return what explaining and scoring a cell would take, variant by variant."""
    wanted = len(cell.latents.indices) if cell.latents.select == "list" else cell.latents.n
    wanted = wanted if limit is None else min(wanted, limit)
    try:
        records, wanted = _records(task, cell, store, wanted, folder)
        why = ""
    except SaevalError as error:
        records, why = [], f"no windows to try it on: {error}"
    runs: list[tuple[str, str, StepPart[Any], int]] = []
    explainers = {MAIN: cell.explainer, **{k: s for k, s in cell.alternatives.items() if s is not None}}
    explained = {variant: _most(wanted, step.latents) for variant, step in explainers.items()}
    if SHUFFLED in cell.alternatives:
        explained[SHUFFLED] = _most(explained[MAIN], cell.shuffled_latents)
    for variant, explainer in explainers.items():
        runs.append(("explain", variant, explainer, explained[variant]))
    for label, scorer in cell.scorers.items():
        for variant, latents in explained.items():
            named = scorer.baselines is None or variant in scorer.baselines
            if variant == MAIN or (named and scorer.part.plugin.reads_explanation):
                runs.append((label, variant, scorer, _most(latents, scorer.latents)))
    return [
        _step(task, cell, label if variant == MAIN else f"{label} ({variant})", label, step, n, records, why)
        for label, variant, step, n in runs
    ]


def _most(latents: int, limit: int | None) -> int:
    return latents if limit is None else min(latents, limit)


def _records(
    task: Task, cell: Cell, store: ActivationStore | None, wanted: int, folder: Path
) -> tuple[list[LatentRecord], int]:
    """Return the windows of a few latents, and on how many latents the cell would run."""
    if store is not None:
        eligible = int((store.firings >= cell.latents.min_windows).sum())
        records, _ = choose_records(cell, store, task.run.seed, min(_TRIED, wanted))
        return records, wanted if cell.latents.select == "list" else min(wanted, eligible)
    latents = cell.latents.model_copy(update={"select": "random", "n": _TRIED, "min_windows": 2})
    stand_in = replace(cell, latents=latents)
    made = folder / "stand-in"
    there = ActivationStore.open(made) if made.exists() else planted_store(made, n_latents=8, documents=300)
    return choose_records(stand_in, there, task.run.seed)[0], wanted


def _step(
    task: Task, cell: Cell, name: str, label: str, step: StepPart[Any], latents: int, records: list[LatentRecord],
    why: str,
) -> StepPlan:  # fmt: skip
    if step.role is None:
        return StepPlan(name, cell.name, latents=latents, seconds=None, note="asks no language model")
    role = task.roles[step.role]
    known = StepPlan(name, cell.name, step.role, role.model, latents)
    counter = _Counter(role.part.plugin.can_score, role.settings.max_tokens)
    tried = 0
    for record in records:
        context = Context(
            record.latent, derive_rng(task.run.seed, label, str(record.latent)), counter, embedder(), cell.source.plugin
        )
        try:
            asyncio.run(_try(step, record, context))
            tried += 1
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything when it is given made-up answers
            why = f"could not be tried out: {type(error).__name__}: {error}"
    if not tried:
        return replace(known, calls=None, input_tokens=None, output_tokens=None, usd=None, seconds=None, note=why)
    calls, taken, given = (
        round(n * latents / tried) for n in (counter.calls, counter.input_tokens, counter.output_tokens)
    )
    usd = _price(role, taken, given)
    note = "" if usd is not None else "price unknown: give the role usd_per_million_input and usd_per_million_output"
    return replace(
        known, calls=calls, input_tokens=taken, output_tokens=given, usd=usd,
        seconds=_seconds(role, calls, taken, given), note=note,
    )  # fmt: skip


async def _try(step: StepPart[Any], record: LatentRecord, context: Context) -> None:
    with suppress(LLMError):
        if isinstance(step.part.plugin, Explainer):
            await step.part.plugin.explain(record.explain, context)
        else:
            await step.part.plugin.score(Explanation(text=_EXPLANATION), record.score, context)


def _price(role: RolePart, taken: int, given: int) -> float | None:
    """Return the dollars: none for models in process, else the provider's price or the spec's, as in the run."""
    if role.part.plugin.in_process:
        return 0.0
    prices: tuple[float | None, float | None] | None = role.part.plugin.prices()
    per_input, per_output = prices or (role.settings.usd_per_million_input, role.settings.usd_per_million_output)
    return None if per_input is None or per_output is None else (taken * per_input + given * per_output) / 1e6


def _seconds(role: RolePart, calls: int, taken: int, given: int) -> float:
    if role.part.plugin.in_process:
        return (taken + given) / _PER_SECOND["in process"]
    at_once = _IN_FLIGHT if role.settings.concurrency == "auto" else role.settings.concurrency
    return (calls * _SECONDS["over HTTP"] + given / _PER_SECOND["over HTTP"]) / at_once


def _assumptions(cached: bool) -> list[str]:
    windows = "windows of the activations in the cache" if cached else "made-up windows where nothing is collected yet"
    return [
        f"Prompts are real ones, built from {windows} of up to {_TRIED} latents a cell; {_CHARACTERS:g} characters are a token.",
        f"An answer has {_ANSWERED} tokens, or the role's max_tokens if that is less; models that think aloud take more.",
        f"Over HTTP a call takes {_SECONDS['over HTTP']:g} s and 1 s for each {_PER_SECOND['over HTTP']:g} tokens generated, "
        f"{_IN_FLIGHT} at a time for `concurrency: auto`; in process {_PER_SECOND['in process']:g} tokens take 1 s.",
        f"A small model on two cores collects {_COLLECTED:g} tokens a second and cell; a store holds {_NONZEROS} activations a token.",
        "Steps that ask no language model are left out of the time. Answers already in the cache cost nothing.",
    ]


def as_text(found: Plan, names: Mapping[str, str] | None = None) -> str:
    """Return a plan as lines of text.

    Args:
        found: The plan.
        names: Other headings for columns.
    """
    raise NotImplementedError
