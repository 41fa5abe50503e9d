"""What a run would take, told before anything is spent: calls, tokens, dollars, minutes and disk, step by step."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from saeval._run import floors
from saeval._run.aggregate import CellOutcome, Scored
from saeval._run.collect import store_path
from saeval._run.plan import disk_estimate as weighing
from saeval._run.plan.dry_run import CHARACTERS, EXPLANATION, Counter
from saeval._run.plan.speed import Speed
from saeval._run.sampling import Records, choose_records
from saeval._util import LLMError, SaevalError, content_hash, derive_rng
from saeval.activations import ActivationStore, Corpus
from saeval.llm import pack
from saeval.models import embedder
from saeval.plugin.base import Context, Explainer
from saeval.records import MAIN, Explanation, LatentRecord, Outcome, Score
from saeval.task import SHUFFLED, Cell, RolePart, StepPart, Task
from saeval.testing import planted_store

_QUANTITIES = ("calls", "input_tokens", "output_tokens", "usd", "seconds", "bytes")
_TRIED = 6  # latents a step is tried on; prompts hardly differ in length from latent to latent
_CALL, _IN_FLIGHT = 1.5, 16  # seconds a call over HTTP takes, and how many are under way
_PER_SECOND = 400.0  # tokens that a model in process reads or writes
_COLLECTED = 1000.0  # tokens a second and cell
_ACTIVE = 32  # activations a token, where the coder has no `k`
_REST = 0.05  # seconds a latent and cell: sampling, and the report

ASSUMPTIONS = (
    f"Prompts are real ones, for up to {_TRIED} latents a cell, made from windows of the activations in the cache; "
    f"where there are none yet, from windows of made-up text. {CHARACTERS:g} characters are a token.",
    "Answers are as short as in the prompts' examples; models that think aloud write more. None has to be asked twice.",
    f"Minutes with ~ are assumed: a call over HTTP takes {_CALL:g} s, {_IN_FLIGHT} at a time unless the role says otherwise; a "
    f"model in process reads {_PER_SECOND:g} tokens a second, and one to be read collects {_COLLECTED:g}, as small models do on "
    f"two cores; all else takes {_REST:g} s a latent, and longer where sentences are embedded. The others are those of the "
    "run given by --like.",
    f"Disk is what a few latents' results come to, written as a run writes them; and for activations, 6 bytes each, {_ACTIVE} a "
    "token or the coder's `k`, and 5 for the token. Models that are downloaded or unpacked are left out.",
    "Answers and activations that are in the cache already cost nothing when they are used again.",
)
"""What the numbers rest on."""


@dataclass(frozen=True)
class StepPlan:
    """What one step would take; what is not known is None, never 0.

    Attributes:
        step: `collect`, `explain`, `report` (with all else there is to do) or the scorer's label, and in brackets the
            baseline it is run on.
        cell: The cell.
        model: Model that is asked, as the spec names it; None where none is.
        latents: Latents it runs on.
        calls: Calls to the model.
        input_tokens: Tokens of prompts; for `collect`, of the corpus.
        output_tokens: Tokens generated.
        usd: Dollars.
        seconds: Wall-clock seconds.
        measured: Whether the seconds rest on a run's speed.
        bytes: Room on disk, in the cache and the run directory.
        note: Why something is unknown.
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
    """What a run would take from the beginning, but for activations that are in the cache.

    Attributes:
        steps: Step by step.
    """

    steps: tuple[StepPlan, ...]

    def total(self, column: str) -> Any | None:
        """Return a column's sum, tokens of the corpus left out; None where a part of it is unknown."""
        tokens = column == "input_tokens"
        values = [getattr(step, column) for step in self.steps if not (tokens and step.step == "collect")]
        return None if None in values else sum(values)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON data, with totals and assumptions."""
        return {
            "steps": [asdict(step) for step in self.steps], "total": {c: self.total(c) for c in _QUANTITIES},
            "assumptions": list(ASSUMPTIONS),
        }  # fmt: skip


def plan(task: Task, limit: int | None = None, speed: Speed | None = None) -> Plan:
    """Tell what a run would take. No model is asked or loaded, and nothing is collected.

    Every step is tried on a few latents with a stand-in for its model, which counts what it is asked; what comes of it is
    written down as a run does, and weighed.

    Args:
        task: The task.
        limit: Latents a cell at most.
        speed: How fast another run went, such as one of this task with a limit; assumed where left out.
    """
    steps: list[StepPlan] = []
    collected: set[str] = set()
    tries: list[_Try] = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in task.cells:
            steps += _stored(cell, collected)
            tries.append(_Try.of(task, cell, limit, Path(folder) / "store"))
            steps += _trying(task, tries[-1], speed)
        steps.append(_reporting(task, tries, speed, Path(folder)))
    return Plan(tuple(steps))


def _stored(cell: Cell, collected: set[str]) -> list[StepPlan]:
    try:
        ActivationStore.open(store_path(cell.collected))
    except SaevalError:
        return _collecting(cell, collected)
    return []


Results = dict[tuple[str, str, int], Explanation | Score]


class _Try(NamedTuple):
    """A cell of which a few latents are tried.

    Attributes:
        outcome: What comes of them.
        wanted: Latents that the run would take.
        results: What comes of each step, variant and latent.
        why: Why none could be sampled.
    """

    outcome: CellOutcome
    wanted: int
    results: Results
    why: str

    @classmethod
    def of(cls, task: Task, cell: Cell, limit: int | None, stand_in: Path) -> _Try:
        """Sample them, from made-up text where nothing is collected yet."""
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
        except Exception as error:  # noqa: BLE001 - samplers may need what a stand-in has not
            why = f"no window could be sampled to try it on: {error}"
        counts = {"requested": wanted, "eligible": wanted, "sampled": wanted}
        results: Results = {}
        outcome = CellOutcome(cell, store, records, counts, "", lambda *place: results.get(place))
        return cls(outcome, wanted, results, why)


def _trying(task: Task, tried: _Try, speed: Speed | None) -> Iterator[StepPlan]:
    """Try each step of a cell, and yield what it would take on all latents; what comes of it joins the outcome."""
    outcome = tried.outcome
    for variant, label, step, latents in _steps(outcome.cell, tried.wanted):
        found = StepPlan(label if variant == MAIN else f"{label} ({variant})", outcome.cell.name, latents=latents)
        results: dict[int, Explanation | Score] = {}
        if step.role is None:
            results = {record.latent.index: _made_up(step, record) for record in outcome.records.first(latents)}
        else:
            found = _asking(task, found, task.roles[step.role], label, step, tried, results, speed)
        if results and found.bytes is not None:
            each = sum(map(weighing.journal, results.values())) / len(results)
            found = replace(found, bytes=found.bytes + round(each * latents))
        yield found
        for latent, result in results.items():
            tried.results[label, variant, latent] = result
            if isinstance(result, Explanation):
                outcome.explanations[variant, latent] = result
            else:
                outcome.scored.setdefault((label, variant), Scored(len(results))).take(latent, result)


def _made_up(step: StepPart[Any], record: LatentRecord) -> Explanation | Score:
    """Return what a step without a language model may give; it is not tried, since it may need any other model."""
    if isinstance(step.part.plugin, Explainer):
        return Explanation(text=EXPLANATION)
    windows = (*record.score.activating, *record.score.non_activating)
    outcomes = [Outcome(example=w.id, active=w.active, decile=w.decile, probability=0.123456789012345) for w in windows]
    values = {metric.name: 0.5 for metric in step.part.plugin.metrics}
    return Score(values=values, outcomes=tuple(outcomes))


def _reporting(task: Task, tries: list[_Try], speed: Speed | None, folder: Path) -> StepPlan:
    """Return what all else takes: sampling, steps without a language model, and what is written at the end."""
    latents = sum(tried.wanted for tried in tries)
    rest = speed.rest if speed else None
    seconds = latents * (_REST if rest is None else rest)
    found = StepPlan("report", "", latents=latents, seconds=seconds, measured=rest is not None)
    outcomes = [tried.outcome for tried in tries]
    if not all(outcome.records for outcome in outcomes):
        return replace(found, bytes=None, note="the report's size is not known where no window could be sampled")
    try:
        return replace(found, bytes=weighing.reports(task, outcomes, latents, folder))
    except SaevalError:  # the report names a coder by the hash of its files
        return replace(found, bytes=None, note="the report's size is not known before a coder's files are here")


def _collecting(cell: Cell, collected: set[str]) -> list[StepPlan]:
    """Return what collecting activations takes, as far as the source's options tell how much text is read.

    Args:
        cell: The cell.
        collected: Stores, and passes over a corpus, that cells before share with this one; added to.
    """
    store, shared = _store_name(cell), content_hash(cell.source.loaded.id, cell.source.plugin.shares())
    if store in collected:
        return []
    in_one_pass = shared in collected
    collected |= {store, shared}
    corpus = getattr(cell.source.plugin, "corpus", None)
    tokens = _corpus_tokens(corpus) if isinstance(corpus, Corpus) else None
    known = StepPlan("collect", cell.name)
    if tokens is None:
        note = "the source does not tell how much text it reads"
        return [replace(known, input_tokens=None, seconds=None, bytes=None, note=note)]
    active = next((k for part in cell.source.nested if (k := getattr(part.plugin, "k", None))), _ACTIVE)
    stored = 6 * active + 5
    if in_one_pass:
        return [replace(known, bytes=tokens * stored, note="in one pass with a cell above")]
    return [replace(known, input_tokens=tokens, seconds=tokens / _COLLECTED, bytes=tokens * stored)]


def _store_name(cell: Cell) -> str:
    """Return what its store is called; where a coder's files are out of reach, a name made of its options."""
    try:
        return store_path(cell.collected).name
    except SaevalError:
        return content_hash(repr(cell.source.plugin))


