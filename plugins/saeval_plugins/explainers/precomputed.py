"""Reads existing explanations from a file: written by a person, Neuronpedia, Delphi or an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from pydantic import JsonValue, SerializeAsAny

from saeval.plugin import (
    Context,
    Examples,
    Explainer,
    Explanation,
    InputError,
    Need,
    Scorer,
    SpecPath,
    derive_rng,
)
from saeval_plugins.explainers._file import hash_explanations, read_candidates, read_explanations


class FromFile(Explainer):
    """Base class of explainers that read explanations from a file."""

    path: SpecPath
    """The file or folder."""
    hookpoint: str | None = None
    """The hookpoint whose rows are read, in the file's spelling; required if the file names several."""

    def check(self) -> None:
        """Check that the file can be read."""
        self.explanations  # noqa: B018 - raises if it cannot be read

    def fingerprint(self) -> JsonValue:
        """Return the file's hash, independent of its location, and the options."""
        options = self.model_dump(mode="json", exclude={"path", "choose"})
        return [self.name, options, hash_explanations(self.path)]

    @cached_property
    def explanations(self) -> dict[int, str]:
        """The file's explanations, by ascending latent.

        Raises:
            InputError: If the file cannot be read, or is malformed.
        """
        return read_explanations(self.path, self.hookpoint)

    def _missing(self, latent: int) -> Explanation:
        return Explanation.failed(f"{self.path.name} has no explanation of latent {latent}")


class Precomputed(FromFile):
    """Takes each latent's explanation from a file (paper §3.2); with `choose`, the best of several.

    Reads JSON lines, JSON, CSV, YAML, and folders of Delphi's text files. Rows name the latent (`latent`, `index` or
    `feature`) and its explanation (`explanation`, `description` or `text`), and may name a `hookpoint`. A run's
    `explanations.jsonl` can be used unchanged.

    With `choose`, a latent may have several rows; an import's further explanations count, a run's baselines do not. The
    named scorer scores each explanation on the latent's explain
    windows, never on its score windows, and the best one is used (ties: the first). All candidates and their scores are
    in the explanation's notes. `choose: {use: embedding}` asks no language model.
    """

    name = "precomputed"

    choose: SerializeAsAny[Scorer | None] = None
    """Scorer that ranks a latent's explanations on its explain windows, such as `{use: detection}`."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role that the scorer in `choose` asks; None without one."""
        return self.choose.llm_role if self.choose else None

    def needs(self) -> frozenset[Need]:
        """Return the needs of the scorer in `choose`, except facts of the whole corpus, which explainers do not get."""
        return self.choose.needs() - {"in_corpus"} if self.choose else frozenset()

    def check(self) -> None:
        """Check that the file can be read and the scorer can rank explanations."""
        self.candidates  # noqa: B018 - raises if the file cannot be read
        if self.choose is None:
            return
        self.choose.check()
        name = type(self.choose).name
        if not self.choose.reads_explanation or self.choose.metrics[0].higher_is_better is None:
            raise InputError(f"choose: {name} does not measure explanations; use detection or embedding")
        if "decoy" in self.choose.needs():
            raise InputError(
                f"choose: {name} needs another latent's windows, which explainers do not get; use detection or "
                "embedding"
            )

    def fingerprint(self) -> JsonValue:
        """Return what the explanations depend on, including the scorer in `choose`."""
        found = super().fingerprint()
        return [found, self.choose.fingerprint()] if self.choose else found

    @cached_property
    def candidates(self) -> dict[int, list[str]]:
        """The file's explanations per latent; exactly one each without `choose`.

        Raises:
            InputError: If the file cannot be read, or is malformed.
        """
        if self.choose is None:
            return {latent: [text] for latent, text in self.explanations.items()}
        return read_candidates(self.path, self.hookpoint)

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Return the latent's explanation; if there are several, the best-scoring one."""
        texts = self.candidates.get(context.latent.index)
        if not texts:
            return self._missing(context.latent.index)
        if self.choose is None or len(texts) == 1:
            return Explanation(text=texts[0])
        return await self._best(self.choose, texts, examples, context)

    async def _best(self, scorer: Scorer, texts: Sequence[str], examples: Examples, context: Context) -> Explanation:
        """Return the best-scoring explanation, using the same draws for all; a failed one if none has a score."""
        metric, seed = scorer.metrics[0], int(context.rng.integers(2**62))
        tried: list[dict[str, JsonValue]] = []
        for text in texts:
            lent = replace(context, rng=derive_rng(seed, "candidates"))
            score = await scorer.score(Explanation(text=text), examples, lent)
            value = score.values.get(metric.name) if score.status == "ok" else None
            tried.append({"text": text, metric.name: value, **({"reason": score.reason} if value is None else {})})
        notes: dict[str, JsonValue] = {"candidates": tried, "chosen_by": f"{type(scorer).name}.{metric.name}"}
        known = {text: value for text, row in zip(texts, tried, strict=True) if (value := row[metric.name]) is not None}
        if not known:
            return Explanation.failed(f"none of {len(texts)} explanations has a score: {tried[0]['reason']}", **notes)
        best = (max if metric.higher_is_better else min)(known, key=known.__getitem__)  # type: ignore[arg-type]
        return Explanation(text=best, notes=notes)
