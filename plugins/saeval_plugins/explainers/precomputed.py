"""Reads explanations made elsewhere: by a person, Neuronpedia, Delphi or an earlier run."""

from __future__ import annotations

from functools import cached_property

from pydantic import JsonValue

from saeval.plugin import Context, Examples, Explainer, Explanation, SpecPath
from saeval_plugins.explainers._file import hash_explanations, read_explanations


class Precomputed(Explainer):
    """Takes each latent's explanation from a file (paper §3.2).

    JSON lines, JSON, CSV and YAML are read, and folders of Delphi's text files. Rows name the latent (`latent`,
    `index` or `feature`) and its explanation (`explanation`, `description` or `text`), and may name a `hookpoint`; a
    run's `explanations.jsonl` can be given as it is.
    """

    name = "precomputed"

    path: SpecPath
    """The file or folder."""
    hookpoint: str | None = None
    """The hookpoint whose rows are meant, as the file calls it; needed when it names more than one."""

    def check(self) -> None:
        """Read the file."""
        self.explanations  # noqa: B018 - reading it is the check

    def fingerprint(self) -> JsonValue:
        """Return the hash of the file, wherever it lies, and what else its explanations depend on."""
        options = self.model_dump(mode="json", exclude={"path"})
        return [self.name, options, hash_explanations(self.path)]

    @cached_property
    def explanations(self) -> dict[int, str]:
        """The file's explanations, by latent, ascending.

        Raises:
            InputError: If the file cannot be read, or is malformed.
        """
        return read_explanations(self.path, self.hookpoint)

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Look the latent up."""
        text = self.explanations.get(context.latent.index)
        return Explanation(text=text) if text else self._missing(context.latent.index)

    def _missing(self, latent: int) -> Explanation:
        return Explanation.failed(f"{self.path.name} holds no explanation of latent {latent}")
