"""The refining explainer proposes an explanation, tests and repairs it, and returns the best one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from saeval.plugin import (
    AnswerSchema,
    Context,
    Example,
    Examples,
    Explainer,
    Explanation,
    LLMError,
    ParseError,
    Request,
    ask,
    ask_twice,
    one_line,
    parse_list,
    show,
    show_plain,
)
from saeval_plugins.prompts import load

if TYPE_CHECKING:
    import numpy as np

PROPOSE = load("explainer_default.md")
TEST = load("explainer_refine_test.md")
REPAIR = load("explainer_refine_repair.md")


class Parts(NamedTuple):
    """The explain windows, split so that explanations are not compared on windows that were used to write them.

    Attributes:
        shown: Activating windows to propose from, in the sampler's order.
        repair: Windows of both kinds, shuffled; errors on them are shown for a repair.
        choose: Windows of both kinds, shuffled, on which explanations are compared.
    """

    shown: list[Example]
    repair: list[Example]
    choose: list[Example]


class Refine(Explainer):
    """Proposes an explanation from some explain windows, repairs it using errors on others, and selects on the rest.

    Not part of the paper. The first explanation is made as by `default`. The same model then judges windows by it, as
    in detection, and repairs the explanation given its errors. The result is the explanation with the highest balanced
    accuracy on windows that were not used for any of them (ties: the first). Requires a chat model, a sampler with
    non-activating windows on the explain side, and about twenty calls per latent.
    """

    name = "refine"
    llm_role = "explainer"
    prompts = (PROPOSE, TEST, REPAIR)

    rounds: int = Field(default=2, ge=1)
    """Maximum number of repairs; it stops earlier if no errors are left."""
    examples: int = Field(default=20, ge=1)
    """Maximum activating windows to propose from."""
    held_back: int = Field(default=20, ge=2)
    """Number of activating, and of non-activating, windows reserved for tests, at most half of the activating ones.
    Half of each is used for repairs, half for selection."""
    batch: int = Field(default=5, ge=1, le=50)
    """Windows per test prompt."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at or above this share of their window's maximum are marked."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Propose, then test and repair."""
        parts = self._split(examples, context.rng)
        if any(len({window.active for window in part}) < 2 for part in (parts.repair, parts.choose)):
            return Explanation.failed(
                "too few windows for tests; at least 4 activating and 2 non-activating ones are needed"
            )
        windows = show(parts.shown, examples, self.threshold)
        latest = await ask(context, PROPOSE.messages(windows=windows))
        if latest.status != "ok":
            return latest
        tried: dict[str, float | None] = {}
        ended = "no errors are left to repair"
        while True:
            tried[latest.text] = None
            try:
                tried[latest.text] = accuracy = await self._accuracy(latest.text, parts.choose, context)
                if accuracy == 1:
                    break
                if len(tried) > self.rounds:
                    ended = "all rounds are done"
                    break
                missed, accepted = await self._mistakes(latest.text, parts.repair, context)
            except (ParseError, LLMError) as error:
                ended = f"the last explanation could not be tested: {error}"
                break
            if not missed and not accepted:
                break
            repair = REPAIR.messages(
                explanation=one_line(latest.text),
                windows=windows,
                missed=show(missed, examples, self.threshold) or "none",
                accepted=show_plain(accepted) or "none",
            )
            latest = await ask(context, repair)
            if latest.status != "ok" or latest.text in tried:
                ended = f"the last repair failed: {latest.reason or 'it changed nothing'}"
                break
        measured = {text: accuracy for text, accuracy in tried.items() if accuracy is not None}
        return Explanation(
            text=max(measured, key=measured.__getitem__, default=next(iter(tried))),
            notes={"rounds": [{"text": t, "balanced_accuracy": a} for t, a in tried.items()], "ended": ended},
        )

    def _split(self, examples: Examples, rng: np.random.Generator) -> Parts:
        active, silent = (
            [int(i) for i in rng.permutation(len(side))] for side in (examples.activating, examples.non_activating)
        )
        active, silent = active[: min(self.held_back, len(active) // 2)], silent[: self.held_back]
        firing = [examples.activating[i] for i in active]
        quiet = [examples.non_activating[i] for i in silent]
        held = [[*firing[half::2], *quiet[half::2]] for half in (0, 1)]
        repair, choose = ([part[i] for i in rng.permutation(len(part))] for part in held)
        shown = [window for i, window in enumerate(examples.activating) if i not in active]
        return Parts(shown[: self.examples], repair, choose)

    async def _accuracy(self, explanation: str, windows: list[Example], context: Context) -> float:
        """Return the balanced accuracy of an explanation on activating and non-activating windows."""
        missed, accepted = await self._mistakes(explanation, windows, context)
        active = sum(window.active for window in windows)
        return 1 - (len(missed) / active + len(accepted) / (len(windows) - active)) / 2

    async def _mistakes(
        self, explanation: str, windows: list[Example], context: Context
    ) -> tuple[list[Example], list[Example]]:
        """Ask which windows match an explanation; return false negatives and false positives.

        Raises:
            ParseError: If two replies in a row cannot be parsed.
            LLMError: If a call fails.
        """
        batches = [windows[i : i + self.batch] for i in range(0, len(windows), self.batch)]
        answered = await asyncio.gather(*(self._holds(explanation, batch, context) for batch in batches))
        holds: list[bool] = []
        for answers in answered:  # raises the first failure in the order of windows, not of time
            if isinstance(answers, Exception):
                raise answers
            holds += answers
        wrong = [window for window, answer in zip(windows, holds, strict=True) if answer != window.active]
        return [w for w in wrong if w.active], [w for w in wrong if not w.active]

    async def _holds(
        self, explanation: str, windows: list[Example], context: Context
    ) -> list[bool] | ParseError | LLMError:
        messages = TEST.messages(explanation=one_line(explanation), windows=show_plain(windows), k=str(len(windows)))
        request = Request(messages, schema=AnswerSchema.array(len(windows), (0, 1)))
        try:
            answers = await ask_twice(context.llm, request, lambda reply: parse_list(reply, len(windows)))
        except (ParseError, LLMError) as error:
            return error
        return [answer.value for answer in answers]
