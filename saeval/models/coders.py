"""Defines sparse coders: a common interface for SAEs, transcoders, neurons, random and single directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from saeval.models.packed_matmul import EncodingPass
from saeval.models.screening import Precision, Screen, screens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

_MOST_CANDIDATES = 1 / 16  # largest share of latents that screening may leave as candidates
_TILE_BYTES = 256 << 20  # memory limit for the dense pre-activations of one tile of tokens


@dataclass(frozen=True)
class HookPoint:
    """A place in a model where activations are read.

    Attributes:
        path: Module path, as in `model.named_modules()`, with or without the base model's prefix.
        site: Whether to read the module's output or its first input.
        center: Whether to subtract each activation's mean over features (for SAEs trained on models with centred
            writing weights).
    """

    path: str
    site: Literal["in", "out"] = "out"
    center: bool = False

    def __str__(self) -> str:
        """The name that specs and results use: the module path, plus `.input` if the input is read."""
        return f"{self.path}.input" if self.site == "in" else self.path

    def as_read(self, activations: Tensor) -> Tensor:
        """Return activations of the model as a coder reads them here: centred if `center`.  [..., width]"""
        return activations - activations.mean(dim=-1, keepdim=True) if self.center else activations


class Sparse(NamedTuple):
    """Nonzero latent activations of a batch of tokens, in coordinate format.

    Attributes:
        rows: Row of the batch.  [nonzero] int64, ascending
        latents: Latent.  [nonzero] int64
        values: Activation.  [nonzero]
    """

    rows: Tensor
    latents: Tensor
    values: Tensor


class SparseCoder(ABC):
    """A dictionary of latents that encodes activations.

    Attributes:
        n_latents: Width of the dictionary.
        d_in: Width of the activations it reads.
        architecture: Its architecture, as shown in reports.
        autoencoder: Whether `decode` reconstructs the encoded activations, so that the fraction of variance unexplained
            is defined; a transcoder predicts the activations at another hookpoint.
        transcoder: Whether its latents write to another hookpoint than the one it reads; `direction` then belongs to
            that hookpoint.
        writes: Name of that hookpoint, if the coder's files state it; else None.
        token_wise: Whether tokens are encoded independently. Otherwise `encode` needs whole contexts,
            [contexts, tokens, d_in], and its rows number the tokens over all contexts.
        metadata: Metadata from its files (model, hook, training data); JSON-serialisable.
        measures: Numbers that leaderboards show, by the names that its plugin declares (`Coder.measures`).
    """

    n_latents: int
    d_in: int
    architecture: str
    autoencoder: bool = False
    transcoder: bool = False
    writes: str | None = None
    token_wise: bool = True
    metadata: Mapping[str, Any] = MappingProxyType({})
    measures: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def encode(self, x: Tensor) -> Sparse:
        """Encode activations.  x [rows, d_in]"""

    def only(self, latents: Sequence[int]) -> SparseCoder | None:
        """Return a coder of the same width that encodes only these latents; all others are 0.

        None if that would not be cheaper, for example if latents compete for the top k.
        """
        return None

    def encoding_only(self) -> SparseCoder:
        """Return this coder without the weights that encoding does not need, if there are any; it cannot decode."""
        return self

    def compile(self) -> bool:
        """Compile the encoder with `torch.compile` if possible; return whether it was compiled."""
        return False

    def decode(self, sparse: Sparse, n_rows: int) -> Tensor | None:
        """Return the prediction from the latents; None if they alone do not determine it.  [n_rows, d_out]"""
        return None

    def reconstruct(self, x: Tensor, sparse: Sparse) -> Tensor | None:
        """Reconstruct activations from their encoding; None if that is impossible.

        Unlike `decode`, it can undo the normalisation of each token, since it gets the activations, too.

        Args:
            x: The encoded activations.  [rows, d_in]
            sparse: Their encoding.
        """
        return self.decode(sparse, len(x))

    def direction(self, latent: int) -> Tensor | None:
        """Return the direction that the latent writes.  [d_out]"""
        return None

    def encoder_direction(self, latent: int) -> Tensor | None:
        """Return the direction that the latent reads.  [d_in]"""
        return None

    def directions(self) -> Tensor | None:
        """Return the directions that all latents write, for cosine similarities; preferably a view.  [n_latents, d_out]

        None if there are none, or if comparing them is meaningless.
        """
        return None

    def encoder_directions(self) -> Tensor | None:
        """Return the directions that all latents read, for cosine similarities.  [n_latents, d_in]"""
        return None


class GatedEncoder(NamedTuple):
    """Parameters of a gated encoder besides its weights. A latent fires where the gate's pre-activation exceeds 0.

    Attributes:
        bias: Bias of the gate.  [n_latents]
        magnitude_bias: Bias of the magnitudes.  [n_latents]
        log_scale: Logarithm of the factor between the gate's weights and those of the magnitudes.  [n_latents]
    """

    bias: Tensor
    magnitude_bias: Tensor
    log_scale: Tensor


@dataclass(eq=False)
class LinearCoder(SparseCoder):
    """A linear encoder, an activation function and a linear decoder: nearly every SAE and transcoder.

    The activation function is a ReLU by default, a JumpReLU if `threshold` is set, a gated one if `gate` is set, and
    top-k per token (or the largest in each of k groups of latents) if `k` is set.

    Tokens are encoded in tiles, so that the dense pre-activations never take more than 256 MB. If one tile covers the
    whole batch, activations equal those of sae-lens' `SAE.encode` bit for bit, except in an `encoding_pass`.

    Attributes:
        encoder: Encoder weights.  [d_in, n_latents]
        decoder: Decoder weights, one direction per latent.  [n_latents, d_out]
        encoder_bias: Added to pre-activations.  [n_latents]
        decoder_bias: Added to reconstructions.  [d_out]
        threshold: Activations are 0 if the pre-activation does not exceed it.  [n_latents]
        k: Number of latents to keep per token, if positive.
        signed: Whether to keep the k of largest magnitude instead, with their signs.
        grouped: Whether to keep the largest in each of k groups of adjacent latents instead.
        gate: Further weights of a gated encoder.
        scale_by_decoder_norm: Whether activations are multiplied by the norm of their decoder direction
            before the top k are selected, and divided by it in decoding.
        subtract_decoder_bias: Whether the decoder bias is subtracted from the input.
        normalize: Normalisation of each token's input: to zero mean and unit deviation (`layer_norm`), or to the norm
            √d_in (`constant_norm_rescale`). `decode` then returns None, since undoing it requires the token.
        skip: Whether a skip connection adds to the prediction; `decode` then returns None, too.
        architecture: Its architecture, as shown in reports.
        autoencoder: Whether it reconstructs its input.
        transcoder: Whether its latents write to another hookpoint than the one it reads.
        writes: That hookpoint, if known.
        metadata: Metadata from its files.
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor | None = None
    decoder_bias: Tensor | None = None
    threshold: Tensor | None = None
    k: int | None = None
    signed: bool = False
    grouped: bool = False
    gate: GatedEncoder | None = None
    scale_by_decoder_norm: bool = False
    subtract_decoder_bias: bool = False
    normalize: Literal["none", "layer_norm", "constant_norm_rescale"] = "none"
    skip: bool = False
    architecture: str = "standard"
    autoencoder: bool = True
    transcoder: bool = False
    writes: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _compiled: Callable[[Tensor], Tensor] | None = field(default=None, init=False, repr=False)
    _screen: Screen | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.d_in, self.n_latents = self.encoder.shape
        if self.gate is not None:
            self._magnitude_encoder = self.encoder * self.gate.log_scale.exp()
        if self.scale_by_decoder_norm:
            self._decoder_norms = self.decoder.norm(dim=-1)

    def encode(self, x: Tensor) -> Sparse:
        """Encode activations, a tile of tokens at a time.  x [rows, d_in]"""
        x, tile = x.to(self.encoder.dtype), _TILE_BYTES // (4 * self.n_latents)
        if (kept := EncodingPass.of(x)) is not None:
            tile = min(tile, kept.rows(self.encoder))
        return _in_tiles(self._encode_tile, x, tile)

    def compile(self) -> bool:
        """Compile the computation of pre-activations, which changes their rounding."""
        import torch

        self._compiled = torch.compile(self._preactivations, dynamic=True)
        return True

    def _encode_tile(self, x: Tensor) -> Sparse:
        if (precision := screens()) and (found := self._screened(x, precision)) is not None:
            return found
        pre = (self._compiled or self._preactivations)(x)
        if self.threshold is not None:
            # Keeps NaN, so that collecting raises an error.
            rows, latents = (pre <= self.threshold.clamp(min=0)).logical_not_().nonzero(as_tuple=True)
            return Sparse(rows, latents, pre[rows, latents])
        if self.k is None:
            return _nonzero(pre.relu_())
        return _largest_of_groups(pre, self.k) if self.grouped else _largest(pre, self.k, signed=self.signed)

    def _screened(self, x: Tensor, precision: Precision) -> Sparse | None:
        """Encode activations with screening; None if that is not possible or would not be cheaper."""
        import torch

        if self.gate is not None or self.signed or self.grouped or self.encoder.dtype != torch.float32:
            return None
        if self._screen is None or self._screen.precision != precision:
            self._screen = Screen(self.encoder, precision)
        x = self._read(x)
        pre, error = self._screen.product(x)
        lengths, least = self._screen.norms, pre.new_zeros(self.n_latents)
        if self.threshold is not None:
            least = self.threshold.clamp(min=0)
        rounding = 1e-6 * least
        if self.encoder_bias is not None:
            pre += self.encoder_bias
            rounding = rounding + 1e-6 * self.encoder_bias.abs()
        scale = self._decoder_norms if self.scale_by_decoder_norm and self.threshold is None else None
        if scale is not None:
            pre, lengths, rounding = pre * scale, lengths * scale, rounding * scale
        # NaN is a candidate, so that collecting raises an error.
        possible = (pre <= torch.addr(least - rounding, error, lengths, alpha=-1)).logical_not_()
        if self.k is not None:
            surely = torch.addr(pre - rounding, error, lengths, alpha=-1).topk(self.k, dim=-1).values[:, -1:]
            possible &= (torch.addr(pre + rounding, error, lengths) < surely).logical_not_()
        rows, latents = possible.nonzero(as_tuple=True)
        if len(rows) > _MOST_CANDIDATES * possible.numel():
            return None
        values = self._screen.exact(x, rows, latents)
        if self.encoder_bias is not None:
            values += self.encoder_bias[latents]
        if scale is not None:
            values *= scale[latents]
        if self.k is not None:
            return _largest_of_candidates(Sparse(rows, latents, values), len(x), self.k)
        return _some_of(Sparse(rows, latents, values), (values <= least[latents]).logical_not_())

    def _preactivations(self, x: Tensor) -> Tensor:
        """Return the input of the activation function; for a gated encoder, the gated magnitudes."""
        x = self._read(x)
        pre = x @ self.encoder if (kept := EncodingPass.of(x)) is None else kept.product(x, self.encoder)
        if self.gate is not None:
            magnitude = x @ self._magnitude_encoder + self.gate.magnitude_bias
            return magnitude.relu_().mul_(pre + self.gate.bias > 0)
        if self.encoder_bias is not None:
            pre += self.encoder_bias
        if self.scale_by_decoder_norm and self.threshold is None:
            pre *= self._decoder_norms
        return pre

    def _read(self, x: Tensor) -> Tensor:
        """Return the normalised input that is multiplied by the encoder.  [rows, d_in] each"""
        # Same order of operations as in sae-lens; another order rounds differently.
        if self.normalize == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            x = x / (x.std(dim=-1, keepdim=True) + 1e-5)
        elif self.normalize == "constant_norm_rescale":
            x = x * (self.d_in**0.5 / x.norm(dim=-1, keepdim=True))
        if self.subtract_decoder_bias and self.decoder_bias is not None:
            x = x - self.decoder_bias
        return x

    def only(self, latents: Sequence[int]) -> SparseCoder | None:
        """Return a coder with the encoder columns of some latents; None for top-k coders."""
        import torch

        if self.k is not None:
            return None
        chosen = torch.tensor(sorted(set(latents)), device=self.encoder.device)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[chosen]

        columns = replace(
            self,
            encoder=self.encoder[:, chosen],
            decoder=self.decoder[chosen],
            encoder_bias=pick(self.encoder_bias),
            threshold=pick(self.threshold),
            gate=None if self.gate is None else GatedEncoder(*(v[chosen] for v in self.gate)),
        )
        return _LatentSubset(columns, chosen, self.n_latents)

    def encoding_only(self) -> LinearCoder:
        """Return this coder with a decoder of width 0, so that the decoder's memory can be freed."""
        lean = copy(self)  # `replace` would recompute decoder norms from the empty decoder
        lean.decoder = self.decoder.new_empty(self.n_latents, 0)
        lean.autoencoder = False
        return lean

    def decode(self, sparse: Sparse, n_rows: int) -> Tensor | None:
        """Return the coder's prediction; None with a skip connection or a normalised input.  [n_rows, d_out]"""
        return None if self.skip or self.normalize != "none" else self._decoded(sparse, n_rows)

    def reconstruct(self, x: Tensor, sparse: Sparse) -> Tensor | None:
        """Reconstruct activations; None with a skip connection.  x [rows, d_in] -> [rows, d_out]"""
        if self.skip:
            return None
        decoded = self._decoded(sparse, len(x))
        if self.normalize == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            decoded = decoded * (x - mean).std(dim=-1, keepdim=True) + mean
        elif self.normalize == "constant_norm_rescale":
            decoded = decoded * (x.norm(dim=-1, keepdim=True) / self.d_in**0.5)
        return decoded

    def _decoded(self, sparse: Sparse, n_rows: int) -> Tensor:
        """Return the decoder's output, in the (possibly normalised) space that the encoder reads.  [n_rows, d_out]"""
        import torch

        values = sparse.values
        if self.scale_by_decoder_norm:
            values = values / self._decoder_norms[sparse.latents]
        starts = torch.searchsorted(sparse.rows, torch.arange(n_rows, device=sparse.rows.device))
        sums = torch.nn.functional.embedding_bag(
            sparse.latents, self.decoder, starts, mode="sum", per_sample_weights=values
        )
        return sums if self.decoder_bias is None else sums + self.decoder_bias

    def direction(self, latent: int) -> Tensor | None:
        """Return the change of the prediction per unit of activation.  [d_out]"""
        row = self.decoder[latent]
        return row / self._decoder_norms[latent] if self.scale_by_decoder_norm else row

    def encoder_direction(self, latent: int) -> Tensor | None:
        """Return the latent's encoder weights.  [d_in]"""
        return self.encoder[:, latent]

    def directions(self) -> Tensor | None:
        """Return the decoder.  [n_latents, d_out]"""
        return self.decoder

    def encoder_directions(self) -> Tensor | None:
        """Return the encoder, one row per latent.  [n_latents, d_in]"""
        return self.encoder.T


