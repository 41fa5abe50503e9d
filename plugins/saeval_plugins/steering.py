"""What interventions share: a latent's direction, prompts that end in its windows, and the strength to steer at."""

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
"""Windows that are needed to set the strength, and again to score."""
KL_REACHED = Metric("kl_reached", higher_is_better=None, low=0.0, high=math.inf, on_board=True)
"""The divergence on the windows that are scored, in nats."""


def wanted_divergence(kl: float, tolerance: float) -> Metric:
    """Return the metric `kl_reached`, which marks rows that are off by more than a relative tolerance."""
    return replace(KL_REACHED, wanted=(kl * (1 - tolerance), kl * (1 + tolerance)))


def divergence_cautions(what: str, values: Mapping[str, float], wanted: Metric, kl: float, tune: int) -> list[str]:
    """Say where the divergence that was reached is not the one that was asked for.

    Args:
        what: What moved the next token.
        values: A cell's mean values.
        wanted: The metric that says what is near enough.
        kl: The divergence asked for, in nats.
        tune: Windows that the strength is found on.
    """
    reached = values.get(KL_REACHED.name)
    if reached is None or wanted.meets(reached):
        return []
    return [
        f"{what} moved the next token by {reached:.2g} nats on the windows scored, where {kl:g} were asked for; tune "
        f"on more windows (`tune`, now {tune}) before comparing with other rows"
    ]


def divided(
    windows: Sequence[Example], tune: int, score_on: int, rng: np.random.Generator
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return windows to find a strength on, and others to score on, drawn at random.

    Args:
        windows: At least twice `FEWEST`. Where there are too few for both, they are shared out in the same proportion.
        tune: Windows to find the strength on.
        score_on: Windows to score on.
        rng: Draws them.
    """
    order = rng.permutation(len(windows))
    both = min(len(windows), tune + score_on)
    n_tune = min(max(FEWEST, round(both * tune / (tune + score_on))), both - FEWEST)
    return tuple(windows[i] for i in order[:n_tune]), tuple(windows[i] for i in order[n_tune:both])


def written(context: Context) -> tuple[Subject, Tensor]:
    """Return the model at the place the latent writes to, and the direction it writes there.

    Call it in a thread: the model may have to be loaded.

    Raises:
        InputError: If the latent has no direction, or its coder does not tell where it writes.
    """
    coder, subject = context.coder, context.subject
    direction = coder.direction(context.latent.index)
    if direction is None:
        raise InputError(f"the coder does not tell in which direction latent {context.latent} writes")
    if coder.writes is not None:
        subject = Subject(subject.live, subject.live.hookpoint(coder.writes))
    elif coder.transcoder:
        raise InputError("a transcoder's latents write elsewhere than they read, and its files do not tell where")
    return subject, direction


def steered(windows: Sequence[Example], context: Context) -> Steered:
    """Return windows as prompts for the source's model, ready to be steered along the latent's direction.

    Raises:
        InputError: If the latent's direction or its place is not known, or the windows differ in length.
    """
    subject, direction = written(context)
    return subject.steered([subject.prompt(window.token_ids) for window in windows], direction)


def calibrated(prompts: Steered, kl: float, tolerance: float) -> Strength:
    """Find the strength that gives a divergence.

    Raises:
        InputError: If none comes close enough; then scores at that strength could not be compared.
    """
    found = prompts.calibrate(kl, tolerance)
    if abs(found.kl - kl) > tolerance * kl:
        raise InputError(
            f"no strength gives a divergence of {kl:g} nats (the closest: {found.kl:.3g}); choose another `kl`"
        )
    return found
