"""The intervention explainer describes how adding a latent's direction changes the model's output (paper §3.2, A.7)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from pydantic import Field

from saeval.plugin import Context, Examples, Explainer, Explanation, Need, ask, derive_rng, one_line
from saeval_plugins.prompts import load
from saeval_plugins.scorers.intervention import InterventionScorer
from saeval_plugins.steering import calibrated, steered

PROMPT = load("explainer_intervention.md")
_SHOWN = 16  # tokens shown from the end of each text


class InterventionExplainer(Explainer):
    """Shows an LLM the tokens whose probability rises most when the latent's direction is added at the end of a text.

    The explain windows are the texts. The direction is added with the strength that changes the next token's
    distribution by `kl` nats on average. With `candidates`, several explanations are drawn, and the one with the best
    `intervention` score on explain windows is kept; score windows are not used.
    """

    name = "intervention"
    llm_role = "explainer"
    prompts = (PROMPT, *InterventionScorer.prompts)

    kl: float = Field(default=1.0, gt=0)
    """Target for the mean divergence KL(clean ‖ steered) of the next token, in nats."""
    tolerance: float = Field(default=0.1, gt=0, lt=1)
    """Maximum relative error of the divergence."""
    examples: int = Field(default=10, ge=2)
    """Maximum texts to show."""
    tokens: int = Field(default=5, ge=1)
    """Tokens to list per text."""
    candidates: int = Field(default=1, ge=1)
    """Number of explanations to draw; more than one requires a model that scores continuations."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature if there are several candidates."""
    shots: int = Field(default=3, ge=0, le=3)
    """Worked examples before the question."""
    prefill: bool = False
    """Whether to prefill the answer (`EXPLANATION:`), as base models need."""

    def needs(self) -> frozenset[Need]:
        """Return the live model and the direction; with several candidates, also log-probabilities."""
        steering: frozenset[Need] = frozenset({"subject", "coder"})
        return steering | {"logprobs"} if self.candidates > 1 else steering

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Steer, list the tokens whose probability rose most, and ask for an explanation."""
        if len(examples.activating) < 2:
            return Explanation.failed(f"{len(examples.activating)} activating windows are too few to steer on")
        effects, kl = await asyncio.to_thread(self._effects, examples, context)
        system, *shots, question = PROMPT.messages(effects=effects)
        messages = (system, *shots[: 2 * self.shots], question)
        several = self.candidates > 1
        made = await asyncio.gather(
            *(
                ask(
                    context,
                    messages,
                    prefill=self.prefill,
                    repeat=repeat,
                    temperature=self.temperature if several else None,
                )
                for repeat in range(self.candidates)
            )
        )
        chosen = await self._best(made, examples, context) if several else made[0]
        return chosen.model_copy(update={"notes": {**chosen.notes, "kl": kl}})

    def _effects(self, examples: Examples, context: Context) -> tuple[str, float]:
        """Return the texts with the tokens whose probability rose most after each, and the divergence reached."""
        windows = examples.activating[: self.examples]
        prompts = steered(windows, context)
        strength = calibrated(prompts, self.kl, self.tolerance)
        rise = prompts.next_logprobs(strength.factor).exp() - prompts.clean.exp()
        lines = []
        for number, (window, row) in enumerate(zip(windows, rise, strict=True), 1):
            top = row.topk(self.tokens)
            risen = ", ".join(
                f"{json.dumps(context.subject.text([token]), ensure_ascii=False)} (+{value:.2f})"
                for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            )
            lines.append(f"Text {number}: {one_line(''.join(window.tokens[-_SHOWN:]))}\nRisen: {risen}")
        return "\n".join(lines), strength.kl

    async def _best(self, made: list[Explanation], examples: Examples, context: Context) -> Explanation:
        """Return the candidate with the best intervention score (ties: the first); a failed one if all fail."""
        scorer = InterventionScorer(kl=self.kl, tolerance=self.tolerance)
        good = list({e.text: e for e in reversed(made) if e.status == "ok"}.values())[::-1]
        if len(good) < 2:
            return good[0] if good else made[0]
        seed = int(context.rng.integers(2**62))
        scores = [
            await scorer.score(candidate, examples, replace(context, rng=derive_rng(seed, "candidates")))
            for candidate in good
        ]
        values = [score.values.get("nats", float("-inf")) for score in scores]
        best = good[values.index(max(values))]
        nats = {e.text: score.values.get("nats") for e, score in zip(good, scores, strict=True)}
        return best.model_copy(update={"notes": {**best.notes, "candidates": nats}})