def _corpus_tokens(corpus: Corpus) -> int | None:
    """Return how many tokens a corpus has, by its options and the size of its files; None where these do not tell."""
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


def _steps(cell: Cell, latents: int) -> list[tuple[str, str, StepPart[Any], int]]:
    """Return variant, label and part of each step, and the latents it runs on, as the run lays them out."""
    explained = {variant: _at_most(latents, step.latents) for variant, step in cell.explainers.items()}
    if SHUFFLED in cell.alternatives:
        explained[SHUFFLED] = _at_most(explained[MAIN], cell.shuffled_latents)
    halved = cell.shuffled_latents is None
    steps: list[tuple[str, str, StepPart[Any], int]] = [
        (variant, "explain", step, explained[variant]) for variant, step in cell.explainers.items()
    ]
    for label, scorer in cell.scorers.items():
        for variant, n in explained.items():
            named = scorer.part.plugin.reads_explanation and (scorer.baselines is None or variant in scorer.baselines)
            if variant == MAIN or named:
                scored = _at_most(n, scorer.latents)
                steps.append(
                    (variant, label, scorer, floors.number(scored) if variant == SHUFFLED and halved else scored)
                )
    return [step for step in steps if step[3] > 0]


def _at_most(n: int, limit: int | None) -> int:
    return n if limit is None else min(n, limit)


