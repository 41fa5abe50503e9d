"""What a run would take, told before anything is spent: calls, tokens, dollars, minutes and disk, step by step."""

from __future__ import annotations

import asyncio
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import inf
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
from saeval.seeding import content_hash, derive_rng
from saeval.store import ActivationStore
from saeval.summary import MAIN
from saeval.task import SHUFFLED, Cell, RolePart, StepPart, Task
from saeval.testing import planted_store
from saeval.tokens import Corpus

_TRIED = 5  # latents a step is tried on; prompts hardly differ in length from latent to latent
_CHARACTERS = 4.0  # of a prompt, a token
_TURN = 4  # tokens around a turn of a conversation
_EXPLANATION = "words that name a place where many people meet"
_CALL, _IN_FLIGHT = 1.5, 16  # seconds a call over HTTP takes, and how many are under way
_PER_SECOND = 400.0  # tokens that a model in process reads or writes
_COLLECTED = 1000.0  # tokens a second and cell
_STORED = 250  # bytes a token of the corpus: some 40 activations, and the token

ASSUMPTIONS = (
    f"Prompts are real ones, for up to {_TRIED} latents a cell, made from windows of the activations in the cache; "
    f"where there are none yet, from windows of made-up text. {_CHARACTERS:g} characters are a token.",
    "Answers are as short as in the prompts' examples; models that think aloud write more. None has to be asked twice.",
    f"A call over HTTP takes {_CALL:g} s, {_IN_FLIGHT} at a time unless the role says otherwise; a model in process reads "
    f"{_PER_SECOND:g} tokens a second, and one to be read collects {_COLLECTED:g}, as small models do on two cores.",
    f"Activations take {_STORED} bytes a token of the corpus. Steps that ask no language model are left out of the time.",
    "Answers and activations that are in the cache already cost nothing when they are used again.",
)
"""What the numbers rest on."""


