"""Simulates boards and judges of known truth: `python -m benchmarks.board` prints the tables of docs/metrics.md."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import saeval
from saeval._compare.judge_errors import correct_for_judge
from saeval._compare.lifts import Paired, lifts
from saeval._compare.stats import apart_p, depends_p, detectable_difference, fisher, mean_interval, paired_p
from saeval.plugin import derive_rng

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

WINDOWS = 20  # of each kind, for each latent


class Scores(NamedTuple):
    """Simulated scores of one cell, and the floors of its first latents."""

    own: NDArray[np.float64]
    floor: NDArray[np.float64]


Draw = Callable[["Generator", int, float], Scores]
"""Simulates a cell of n latents; the number moves its mean in the way that the judge's kind has."""


def judged(hits: NDArray[np.float64], alarms: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
    """Return the balanced accuracy of each latent, from its chances of "yes" on both kinds of windows."""
    yes = [rng.binomial(WINDOWS, np.clip(p, 0, 1)) for p in (hits, alarms)]
    return (yes[0] + WINDOWS - yes[1]) / (2 * WINDOWS)


def with_floor(n: int) -> int:
    """Return how many of n latents have a floor: half, and 20 at least where there are so many."""
    return max((n + 1) // 2, min(n, 20))


def good_judge(rng: Generator, n: int, better: float) -> Scores:
    """A judge that goes by the explanation; scores rise with the explanations' quality, floors stay at chance."""
    quality = np.clip(rng.beta(2, 2, n) * 0.72 + 2 * better, 0, 1)
    breadth, other, left = rng.uniform(0.05, 0.6, n), rng.uniform(0.05, 0.6, n), rng.normal(0, 0.04, n)
    own = judged(quality + breadth * (1 - quality), breadth * (1 - quality), rng)
    return Scores(own, judged(other + left, other - left, rng)[: with_floor(n)])


def blind_judge(rng: Generator, n: int, better: float) -> Scores:
    """A judge whose answers are a function of the window: the same under any explanation."""
    yes, tilt = rng.uniform(0.2, 0.8, n), better + rng.normal(0, 0.1, n)
    own = judged(yes + tilt, yes - tilt, rng)
    return Scores(own, own[: with_floor(n)])


def noisy_blind_judge(rng: Generator, n: int, better: float) -> Scores:
    """A judge that never reads the explanation, and answers another time differently."""
    yes, tilt = rng.uniform(0.2, 0.8, n), better + rng.normal(0, 0.1, n)
    own, other = (judged(yes + tilt, yes - tilt, rng) for _ in range(2))
    return Scores(own, other[: with_floor(n)])


def swayed_judge(rng: Generator, n: int, better: float) -> Scores:
    """A judge that reads explanations and is also swayed by windows: equal lifts of .3 on floors that differ."""
    yes, tilt = rng.uniform(0.2, 0.6, n), better + rng.normal(0, 0.05, n)
    lift = np.clip(rng.normal(0.3, 0.1, n), 0, 1)
    own, other = judged(yes + tilt + lift, yes - tilt - lift, rng), judged(yes + tilt, yes - tilt, rng)
    return Scores(own, other[: with_floor(n)])


def error_of(x: NDArray[np.float64], rng: Generator) -> float:
    """Return the standard error of a mean, as boards take it from its interval."""
    low, high = mean_interval(x, rng, low=0, high=1, resamples=200)
    return (high - low) / 2 / 1.96


def separated(cells: list[Scores], rng: Generator) -> dict[str, set[tuple[int, int]]]:
    """Return which cells are told apart: by scores, by lifts over each cell's own floor, by lifts as on boards."""
    pairs = list(combinations(range(len(cells)), 2))
    errors = [error_of(c.own, rng) for c in cells]
    differences = [c.own[: len(c.floor)] - c.floor for c in cells]
    found = lifts([_paired(c, error) for c, error in zip(cells, errors, strict=True)])
    means, lifts_of_means = [c.own.mean() for c in cells], [d.mean() for d in differences]
    variances = [d.var(ddof=1) / len(d) for d in differences]
    ways = {
        "score": (means, np.diag(np.square(errors))),
        "lift, own floor": (lifts_of_means, np.diag(variances)),
        "lift": (found.values, found.covariance),
    }
    apart = {
        way: {pair for pair, p in zip(pairs, apart_p(values, covariance, pairs), strict=True) if p <= 0.05}
        for way, (values, covariance) in ways.items()
    }
    if fisher([depends_p(d, rng, 399) for d in differences]) > 0.05:
        apart["lift"] = set()
    return apart


def _paired(cell: Scores, error: float) -> Paired:
    shared = cell.own[: len(cell.floor)]
    (own, both), (_, floor) = np.cov(shared, cell.floor)
    return Paired(
        float(cell.own.mean()),
        error,
        float(shared.mean()),
        float(cell.floor.mean()),
        len(shared),
        (float(own), float(floor), float(both)),
    )


def boards(repetitions: int) -> None:
    """Print how often boards tell cells apart, where they should and where they should not."""
    print("| judge | contestants | latents | difference | by score | lift, own floor | **lift** |")
    print("|---|---|---|---|---|---|---|")
    for n in (24, 50, 100):
        for k in (2, 5):
            rng = derive_rng(1, "boards", n, k)
            sd = float(np.mean([good_judge(rng, n, 0).own.std() for _ in range(100)]))
            real = detectable_difference([sd * (2 / n) ** 0.5] * (k * (k - 1) // 2)) or 0.0
            cases: list[tuple[str, Draw, float]] = [("reads explanations", good_judge, real)]
            for shift in (0.04, 0.08):
                cases += [
                    ("windows alone", blind_judge, shift),
                    ("windows alone, noisy", noisy_blind_judge, shift),
                    ("swayed by windows", swayed_judge, shift),
                ]
            for name, draw, better in cases:
                told: dict[str, int] = {}
                for _ in range(repetitions):
                    cells = [draw(rng, n, better if i == 0 else 0.0) for i in range(k)]
                    for way, apart in separated(cells, rng).items():
                        told[way] = told.get(way, 0) + ((0, 1) in apart if draw is good_judge else bool(apart))
                shares = " | ".join(f"{count / repetitions:.3f}" for count in told.values())
                print(f"| {name} | {k} | {n} | {better:.3f} | {shares} |", flush=True)


def detectable_differences(repetitions: int) -> None:
    """Print the power at the printed minimum detectable difference."""
    print("| contestants | minimum detectable difference | power |\n|---|---|---|")
    for k in (2, 5, 10, 20):
        rng = derive_rng(2, "detectable", k)
        pairs = list(combinations(range(k), 2))
        error, found = 0.12 / 100**0.5, 0
        difference = detectable_difference([2**0.5 * error] * len(pairs)) or 0.0
        for _ in range(repetitions):
            means = rng.normal(0, error, k) + np.eye(k)[0] * difference
            found += apart_p(means, np.eye(k) * error**2, pairs)[0] <= 0.05
        print(f"| {k} | {difference:.3f} | {found / repetitions:.3f} |", flush=True)


def corrections(repetitions: int) -> None:
    """Print how often intervals of corrected scores hold the score that a judge without errors would give."""
    print("| sensitivity | specificity | latents | of the check | as judged | corrected |\n|---|---|---|---|---|---|")
    for s, c in ((0.95, 0.95), (0.9, 0.7), (0.75, 0.8), (0.98, 0.6)):
        for n, checked in ((24, 24), (100, 24), (400, 24), (100, 96)):
            rng = derive_rng(3, "corrections", s, c, n)
            covered = np.zeros(2)
            for _ in range(repetitions):
                hits, alarms = rng.beta(5, 2, n), rng.beta(1, 6, n)  # of the explanations, under a judge without errors
                seen = judged(*_erring(hits, alarms, s, c, rng), rng)
                known = judged(*_erring(np.ones(checked), np.zeros(checked), s, c, rng), rng)
                truth = (5 / 7 + 1 - 1 / 7) / 2
                made = correct_for_judge((seen.mean(), error_of(seen, rng)), (known.mean(), error_of(known, rng)))
                plain = (seen.mean() - 1.96 * error_of(seen, rng), seen.mean() + 1.96 * error_of(seen, rng))
                low, high = made[1] if made else (0.0, 1.0)
                covered += [plain[0] <= truth <= plain[1], low <= truth <= high]
            shares = " | ".join(f"{x:.3f}" for x in covered / repetitions)
            print(f"| {s} | {c} | {n} | {checked} | {shares} |", flush=True)


def _erring(
    hits: NDArray[np.float64], alarms: NDArray[np.float64], s: float, c: float, rng: Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return chances of "yes" after a judge's errors, which vary between latents."""
    each_s, each_c = (rng.beta(20 * p, 20 * (1 - p), len(hits)) for p in (s, c))
    return hits * each_s + (1 - hits) * (1 - each_c), alarms * each_s + (1 - alarms) * (1 - each_c)


def paired_tests(repetitions: int) -> None:
    """Print how often the paired test rejects without an effect: exchangeable sides, and rare failures of one side."""
    print("| latents | exchangeable | rare failures |\n|---|---|---|")
    for n in (8, 12, 30, 60, 100, 200):
        rng = derive_rng(4, "paired", n)
        rejected = np.zeros(2)
        for _ in range(repetitions):
            same = rng.beta(6, 2, n)
            alike = rng.binomial(WINDOWS, same) / WINDOWS - rng.binomial(WINDOWS, same) / WINDOWS
            rare = np.where(rng.random(n) < 0.9, -0.03, 0.27) + rng.normal(0, 0.01, n)
            rejected += [paired_p(d, rng, 499) <= 0.05 for d in (alike, rare)]
        print(f"| {n} | " + " | ".join(f"{x:.3f}" for x in rejected / repetitions) + " |", flush=True)


READER = {"detection": 0.952, "fuzzing": 0.988}
"""Balanced accuracy of the recorded reader on the judge check's 24 rules."""


def readers(repetitions: int) -> None:
    """Print how far two judges differ on real latents, as judged and corrected: the recorded reader, and it with
    errors."""
    with tempfile.TemporaryDirectory() as folder:
        saeval.run("quickstart-recorded", out=Path(folder) / "run")
        compare_readers(Path(folder) / "run", repetitions)


def compare_readers(run: Path, repetitions: int) -> None:
    """Print the table of `readers` for a finished run."""
    import pyarrow.parquet as pq

    print(
        "| scorer | errors added: sensitivity | specificity | difference as judged | corrected |\n|---|---|---|---|---|"
    )
    tables = [pq.read_table(file).to_pylist() for file in sorted(run.glob("cells/*/judgements.parquet"))]
    for scorer, known in READER.items():
        cells = [[r for r in table if r["scorer"] == scorer and r["variant"] == "explanation"] for table in tables]
        for s, c in ((0.9, 0.9), (0.9, 0.7), (0.75, 0.8)):
            rng, apart = derive_rng(5, "readers", scorer, s, c), np.zeros(2)
            for _ in range(repetitions):
                hits, alarms = np.full(24, known), np.full(24, 1 - known)
                weak = judged(*(p * s + (1 - p) * (1 - c) for p in (hits, alarms)), rng).mean()
                for rows in cells:
                    scores = _balanced(rows, 1.0, 1.0, rng), _balanced(rows, s, c, rng)
                    checks = known, float(weak)
                    made = [correct_for_judge((b, 0.02), (k, 0.01)) for b, k in zip(scores, checks, strict=True)]
                    values = [found[0] if found else 0.5 for found in made]
                    apart += [abs(scores[0] - scores[1]), abs(values[0] - values[1])]
            shares = " | ".join(f"{x:.3f}" for x in apart / repetitions / len(cells))
            print(f"| {scorer} | {s} | {c} | {shares} |", flush=True)


def _balanced(rows: list[dict[str, Any]], s: float, c: float, rng: Generator) -> float:
    """Return the mean balanced accuracy over latents after errors are added to each answer."""
    truth = np.array([r["active"] for r in rows])
    said = np.array([bool(r["predicted"]) for r in rows])
    said = np.where(said, rng.random(len(rows)) < s, rng.random(len(rows)) >= c)
    latent = np.array([r["latent"] for r in rows])
    scores = []
    for i in np.unique(latent):
        mine = latent == i
        scores.append((said[mine & truth].mean() + 1 - said[mine & ~truth].mean()) / 2)
    return float(np.mean(scores))


TABLES = {
    "boards": boards,
    "detectable": detectable_differences,
    "corrections": corrections,
    "paired": paired_tests,
    "readers": readers,
}


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.board", description=__doc__)
    parser.add_argument("--only", choices=TABLES, action="append", help="this table only; may be repeated")
    parser.add_argument("--repetitions", type=int, default=500, help="simulated runs per row")
    arguments = parser.parse_args()
    for name in arguments.only or TABLES:
        print(f"\n{name}, {arguments.repetitions} repetitions\n")
        TABLES[name](arguments.repetitions)


if __name__ == "__main__":
    main()