def _asking(
    task: Task, found: StepPlan, role: RolePart, label: str, step: StepPart[Any], tried: _Try,
    results: dict[int, Explanation | Score], speed: Speed | None,
) -> StepPlan:  # fmt: skip
    """Try a step on a few latents, and return what it would take on all.

    Args:
        task: The task.
        found: What is known of the step.
        role: The model.
        label: Label of the step.
        step: The step.
        tried: The cell.
        results: Receives what comes of it, by latent.
        speed: How fast the model answers.
    """
    counter = Counter(role.part.plugin.can_score, role.settings.max_tokens)
    why = tried.why
    for record in tried.outcome.records.first(found.latents):
        rng = derive_rng(task.run.seed, label, str(record.latent))
        try:
            result = asyncio.run(_try(step, record, Context(record.latent, rng, counter, embedder())))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything over made-up answers
            why = f"could not be tried: {error}"
            continue
        asked, counter.asked = pack(counter.asked), []
        results[record.latent.index] = result.model_copy(update={"asked": asked})
    found = replace(found, model=role.model)
    if not results:
        unknown: dict[str, Any] = dict.fromkeys(_QUANTITIES)
        return replace(found, **unknown, note=why)
    share = found.latents / len(results)
    calls, taken, given = (round(n * share) for n in (counter.calls, counter.taken, counter.given))
    usd = _price(role, taken, given)
    note = "" if usd is not None else "price unknown; give the role usd_per_million_input and usd_per_million_output"
    measured = speed.call.get((role.role, role.model)) if speed else None
    lines = weighing.call(role.role, role.model) + weighing.answer(counter.kept // max(1, counter.calls))
    return replace(
        found, calls=calls, input_tokens=taken, output_tokens=given, usd=usd, bytes=calls * lines, note=note,
        seconds=_assumed(role, calls, counter.fresh * share + given) if measured is None else calls * measured,
        measured=measured is not None,
    )  # fmt: skip


async def _try(step: StepPart[Any], record: LatentRecord, context: Context) -> Explanation | Score:
    explains = isinstance(step.part.plugin, Explainer)
    try:
        if explains:
            return await step.part.plugin.explain(record.explain, context)  # type: ignore[no-any-return]
        text = f"{EXPLANATION} {record.latent.index}"  # another one for each latent, as in the run
        return await step.part.plugin.score(Explanation(text=text), record.score, context)  # type: ignore[no-any-return]
    except LLMError as error:
        return Explanation.failed(str(error)) if explains else Score.failed(str(error))


def _assumed(role: RolePart, calls: int, tokens: float) -> float:
    """Return how many seconds a role's model is asked, where nothing is known of it."""
    if role.part.plugin.in_process:
        return tokens / _PER_SECOND
    at_once = _IN_FLIGHT if role.settings.concurrency == "auto" else role.settings.concurrency
    return calls * _CALL / at_once


def _price(role: RolePart, taken: int, given: int) -> float | None:
    """Return the dollars as the run would count them: the provider's price before the spec's."""
    if role.part.plugin.in_process:
        return 0.0
    listed = role.part.plugin.prices()
    per_input, per_output = listed or (role.settings.usd_per_million_input, role.settings.usd_per_million_output)
    return None if per_input is None or per_output is None else (taken * per_input + given * per_output) / 1e6
