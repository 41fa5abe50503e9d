"""What it takes to make the rows of a leaderboard from the scores of a million latents.

`python -m benchmarks.summarise 131072` does it for a number of your own and prints what it took.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, Figure, cpu_seconds, peak_rss_mb

_MILLION = 1_000_000
_TILE = 10_000


def measure(bench: Bench) -> list[Figure]:
    """Return memory and time of one scorer's rows: six metrics of a million latents and of a baseline's
    explanations."""
    found = [bench.saeval("summarise", _MILLION) for _ in range(1 if bench.quick else bench.rounds)]
    what = (
        f"the rows of one scorer with six metrics, for {_MILLION:,} latents and a baseline on all of them: means, "
        "medians, intervals, floors and lift"
    )
    return [
        Figure(
            "summarise_million_mb",
            [x["peak"] for x in found],
            "MiB",
            f"peak memory of a process while it took the scores one by one and made {what}, minus what it held before",
            target=1000,
            lower_is_better=True,
        ),
        Figure(
            "summarise_million_seconds",
            [x["seconds"] for x in found],
            "s",
            f"CPU time of the same, once all scores are there: {what}",
        ),
    ]


def _summarise(n: int) -> dict[str, float]:
    from saeval._compare import Floors, ScorerRun, score_row
    from saeval._run.state import Scored
    from saeval.plugin import CLASSIFICATION, Score, derive_rng

    rng = derive_rng(0, "summarise", n)
    about = ScorerRun("detection", "saeval/detection 0.1.0", tried=n)
    score_row(about, CLASSIFICATION[0], dict(enumerate(rng.random(10))), rng, floors=Floors())  # imports
    names = [metric.name for metric in CLASSIFICATION]
    before = peak_rss_mb()
    own, baseline = Scored(n), Scored(n)
    for scored in (own, baseline):
        for start in range(0, n, _TILE):
            numbers = rng.integers(0, 41, size=(min(_TILE, n - start), len(names))) / 40
            for latent, row in enumerate(numbers.tolist(), start):
                values = dict(zip(names, row, strict=True))
                scored.take(latent, Score.model_construct(values=values, outcomes=(), status="ok"))
    began = cpu_seconds()
    for metric in CLASSIFICATION:
        floors = Floors({"random_explanation": baseline.values(metric.name)}, ("random_explanation",))
        score_row(about, metric, own.values(metric.name), rng, floors=floors)
        score_row(about, metric, baseline.values(metric.name), rng)
    return {"peak": peak_rss_mb() - before, "seconds": cpu_seconds() - began}


if __name__ == "__main__":
    print(json.dumps(_summarise(int(sys.argv[1]))))
