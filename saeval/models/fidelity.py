"""Measures the cross-entropy loss recovered by a coder's reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saeval._util import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.activations import ActivationStore
    from saeval.models.coders import SparseCoder
    from saeval.models.subject import Subject

TOKENS = 2048
"""Number of text tokens to predict, from contexts evenly spaced over the corpus."""
_BATCH = 512  # tokens per forward pass
_POSITIONS = 64  # positions whose logits over the whole vocabulary are in memory at a time


class Fidelity(NamedTuple):
    """Mean next-token cross-entropy, in nats, over the same tokens in three forward passes.

    Attributes:
        clean: With unchanged activations.
        spliced: With activations replaced by the coder's reconstruction, at every text token.
        ablated: With activations replaced by zero.
        tokens: Number of tokens predicted.
    """

    clean: float
    spliced: float
    ablated: float
    tokens: int

    @property
    def recovered(self) -> float:
        """Share of the loss increase by zero-ablation that the reconstruction recovers; 1 is perfect."""
        return (self.ablated - self.spliced) / (self.ablated - self.clean)


def measure_fidelity(subject: Subject, coder: SparseCoder, store: ActivationStore, tokens: int = TOKENS) -> Fidelity:
    """Measure the loss on part of a store's corpus in three passes: clean, reconstructed and ablated.

    Special tokens keep their activations, since the store has none for them, and are not predicted.

    Args:
        subject: The model, at the hookpoint that the coder reads.
        coder: The coder.
        store: The corpus.
        tokens: Approximate number of text tokens to predict.

    Raises:
        InputError: If the coder does not reconstruct its input, the model's logits cannot be computed, or ablating the
            hookpoint does not increase the loss.
    """
    if not coder.autoencoder:
        raise InputError(
            f"a {coder.architecture} coder does not reconstruct its input, so the recovered cross-entropy is not "
            "defined; use an autoencoder"
        )
    import torch

    wanted = max(1, min(len(store.lengths), -(-tokens // (store.length - store.lead))))
    chosen = np.unique(np.linspace(0, len(store.lengths) - 1, wanted).astype(np.int64))
    sums, count = np.zeros(3), 0
    for some in np.array_split(chosen, -(-len(chosen) * store.length // _BATCH)):
        if not len(some):
            continue
        longest = int(store.lengths[some].max())
        ids = torch.from_numpy(store.tokens[some, :longest].astype(np.int64)).to(subject.live.device)
        text = torch.from_numpy(np.array(store.mask[some, :longest])).to(ids.device)

        def reconstructed(rows: Tensor, text: Tensor = text) -> Tensor:
            made = _reconstruction(coder, subject.point.as_read(rows.float()))
            return torch.where(text[..., None].to(rows.device), made.to(rows), rows)

        def zeroed(rows: Tensor, text: Tensor = text) -> Tensor:
            return torch.where(text[..., None].to(rows.device), torch.zeros_like(rows), rows)

        sums += [_nats(subject, ids, text, change) for change in (None, reconstructed, zeroed)]
        count += int(text[:, 1:].sum())
    clean, spliced, ablated = (sums / max(count, 1)).tolist()
    if not ablated > clean:
        raise InputError(
            f"{subject.point}: replacing the activations by zero does not increase the loss ({ablated:.4f} nats per "
            f"token, "
            f"{clean:.4f} without), so the recovered share is not defined"
        )
    return Fidelity(clean, spliced, ablated, count)


def _reconstruction(coder: SparseCoder, rows: Tensor) -> Tensor:
    """Return the coder's reconstruction of activations.  [contexts, tokens, width] float32 each"""
    here = rows.cpu()  # the coder's weights are on the CPU
    flat = here.flatten(0, 1)
    made = coder.decode(coder.encode(flat if coder.token_wise else here), len(flat))
    if made is None:
        raise InputError(
            f"this {coder.architecture} coder has no reconstruction, so the recovered cross-entropy is not defined"
        )
    return made.view(rows.shape)


def _nats(subject: Subject, ids: Tensor, text: Tensor, change: Callable[[Tensor], Tensor] | None) -> float:
    """Return the summed next-token cross-entropy of the text tokens.  ids, text [contexts, tokens]"""
    import torch

    live = subject.live
    with live.lock, torch.inference_mode():
        with nullcontext() if change is None else live.changed(subject.point, change):
            hidden = live.model.base_model(ids, use_cache=False).last_hidden_state
        predicts = text[:, 1:]
        hidden, following = hidden[:, :-1][predicts.to(hidden.device)], ids[:, 1:][predicts]
        total = 0.0
        for low in range(0, len(hidden), _POSITIONS):
            logprobs = live.unembed(hidden[low : low + _POSITIONS]).log_softmax(dim=-1)
            wanted = following[low : low + _POSITIONS, None].to(logprobs.device)
            total -= float(logprobs.gather(1, wanted).double().sum())
    return total
