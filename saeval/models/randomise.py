"""Shuffles a model's weights, for controls that keep the architecture and the weight statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from saeval._util import InputError, derive_rng

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Randomised = Literal["weights", "embeddings", "all"]
"""Which matrices are shuffled: all but the embeddings, only the embeddings (including the unembedding), or all."""


def shuffle_weights(model: Any, what: Randomised, seed: int) -> None:
    """Shuffle the entries within each of a model's matrices, in memory (arXiv 2501.17727).

    Each matrix keeps its values and therefore its scale, but loses its trained structure. Vectors are not changed:
    biases, weights of norms, and other tensors with only one axis longer than 1. A matrix that is used twice, such as
    tied embeddings, is shuffled once. The permutation depends only on the seed and on the matrix's name and size, so it
    is the same on every device and in every precision.

    Args:
        model: A transformers model; its files are not changed.
        what: The matrices.
        seed: Seed of the permutations.

    Raises:
        InputError: If weights are not in memory (offloaded) or are packed (quantised).
    """
    for name, matrix in _matrices(model, what):
        if matrix.is_meta or not matrix.is_floating_point():
            raise InputError(f"`randomise` requires plain weights in memory, but {name} is offloaded or quantised")
        matrix.data = _shuffled(matrix.data, seed, name)


def _matrices(model: Any, what: Randomised) -> Iterator[tuple[str, Any]]:
    """Yield name and parameter of each matrix to shuffle; tied ones once."""
    import torch

    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    tables += [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
    embeddings = {id(parameter) for table in tables for parameter in table.parameters()}
    for name, parameter in model.named_parameters():
        is_matrix = sum(size > 1 for size in parameter.shape) > 1
        kind = "embeddings" if id(parameter) in embeddings else "weights"
        if is_matrix and what in (kind, "all"):
            yield name, parameter


def _shuffled(values: Tensor, seed: int, name: str) -> Tensor:
    """Return a copy with permuted entries; the permutation does not depend on the dtype."""
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.contiguous().clone().view(integers).cpu()  # NumPy has no bfloat16
    derive_rng(seed, "randomise", name).shuffle(bits.view(-1).numpy())
    return bits.view(values.dtype).to(values.device)
