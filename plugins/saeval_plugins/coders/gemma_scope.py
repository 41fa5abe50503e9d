"""Loads Gemma Scope and Gemma Scope 2: JumpReLU SAEs and transcoders for Gemma 2 and Gemma 3."""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from saeval.plugin import InputError, LinearCoder, MadeFor
from saeval_plugins.coders._stored import StoredCoder
from saeval_plugins.coders._tensors import check_shapes, read_json, read_tensors, tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS = {"k": 1000, "m": 1_000_000}
SKIP = "affine_skip_connection"
_FIRST = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""Hookpoints that Gemma Scope reads and writes, by suffix of the repository name."""
_SECOND = {
    "resid_post": (".output", None),
    "mlp_out": (".post_feedforward_layernorm.output", None),
    "attn_out": (".self_attn.o_proj.input", None),
    "transcoder": (".pre_feedforward_layernorm.output", ".post_feedforward_layernorm.output"),
}
"""Hookpoints that Gemma Scope 2 reads and writes, by prefix of the folder name; used if `config.json` is missing."""


class GemmaScope(StoredCoder):
    """A JumpReLU SAE or transcoder of Gemma Scope (arXiv 2408.05147) or Gemma Scope 2.

    Use `{repo: google/gemma-scope-2b-pt-res, folder: layer_20/width_16k/average_l0_71}`, or the `path` of such a
    folder. Gemma Scope has no configuration files; the hookpoint is read from the names of repository and folders. For
    a local copy with other names, set the source's `hookpoint`.
    """

    name = "gemma_scope"
    made_by = "Gemma Scope"
    config_file = "config.json"
    needs_config = False
    weight_files = ("params.npz", "params.safetensors")
    hub_names = r"google/gemma-scope-"

    def check(self) -> None:
        """Check that the weights exist; for local weights, also check their shapes."""
        self._refuse_cross_layer()
        *_, weights = self._names()
        if self.path is not None:
            _named(self._label, weights, tensor_shapes(self._label, self._file(weights)))

    def hookpoint(self) -> str | None:
        """Return the hookpoint from `config.json` or the folder names; None if they do not state it."""
        return self._places[0]

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return facts from `config.json` and the names of repository and folders."""
        repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-", self._where)
        named = f"gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "") if repository else None
        l0 = re.search(r"average_l0_(\d+)", self._where)
        model = self._config.get("model_name", named)
        return MadeFor(self.hookpoint(), model=model, l0=float(l0[1]) if l0 else None, latents=self._latents)

    @property
    def _latents(self) -> int | None:
        """Width of the dictionary: exact for local weights, otherwise the power of two nearest to the folder's name."""
        if self.path is not None:
            *_, weights = self._names()
            return _named(self._label, weights, tensor_shapes(self._label, self._file(weights)))["W_enc"][1]
        named = re.search(r"width_(\d+)([km])", self._where)
        return (1 << round(math.log2(int(named[1]) * _UNITS[named[2]]))) if named else None

    def width(self) -> int | None:
        """Return the width from local weights; None for a repository."""
        if self.path is None:
            return None
        *_, weights = self._names()
        return _named(self._label, weights, tensor_shapes(self._label, self._file(weights)))["W_enc"][0]

    def separable(self) -> bool:
        """Return True: JumpReLU latents are computed independently."""
        return True

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Load the weights."""
        self._refuse_cross_layer()
        *_, file = self._names()
        raw = read_tensors(self._label, self._file(file))
        names = {name: _plain(name) for name in raw}
        shapes = _named(self._label, file, {name: list(tensor.shape) for name, tensor in raw.items()})
        weights = {names[name]: tensor.to(device) for name, tensor in raw.items()}
        if shapes["W_enc"][0] != d_in:
            raise self._width_mismatch(shapes["W_enc"][0], d_in, self.hookpoint())
        reads, writes = self._places
        skip = SKIP in shapes
        transcoder = skip or writes is not None
        model = self._config.get("model_name")
        kind = "jumprelu" + "_skip" * skip + "_transcoder" * transcoder
        return LinearCoder(
            encoder=weights["W_enc"],
            decoder=weights["W_dec"],
            encoder_bias=weights["b_enc"],
            decoder_bias=weights["b_dec"],
            threshold=weights["threshold"],
            skip=skip,
            architecture=kind,
            autoencoder=not transcoder,
            transcoder=transcoder,
            writes=writes,
            metadata={"hook_name": reads, **({"model_name": model} if model else {})},
        )

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The contents of `config.json`, which only some folders of Gemma Scope 2 have.

        Raises:
            InputError: If it is malformed, or of another architecture.
        """
        if not self._has("config.json"):
            return {}
        config = read_json(self._label, self._file("config.json"))
        if (architecture := config.get("architecture", "jump_relu")) != "jump_relu":
            raise InputError(f"{self._label}: unknown architecture {architecture!r}; known: jump_relu")
        return {name: value for name, value in config.items() if isinstance(value, str)}

    @property
    def _places(self) -> tuple[str | None, str | None]:
        """The hookpoint it reads and, for a transcoder, the one it writes, if known."""
        if reads := self._config.get("hf_hook_point_in"):
            return reads, self._config.get("hf_hook_point_out")
        layer = re.search(r"/layer_(\d+)(/|_|$)", self._where)
        if match := re.search(r"/(resid_post|mlp_out|attn_out|transcoder)(_all)?/layer_\d+", self._where):
            block = f"model.layers.{layer[1]}" if layer else ""
            place, written = _SECOND[match[1]]
            return block + place, written and block + written
        repository = re.search(r"gemma-scope-\d+b-(?:pt|it)-(res|mlp|att|transcoders)/", f"{self._where}/")
        if repository and layer:
            place, written = _FIRST[repository[1]]
            return f"blocks.{layer[1]}.{place}", written and f"blocks.{layer[1]}.{written}"
        return ("hook_embed", None) if repository and "/embedding/" in self._where else (None, None)

    def _refuse_cross_layer(self) -> None:
        if re.search(r"/(cross_layer_transcoder|clt)", self._where):
            raise InputError(
                f"{self._label}: it is a cross-layer transcoder, whose latents write to several layers; load it "
                f"through sae-lens (`use: sae_lens` with release and sae_id), which sums the outputs, or use another "
                f"coder"
            )


def _plain(name: str) -> str:
    """Return a tensor's name in Gemma Scope's spelling; Gemma Scope 2 uses lower case."""
    return {"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name)


def _named(label: str, file: str, shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return shapes by Gemma Scope's tensor names.

    Raises:
        InputError: If names or shapes do not match a JumpReLU coder.
    """
    seen = {_plain(name): shape for name, shape in shapes.items()}
    width, latents = seen["W_enc"] if len(seen.get("W_enc", ())) == 2 else (0, 0)
    out = seen["W_dec"][-1] if seen.get("W_dec") else 0
    wanted = {
        "W_enc": [width, latents], "W_dec": [latents, out], "b_enc": [latents], "b_dec": [out], "threshold": [latents],
        **({SKIP: [width, out]} if SKIP in seen else {}),
    }  # fmt: skip
    check_shapes(label, file, seen, wanted, "jumprelu")
    return seen