class _LatentSubset(SparseCoder):
    """A coder of some latents that reports them under their indices in the full dictionary.

    Args:
        coder: A coder of these latents only.
        numbers: Their indices in the full dictionary, ascending.  [latents of `coder`]
        n_latents: Width of the full dictionary.
    """

    def __init__(self, coder: SparseCoder, numbers: Tensor, n_latents: int):
        self._coder, self._numbers = coder, numbers
        self.n_latents, self.d_in, self.architecture = n_latents, coder.d_in, coder.architecture
        self.metadata = coder.metadata

    def encode(self, x: Tensor) -> Sparse:
        """Encode activations.  x [rows, d_in]"""
        rows, latents, values = self._coder.encode(x)
        return Sparse(rows, self._numbers[latents], values)

    def compile(self) -> bool:
        """Compile the wrapped coder."""
        return self._coder.compile()


@dataclass(eq=False)
class NeuronCoder(SparseCoder):
    """Neurons as latents: the inputs of the MLP's down projection.

    Neurons of gated MLPs are signed. The k largest by magnitude are kept, and of those only the positive ones count as
    firing; negative activations count as 0.

    Attributes:
        d_in: Number of neurons.
        k: Number of neurons to keep per token; None for all.
    """

    d_in: int
    k: int | None = None
    architecture: str = "neurons"

    def __post_init__(self) -> None:
        self.n_latents = self.d_in

    def encode(self, x: Tensor) -> Sparse:
        """Return the neurons that fire.  x [rows, d_in]"""
        if self.k is None or self.k >= self.d_in:
            return _nonzero(x.relu())
        found = _largest(x, self.k, signed=True)
        return _some_of(found, found.values > 0)

    def direction(self, latent: int) -> Tensor | None:
        """Return the unit vector of the neuron, in the space of the hookpoint.  [d_in]"""
        import torch

        axis = torch.zeros(self.d_in)
        axis[latent] = 1
        return axis

    def encoder_direction(self, latent: int) -> Tensor | None:
        """Return the unit vector of the neuron.  [d_in]"""
        return self.direction(latent)


