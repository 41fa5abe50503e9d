"""Simulates whether an explanation that is twice too broad is told from the right one, and whether rates are unbiased.

    python -m benchmarks.breadth [--runs 200] [--windows 60] [--latents 50] [--specificity 0.99]

Latents of the source `known` fire in .5 % of 20,000 windows, and the words that the broad explanation adds occur in as
many others; of the latents' own windows, three in ten contain one of these words. A run judges non-activating windows
of each latent under both explanations, by a judge whose errors are independent. A minute.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from saeval_plugins._known import neighbour_of
from saeval_plugins.samplers.importance import Importance, hardness, systematic
from saeval_plugins.sources.known import Known

from saeval._compare import Tally, natural_rates
from saeval._compare.stats import paired_p
from saeval._util import markdown_table
from saeval.activations import ActivationStore, ActivationWriter
from saeval.plugin import derive_rng

_WINDOW, _DOCUMENTS, _FLIPS = 32, 2500, 999

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Draws windows of a latent: whether the broad explanation fits each, and weights."""


def draws(store: ActivationStore, latent: int, n: int, uniform: float) -> tuple[float, float, Draw]:
    """Return the rate of a latent, the share of silent windows that the broad explanation fits, and a way to draw."""
    everything = np.arange(store.window_count(_WINDOW))
    silent = np.setdiff1d(everything, store.windows(latent, _WINDOW).ids)
    broad = np.isin(silent, store.windows(neighbour_of(latent), _WINDOW).ids)
    way = Importance(uniform=uniform)
    included = way.inclusion(hardness(store, latent, silent, _WINDOW) if uniform < 1 else np.zeros(len(silent)), n)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        taken = systematic(included, n, rng)
        return broad[taken], n / (len(silent) * included[taken])

    return 1 - len(silent) / len(everything), float(broad.mean()), draw


def line(store: ActivationStore, options: argparse.Namespace, uniform: float) -> list[str]:
    """Simulate runs with one way to draw windows."""
    rng = derive_rng(0, "breadth", uniform)
    latents = [draws(store, latent, options.windows, uniform) for latent in range(options.latents)]
    error = 1 - options.specificity
    as_drawn, weighted, rates, precisions = [], [], [], []
    for _ in range(options.runs):
        plain, back, tallies = [], [], []
        for rate, _, draw in latents:
            fits, weights = draw(rng)
            right, broad = rng.random(len(fits)) < error, fits ^ (rng.random(len(fits)) < error)
            plain.append(broad.mean() - right.mean())
            back.append(float(weights @ broad - weights @ right) / len(fits))
            tallies.append(Tally(rate, 20, 20, float(weights @ broad), float(weights.sum()), float(weights @ weights)))
        as_drawn.append(np.mean(plain) > 0 and paired_p(plain, rng, _FLIPS) <= 0.05)
        weighted.append(np.mean(back) > 0 and paired_p(back, rng, _FLIPS) <= 0.05)
        found = natural_rates(tallies, None, rng)
        assert found is not None
        rates.append(found.false_positive_rate)
        precisions.append(found)
    true = float(np.mean([share * options.specificity + (1 - share) * error for _, share, _ in latents]))
    rate = float(np.mean([rate for rate, _, _ in latents]))
    precision = rate / (rate + (1 - rate) * true)
    covered = [x.precision_ci95[0] <= precision <= x.precision_ci95[1] for x in precisions]
    mean = float(np.mean([x.precision for x in precisions]))
    return [
        "uniform" if uniform == 1 else f"importance, `uniform: {uniform:g}`",
        f"{np.mean(as_drawn):.2f}",
        f"{np.mean(weighted):.2f}",
        f"{np.mean(rates):.4f} ± {np.std(rates) / options.runs**0.5:.4f}",
        f"{true:.4f}",
        f"{np.std(rates):.4f}",
        f"{mean:.3f}",
        f"{precision:.3f}",
        f"{np.mean(covered):.2f}",
    ]


HEADS = (
    "windows", "told apart, as drawn", "told apart, weighted back", "false positive rate, weighted back",
    "all windows judged", "sd of a run", "precision", "all windows judged", "coverage",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--latents", type=int, default=50)
    parser.add_argument("--specificity", type=float, default=0.99)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writer = ActivationWriter(Path(folder) / "store")
        Known(documents=_DOCUMENTS).collect(writer)
        store = writer.finish()
        print(markdown_table(HEADS, [line(store, options, uniform) for uniform in (1, 0.8, 0.5, 0.2)]))


if __name__ == "__main__":
    main()
