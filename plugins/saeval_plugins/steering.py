"""What interventions share: a latent's direction, prompts that end in its windows, and the strength to steer at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saeval import Context, Example, InputError

if TYPE_CHECKING:
    from saeval import Steered, Strength


def steered(windows: Sequence[Example], context: Context) -> Steered:
    """Return windows as prompts for the source's model, ready to be steered along the latent's direction.

    Call it in a thread: the model may have to be loaded.

    Raises:
        InputError: If the latent has no direction where the model is read, or the windows differ in length.
    """
    direction = context.coder.direction(context.latent.index)
    if direction is None:
        raise InputError(f"the coder does not tell in which direction latent {context.latent} writes")
    subject = context.subject
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
