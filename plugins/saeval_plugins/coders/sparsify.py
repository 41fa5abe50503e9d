"""Loads SAEs and transcoders trained with EleutherAI's sparsify, without importing it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from saeval.plugin import HookPoint, InputError, LinearCoder, MadeFor
from saeval_plugins.coders._stored import StoredCoder
from saeval_plugins.coders._tensors import check_shapes, positive, read_json, read_tensors, tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

WEIGHTS = "sae.safetensors"
ACTIVATIONS = ("topk", "groupmax")
_NORM = re.compile(r"norm|^ln_?\d*$")
_SEED = re.compile(r"seed[_-]?\d+")
_MODULE = re.compile(r"([a-z_]\w*\.)*[a-z_]+\.\d+(\.\w+)*|embed_\w+|wte")


class Sparsify(StoredCoder):
    """An SAE, transcoder or skip transcoder with top-k or groupmax activations (arXiv 2406.04093, 2501.18823).

    sparsify writes one folder per hookpoint, named after the module, with a subfolder per seed if there are several.
    Set `path` to `…/layers.5.mlp` or `…/layers.5.mlp/seed0`; in a repository, set `folder` to `layers.5.mlp`. SAEs read
    the module's output, transcoders its input, according to `cfg.json`. For a renamed copy, set the source's
    `hookpoint` to the module, also for a transcoder.
    """

    name = "sparsify"
    made_by = "sparsify"
    config_file = "cfg.json"
    weight_files = (WEIGHTS,)
    hub_names = r"EleutherAI/"

    def check(self) -> None:
        """Read the configuration and, for a local folder, the header of the weights."""
        self._names()
        config = self._config
        if self.path is not None:
            shapes = tensor_shapes(self._label, self._file(WEIGHTS))
            check_shapes(self._label, WEIGHTS, shapes, _shapes(config), config["activation"])

    def fingerprint(self) -> JsonValue:
        """Return hashes of the files; for a transcoder also its module, which decides its site."""
        files = super().fingerprint()
        return [files, self._module] if self._config["transcode"] else files

    def hookpoint(self) -> str | None:
        """Return the module that the folder is named after; for a transcoder, the module's input."""
        if self._module is None:
            return None
        return f"{self._module}.input" if self._config["transcode"] else self._module

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return the module and k."""
        return MadeFor(self.hookpoint(), l0=self._config["k"], latents=self._config["num_latents"])

    def width(self) -> int:
        """Return the width stated in `cfg.json`."""
        return int(self._config["d_in"])

    def site(self, module: str, modules: Sequence[str]) -> HookPoint:
        """Return the module or, for a transcoder, its input; a norm's output already is that input."""
        norm = _NORM.search(module.rpartition(".")[2])
        return HookPoint(module, "in" if self._config["transcode"] and not norm else "out")

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Load the weights."""
        self._names()
        config = self._config
        if config["d_in"] != d_in:
            raise self._width_mismatch(config["d_in"], d_in, self.hookpoint())
        tensors = read_tensors(self._label, self._file(WEIGHTS))
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        check_shapes(self._label, WEIGHTS, shapes, _shapes(config), config["activation"])
        weights = {name: tensor.to(device) for name, tensor in tensors.items()}
        transcoder, skip = config["transcode"], config["skip_connection"]
        kind = ("signed " if config["signed"] else "") + config["activation"]
        return LinearCoder(
            encoder=weights["encoder.weight"].T,
            decoder=weights["W_dec"],
            encoder_bias=weights["encoder.bias"],
            decoder_bias=weights["b_dec"],
            k=config["k"],
            signed=config["signed"],
            grouped=config["activation"] == "groupmax",
            subtract_decoder_bias=not transcoder,
            skip=skip,
            architecture=kind + " skip" * skip + " transcoder" * transcoder,
            autoencoder=not transcoder,
            transcoder=transcoder,
            writes=self._module if transcoder else None,
            metadata={"hook_name": self.hookpoint(), **config},
        )

    @property
    def _module(self) -> str | None:
        """The module that the folder is named after; None if its name is not a module."""
        *_, above, folder = ("", *self._where.split("/"))
        if _SEED.fullmatch(folder):
            folder = above
        return folder if _MODULE.fullmatch(folder) else None

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The configuration, with defaults for keys that older versions omit.

        Raises:
            InputError: If it is malformed, or of an unknown coder.
        """
        if not self._has("cfg.json"):
            raise self._missing_file("cfg.json")
        given = read_json(self._label, self._file("cfg.json"))
        label = f"{self._label}: cfg.json"
        positive(label, given, "d_in", "k")
        config = {
            "d_in": given["d_in"],
            "k": given["k"],
            "num_latents": given.get("num_latents") or given["d_in"] * given.get("expansion_factor", 32),
            "activation": given.get("activation", "topk"),
            **{name: bool(given.get(name, False)) for name in ("transcode", "skip_connection", "signed")},
        }
        positive(label, config, "num_latents")
        if config["activation"] not in ACTIVATIONS:
            raise InputError(
                f"{self._label}: unknown activation {config['activation']!r}; known: {', '.join(ACTIVATIONS)}"
            )
        if config["k"] > config["num_latents"]:
            raise InputError(f"{self._label}: k is {config['k']}, more than its {config['num_latents']} latents")
        if config["activation"] == "groupmax" and config["num_latents"] % config["k"]:
            raise InputError(
                f"{self._label}: its {config['num_latents']} latents do not divide into {config['k']} equal groups"
            )
        return config


def _shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    width, latents = config["d_in"], config["num_latents"]
    shapes = {
        "encoder.weight": [latents, width], "encoder.bias": [latents], "W_dec": [latents, width], "b_dec": [width],
    }  # fmt: skip
    return {**shapes, "W_skip": [width, width]} if config["skip_connection"] else shapes