@dataclass(eq=False)
class ModuleCoder(SparseCoder):
    """A coder from any dense `encode` function, such as an SAE of an unusual architecture.

    Attributes:
        dense: Encodes activations, [rows, d_in] or (not `token_wise`) [contexts, tokens, d_in], to
            activations of all latents in the last dimension.
        n_latents: Width of the dictionary.
        d_in: Width of the activations it reads.
        architecture: Its architecture, as shown in reports.
        decoder: Direction that each latent writes, if defined.  [n_latents, d_out]
        token_wise: Whether tokens are encoded independently.
        metadata: Metadata from its files.
    """

    dense: Callable[[Tensor], Tensor]
    n_latents: int
    d_in: int
    architecture: str
    decoder: Tensor | None = None
    token_wise: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, x: Tensor) -> Sparse:
        """Encode activations in tiles that fit the memory limit.  x [rows, d_in]"""
        tokens = 1 if self.token_wise else x.shape[1]
        return _in_tiles(self._encode_tile, x, _TILE_BYTES // (4 * self.n_latents * tokens), tokens)

    def _encode_tile(self, x: Tensor) -> Sparse:
        return _nonzero(self.dense(x).reshape(-1, self.n_latents))

    def direction(self, latent: int) -> Tensor | None:
        """Return the direction that the latent writes.  [d_out]"""
        return None if self.decoder is None else self.decoder[latent]

    def directions(self) -> Tensor | None:
        """Return the decoder, or None.  [n_latents, d_out]"""
        return self.decoder


def _nonzero(dense: Tensor) -> Sparse:
    rows, latents = dense.nonzero(as_tuple=True)
    return Sparse(rows, latents, dense[rows, latents])


def _largest(dense: Tensor, k: int, *, signed: bool) -> Sparse:
    """Keep the k largest of each row: positive ones, or (`signed`) those of largest magnitude."""
    if signed:
        indices = dense.abs().topk(k, dim=-1, sorted=False).indices
        values = dense.gather(-1, indices)
    else:
        values, indices = dense.topk(k, dim=-1, sorted=False)
        values = values.relu_()
    return _chosen(indices, values)


def _largest_of_groups(dense: Tensor, groups: int) -> Sparse:
    """Keep the largest positive value in each of `groups` groups of adjacent latents, per row."""
    import torch

    size = dense.shape[-1] // groups
    values, indices = dense.view(len(dense), groups, size).max(dim=-1)
    return _chosen(indices + size * torch.arange(groups, device=dense.device), values.relu_())


def _largest_of_candidates(found: Sparse, n_rows: int, k: int) -> Sparse:
    """Keep the k largest positive candidates of each row.  [candidates] each"""
    import torch

    counts = torch.bincount(found.rows, minlength=n_rows)
    width = int(counts.max()) if len(counts) else 0
    column = torch.arange(len(found.rows), device=counts.device) - (counts.cumsum(0) - counts)[found.rows]
    values = found.values.new_full((n_rows, width), -torch.inf)
    latents = found.latents.new_zeros((n_rows, width))
    values[found.rows, column], latents[found.rows, column] = found.values, found.latents
    largest = values.topk(min(k, width), dim=-1, sorted=False)
    return _chosen(latents.gather(-1, largest.indices), largest.values.relu_())


def _chosen(indices: Tensor, values: Tensor) -> Sparse:
    """Return the selected latents of each row in sparse form, without zeros.  [rows, selected] each"""
    import torch

    rows = torch.arange(len(indices), device=indices.device).repeat_interleave(indices.shape[-1])
    values = values.flatten()
    return _some_of(Sparse(rows, indices.flatten(), values), values)


def _some_of(sparse: Sparse, which: Tensor) -> Sparse:
    """Return the activations where `which` is not 0; one `nonzero` call, since each synchronises with the GPU."""
    keep = which.nonzero().squeeze(1)
    return Sparse(*(part[keep] for part in sparse))


def _in_tiles(encode: Callable[[Tensor], Sparse], x: Tensor, tile: int, tokens: int = 1) -> Sparse:
    """Encode `tile` items at a time, each of `tokens` rows, with consecutive row numbers over all tiles."""
    import torch

    tile = max(1, tile)
    parts = [encode(x[start : start + tile]) for start in range(0, max(1, len(x)), tile)]
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part.rows + i * tile * tokens for i, part in enumerate(parts)])
    return Sparse(rows, torch.cat([p.latents for p in parts]), torch.cat([p.values for p in parts]))


