"""Intervention measures whether the explanation predicts the text that the steered model writes (paper §3.3.5)."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from saeval.plugin import (
    Context,
    Example,
    Examples,
    Explanation,
    LatentId,
    LLMError,
    LogprobRequest,
    Metric,
    Need,
    Outcome,
    Score,
    Scorer,
    derive_rng,
    few_shot,
    one_line,
)
from saeval_plugins.prompts import load
from saeval_plugins.steering import (
    FEWEST,
    KL_REACHED,
    calibrated,
    divergence_cautions,
    divided,
    steered,
    wanted_divergence,
)

PASSAGE = load("intervention_passage.md")
NATS = Metric("nats", low=-math.inf, high=math.inf, chance=0.0)
_KEPT = 64  # latents whose texts are kept in memory, to score their other explanations


class Texts(NamedTuple):
    """Continuations of each scored window, with and without the latent's direction added.

    Attributes:
        windows: The windows.
        clean: Windows with their unsteered continuations.
        steered: Windows with continuations generated with the direction added at every step.
        notes: The strength, and the divergences reached.
    """

    windows: tuple[Example, ...]
    clean: tuple[str, ...]
    steered: tuple[str, ...]
    notes: dict[str, Any]


class InterventionScorer(Scorer):
    """Compares the explanation's log-probability after steered and after clean text, in nats (equation 1).

    The latent's activating windows are the prompts (64 tokens in the paper: set the sampler's `window`). Some of them
    are used to find the strength that changes the next token's distribution by `kl` nats on average, within
    `tolerance`. After each of the others, the subject model generates a few tokens twice with the same random draws:
    unchanged, and with the direction added at the prompt's last token and every generated token. A base model then
    reads prompt and continuation. The score is the mean over prompts of log p(z | steered) - log p(z | clean), summed
    over the tokens of the explanation z and the end of the line. `kl_reached` is the divergence on the scored windows;
    if its mean differs from `kl` by more than `tolerance`, the row is marked and the results contain a warning.

    Strong interventions are trivially explained, so compare scores only at equal `kl`.
    """

    name = "intervention"
    llm_role = "base"
    prompts = (PASSAGE,)

    kl: float = Field(default=1.0, gt=0)
    """Target for the mean divergence KL(clean ‖ steered) of the next token, in nats; the paper: 0.1, 0.33, 1, 3."""
    tolerance: float = Field(default=0.1, gt=0, lt=1)
    """Maximum relative error of the divergence."""
    tune: int = Field(default=10, ge=FEWEST)
    """Number of windows for finding the strength."""
    score_on: int = Field(default=30, ge=FEWEST)
    """Number of windows to score. If there are too few for both, they are divided in the same proportion."""
    tokens: int = Field(default=8, ge=1)
    """Maximum tokens to generate after each window."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of the subject model."""

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The gain in nats, and the divergence at which it was measured."""
        return NATS, wanted_divergence(self.kl, self.tolerance)

    def needs(self) -> frozenset[Need]:
        """Return the needs: the live model and the direction for steering, log-probabilities for scoring."""
        return frozenset({"subject", "coder", "logprobs"})

    def cautions(self, values: Mapping[str, float], latents: Sequence[LatentId]) -> list[str]:
        """Warn if the divergence reached is not the one requested."""
        return divergence_cautions("interventions", values, self.metrics[-1], self.kl, self.tune)

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Steer, generate, and compare."""
        if len(examples.activating) < 2 * FEWEST:
            return Score.failed(f"too few activating windows to tune and to score on: {len(examples.activating)}")
        texts = await self._texts(examples.activating, context)
        shots, passage = few_shot(PASSAGE)
        both = tuple(passage.fill(passage=one_line(text)) for text in (*texts.steered, *texts.clean))
        request = LogprobRequest(prefix=shots, prompts=both, continuations=(f" {one_line(explanation.text)}\n",))
        try:
            reply = await context.llm.logprobs(request)
        except LLMError as error:
            return Score.failed(str(error))
        likely = [sum(logprobs) for (logprobs,) in reply.logprobs]
        gains = [a - b for a, b in zip(likely, likely[len(texts.windows) :], strict=False)]
        if not all(math.isfinite(gain) for gain in gains):
            return Score.failed("the base model assigns no probability to the explanation")
        outcomes = tuple(
            Outcome(example=window.id, active=True, decile=window.decile, probability=gain)
            for window, gain in zip(texts.windows, gains, strict=True)
        )
        values = {NATS.name: float(np.mean(gains)), KL_REACHED.name: texts.notes["kl_scored"]}
        return Score(values=values, outcomes=outcomes, notes=texts.notes)

    async def _texts(self, windows: Sequence[Example], context: Context) -> Texts:
        """Return the texts of a latent, generated once for all its explanations."""
        seed = int(context.rng.integers(2**62))
        key = (id(context.source), str(context.latent), seed, tuple(window.id for window in windows))
        task = self._made.get(key)
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            task = asyncio.ensure_future(asyncio.to_thread(self._generate, windows, context, seed))
            self._made[key] = task
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return await asyncio.shield(task)

    @cached_property
    def _made(self) -> OrderedDict[tuple[Any, ...], asyncio.Future[Texts]]:
        return OrderedDict()

    def _generate(self, windows: Sequence[Example], context: Context, seed: int) -> Texts:
        tuned, scored = divided(windows, self.tune, self.score_on, derive_rng(seed, "windows"))
        strength = calibrated(steered(tuned, context), self.kl, self.tolerance)
        prompts = steered(scored, context)

        def continued(factor: float) -> tuple[str, ...]:
            noise = derive_rng(seed, "draws")
            made = prompts.generate(factor, self.tokens, noise, self.temperature)
            texts = (context.subject.text([*w.token_ids, *new]) for w, new in zip(scored, made, strict=True))
            return tuple(texts)

        notes = {
            "kl": strength.kl,
            "kl_scored": float(prompts.divergence(strength.factor).mean()),
            "strength": strength.factor,
            "tuned_on": len(tuned),
        }
        return Texts(scored, continued(0.0), continued(strength.factor), notes)
