"""Detection measures if a judge finds the windows in which the latent fires, given the explanation (paper §3.3)."""

from __future__ import annotations

from saeval.plugin import REFERENCES, Context, Examples, Judge, Question, one_line
from saeval_plugins.prompts import load


class Detection(Judge):
    """Shows plain windows and asks in which of them the latent fires."""

    name = "detection"
    list_prompt = load("detection.md")
    probability_prompt = load("detection_probability.md")
    prompts = (list_prompt, probability_prompt, REFERENCES)

    def questions(self, examples: Examples, context: Context) -> list[Question]:
        """Return one question per window, which shows its plain text."""
        windows = (*examples.activating, *examples.non_activating)
        return [Question(window, one_line(window.text), window.active) for window in windows]

    def references(self) -> list[str]:
        """Return the reference windows without marks."""
        return [line.replace("<<", "").replace(">>", "") for line in super().references()]
