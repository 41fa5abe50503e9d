"""Consistency measures whether a judge repeats its answers when asked again, or with windows in another order."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, SerializeAsAny

from saeval.plugin import (
    Context,
    Examples,
    Explanation,
    Judge,
    Metric,
    Score,
)
from saeval_plugins._again import AskedAgain
from saeval_plugins._wrapped import NeedsOfScorer
from saeval_plugins.scorers.detection import Detection

AGREEMENT = Metric("agreement")
KAPPA = Metric("kappa", low=-1.0, chance=0.0)


class Consistency(NeedsOfScorer):
    """Asks a judging scorer's questions twice and compares the answers.

    `order`: the second prompt reverses the order of windows; answers that change depend on the position in the list.
    If one window remains for the last prompt, it is dropped, because it has no order. Latents whose prompts have one
    window each are skipped: with `batch: 1`, with `fuzzing` without another latent, and with judges that return
    probabilities.
    `repeat`: exactly the same prompts are asked again; answers that change are the model's own noise.

    Agreement is the share of windows with equal answers, among those answered both times. Kappa (Cohen's) corrects it
    for the agreement expected by chance, given both shares of yes; it is omitted if chance agreement is 1.
    """

    name = "consistency"
    llm_role = "judge"
    metrics = (AGREEMENT, KAPPA)
    reads_explanation = False

    scorer: SerializeAsAny[Judge] = Field(default_factory=Detection)
    """The scorer whose questions are asked: `{use: detection}` or `{use: fuzzing}`."""
    vary: Literal["order", "repeat"] = "order"
    """What changes the second time."""

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Ask all questions twice and compare the answers."""
        questions = self.scorer.questions(examples, context)
        questions = [questions[i] for i in context.rng.permutation(len(questions))]
        size = self.scorer.windows_per_prompt(questions, context)
        if self.vary == "order" and min(size, len(questions)) == 1:
            return Score.skipped("each prompt has one window, so there is no order to vary; use `vary: repeat`")
        if self.vary == "order" and len(questions) % size == 1:
            questions = questions[:-1]  # alone in the last prompt, where it would agree with itself in any order
        first = await self.scorer.judge(explanation, questions, context)
        if self.vary == "order":
            turned = [q for i in range(0, len(questions), size) for q in reversed(questions[i : i + size])]
            answered = await self.scorer.judge(explanation, turned, context)
            by_question = dict(zip(map(id, turned), answered, strict=True))
            second = [by_question[id(question)] for question in questions]
        else:
            second = await self.scorer.judge(explanation, questions, replace(context, llm=AskedAgain(context.llm)))
        pairs = [(a.predicted, b.predicted) for a, b in zip(first, second, strict=True)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not both:
            reason = next((o.reason for o in (*first, *second) if o.reason), "there are no windows")
            return Score(status="failed", reason=f"no window was answered twice: {reason}", outcomes=tuple(first))
        agreement = sum(a == b for a, b in both) / len(both)
        yes = [sum(column) / len(both) for column in zip(*both, strict=True)]
        chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
        values = {AGREEMENT.name: agreement}
        if chance < 1:
            values[KAPPA.name] = (agreement - chance) / (1 - chance)
        return Score(values=values, outcomes=tuple(first), notes={"answered_twice": len(both), "asked": len(pairs)})
