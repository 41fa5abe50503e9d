"""Computes any metric of Hugging Face `evaluate` over the windows that another scorer judged."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import Field

from saeval.plugin import Context, Examples, Explanation, InputError, Metric, ModelRef, Score
from saeval_plugins._wrapped import OfScorer


class Evaluate(OfScorer):
    """Runs another scorer and adds a metric of Hugging Face `evaluate`, which becomes the main metric.

    The metric gets the windows' true labels as `references` and the judge's answers as `predictions`, both 0 or 1.
    """

    name = "evaluate"

    metric: ModelRef
    """Name of a metric on the hub, or `./path` of a metric script, relative to the spec."""
    result: str | None = None
    """Key of the value in the metric's result; default: its only key."""
    arguments: dict[str, Any] = {}
    """Further arguments of the metric's `compute`."""
    low: float = 0.0
    """Lowest possible value of the metric."""
    high: float = 1.0
    """Highest possible value of the metric."""
    higher_is_better: bool = Field(default=True)
    """Whether higher values are better."""

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The metric of `evaluate`, then those of the judging scorer with other names."""
        name = self.metric.rstrip("/").rpartition("/")[2].removesuffix(".py")
        others = (metric for metric in super().metrics if metric.name != name)
        return (Metric(name, self.higher_is_better, self.low, self.high), *others)

    @cached_property
    def _metric(self) -> Any:
        import evaluate

        try:
            return evaluate.load(self.metric, keep_in_memory=True)
        except (OSError, ImportError, ValueError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"metric {self.metric!r} of `evaluate` could not be loaded ({line})") from error

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Judge, then compute the metric over the answers."""
        score = await self.scorer.score(explanation, examples, context)
        answered = [o for o in score.outcomes if o.status == "ok" and o.predicted is not None]
        if score.status != "ok" or not answered:
            return (
                score if score.status != "ok" else Score.failed(f"{self.scorer.name} does not judge windows one by one")
            )
        found = self._metric.compute(  # not in a thread: metrics of `evaluate` are not thread-safe
            predictions=[int(bool(o.predicted)) for o in answered],
            references=[int(o.active) for o in answered],
            **self.arguments,
        )
        if self.result is None and len(found) != 1:
            return Score.failed(f"the metric returned {', '.join(found)}; set `result` to one of them")
        value = found[self.result] if self.result is not None else next(iter(found.values()))
        name = self.metrics[0].name
        others = {other: known for other, known in score.values.items() if other != name}
        return score.model_copy(update={"values": {name: float(value), **others}})
