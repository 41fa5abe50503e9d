"""Shared code of interventions: a latent's direction, prompts made of its windows, and the steering strength."""

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
"""Minimum windows for setting the strength, and for scoring."""
KL_REACHED = Metric("kl_reached", higher_is_better=None, low=0.0, high=math.inf, on_board=True)
"""The divergence on the scored windows, in nats."""


def wanted_divergence(kl: float, tolerance: float) -> Metric:
    """Return the metric `kl_reached`, which marks rows off by more than a relative tolerance."""
    return replace(KL_REACHED, wanted=(kl * (1 - tolerance), kl * (1 + tolerance)))


def divergence_cautions(what: str, values: Mapping[str, float], wanted: Metric, kl: float, tune: int) -> list[str]:
    """Warn if the divergence reached is not the one requested.

    Args:
        what: What moved the next token.
        values: A cell's mean values.
        wanted: The metric, with its tolerance.
        kl: The requested divergence, in nats.
        tune: Windows for finding the strength.
    """
    reached = values.get(KL_REACHED.name)
    if reached is None or wanted.meets(reached):
        return []
    return [
        f"{what} moved the next token by {reached:.2g} nats on the windows scored, but {kl:g} were requested; tune "
        f"on more windows (`tune`, now {tune}) before comparing with other rows"
    ]


def divided(
    windows: Sequence[Example], tune: int, score_on: int, rng: np.random.Generator
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return random windows for finding the strength, and others to score.

    Args:
        windows: At least twice `FEWEST`. If there are too few for both, they are divided in the same proportion.
        tune: Windows for finding the strength.
        score_on: Windows to score.
        rng: Draws them.
    """
    order = rng.permutation(len(windows))
    both = min(len(windows), tune + score_on)
    n_tune = min(max(FEWEST, round(both * tune / (tune + score_on))), both - FEWEST)
    return tuple(windows[i] for i in order[:n_tune]), tuple(windows[i] for i in order[n_tune:both])


def written(context: Context) -> tuple[Subject, Tensor]:
    """Return the model at the hookpoint the latent writes to, and the direction it writes.

    Call it in a thread, because it may load the model.

    Raises:
        InputError: If the latent has no direction, or its coder does not say where it writes.
    """
    coder, subject = context.coder, context.subject
    direction = coder.direction(context.latent.index)
    if direction is None:
        raise InputError(f"the coder does not give the direction that latent {context.latent} writes")
    if coder.writes is not None:
        subject = Subject(subject.live, subject.live.hookpoint(coder.writes))
    elif coder.transcoder:
        raise InputError("a transcoder's latents do not write where they read, and its files do not say where")
    return subject, direction


def steered(windows: Sequence[Example], context: Context) -> Steered:
    """Return windows as prompts for the source's model, ready to be steered along the latent's direction.

    Raises:
        InputError: If the latent's direction or hookpoint is unknown, or the windows differ in length.
    """
    subject, direction = written(context)
    return subject.steered([subject.prompt(window.token_ids) for window in windows], direction)


def calibrated(prompts: Steered, kl: float, tolerance: float) -> Strength:
    """Find the strength that gives a divergence.

    Raises:
        InputError: If none comes close enough for scores to be comparable.
    """
    found = prompts.calibrate(kl, tolerance)
    if abs(found.kl - kl) > tolerance * kl:
        raise InputError(
            f"no strength gives a divergence of {kl:g} nats (the closest: {found.kl:.3g}); choose another `kl`"
        )
    return found
