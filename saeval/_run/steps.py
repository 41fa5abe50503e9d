"""Runs one step on one latent: explaining it, or scoring an explanation. Used by all executors."""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from saeval._run.journal_entries import out_of_range
from saeval._run.work import EXPLAIN, rng as item_rng
from saeval._util import (
    BudgetExceeded,
    InputError,
    LLMError,
    Patience,
    Refused,
    SaevalError,
    StoreError,
    contained,
    may_hold_values,
    plugin_place,
    without_secrets,
    without_values,
)
from saeval.llm import (
    AnswerCache,
    Budget,
    CallLedger,
    Gateway,
    PromptReply,
    close,
    pack,
    prompt_replies,
    rare_garbage_collection,
)
from saeval.models import embedder
from saeval.plugin.base import Context, Plugin, Scorer
from saeval.records import (
    MAIN,
    Examples,
    Explanation,
    FillReply,
    FillRequest,
    JudgedWindows,
    LanguageModel,
    LogprobReply,
    LogprobRequest,
    Outcome,
    Reply,
    Request,
    Score,
    Usage,
)
from saeval.task import RolePart, StepPart, Task

R = TypeVar("R", Explanation, Score)
A = TypeVar("A", Reply, LogprobReply, FillReply)

STOPS = (BudgetExceeded, InputError, StoreError)
"""Errors of a call that stop the run, because no further call can be made or saved."""

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class StepInput:
    """The input of one step on one latent: everything that it depends on besides the task.

    Attributes:
        cell: Name of the cell.
        step: Label of the scorer; for explaining, the name of a baseline, or any other name for the main explanation.
        examples: The data about the latent.
        explanation: The explanation to score; None for explaining.
    """

    cell: str
    step: str
    examples: Examples
    explanation: Explanation | None = None


class StepOutput(NamedTuple, Generic[R]):
    """The output of one step on one latent.

    Attributes:
        result: The explanation or score.
        usage: Usage of its calls.
        fault: Whether it failed because of an outage, not because of the latent.
        cut: Whether a reply was cut off at its token limit.
    """

    result: R
    usage: Usage
    fault: bool
    cut: bool = False


