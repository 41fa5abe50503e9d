"""The default explainer: an LLM reads marked windows with strengths and says what the marked tokens share."""

from __future__ import annotations

from pydantic import Field, model_validator

from saeval.plugin import Asking, Examples, Prompt, show
from saeval_plugins.prompts import load

PROMPT = load("explainer_default.md")
STAGED = load("explainer_cot.md")


class Default(Asking):
    """Shows full windows, with active tokens marked and listed with strengths 0–10 (paper §3.2 and A.2).

    Set the role's `max_tokens` to about 40, so that answers of base models stay short, or to 500 with `cot`.
    """

    name = "default"
    prompts = (PROMPT, STAGED)

    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at or above this share of their window's maximum are marked."""
    cot: bool = False
    """Whether the model first reasons in stages: about the marked tokens, their context, and both together."""

    @model_validator(mode="after")
    def _reasons_or_goes_on(self) -> Default:
        if self.cot and self.prefill:
            raise ValueError(
                "cot and prefill exclude each other, because a prefilled answer cannot begin with reasoning"
            )
        return self

    def prompt(self) -> Prompt:
        """Return the plain prompt, or the staged one."""
        return STAGED if self.cot else PROMPT

    def slots(self, examples: Examples) -> dict[str, str]:
        """Show the activating windows."""
        return {"windows": show(examples.activating[: self.examples], examples, self.threshold)}
