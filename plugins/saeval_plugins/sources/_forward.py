"""Runs a model over contexts in batches of similar length, and returns activations in the order of the corpus."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from saeval_plugins.sources._on_device import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from saeval.plugin import HookPoint, LiveModel, TokenDataset

_FEWEST, _MOST = 2048, 32_768  # tokens per batch
_BATCHES = 4  # per group, within which contexts are sorted by length


def batch_tokens(free: int | None) -> int:
    """Return the tokens per batch: on a GPU, a power of two from 2,048 to 32,768 that leaves a free MiB per token.

    Args:
        free: Free bytes of GPU memory; None for other devices.
    """
    fitting = 0 if free is None else 1 << max(0, (free >> 20).bit_length() - 1)
    return min(max(_FEWEST, fitting), _MOST)


def groups(lengths: NDArray[np.integer], tokens: int) -> list[tuple[int, int]]:
    """Divide contexts, in order, into groups; within a group, contexts are batched by length.

    Args:
        lengths: Tokens of each context.
        tokens: Tokens per batch.
    """
    return _evenly(lengths, -(-int(lengths.sum()) // (_BATCHES * tokens)))


def _evenly(lengths: NDArray[np.integer], parts: int) -> list[tuple[int, int]]:
    """Divide contexts, in order, into non-empty parts with about the same number of tokens."""
    import numpy as np

    ends = np.cumsum(lengths, dtype=np.int64)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, parts + 1) // max(1, parts)) + 1
    cuts = np.unique([0, *np.minimum(cuts, len(lengths)), len(lengths)]).tolist()
    return list(itertools.pairwise(cuts))


def batches_by_length(lengths: NDArray[np.integer], most: int) -> list[NDArray[np.int64]]:
    """Divide contexts into batches of similar length.

    Args:
        lengths: Tokens of each context.
        most: Maximum tokens per batch, including padding, unless a single context has more.
    """
    import numpy as np

    order, batches = np.argsort(-lengths.astype(np.int64), kind="stable"), []
    while len(order):
        contexts = max(1, most // max(1, int(lengths[order[0]])))
        batches.append(order[:contexts])
        order = order[contexts:]
    return batches


def captured(
    live: LiveModel, data: TokenDataset, chosen: NDArray[np.int64], points: Sequence[HookPoint]
) -> dict[HookPoint, Tensor]:
    """Return activations of contexts per hookpoint, padded to the longest context.  [contexts, tokens, width] each"""
    import numpy as np
    import torch

    longest = int(data.lengths[chosen].max())
    tokens = torch.from_numpy(data.tokens[chosen, :longest].astype(np.int64))
    with live.lock:
        return live.capture(to_device(tokens, live.device), points)


def text_of(activations: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """Return the activations of text tokens.  [contexts, tokens, width], mask [contexts, length] -> [text, width]"""
    import numpy as np
    import torch

    text = np.flatnonzero(mask[:, : activations.shape[1]])
    return activations.flatten(0, 1)[to_device(torch.from_numpy(text), activations.device)]


class Text(NamedTuple):
    """Activations of the text tokens of some contexts, in order.

    Attributes:
        parts: Ranges of contexts to encode together.
        activations: Activations of all parts, by hookpoint.  [text, width] each
        computed: Tokens that went through the model, including padding.
    """

    parts: list[tuple[int, int]]
    activations: dict[HookPoint, Tensor]
    computed: int


def text_by_length(
    live: LiveModel, data: TokenDataset, low: int, high: int, points: Sequence[HookPoint], tokens: int
) -> Text:
    """Run the model over contexts low to high in batches of similar length.

    Args:
        live: The model.
        data: The corpus.
        low: The first context.
        high: The context after the last one.
        points: The hookpoints.
        tokens: Maximum tokens per batch; smaller groups of contexts use smaller batches.
    """
    import numpy as np
    import torch

    mask, lengths, computed = data.mask[low:high], data.lengths[low:high], 0
    tokens = min(tokens, -(-int(lengths.sum()) // _BATCHES))
    row = np.cumsum(mask).reshape(mask.shape) - 1  # index of each token among the text tokens
    found: dict[HookPoint, Tensor] = {}
    with torch.inference_mode():
        for batch in batches_by_length(lengths, tokens):
            caught = captured(live, data, low + batch, points)
            for point, activations in caught.items():
                n_tokens = activations.shape[1]
                text = text_of(activations, mask[batch])
                if point not in found:
                    found[point] = text.new_empty(int(mask.sum()), text.shape[-1])
                rows = row[batch, :n_tokens][mask[batch, :n_tokens]]
                found[point][to_device(torch.from_numpy(rows), text.device)] = text
            computed += len(batch) * n_tokens
    parts = [(low + begin, low + end) for begin, end in _evenly(lengths, _BATCHES)]
    return Text(parts, found, computed)