@dataclass
class RecordingModel(LanguageModel):
    """A language model that records usage, errors and prompts; one per step and latent.

    Attributes:
        model: The model; None for a step without one.
        patience: Timer for hanging plugins, which is paused during calls.
        spent: Usage of its calls.
        fault: The error of the first failed call; refusals do not count.
        outage: Whether a call failed independently of the request: server down, wrong key, or budget spent.
        cut: Whether a reply was cut off at its token limit.
        asked: Prompts and replies of each request, in the order of asking.
    """

    model: LanguageModel | None
    patience: Patience = field(default_factory=lambda: Patience(math.inf))
    spent: Usage = field(default_factory=lambda: Usage(usd=0.0))
    fault: SaevalError | None = None
    outage: bool = False
    cut: bool = False
    asked: list[list[PromptReply]] = field(default_factory=list)

    @property
    def can_score(self) -> bool:
        """Whether the model scores continuations."""
        return self.model is not None and self.model.can_score

    def _model(self) -> LanguageModel:
        if self.model is None:
            raise LLMError(
                "this step declares no llm_role, so it has no language model; set llm_role in the plugin's class"
            )
        return self.model

    async def complete(self, request: Request) -> Reply:
        """Pass on, and count."""
        return await self._count(request, self._model().complete(request))

    def discard(self, request: Request) -> None:
        """Pass on."""
        self._model().discard(request)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Pass on, and count."""
        return await self._count(request, self._model().logprobs(request))

    async def fill(self, request: FillRequest) -> FillReply:
        """Pass on, and count."""
        return await self._count(request, self._model().fill(request))

    async def _count(self, request: Request | LogprobRequest | FillRequest, call: Awaitable[A]) -> A:
        place = len(self.asked)
        self.asked.append([])  # replies come in any order
        try:
            with self.patience.asking():
                reply = await call
        except SaevalError as error:
            self.asked[place] = prompt_replies(request, without_secrets(error))
            if not isinstance(error, Refused):
                self.fault = self.fault or error
            if isinstance(error, STOPS):
                self.fault = error
            self.outage |= isinstance(error, LLMError) and (error.retryable or error.lasting)
            self.cut |= isinstance(error, LLMError) and error.cut
            raise
        self.asked[place] = prompt_replies(request, reply)
        self.spent += reply.usage
        self.cut |= isinstance(reply, Reply) and reply.finish_reason == "length"
        return reply


@asynccontextmanager
async def gateways(
    roles: Mapping[str, RolePart],
    answers: Path,
    calls: CallLedger,
    budget: Budget,
    tell: Callable[[str], None] = lambda text: None,
    patience: float = 0.0,
) -> AsyncIterator[Mapping[str, Gateway]]:
    """Open a gateway for each role; at the end of the context, wait briefly for calls in flight.

    Args:
        roles: The language models.
        answers: File of the cache of answers.
        calls: The ledger.
        budget: The spending limit.
        tell: Called with a message to the user when a gateway waits.
        patience: Seconds to wait for a server that answers with a retry delay.
    """
    if not roles:
        yield {}
        return
    async with AsyncExitStack() as at_the_end:
        at_the_end.enter_context(rare_garbage_collection())
        kept = at_the_end.enter_context(closing(AnswerCache(answers)))
        lent = {
            name: Gateway(
                role.asker,
                identity=role.identity,
                calls=kept,
                log=calls,
                budget=budget,
                tell=tell,
                patience=patience,
            )
            for name, role in roles.items()
        }
        for role in roles.values():
            at_the_end.push_async_callback(close, role.asker, tell)
        try:
            yield lent
        finally:  # all at once, and before any connection is closed
            await asyncio.gather(*(gateway.finish() for gateway in lent.values()))


class Steps:
    """Runs the steps of a task on any latent.

    Args:
        task: The task.
        models: Language models by role.
    """

    def __init__(self, task: Task, models: Mapping[str, LanguageModel]):
        self._cells = {cell.name: cell for cell in task.cells}
        self._seed = task.run.seed
        self._models = models
        self._embed = embedder()
        self._patience = Patience(task.run.hang_after)

    async def make(self, given: StepInput) -> StepOutput[Any]:
        """Run a step on a latent; exceptions of its plugin become a failed result.

        Raises:
            SaevalError: If the run has to stop: the budget is spent, or the disk is full.
        """
        cell = self._cells[given.cell]
        if given.explanation is None:
            explainer = cell.alternatives.get(given.step) or cell.explainer
            context, meter = self._context(given, explainer, EXPLAIN, given.step)
            writer = explainer.part.plugin
            return await _made(writer, writer.explain, Explanation, meter, given.examples, given.examples, context)
        scorer = cell.scorers[given.step]
        context, meter = self._context(given, scorer, given.step, MAIN)
        arguments = given.explanation, given.examples, context
        plugin = scorer.part.plugin
        made = await _made(plugin, plugin.score, Score, meter, given.examples, *arguments)
        checked = _checked(made.result, plugin, given.examples).model_copy(update={"asked": made.result.asked})
        return made._replace(result=checked)

    def _context(
        self, given: StepInput, part: StepPart[Any], step: str, variant: str
    ) -> tuple[Context, RecordingModel]:
        latent = given.examples.latent
        meter = RecordingModel(self._models.get(part.role) if part.role else None, self._patience)
        rng = item_rng(self._seed, step, variant, latent)
        return Context(latent, rng, meter, self._embed, self._cells[given.cell].source.plugin), meter


def window_texts(examples: Examples, *, decoy: bool = True) -> list[list[str]]:
    """Return the texts of the windows in a step's input, by group: activating, non-activating, and decoy windows.

    Args:
        examples: The windows.
        decoy: Whether to include decoy windows, which exist only if a scorer of the task needs them.
    """
    decoys = examples.decoy.activating if decoy and examples.decoy else ()
    return [[e.text for e in windows] for windows in (examples.activating, examples.non_activating, decoys)]


def prompt_texts(plugin: Plugin) -> list[str]:
    """Return the texts of a plugin's prompts."""
    return [prompt.text for prompt in plugin.prompts]


