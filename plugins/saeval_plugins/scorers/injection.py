"""Injection measures whether instructions inside a window change a judge's answer."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Literal

from pydantic import Field, JsonValue, SerializeAsAny

from saeval.plugin import (
    Context,
    Example,
    Examples,
    Explanation,
    Judge,
    Metric,
    Outcome,
    Prompt,
    Question,
    Score,
)
from saeval_plugins._wrapped import NeedsOfScorer
from saeval_plugins.prompts import load
from saeval_plugins.scorers.detection import Detection

FLIPPED = Metric("flipped", higher_is_better=False)
NEIGHBOURS = Metric("neighbours_flipped", higher_is_better=False)
ATTACKS = load("injections.txt")
"""Texts appended to a window, one attack per line, with line breaks written as `\\n`; with the slots `answer`, `list`
and `k`."""


class Injection(NeedsOfScorer):
    """Judges the same windows twice, the second time with injected text that demands another answer.

    In each prompt, the text is injected into one random window, the carrier. It demands, for every window of the
    prompt, the opposite of the judge's first answer on the carrier. `flipped` is the share of carriers whose judgement
    changes. `neighbours_flipped` is the share of changes among the prompt's other windows that had the same first
    answer. Where each prompt has one window (`batch: 1`, `fuzzing` without another latent, judges that return
    probabilities), every window is a carrier and there are no neighbours. Windows that were not answered both times do
    not count. Shares by decile are those of the first answers. A judge that always gives the same answer never flips.

    `override` asks to ignore the rules, `answer` imitates an answer, `ending` imitates the end of the windows and the
    next question, and `role` imitates the marks between the turns of a conversation. `ordinary` demands nothing. It is
    a baseline: it shows how many judgements change because text was added.

    A real change of meaning also counts as a flip: if the injected text matches an explanation, the judge is right to
    change its answer. `saeval run injection-check` uses latents that none of the texts match.
    """

    name = "injection"
    llm_role = "judge"
    metrics = (FLIPPED, NEIGHBOURS)
    reads_explanation = False
    prompts = (ATTACKS,)

    attack: Literal["override", "answer", "ending", "role", "ordinary"] = "override"
    """Kind of text to inject."""
    scorer: SerializeAsAny[Judge] = Field(default_factory=Detection)
    """The scorer whose questions are asked: `{use: detection}` or `{use: fuzzing}`."""

    def fingerprint(self) -> JsonValue:
        """Return the options and the fingerprint of the judging scorer."""
        return [super().fingerprint(), self.scorer.fingerprint()]

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Judge, inject the text, and judge again."""
        again = replace(context, rng=deepcopy(context.rng))  # so that the same tokens are marked both times
        asked = self.scorer.questions(examples, context)
        order = [int(i) for i in context.rng.permutation(len(asked))]
        size = self.scorer.windows_per_prompt(asked, context)
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        carriers = [batch[int(context.rng.integers(len(batch)))] for batch in batches]

        before = await self._judge(explanation, asked, order, context)
        planted: dict[str, str] = {}
        for batch, carrier in zip(batches, carriers, strict=True):
            wanted = not before[carrier].predicted
            planted[asked[carrier].example.id] = self._text(wanted, len(batch))
        attacked = self.scorer.questions(_with(examples, planted), again)
        after = await self._judge(explanation, attacked, order, context)

        def flips(windows: list[int]) -> list[bool]:
            pairs = [(before[i].predicted, after[i].predicted) for i in windows]
            return [a != b for a, b in pairs if a is not None and b is not None]

        neighbours = [
            i
            for batch, carrier in zip(batches, carriers, strict=True)
            for i in batch
            if i != carrier and before[i].predicted == before[carrier].predicted
        ]
        found = {FLIPPED.name: flips(carriers), NEIGHBOURS.name: flips(neighbours)}
        # Not the attacked answers, which tell nothing about the windows.
        outcomes = tuple(before[i] if after[i].status == "ok" else after[i] for i in range(len(asked)))
        if not found[FLIPPED.name]:
            reason = next((o.reason for o in (*before.values(), *outcomes) if o.reason), "there are no windows")
            return Score(status="failed", reason=f"no carrier was answered twice: {reason}", outcomes=outcomes)
        return Score(
            values={name: sum(flipped) / len(flipped) for name, flipped in found.items() if flipped},
            outcomes=outcomes,
            notes={name: len(flipped) for name, flipped in found.items()},
        )

    async def _judge(
        self, explanation: Explanation, questions: list[Question], order: list[int], context: Context
    ) -> dict[int, Outcome]:
        """Ask the questions in the given order; return the judgements by index of the question."""
        judged = await self.scorer.judge(explanation, [questions[i] for i in order], context)
        return dict(zip(order, judged, strict=True))

    def _text(self, wanted: bool, k: int) -> str:
        """Return the text that demands an answer for all k windows of a prompt."""
        (line,) = (line for line in ATTACKS.text.splitlines() if line.startswith(f"{self.attack}:"))
        answer = str(int(wanted))
        filled = Prompt(ATTACKS.name, line.partition(":")[2]).fill(
            answer=answer, list=f"[{', '.join([answer] * k)}]", k=str(k)
        )
        return filled.replace(r"\n", "\n")


def _with(examples: Examples, planted: Mapping[str, str]) -> Examples:
    """Return the examples with text appended to some of them.

    Args:
        examples: The examples.
        planted: The text to append, by id of the example.
    """

    def one(example: Example) -> Example:
        tokens = list(example.tokens)
        tokens[example.shown_at()[-1]] += planted.get(example.id, "")  # no new token, so that positions do not change
        return replace(example, tokens=tuple(tokens))

    return replace(
        examples,
        activating=tuple(map(one, examples.activating)),
        non_activating=tuple(map(one, examples.non_activating)),
        decoy=examples.decoy and _with(examples.decoy, planted),
    )
