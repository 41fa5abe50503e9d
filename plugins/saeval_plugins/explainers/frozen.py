"""Replays a recorded run's explanation prompts (paper §3.2) unchanged, and returns its baselines' explanations."""

from __future__ import annotations

from typing import ClassVar

from saeval.plugin import (
    Context,
    Examples,
    Explainer,
    Explanation,
    LLMError,
    ParseError,
    Request,
    SpecPath,
    parse_explanation,
)
from saeval_plugins._frozen import OWN, Explained, read_frozen


class FrozenExplainer(Explainer):
    """Sends the recorded prompt to the role's model; the model `frozen/…` returns the recorded reply."""

    name = "frozen"
    llm_role = "explainer"
    variant: ClassVar[str] = OWN

    path: SpecPath
    """The frozen run, `.jsonl.xz`."""

    def check(self) -> None:
        """Check that the file can be read."""
        read_frozen(self.path)

    def recorded(self, context: Context) -> Explained | None:
        """Return the recorded explanation of a latent; None if there is none."""
        cell = read_frozen(self.path).cell(str(getattr(context.source, "cell", "")), self.path)
        latent = cell.latents.get(context.latent.index)
        return latent.explanations.get(self.variant) if latent else None

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Resend the prompt, or return a baseline's explanation."""
        found = self.recorded(context)
        if found is None:
            return Explanation.failed("the frozen run has no such explanation of this latent")
        if found.asked is None:
            return Explanation(text=found.text)
        try:
            reply = await context.llm.complete(Request(found.asked.messages, repeat=found.asked.reading))
            return Explanation(text=parse_explanation(reply.text), notes={"reply": reply.text})
        except (LLMError, ParseError) as error:
            return Explanation.failed(str(error))


class FrozenShuffled(FrozenExplainer):
    """Returns the frozen run's shuffled explanation, which belongs to another latent."""

    name = "frozen_shuffled"
    llm_role = None
    uninformed: ClassVar[bool] = True
    variant = "shuffled_explanation"


class FrozenRandom(FrozenExplainer):
    """Returns the random explanation of the frozen run."""

    name = "frozen_random"
    llm_role = None
    uninformed: ClassVar[bool] = True
    variant = "random_explanation"


class FrozenTopTokens(FrozenExplainer):
    """Returns the list of top tokens of the frozen run."""

    name = "frozen_top_tokens"
    llm_role = None
    variant = "top_tokens"