async def _made(
    plugin: Plugin,
    call: Callable[..., Awaitable[R]],
    kind: type[R],
    meter: RecordingModel,
    examples: Examples,
    *arguments: Any,
) -> StepOutput[R]:
    """Call a plugin; an exception, or a return value of another type than `kind`, becomes a failed result.

    A result also counts as failed if one of its calls failed.

    Raises:
        SaevalError: If the run has to stop: the budget is spent, or the disk is full.
    """
    result = await _guarded(call, kind, meter.patience, *arguments)
    if meter.asked:
        asked = [a for request in meter.asked for a in request]
        # Results of other steps must remain readable when the task has no decoys any more.
        windows = window_texts(examples, decoy="decoy" in plugin.needs())
        packed = pack(asked, windows, prompt_texts(plugin))
        result = result.model_copy(update={"asked": packed})
    if meter.fault is None:
        return StepOutput(result, meter.spent, fault=False, cut=meter.cut)
    if isinstance(meter.fault, STOPS):
        raise meter.fault
    if result.status == "ok":
        changes: dict[str, Any] = {"text": ""} if isinstance(result, Explanation) else {"values": {}}
        reason = f"a call failed: {without_secrets(meter.fault)}"
        result = result.model_copy(update={**changes, "status": "failed", "reason": reason})
    return StepOutput(result, meter.spent, fault=meter.outage, cut=meter.cut)


def _savable(result: R) -> R:
    """Return a result as the journal will return it, without credentials, which a plugin may have received.

    Raises:
        ValueError: If it cannot be written as JSON, or not be read back.
    """
    whole = map(_as_json, [result])  # not written unless it is searched for a credential
    if isinstance(result, Score) and _has_plain_outcomes(result) and not may_hold_values(whole):
        # Reading hundreds of windows back takes three times as long as looking at their columns.
        text = _as_json(result.model_copy(update={"outcomes": ()}))
        return type(result).model_validate_json(text).model_copy(update={"outcomes": result.outcomes})
    text = _as_json(result)
    if may_hold_values([text]):
        text = without_values(text)
    return type(result).model_validate_json(text)


def _as_json(result: Explanation | Score) -> str:
    return result.model_dump_json(warnings=False)


def _has_plain_outcomes(score: Score) -> bool:
    """Return whether a score has outcomes, and is the same after writing and reading them; never raises an error."""
    outcomes = vars(score).get("outcomes")
    if type(outcomes) is not tuple or {*map(type, outcomes)} != {Outcome}:
        return False
    try:
        return JudgedWindows.of(outcomes).plain
    except (KeyError, AttributeError):  # made by a plugin without validation
        return False


def _complete(result: R) -> R:
    """Return a result; a failed one if it is a blank explanation, and one with a reason if it has no answer."""
    if result.status != "ok":
        return result if result.reason else result.model_copy(update={"reason": "the plugin gave no reason"})
    if isinstance(result, Explanation) and not result.text.strip():
        return result.model_copy(update={"status": "failed", "reason": "the explainer returned an empty explanation"})
    return result


async def _guarded(call: Callable[..., Awaitable[R]], kind: type[R], patience: Patience, *arguments: Any) -> R:
    try:
        made = await patience.wait_for(contained(call, *arguments))
        if not isinstance(made, kind):
            return kind.failed(f"the plugin returned {type(made).__name__} instead of {kind.__name__}")
        return _complete(_savable(made))
    except SaevalError as error:
        return kind.failed(without_secrets(error))
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; only its latent fails
        log.error("a plugin raised\n%s", traceback.format_exc())
        place = plugin_place(error, built_in=True)
        where = f"{place}; logs/run.log has more" if place else "logs/run.log has more"
        return kind.failed(without_secrets(f"{type(error).__name__}: {error} ({where})"))


def _checked(score: Score, scorer: Scorer, examples: Examples) -> Score:
    """Return the score, or a failed one if a value is missing, not finite, or out of range, or a window is unknown.

    Fewer outcomes than windows, and several for one window, are valid: scorers may draw windows or ask repeatedly.
    """
    trouble = out_of_range(score, scorer.metrics) or _unknown_window(score, examples)
    return score if trouble is None else Score.failed(f"the scorer gave {trouble}")


def _unknown_window(score: Score, examples: Examples) -> str | None:
    """Return what is wrong with an outcome for a window that the scorer did not get; None if there is none."""
    judged = [outcome.example for outcome in score.outcomes if outcome.written is None]
    if score.status != "ok" or not judged:
        return None
    given = [*examples.activating, *examples.non_activating]
    if examples.decoy is not None:
        given += [*examples.decoy.activating, *examples.decoy.non_activating]
    known = {window.id for window in given}
    strange = next((window for window in judged if window not in known), None)
    if strange is None:
        return None
    return (
        f"an outcome for {strange!r}, which is none of the windows it got; `example` must be the `id` of one, or "
        "`written` contain the text"
    )
