"""Logit-lens facts about a latent's decoder direction: nearest latents and promoted tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saeval._util import SaevalError, first_line
from saeval.models.live import only_local
from saeval.models.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.models.coders import SparseCoder
    from saeval.plugin.base import ActivationSource

_NEIGHBOURS, _TOKENS = 8, 10
_TILE = 32  # latents whose logits over a whole vocabulary are in memory at a time
_MOST_WEIGHTS = 1 << 29  # number of weights; larger coders (4 GB) are not loaded only for this

log = logging.getLogger("saeval")


def directions(source: ActivationSource, latents: Sequence[int], size: int) -> tuple[list[dict[str, Any]], str]:
    """Return each latent's nearest neighbours by decoder cosine and its logit-lens tokens.

    Reads the coder's weights from disk unless they are too large. Loads the model for the tokens unless it is in
    memory, for example after collecting; it is not loaded if it must be downloaded or exceeds the free memory.

    Args:
        source: The source of the latents.
        latents: Indices of the latents.
        size: Number of weights in the coder's encoder or decoder, as far as known.

    Returns:
        One mapping per latent, with `neighbours`, `cosines`, `decoder_norm`, `promoted` and `suppressed` as far as
        available, or an empty list if the source does not provide its coder; and what is missing because coder or
        model could not be loaded, with the reason, or an empty text.
    """
    if "coder" not in source.offers() or 2 * size > _MOST_WEIGHTS:
        return [], ""
    with only_local():
        try:
            lent = source.model_copy()  # a copy, so that weights and model are freed afterwards
            coder = lent.weights()
            found = _neighbours(coder, latents)
        except Exception as error:  # noqa: BLE001 - coders may raise anything; optional for reports
            log.info("no neighbours of latents: %s: %s", type(error).__name__, error)
            return [], f"neighbours, decoder_norm and promoted tokens ({first_line(error):.200})"
        if "subject" not in source.offers():
            return found, ""
        try:
            subject = lent.subject()
        except SaevalError as error:
            log.info("no promoted tokens of latents: %s", error)
            return found, f"promoted tokens ({first_line(error):.200})"
        try:
            for row, tokens in zip(found, _promoted(subject, coder, latents), strict=True):
                row |= tokens
        except SaevalError as error:  # no model or coder of this kind has them
            log.info("no promoted tokens of latents: %s", error)
    return found, ""


def _neighbours(coder: SparseCoder, latents: Sequence[int]) -> list[dict[str, Any]]:
    import torch

    weights = coder.directions()
    if weights is None:
        return [{} for _ in latents]
    units = torch.nn.functional.normalize(weights.detach().float(), dim=-1)
    lengths = weights.detach()[torch.tensor(latents, dtype=torch.long)].float().norm(dim=-1).tolist()
    found: list[dict[str, Any]] = []
    for start in range(0, len(latents), _TILE):
        some = torch.tensor(latents[start : start + _TILE])
        cosines = units[some] @ units.T
        cosines[torch.arange(len(some)), some] = -2.0
        best = cosines.topk(min(_NEIGHBOURS, len(units) - 1))
        found += [
            {"neighbours": i, "cosines": [round(c, 4) for c in values], "decoder_norm": length}
            for i, values, length in zip(
                best.indices.tolist(), best.values.tolist(), lengths[start : start + _TILE], strict=True
            )
        ]
    return found


def _promoted(subject: Subject, coder: SparseCoder, latents: Sequence[int]) -> list[dict[str, list[str]]]:
    """Return the tokens whose logits each latent's direction increases and decreases most, largest change first."""
    import torch

    if coder.writes is not None:
        subject = subject.at(coder.writes)
    elif coder.transcoder:
        raise SaevalError("the transcoder's files do not name the hookpoint that it writes to")
    written = [coder.direction(i) for i in latents]
    if any(direction is None for direction in written):
        raise SaevalError("the coder has no directions")
    stacked: Tensor = torch.stack([d for d in written if d is not None])
    found: list[dict[str, list[str]]] = []
    for start in range(0, len(latents), _TILE):
        logits = subject.promoted(stacked[start : start + _TILE])
        ends = {"promoted": logits.topk(_TOKENS), "suppressed": logits.topk(_TOKENS, largest=False)}
        tokens = {name: end.indices.tolist() for name, end in ends.items()}
        for k in range(len(logits)):
            found.append({name: [subject.text([token]) for token in rows[k]] for name, rows in tokens.items()})
    return found
