"""The contrastive explainer also sees non-activating windows and describes what distinguishes both kinds."""

from __future__ import annotations

from pydantic import Field

from saeval.plugin import Asking, Context, Examples, Explanation, Prompt, show, show_plain
from saeval_plugins.prompts import load

PROMPT = load("explainer_contrastive.md")


class Contrastive(Asking):
    """Shows activating windows as `default` does, and also non-activating windows, without marks (paper §3.2).

    The non-activating windows are from the explain side; the sampler determines their number and difficulty.
    """

    name = "contrastive"
    prompts = (PROMPT,)

    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at or above this share of their window's maximum are marked."""
    non_activating: int = Field(default=10, ge=1)
    """Maximum non-activating windows to show."""

    def prompt(self) -> Prompt:
        """Return the prompt."""
        return PROMPT

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Ask what distinguishes activating from non-activating windows; fail if there are no non-activating ones."""
        if not examples.non_activating:
            return Explanation.failed("no non-activating windows; raise the sampler's `explain_non_activating`")
        return await super().explain(examples, context)

    def slots(self, examples: Examples) -> dict[str, str]:
        """Show both kinds of windows."""
        return {
            "activating": show(examples.activating[: self.examples], examples, self.threshold),
            "non_activating": show_plain(examples.non_activating[: self.non_activating]),
        }