# Module paths of the MLP's down projection, relative to a block.
_DOWN_PROJECTIONS = (
    "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "mlp.fc2", "mlp.down_proj", "feed_forward.down_proj",
    "feed_forward.w2", "feed_forward.value", "mlp_block.down_proj", "ffn.proj_down", "ffn.down_proj",
    "shared_mlp.output_linear", "mixer.down_proj", "fc2",
)  # fmt: skip
# The same for Mamba-like mixers, whose blocks may have no MLP.
_MIXERS = ("mixer.out_proj", "mamba.out_proj", "mamba_decoder.mamba.out_proj")


def down_projection(module: str, modules: Sequence[str]) -> str | None:
    """Return the path of the down projection, whose inputs are the neurons, in the block that contains a module.

    Args:
        module: Path of a block or of a module in one.
        modules: All module paths of the model.

    Returns:
        The path; None if there is none, for example in mixture-of-experts layers with fused experts, where no neuron
        processes every token.
    """
    known = set(modules)
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        block = ".".join(parts[:end])
        experts = any(m.startswith(f"{block}.") and m.endswith(".experts") for m in known)
        for name in _DOWN_PROJECTIONS if experts else _DOWN_PROJECTIONS + _MIXERS:
            if f"{block}.{name}" in known:
                return f"{block}.{name}"
    return None