@dataclass(frozen=True)
class StepPlan:
    """What one step would take; what is not known is None, never 0.

    Attributes:
        step: `collect`, `explain` or the scorer's label, and in brackets the baseline it is run on.
        cell: The cell.
        model: Model that is asked, as the spec names it; None where none is.
        latents: Latents it runs on.
        calls: Calls to the model.
        input_tokens: Tokens of prompts; for `collect`, of the corpus.
        output_tokens: Tokens generated.
        usd: Dollars.
        seconds: Wall-clock seconds.
        bytes: Room on disk.
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
        columns = ("calls", "input_tokens", "output_tokens", "usd", "seconds", "bytes")
        return {
            "steps": [asdict(step) for step in self.steps], "total": {c: self.total(c) for c in columns},
            "assumptions": list(ASSUMPTIONS),
        }  # fmt: skip


def plan(task: Task, limit: int | None = None) -> Plan:
    """Tell what a run would take. No model is asked or loaded, and nothing is collected.

    Every step is tried on a few latents with a stand-in for its model, which counts what it is asked.

    Args:
        task: The task.
        limit: Latents a cell at most.
    """
    steps: list[StepPlan] = []
    collected: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for cell in task.cells:
            steps += _cell(task, cell, limit, collected, Path(folder) / "store")
    return Plan(tuple(steps))


def _cell(task: Task, cell: Cell, limit: int | None, collected: set[str], stand_in: Path) -> list[StepPlan]:
    wanted = len(cell.latents.indices) if cell.latents.select == "list" else cell.latents.n
    wanted = wanted if limit is None else min(wanted, limit)
    found: list[StepPlan] = []
    records: list[LatentRecord] = []
    why = ""
    try:
        store = ActivationStore.open(store_path(cell.source))
    except SaevalError:
        found += _collecting(cell, collected)
        store = ActivationStore.open(stand_in) if stand_in.exists() else planted_store(stand_in, documents=300)
        easy = cell.latents.model_copy(update={"select": "random", "min_windows": 2})
        cell = replace(cell, latents=easy)
    else:
        eligible = int((store.firings >= cell.latents.min_windows).sum())
        wanted = wanted if cell.latents.select == "list" else min(wanted, eligible)
    try:
        records, _ = choose_records(cell, store, task.run.seed, min(_TRIED, wanted))
    except Exception as error:  # noqa: BLE001 - samplers may need what a stand-in has not
        why = f"no window could be sampled to try it on: {error}"
    for title, label, step, latents in _steps(cell, wanted):
        if step.role is not None:
            found.append(_asking(task, task.roles[step.role], title, label, cell, step, latents, records, why))
        else:
            found.append(StepPlan(title, cell.name, latents=latents))
    return found


def _collecting(cell: Cell, collected: set[str]) -> list[StepPlan]:
    """Return what collecting activations takes, as far as the source's options tell how much text is read.

    Args:
        cell: The cell.
        collected: Stores, and passes over a corpus, that cells before share with this one; added to.
    """
    store, shared = store_path(cell.source).name, content_hash(cell.source.loaded.id, cell.source.plugin.shares())
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
    if in_one_pass:
        return [replace(known, bytes=tokens * _STORED, note="in one pass with a cell above")]
    return [replace(known, input_tokens=tokens, seconds=tokens / _COLLECTED, bytes=tokens * _STORED)]


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
        found += min(file.stat().st_size / _CHARACTERS, documents * most)
    return int(min(found, corpus.tokens or inf))


def _steps(cell: Cell, latents: int) -> list[tuple[str, str, StepPart[Any], int]]:
    """Return title, label and part of each step, and the latents it runs on, as the run lays them out."""
    explainers = {MAIN: cell.explainer, **{k: s for k, s in cell.alternatives.items() if s is not None}}
    explained = {variant: min(latents, step.latents or latents) for variant, step in explainers.items()}
    if SHUFFLED in cell.alternatives:
        explained[SHUFFLED] = min(explained[MAIN], cell.shuffled_latents or latents)
    steps: list[tuple[str, str, StepPart[Any], int]] = [
        (_title("explain", variant), "explain", step, explained[variant]) for variant, step in explainers.items()
    ]
    for label, scorer in cell.scorers.items():
        for variant, n in explained.items():
            named = scorer.part.plugin.reads_explanation and (scorer.baselines is None or variant in scorer.baselines)
            if variant == MAIN or named:
                steps.append((_title(label, variant), label, scorer, min(n, scorer.latents or n)))
    return steps


def _title(label: str, variant: str) -> str:
    return label if variant == MAIN else f"{label} ({variant})"


def _asking(
    task: Task, role: RolePart, title: str, label: str, cell: Cell, step: StepPart[Any], latents: int,
    records: list[LatentRecord], why: str,
) -> StepPlan:  # fmt: skip
    """Try a step on a few latents, and return what it would take on all."""
    counter = _Counter(role.part.plugin.can_score, role.settings.max_tokens)
    tried = 0
    for record in records:
        rng = derive_rng(task.run.seed, label, str(record.latent))
        try:
            asyncio.run(_try(step, record, Context(record.latent, rng, counter, embedder())))
            tried += 1
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything over made-up answers
            why = f"could not be tried: {error}"
    if not tried:
        return StepPlan(title, cell.name, role.model, latents, None, None, None, None, None, note=why)
    share = latents / tried
    calls, taken, given = (round(n * share) for n in (counter.calls, counter.taken, counter.given))
    usd = _price(role, taken, given)
    note = "" if usd is not None else "price unknown; give the role usd_per_million_input and usd_per_million_output"
    if role.part.plugin.in_process:
        seconds = (counter.fresh * share + given) / _PER_SECOND
    else:
        at_once = _IN_FLIGHT if role.settings.concurrency == "auto" else role.settings.concurrency
        seconds = calls * _CALL / at_once
    return StepPlan(title, cell.name, role.model, latents, calls, taken, given, usd, seconds, note=note)


async def _try(step: StepPart[Any], record: LatentRecord, context: Context) -> None:
    with suppress(LLMError):
        if isinstance(step.part.plugin, Explainer):
            await step.part.plugin.explain(record.explain, context)
        else:
            text = f"{_EXPLANATION} {record.latent.index}"  # another one for each latent, as in the run
            await step.part.plugin.score(Explanation(text=text), record.score, context)


def _price(role: RolePart, taken: int, given: int) -> float | None:
    """Return the dollars as the run would count them: the provider's price before the spec's."""
    if role.part.plugin.in_process:
        return 0.0
    listed = role.part.plugin.prices()
    per_input, per_output = listed or (role.settings.usd_per_million_input, role.settings.usd_per_million_output)
    return None if per_input is None or per_output is None else (taken * per_input + given * per_output) / 1e6


@dataclass
class _Counter(LanguageModel):
    """A language model that counts what it is asked, and answers as the prompt's examples do."""

    scores: bool
    longest: int
    calls: int = 0
    taken: float = 0.0
    fresh: float = 0.0
    """Tokens of prompts that a model in process has not just computed for another prompt."""
    given: float = 0.0
    seen: set[Any] = field(default_factory=set)

    @property
    def can_score(self) -> bool:
        return self.scores

    def _count(self, request: Any, characters: int, fresh: int, turns: int = 0, answer: str = "") -> None:
        if request not in self.seen:  # equal ones are asked once
            self.seen.add(request)
            self.calls += 1
            self.taken += characters / _CHARACTERS + turns * _TURN
            self.fresh += fresh / _CHARACTERS
            self.given += min(_written(answer), self.longest)

    async def complete(self, request: Request) -> Reply:
        answer = _answer(request)
        lengths = [len(message.content) for message in request.messages]
        self._count(request, sum(lengths), lengths[-1], len(lengths), answer)
        return Reply(answer)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        prompts, continuations = request.prompts, request.continuations
        own = sum(map(len, prompts)) * len(continuations) + len(prompts) * sum(map(len, continuations))
        self._count(request, len(request.prefix) * len(prompts) * len(continuations) + own, own)
        return LogprobReply(tuple(tuple((-1.0,) for _ in continuations) for _ in prompts))

    async def fill(self, request: FillRequest) -> FillReply:
        parts = [part for text in request.texts for part in text]
        filled = sum(map(len, parts)) + len(parts) * len(request.filler)
        self._count(request, len(request.prefix) * len(request.texts) + filled, filled)
        return FillReply(tuple(tuple(tuple(-1.0 for _ in request.choices) for _ in text) for text in request.texts))


def _answer(request: Request) -> str:
    """Return what the last worked example answers; a list gets an item for each window of the question."""
    *before, last = (m for m in request.messages if m.role != "system")
    shown = [m.content for m in before if m.role == "assistant"]
    answer = shown[-1] if shown else f"EXPLANATION: {_EXPLANATION}"
    windows = re.findall(r"^Window \d+:", last.content, re.MULTILINE)
    return str([0] * len(windows)) if answer.startswith("[") and windows else answer


def _written(answer: str) -> float:
    """Tokens of an answer: digits and marks are one each, and the spaces before digits too."""
    letters = sum(character.isalpha() for character in answer)
    return letters / _CHARACTERS + len(re.findall(r"\d|[^\w\s]|\s(?=\d)", answer))
