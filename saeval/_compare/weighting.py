"""Adds means weighted by each latent's firing rate or its share in reconstructions."""

from __future__ import annotations

from math import inf, prod
from typing import Literal

from saeval._compare.stats import weighted_mean
from saeval._util import InputError, derive_rng
from saeval.records import MAIN, CellResult, ScoreRow
from saeval.results import RunCell

Weights = Literal["firing_rate", "energy"]
"""Weight of a latent: its firing rate, or how much its firings write (see `weighted_note`)."""
_COLUMNS = {"firing_rate": ("density",), "energy": ("mean_square", "decoder_norm")}
_REMEDIES = {
    "mean_square": "rerun it with this version",
    "decoder_norm": "rerun its command where its coder can be loaded (coders of over 4 GB, or without decoder "
    "directions, have none)",
}
"""How to get a column that a run lacks; every run has a density."""


def with_weights(cell: RunCell, weights: Weights) -> CellResult:
    """Return a cell whose own scores also have weighted means.

    Raises:
        InputError: If the run does not contain the weights.
    """
    by_latent = _weights(cell, weights)
    rows = [_weighted(cell, row, by_latent) if row.variant == MAIN else row for row in cell.result.scores]
    return cell.result.model_copy(update={"scores": rows})


def weighted_note(weights: Weights) -> str:
    """Return an explanation of the weighted column."""
    what = {
        "firing_rate": "the share of tokens on which the latent fires",
        "energy": "its mean squared activation over all tokens times the squared length of its decoder direction, "
        "a proxy for the variance it explains",
    }
    return (
        f"weighted: mean over latents, each weighted by {what[weights]}. The interval takes the sampled latents' "
        "weights as given; * marks fewer than 20 effective latents."
    )


def _weights(cell: RunCell, weights: Weights) -> dict[int, float]:
    found = {}
    for row in cell.latents:
        known = [row[name] for name in _COLUMNS[weights] if row.get(name) is not None]
        if len(known) == len(_COLUMNS[weights]):
            found[row["latent"]] = known[0] * prod(known[1:]) ** 2
    if not found and cell.latents:
        if all(row.get("density") is None for row in cell.latents):
            raise InputError(
                f"{cell.name}: the files that it was imported from have no firing rates, so latents cannot be weighted "
                f"by {weights}; omit --weights"
            )
        lacks = [name for name in _COLUMNS[weights] if all(row.get(name) is None for row in cell.latents)]
        raise InputError(
            f"{cell.name}: its latents.parquet has no {' and '.join(lacks)}, so latents cannot be weighted by "
            f"{weights}; {' and '.join(_REMEDIES[name] for name in lacks)}, or use --weights firing_rate"
        )
    return found


def _weighted(cell: RunCell, row: ScoreRow, weights: dict[int, float]) -> ScoreRow:
    values = {i: x for i, x in cell.values(row.scorer, row.metric).items() if weights.get(i, 0) > 0}
    if not values:
        return row
    weighing = [weights[i] for i in values]
    rng = derive_rng(0, "weighted", cell.name, row.scorer, row.metric)
    least, most = row.range
    low, high = -inf if least is None else least, inf if most is None else most
    found = weighted_mean([*values.values()], weighing, rng, low=low, high=high)
    return row.model_copy(update={"weighted": found.value, "weighted_ci95": found.ci95, "weighted_n": found.n})
