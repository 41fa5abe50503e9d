"""Shared code for steering: a latent's direction, prompts made from its windows, and the steering strength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from saeval.plugin import Context, Example, InputError, Metric, Subject

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from saeval.plugin import Steered, Strength

FEWEST = 2
"""Minimum number of windows for finding the strength, and for scoring."""
KL_REACHED = Metric("kl_reached", higher_is_better=None, low=0.0, high=math.inf, on_board=True)
"""The divergence on the scored windows, in nats."""


def wanted_divergence(kl: float, tolerance: float) -> Metric:
    """Return the metric `kl_reached`, which marks rows whose divergence is not within the tolerance of `kl`."""
    return replace(KL_REACHED, wanted=(kl * (1 - tolerance), kl * (1 + tolerance)))


def divergence_cautions(what: str, values: Mapping[str, float], wanted: Metric, kl: float, tune: int) -> list[str]:
    """Warn if the divergence reached is not the one requested.

    Args:
        what: The method that changed the next token's distribution, for the message.
        values: A cell's mean values.
        wanted: The metric, with its tolerance.
        kl: The requested divergence, in nats.
        tune: Windows for finding the strength.
    """
    reached = values.get(KL_REACHED.name)
    if reached is None or wanted.meets(reached):
        return []
    return [
        f"{what} reached a divergence of {reached:.2g} nats on the scored windows, but {kl:g} were requested; use "
        f"more windows to find the strength (`tune`, now {tune}) before comparing with other rows"
    ]


def divided(
    windows: Sequence[Example], tune: int, score_on: int, rng: np.random.Generator
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide windows at random into those for finding the strength and those to score.

    Args:
        windows: At least twice `FEWEST`. If there are too few for both, they are divided in the same proportion.
        tune: Number of windows for finding the strength.
        score_on: Number of windows to score.
        rng: Random number generator.
    """
    order = rng.permutation(len(windows))
    both = min(len(windows), tune + score_on)
    n_tune = min(max(FEWEST, round(both * tune / (tune + score_on))), both - FEWEST)
    return tuple(windows[i] for i in order[:n_tune]), tuple(windows[i] for i in order[n_tune:both])


def written(context: Context) -> tuple[Subject, Tensor]:
    """Return the model at the hookpoint that the latent writes to, and the latent's decoder direction.

    Call it in a thread, because it may load the model.

    Raises:
        InputError: If the latent has no direction, or the hookpoint that it writes to is unknown.
    """
    coder, subject = context.coder, context.subject
    direction = coder.direction(context.latent.index)
    if direction is None:
        raise InputError(f"the coder has no decoder direction for latent {context.latent}")
    if coder.writes is not None:
        subject = subject.at(coder.writes)
    elif coder.transcoder:
        raise InputError(
            "a transcoder's latents write to another hookpoint than they read, and its files do not name it"
        )
    return subject, direction


def steered(windows: Sequence[Example], context: Context) -> Steered:
    """Return windows as prompts for the source's model, to be steered along the latent's direction.

    Raises:
        InputError: If the latent's direction or hookpoint is unknown, or the windows differ in length.
    """
    subject, direction = written(context)
    return subject.steered([subject.prompt(window.token_ids) for window in windows], direction)


def calibrated(prompts: Steered, kl: float, tolerance: float) -> Strength:
    """Find the strength that gives a divergence.

    Raises:
        InputError: If no strength reaches it within the tolerance.
    """
    found = prompts.calibrate(kl, tolerance)
    if abs(found.kl - kl) > tolerance * kl:
        raise InputError(
            f"no strength gives a divergence of {kl:g} nats (the closest: {found.kl:.3g}); choose another `kl`"
        )
    return found
