"""Loads SAEs trained with dictionary_learning, without importing it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from saeval.plugin import GatedEncoder, InputError, LinearCoder, MadeFor
from saeval_plugins.coders._stored import StoredCoder
from saeval_plugins.coders._tensors import check_shapes, pickled, positive, read_json, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

WEIGHTS = "ae.pt"
CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip
UNUSED = ("k", "threshold", "group_sizes")
_SITES = {
    "resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out", "attention_out": "hook_attn_out",
}  # fmt: skip


class DictionaryLearning(StoredCoder):
    """An SAE of any class of dictionary_learning: `ae.pt` and `config.json`.

    Activations are computed with the saved weights. `AutoEncoder.from_pretrained` may scale each latent by the norm of
    its decoder direction; this does not change where latents fire. Batch top-k SAEs use their fixed threshold.
    """

    name = "dictionary_learning"
    made_by = "dictionary_learning"
    config_file = "config.json"
    weight_files = (WEIGHTS,)

    def check(self) -> None:
        """Check the configuration and that local weights are complete."""
        self._names()
        self._config  # noqa: B018 - raises
        if self.path is not None:
            _refuse_backup(self._label, self._file(WEIGHTS))

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return facts from `config.json`: its trainer and buffer."""
        config = self._config
        layer, model, k = config.get("layer"), config.get("lm_name"), _positive(config.get("k"))
        l0 = None if k is None else float(k)
        return MadeFor(
            place=self.hookpoint(),
            layer=layer if isinstance(layer, int) else None,
            model=model if isinstance(model, str) else None,
            context_size=_positive(config["ctx_len"]),
            l0=l0,
            latents=config["dict_size"],
        )

    def hookpoint(self) -> str | None:
        """Return the hookpoint named in `config.json`; None if it names none."""
        trainer = self._config
        place = trainer.get("submodule_name")
        if not isinstance(place, str):
            return None
        if match := re.fullmatch(r"(\w+)_layer_?(\d+)", place):
            return f"blocks.{match[2]}.{_SITES[match[1]]}" if match[1] in _SITES else None
        if not re.fullmatch(r"(\w+\.)+\w+", place):
            return None
        return f"{place}.input" if trainer["io"] == "in" else place

    def width(self) -> int:
        """Return the width stated in `config.json`."""
        return int(self._config["activation_dim"])

    def separable(self) -> bool:
        """Return True unless its class is a top-k one."""
        return bool(self._config["dict_class"] != "AutoEncoderTopK")

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Load the weights."""
        self._names()
        config = self._config
        if config["activation_dim"] != d_in:
            raise self._width_mismatch(config["activation_dim"], d_in, self.hookpoint(), config.get("lm_name"))
        tensors = read_tensors(self._label, self._file(WEIGHTS))
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        check_shapes(self._label, WEIGHTS, shapes, _shapes(config), config["dict_class"], UNUSED)
        k = None
        if config["dict_class"] == "AutoEncoderTopK":
            k = int(tensors["k"]) if "k" in tensors else config.get("k")
            positive(self._label, {"k": k}, "k")
            if k is not None and k > config["dict_size"]:
                raise InputError(f"{self._label}: k is {k}, more than its {config['dict_size']} latents")
        return _linear(config, {name: tensor.to(device) for name, tensor in tensors.items()}, k, self.hookpoint())

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The trainer's entry in `config.json`, and which side of the module its buffer read.

        Raises:
            InputError: If it is malformed, or of an unknown class.
        """
        if not self._has("config.json"):
            raise self._missing_file("config.json")
        whole = read_json(self._label, self._file("config.json"))
        trainer, buffer = whole.get("trainer"), whole.get("buffer")
        if not isinstance(trainer, dict) or "dict_class" not in trainer:
            raise InputError(
                f"{self._label}: config.json has no trainer.dict_class; use a folder saved by dictionary_learning"
            )
        if trainer["dict_class"] not in CLASSES:
            raise InputError(f"{self._label}: unknown class {trainer['dict_class']!r}; known: {', '.join(CLASSES)}")
        positive(f"{self._label}: config.json: trainer", trainer, "activation_dim", "dict_size")
        buffer = buffer if isinstance(buffer, dict) else {}
        return {**trainer, "io": buffer.get("io", "out"), "ctx_len": buffer.get("ctx_len")}


def _refuse_backup(label: str, path: Path) -> None:
    """Raise an error for a training backup, because its biases apply to normalised activations.

    Raises:
        InputError: If the file is a backup.
    """
    said = pickled(label, path)
    if b"optimizer" in said and b"norm_factor" in said:
        raise InputError(
            f"{label}: {path.name} is the backup of an interrupted training run, whose biases are not yet scaled by "
            "its norm_factor; finish the training, or load the backup's `ae`, call `scale_biases(norm_factor)` "
            "and save its state dict as ae.pt"
        )


def _shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shape of each tensor that a class has."""
    kind, width, latents = config["dict_class"], config["activation_dim"], config["dict_size"]
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        threshold = [latents] if kind == "JumpReluAutoEncoder" else []
        return {
            "W_enc": [width, latents],
            "W_dec": [latents, width],
            "b_enc": [latents],
            "b_dec": [width],
            "threshold": threshold,
        }
    shapes = {"encoder.weight": [latents, width], "decoder.weight": [width, latents]}
    if kind == "GatedAutoEncoder":
        return {
            **shapes,
            **{name: [latents] for name in ("gate_bias", "mag_bias", "r_mag")},
            "decoder_bias": [width],
        }
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
    threshold_too = {"threshold": list[int]()} if kind == "BatchTopKSAE" else {}
    return {**shapes, "encoder.bias": [latents], bias: [width], **threshold_too}


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _linear(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], k: int | None, hookpoint: str | None
) -> LinearCoder:
    kind, latents = config["dict_class"], config["dict_size"]
    jumps = kind in ("JumpReluAutoEncoder", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    gated = kind == "GatedAutoEncoder"
    if "W_enc" in tensors:
        encoder, decoder, encoder_bias = tensors["W_enc"], tensors["W_dec"], "b_enc"
    else:
        encoder, decoder = tensors["encoder.weight"].T, tensors["decoder.weight"].T.contiguous()
        encoder_bias = "encoder.bias"
    gate = GatedEncoder(tensors["gate_bias"], tensors["mag_bias"], tensors["r_mag"]) if gated else None
    bias = next(tensors[name] for name in ("b_dec", "bias", "decoder.bias", "decoder_bias") if name in tensors)
    return LinearCoder(
        encoder=encoder,
        decoder=decoder,
        encoder_bias=None if gated else tensors[encoder_bias],
        decoder_bias=bias,
        threshold=tensors["threshold"].expand(latents) if jumps else None,
        k=k,
        gate=gate,
        subtract_decoder_bias=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        architecture=kind,
        metadata={"hook_name": hookpoint, "model_name": config.get("lm_name")},
    )
