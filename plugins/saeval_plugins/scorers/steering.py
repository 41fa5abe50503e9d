"""Steering measures whether the steered model writes fluently about the explanation's concept (arXiv 2501.17148)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from saeval.plugin import (
    AnswerSchema,
    Context,
    Example,
    Examples,
    Explanation,
    LatentId,
    LLMError,
    Metric,
    Need,
    Outcome,
    ParseError,
    Prompt,
    Reply,
    Request,
    Score,
    Scorer,
    Subject,
    ask_twice,
    derive_rng,
    failed,
    one_line,
    shortened,
    unanswered,
    whole_answer,
)
from saeval_plugins.prompts import load
from saeval_plugins.steering import (
    FEWEST,
    KL_REACHED,
    calibrated,
    divergence_cautions,
    divided,
    wanted_divergence,
    written,
)

if TYPE_CHECKING:
    from torch import Tensor

CONCEPT = load("steering_concept.md")
FLUENCY = load("steering_fluency.md")
REQUEST = load("steering_request.md")
MOST = 2  # highest rating
QUALITY = Metric("quality", high=MOST)
_RATINGS = (Metric("concept", high=MOST, on_board=True), Metric("fluency", high=MOST, on_board=True))
_LIST = re.compile(r"\[[\s\d,]*\]")

By = Literal["latent", "diffmean", "prompt", "nothing"]


class Continued(NamedTuple):
    """Continuations of each scored window.

    Attributes:
        windows: The windows.
        texts: The text generated after each window.
        notes: The strength and the divergences reached; empty without steering.
    """

    windows: tuple[Example, ...]
    texts: tuple[str, ...]
    notes: dict[str, Any]


class SteeringScorer(Scorer):
    """Asks a judge to rate steered continuations for the explanation's concept and for fluency, 0 to 2 each.

    The prompts are windows in which the latent is silent, so that the concept does not come from the window. Some of
    them are used to find the strength that changes the next token's distribution by `kl` nats on average, as for
    `intervention`. After the others, the subject model generates a few tokens with the direction added at each. The
    judge rates the continuations in two lists: for the concept, and, without seeing the explanation, for fluency. The
    value of a text is the harmonic mean of both ratings, and `quality` is the mean over texts. (AxBench, arXiv
    2501.17148, also rates how well an instruction is followed.) An unreadable rating is requested once more; if that
    fails, its texts have no value.

    `by` selects baselines on the same windows. `diffmean` steers, at the same divergence, along the difference of mean
    activations between firing tokens and tokens of silent windows, from windows that are not scored. `prompt` does not
    steer; the explanation precedes the window in the prompt. `nothing` uses neither. Compare rows only at equal `kl`.
    """

    name = "steering"
    llm_role = "judge"
    prompts = (CONCEPT, FLUENCY, REQUEST)

    by: By = "latent"
    """Method of steering: the latent's direction, the difference of means, a prompt, or nothing."""
    kl: float = Field(default=1.0, gt=0)
    """Target for the mean divergence KL(clean ‖ steered) of the next token, in nats."""
    tolerance: float = Field(default=0.1, gt=0, lt=1)
    """Maximum relative error of the divergence."""
    tune: int = Field(default=10, ge=FEWEST)
    """Number of windows for finding the strength."""
    score_on: int = Field(default=20, ge=FEWEST)
    """Number of windows to score. If there are too few for both, they are divided in the same proportion."""
    tokens: int = Field(default=24, ge=1)
    """Maximum tokens to generate after each window."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of the subject model."""
    batch: int = Field(default=5, ge=1, le=50)
    """Texts per rating prompt."""

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """Quality, both ratings and, if the model is steered, the divergence."""
        steers = self.by in ("latent", "diffmean")
        return (QUALITY, *_RATINGS, *((wanted_divergence(self.kl, self.tolerance),) if steers else ()))

    def needs(self) -> frozenset[Need]:
        """Return the needs: the live model, and the coder for the latent's direction and hookpoint."""
        return frozenset({"subject", "coder"})

    def cautions(self, values: Mapping[str, float], latents: Sequence[LatentId]) -> list[str]:
        """Warn if the divergence reached is not the one requested."""
        return divergence_cautions("steering", values, self.metrics[-1], self.kl, self.tune)

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Generate continuations and have them rated."""
        if len(examples.non_activating) < 2 * FEWEST:
            return Score.failed(f"too few non-activating windows to tune and score on: {len(examples.non_activating)}")
        if self.by == "diffmean" and not examples.activating:
            return Score.failed("there are no activating windows, so there is no difference of means")
        seed = int(context.rng.integers(2**62))
        said = await asyncio.to_thread(self._continued, explanation.text, examples, context, seed)
        concept = one_line(explanation.text)
        rated = await asyncio.gather(
            self._rated(CONCEPT, said, context, explanation=concept), self._rated(FLUENCY, said, context)
        )
        outcomes, texts, kept = [], [], []
        for window, text, concerned, fluent in zip(said.windows, said.texts, *rated, strict=True):
            if isinstance(concerned, int) and isinstance(fluent, int):
                value = harmonic_mean(concerned, fluent)
                kept.append((value, concerned, fluent))
                outcomes.append(Outcome(example=window.id, active=window.active, probability=value))
                texts.append({"window": window.id, "text": text, "concept": concerned, "fluency": fluent})
            else:
                error = concerned if not isinstance(concerned, int) else fluent
                outcomes.append(unanswered(window, error))  # type: ignore[arg-type]
        if not kept:
            return failed(outcomes, "no text was rated", **said.notes)
        names = (QUALITY.name, *(metric.name for metric in _RATINGS))
        values = {name: float(mean) for name, mean in zip(names, np.mean(kept, axis=0), strict=True)}
        if "kl_scored" in said.notes:
            values[KL_REACHED.name] = said.notes["kl_scored"]
        return Score(values=values, outcomes=tuple(outcomes), notes={**said.notes, "texts": texts})

    async def _rated(
        self, prompt: Prompt, said: Continued, context: Context, **slots: str
    ) -> list[int | ParseError | LLMError]:
        """Return one rating per text, or the error."""
        batches = [said.texts[i : i + self.batch] for i in range(0, len(said.texts), self.batch)]
        return [
            rating
            for ratings in await asyncio.gather(*(self._rate(prompt, batch, context, slots) for batch in batches))
            for rating in ratings
        ]

    async def _rate(
        self, prompt: Prompt, texts: Sequence[str], context: Context, slots: Mapping[str, str]
    ) -> Sequence[int | ParseError | LLMError]:
        shown = "\n".join(f"Window {number}: {one_line(text) or '(empty)'}" for number, text in enumerate(texts, 1))
        ratings = AnswerSchema.array(len(texts), range(MOST + 1))
        request = Request(prompt.messages(windows=shown, k=str(len(texts)), **slots), schema=ratings)
        try:
            return await ask_twice(context.llm, request, lambda reply: parse_ratings(reply, len(texts)))
        except (ParseError, LLMError) as error:
            return [error] * len(texts)

    def _continued(self, explanation: str, examples: Examples, context: Context, seed: int) -> Continued:
        tuned, scored = divided(examples.non_activating, self.tune, self.score_on, derive_rng(seed, "windows"))
        subject, direction = written(context)
        lead: list[int] = []
        if self.by == "diffmean":
            direction = difference_of_means(subject, examples.activating, tuned)
        elif self.by == "prompt":
            request = REQUEST.fill(explanation=one_line(explanation))
            lead = subject.live.tokenizer(request, add_special_tokens=False)["input_ids"]
        prompts = subject.steered([subject.prompt([*lead, *window.token_ids.tolist()]) for window in scored], direction)
        factor, notes = 0.0, {}
        if self.by in ("latent", "diffmean"):
            ids = [subject.prompt(window.token_ids.tolist()) for window in tuned]
            strength = calibrated(subject.steered(ids, direction), self.kl, self.tolerance)
            factor = strength.factor
            reached = float(prompts.divergence(factor).mean())
            notes = {"kl": strength.kl, "kl_scored": reached, "strength": factor, "tuned_on": len(tuned)}
        made = prompts.generate(factor, self.tokens, derive_rng(seed, "draws"), self.temperature)
        return Continued(scored, tuple(map(subject.text, made)), notes)


def difference_of_means(subject: Subject, activating: Sequence[Example], silent: Sequence[Example]) -> Tensor:
    """Return the mean activation on a latent's firing tokens minus that on tokens of silent windows.  [width]

    AxBench calls this supervised direction DiffMean.
    """
    import torch

    def activations(windows: Sequence[Example]) -> Tensor:
        """Return the model's activations on the windows' tokens.  [windows, window, width]"""
        ids = torch.tensor([subject.prompt(window.token_ids.tolist()) for window in windows])
        with subject.live.lock, torch.inference_mode():
            caught: Tensor = subject.live.capture(ids, [subject.point])[subject.point].float().cpu()
        return caught[:, -len(windows[0].token_ids) :]

    fires = torch.tensor(np.array([window.activations > 0 for window in activating]))
    return activations(activating)[fires].mean(dim=0) - activations(silent).flatten(0, 1).mean(dim=0)


def harmonic_mean(concept: float, fluency: float) -> float:
    """Return the harmonic mean of two ratings; 0 if one is 0.

    Example:
        >>> harmonic_mean(2, 1), harmonic_mean(2, 0)
        (1.3333333333333333, 0.0)
    """
    return 2 * concept * fluency / (concept + fluency) if concept and fluency else 0.0


def parse_ratings(reply: Reply | str, k: int) -> list[int]:
    """Parse a list of k ratings, each 0, 1 or 2, with or without other text around it.

    Raises:
        ParseError: If the reply is incomplete, or has no such list, or several that differ.
    """
    answer = whole_answer(reply)
    found = []
    for match in _LIST.finditer(answer):
        try:
            found.append(json.loads(match[0]))
        except ValueError:
            continue
    lists = [ratings for ratings in found if ratings]
    if not lists or any(ratings != lists[0] for ratings in lists):
        raise ParseError(f"no single list of ratings in the reply {shortened(answer)!r}")
    if len(lists[0]) != k or not all(0 <= rating <= MOST for rating in lists[0]):
        raise ParseError(f"not {k} ratings from 0 to {MOST} in the reply {shortened(answer)!r}")
    return list(lists[0])
