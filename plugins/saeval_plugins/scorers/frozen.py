"""Replays the detection and fuzzing prompts (paper §3.3) of a recorded run unchanged."""

from __future__ import annotations

import asyncio

from saeval.plugin import (
    Context,
    Examples,
    Explanation,
    LLMError,
    Outcome,
    ParseError,
    Question,
    Reply,
    Request,
    Score,
    Scorer,
    SpecPath,
    parse_list,
)
from saeval_plugins._frozen import RecordedPrompt, read_frozen


class FrozenScorer(Scorer):
    """Sends the recorded prompts about an explanation to the role's model; replies are parsed with the current parser.

    The model `frozen/…` returns the recorded replies. Any other model judges the same questions, so that its judgements
    can be compared with the recorded ones.
    """

    name = "frozen"
    llm_role = "judge"
    metrics = tuple(metric for metric in Scorer.metrics if metric.name != "auroc")  # lists have no probabilities

    path: SpecPath
    """The frozen run, `.jsonl.xz`."""
    label: str = "detection"
    """Label of the scorer in the frozen run."""

    def check(self) -> None:
        """Check that the file can be read."""
        read_frozen(self.path)

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Resend every recorded prompt."""
        name = str(getattr(context.source, "cell", ""))
        latent = read_frozen(self.path).cell(name, self.path).latents.get(context.latent.index)
        lists = latent.judged.get((self.label, explanation.text)) if latent else None
        if not lists:
            return Score.skipped(f"the frozen run did not score this explanation by {self.label}")
        windows = {int(e.context): e for e in (*examples.activating, *examples.non_activating)}

        async def judged(asked: RecordedPrompt) -> list[Outcome]:
            pairs = zip(asked.windows, asked.right, strict=True)
            questions = [Question(windows[row], "", right) for row, right in pairs]

            def read(reply: Reply) -> list[Outcome]:
                answers = parse_list(reply.text, len(questions))
                return [q.outcome(answer.value, None) for q, answer in zip(questions, answers, strict=True)]

            try:
                return read(await context.llm.complete(Request(asked.messages, repeat=asked.reading)))
            except (ParseError, LLMError) as error:
                return [question.unanswered(error) for question in questions]

        answered = await asyncio.gather(*map(judged, lists))
        return Score.of([outcome for outcomes in answered for outcome in outcomes], mode="list")
