"""Returns the first prompts of a task without asking a model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from saeval._run import work
from saeval._run.collect import collect
from saeval._run.sampling import choose_records
from saeval._util import Display, LLMError, counted
from saeval.models import embedder
from saeval.plugin.base import Context, Explainer
from saeval.records import MAIN, Explanation, LanguageModel, LatentRecord, LogprobReply, LogprobRequest, Reply, Request
from saeval.task import StepPart, Task

_STAND_IN = "(placeholder for the explanation)"


class _Recorder(LanguageModel):
    """A language model that records prompts, and answers with an error."""

    def __init__(self, scores: bool):
        self._scores = scores
        self.texts: list[str] = []

    @property
    def can_score(self) -> bool:
        return self._scores

    async def complete(self, request: Request) -> Reply:
        self.texts.append("\n".join(f"[{m.role}]\n{m.content}" for m in request.messages))
        raise LLMError("preview")

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        answers = " | ".join(repr(c) for c in request.continuations)
        prompts = counted(len(request.prompts), "prompt")
        self.texts.append(f"{request.prefix}{request.prompts[0]}\n[scored continuations: {answers}; {prompts}]")
        raise LLMError("preview")


def preview_prompts(task: Task, n: int, display: Display) -> list[dict[str, Any]]:
    """Return the prompts that the first cell's explainer and scorers would send for its first latents.

    Args:
        task: The task.
        n: Number of latents to show.
        display: Shows the progress of collecting.

    Returns:
        One mapping per prompt: step, latent, role, text.
    """
    import asyncio

    cell = task.cells[0]
    with display.shown():
        store = collect({cell.name: cell.collected}, display)[cell.name]
    records, _ = choose_records(cell, store, task.run.seed, n)
    latents = [latent.index for latent in records.latents]
    steps = [step for step in work.steps(cell, latents, task.run.seed) if step.variant == MAIN and step.part.role]
    return [
        {"step": step.step, "latent": str(record.latent), "role": step.part.role, "text": text}
        for place, record in enumerate(records)
        for step in steps
        if step.includes(record.latent.index, place)
        for text in asyncio.run(_asked(step.step, step.part, record, task))
    ]


async def _asked(label: str, step: StepPart[Any], record: LatentRecord, task: Task) -> list[str]:
    """Return the prompts of a step about one latent before the first answer."""
    recorder = _Recorder(step.role is not None and task.roles[step.role].part.plugin.can_score)
    rng = work.rng(task.run.seed, label, MAIN, record.latent)
    context = Context(record.latent, rng, recorder, embedder())
    with suppress(LLMError):
        if isinstance(step.part.plugin, Explainer):
            await step.part.plugin.explain(record.explain, context)
        else:
            await step.part.plugin.score(Explanation(text=_STAND_IN), record.score, context)
    return recorder.texts
