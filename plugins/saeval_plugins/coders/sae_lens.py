"""Loads SAEs and transcoders in sae-lens' format, mostly without importing sae-lens."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from saeval.plugin import GatedEncoder, HookPoint, InputError, LinearCoder, MadeFor, ModuleCoder
from saeval_plugins.coders._releases import Listed, listed, releases
from saeval_plugins.coders._stored import StoredCoder
from saeval_plugins.coders._tensors import check_shapes, read_json, read_tensors, tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor

    from saeval.plugin import SparseCoder

WEIGHTS = "sae_weights.safetensors"
LINEAR = (
    "standard", "gated", "topk", "abstopk", "jumprelu",
    "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
THROUGH_SAE_LENS = ("temporal", "matching_pursuit")
IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_TEXTS = ("model_name", "hook_name", "hf_hook_name", "hook_name_out", "hf_hook_name_out")
WRITTEN_TO_RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")


class SaeLens(StoredCoder):
    """An SAE or transcoder saved by sae-lens, or from one of its pretrained releases (`release`, `sae_id`).

    Activations are computed in float32, regardless of the precision of the stored weights.
    """

    name = "sae_lens"
    made_by = "sae-lens"
    config_file = "cfg.json"
    weight_files = (WEIGHTS,)

    release: str | None = None
    """Release in sae-lens' list of pretrained SAEs, downloaded by sae-lens. Set the source's `hookpoint`, too."""
    sae_id: str | None = None
    """Id of the SAE in the release."""

    @classmethod
    def by_name(cls, name: str) -> Mapping[str, Any] | None:
        """Return the options for a folder saved by sae-lens, or for `RELEASE/ID` of a listed release."""
        if Path(name).expanduser().exists():
            return super().by_name(name)
        release, _, sae_id = name.partition("/")
        return {"release": release, "sae_id": sae_id} if sae_id and release in releases() else None

    @model_validator(mode="after")
    def _one_place(self) -> SaeLens:
        if [self.path, self.repo, self.release].count(None) != 2:
            raise ValueError("set exactly one of path (a folder), repo (on the hub), or release and sae_id")
        if (self.release is None) != (self.sae_id is None):
            raise ValueError("release and sae_id must be set together")
        if self.revision is not None and self.repo is None:
            raise ValueError("revision requires repo")
        return self

    @property
    def _label(self) -> str:
        """Name of the SAE in messages."""
        return f"SAE {self._where if self.release is None else f'{self.release}/{self.sae_id}'}"

    def check(self) -> None:
        """Read the configuration and, for a local folder, the header of the weights."""
        if self.release is not None:
            self._listed  # noqa: B018 - raises if the installed sae-lens does not list it
            return
        self._names()
        linear = self._config["architecture"] in LINEAR
        if self.path is not None:
            shapes = tensor_shapes(self._label, self._file(WEIGHTS))
            if linear:
                self._check_shapes(shapes)

    def fingerprint(self) -> JsonValue:
        """Return hashes of the files, independent of their location; for a release, of the weights sae-lens loads."""
        if self.release is None:
            return super().fingerprint()
        digest = hashlib.sha256(json.dumps(self._config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self._pretrained.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return [self.name, self.release, self.sae_id, digest.hexdigest()]

    def hookpoint(self) -> str | None:
        """Return the hook named in `cfg.json`; for a release, the SAE's id if it is a hook name."""
        if self.release is None:
            metadata = self._config["metadata"]
            place: str | None = metadata.get("hf_hook_name") or metadata.get("hook_name")
            return place
        is_hook = re.fullmatch(r"blocks\.\d+\.(\w+\.)*hook_\w+", self.sae_id or "")
        return self.sae_id if is_hook else None

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return facts about training from `cfg.json`; for a release, from sae-lens' list."""
        if self.release is not None and not fetch:
            listed = self._listed
            return MadeFor(
                self.hookpoint(), model=listed.model, context_size=listed.context_size, l0=listed.l0, partial=True
            )
        config = self._config
        metadata = config["metadata"]
        size, layer, bos = metadata.get("context_size"), metadata.get("hook_layer"), metadata.get("prepend_bos")
        if not isinstance(size, int) or size <= 0:
            size = None
        l0 = config["k"] if config["architecture"] in ("topk", "abstopk") else None
        return MadeFor(
            place=metadata.get("hf_hook_name") or metadata.get("hook_name"),
            layer=layer if isinstance(layer, int) else None,
            model=metadata.get("model_name"),
            context_size=size,
            prepend_bos=bos if isinstance(bos, bool) else None,
            l0=l0,
            latents=config["d_sae"],
        )

    @property
    def _listed(self) -> Listed:
        """The entry for a release's SAE in sae-lens' list.

        Raises:
            InputError: If sae-lens is not installed, or does not list it.
        """
        try:
            return listed(str(self.release), str(self.sae_id))
        except InputError as error:
            raise InputError(f"{self._label}: {error}") from None

    def width(self) -> int | None:
        """Return the width stated in `cfg.json`."""
        return None if self.release is not None else self._config["d_in"]

    def site(self, module: str, modules: Sequence[str]) -> HookPoint:
        """Return the module, with activations centred if the SAE was made with centred writing weights."""
        metadata = self._config["metadata"]
        loaded = metadata.get("model_from_pretrained_kwargs")
        centred = isinstance(loaded, dict) and loaded.get("center_writing_weights", False)
        hook = (metadata.get("hook_name") or "").rpartition(".")[2]
        return HookPoint(module, center=bool(centred) and hook in WRITTEN_TO_RESIDUAL)

    def separable(self) -> bool:
        """Return True if its architecture is linear and not top-k."""
        return self._config["architecture"] in set(LINEAR) - {"topk", "abstopk"}

    def load(self, device: str, d_in: int) -> SparseCoder:
        """Load the weights."""
        config = self._config
        if config["d_in"] != d_in:
            metadata = config["metadata"]
            place = metadata.get("hf_hook_name") or metadata.get("hook_name")
            raise self._width_mismatch(config["d_in"], d_in, place, metadata.get("model_name"))
        if config["architecture"] in THROUGH_SAE_LENS:
            return self._wrapped(device)
        return _linear(config, {name: t.to(device) for name, t in self._tensors().items()})

    # --- Configuration ---

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The configuration, in the form of sae-lens 6.

        Raises:
            InputError: If it is missing, malformed, or describes an SAE that cannot be used unchanged.
        """
        if self.release is not None:
            config = self._pretrained.cfg.to_dict()
        elif not self._has("cfg.json"):
            raise self._missing_file("cfg.json")
        else:
            config = read_json(self._label, self._file("cfg.json"))
        config = _modern(config)
        for problem in _problems(config):
            raise InputError(f"{self._label}: {problem}")
        return config

    # --- Weights ---

    def _check_shapes(self, shapes: Mapping[str, list[int]]) -> None:
        """Compare names and shapes of the tensors with the configuration."""
        check_shapes(
            self._label, WEIGHTS, shapes, _shapes(self._config), self._config["architecture"], ("scaling_factor",)
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Read the weights as float32.

        Raises:
            InputError: If they are damaged, not finite, or of shapes that contradict the configuration.
        """
        import torch

        if self.release is not None:
            tensors = {name: tensor.float() for name, tensor in self._pretrained.state_dict().items()}
        else:
            self._names()
            tensors = read_tensors(self._label, self._file(WEIGHTS))
        self._check_shapes({name: list(tensor.shape) for name, tensor in tensors.items()})
        scale = tensors.pop("scaling_factor", torch.ones(1))
        if not torch.allclose(scale, torch.ones_like(scale)):
            raise InputError(
                f"{self._label}: its finetuning scale is not folded into the weights; save it again with sae-lens 6"
            )
        return tensors

    @property
    def _pretrained(self) -> Any:
        """A release's SAE, downloaded by sae-lens; a failed download is not retried.

        Raises:
            InputError: If the download fails.
        """
        if isinstance(self._download, InputError):
            raise self._download
        return self._download

    @cached_property
    def _download(self) -> Any:
        """A release's SAE, or the reason why it cannot be loaded."""
        import warnings

        import sae_lens

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return sae_lens.SAE.from_pretrained(self.release, self.sae_id, device="cpu", dtype="float32")
        except Exception as error:  # noqa: BLE001 - sae-lens and the hub raise many kinds
            line = (str(error).strip().splitlines() or ["no reason given"])[0]
            return InputError(
                f"{self._label} cannot be loaded by sae-lens ({type(error).__name__}: {line}); check release, sae_id "
                "and connection, or set `path` to a local folder"
            )

    def _wrapped(self, device: str) -> ModuleCoder:
        """Return a coder that encodes with sae-lens."""
        import sae_lens

        config = self._config
        if self.release is not None:
            sae = self._pretrained.to(device)
        else:
            self._names()
            tensor_shapes(self._label, self._file(WEIGHTS))
            folder = self._file("cfg.json").parent
            sae = sae_lens.SAE.load_from_disk(folder, device=device, dtype="float32")
        sae.eval().requires_grad_(False)
        sae.turn_off_forward_pass_hook_z_reshaping()  # transformers already returns flat activations
        return ModuleCoder(
            sae.encode,
            config["d_sae"],
            config["d_in"],
            config["architecture"],
            decoder=sae.W_dec,
            token_wise=config["architecture"] != "temporal",
            metadata=config["metadata"],
        )


def _modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a configuration of any sae-lens version to that of 6.0, which keeps metadata separately."""
    metadata = config.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {
            name: config[old]
            for name, old in (
                ("model_name", "model_name"),
                ("hook_name", "hook_point"),
                ("hook_name", "hook_name"),
                ("hf_hook_name", "hf_hook_name"),
                ("hook_name_out", "hook_name_out"),
                ("hf_hook_name_out", "hf_hook_name_out"),
                ("hook_layer", "hook_layer"),
                ("model_from_pretrained_kwargs", "model_from_pretrained_kwargs"),
                ("dataset_path", "dataset_path"),
                ("context_size", "context_size"),
                ("prepend_bos", "prepend_bos"),
                ("neuronpedia_id", "neuronpedia_id"),
            )
            if old in config
        }
    heads = (config.get(name) for name in ("hook_head_index", "hook_point_head_index"))
    metadata = {"hook_head_index": next((head for head in heads if head is not None), None), **metadata}
    modern = {"apply_b_dec_to_input": True, **config, "architecture": config.get("architecture") or "standard"}
    plain = json.loads(json.dumps(dict(metadata), default=str))
    modern["metadata"] = {k: v for k, v in plain.items() if v is not None and (k not in _TEXTS or isinstance(v, str))}
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if modern["architecture"] == "standard" and activation == "topk":
        modern["architecture"] = "topk"
    if modern["architecture"] in ("topk", "abstopk") and config.get("k") is None:
        modern["k"] = (config.get("activation_fn_kwargs") or {}).get("k")  # its place in versions 4 and 5
    if activation not in ("relu", "topk") and modern["architecture"] == "standard":
        modern["architecture"] = f"standard with {activation}"
    normalize = config.get("normalize_activations") or "none"
    modern["normalize_activations"] = "expected_average_only_in" if normalize is True else normalize
    return modern


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons why an SAE cannot be used, with remedies; later ones may follow from the first."""
    architecture, normalize = config["architecture"], config["normalize_activations"]
    if architecture in IN_TRAINING:
        yield (
            f"it is a training checkpoint ({architecture}), which has no fixed threshold yet; save it with "
            "`sae.save_inference_model(folder)` and set `path` to that folder"
        )
    if architecture not in LINEAR + THROUGH_SAE_LENS:
        yield f"unknown architecture {architecture!r}; known: {', '.join(LINEAR + THROUGH_SAE_LENS)}"
    if normalize in ("expected_average_only_in", "covariance_whitening"):
        fold = "norm_scaling_factor" if normalize == "expected_average_only_in" else "whitening"
        yield (
            f"its weights expect normalised activations ({normalize}); fold the normalisation into the weights with "
            f"`sae.fold_activation_{fold}(…)` and save it again"
        )
    if normalize not in ("none", "layer_norm", "constant_norm_rescale") and architecture in LINEAR:
        yield (
            f"unknown normalize_activations {normalize!r}; known: none, layer_norm, constant_norm_rescale, and those "
            "that sae-lens can fold into the weights"
        )
    if config["metadata"].get("hook_head_index") is not None:
        yield (f"it reads only attention head {config['metadata']['hook_head_index']}; use an SAE of all heads")
    sizes = ["d_in", "d_sae"]
    sizes += ["d_out"] if "transcoder" in architecture else []
    sizes += ["k"] if architecture in ("topk", "abstopk") else []
    for name in sizes:
        if type(config.get(name)) is not int or config[name] < 1:
            yield f"{name} in cfg.json is {config.get(name)!r}; it must be a positive whole number"
    if "k" in sizes and config["k"] > config["d_sae"]:
        yield f"k is {config['k']} in cfg.json, more than its {config['d_sae']} latents"


def _shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shapes of an architecture's tensors."""
    architecture, d_in, d_sae = config["architecture"], config["d_in"], config["d_sae"]
    d_out = config["d_out"] if "transcoder" in architecture else d_in
    vectors = ["b_gate", "b_mag", "r_mag"] if architecture == "gated" else ["b_enc"]
    if "jumprelu" in architecture:
        vectors.append("threshold")
    shapes = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out], **{v: [d_sae] for v in vectors}}
    return {**shapes, "W_skip": [d_out, d_in]} if "skip" in architecture else shapes


def _linear(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LinearCoder:
    architecture = config["architecture"]
    transcoder = "transcoder" in architecture
    return LinearCoder(
        encoder=tensors["W_enc"],
        decoder=tensors["W_dec"],
        encoder_bias=tensors.get("b_enc"),
        decoder_bias=tensors["b_dec"],
        threshold=tensors.get("threshold"),
        k=config["k"] if architecture in ("topk", "abstopk") else None,
        signed=architecture == "abstopk",
        gate=GatedEncoder(tensors["b_gate"], tensors["b_mag"], tensors["r_mag"]) if architecture == "gated" else None,
        scale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        subtract_decoder_bias=config["apply_b_dec_to_input"] and not transcoder,
        normalize=config["normalize_activations"],
        skip="skip" in architecture,
        architecture=architecture,
        autoencoder=not transcoder,
        transcoder=transcoder,
        writes=config["metadata"].get("hf_hook_name_out") or config["metadata"].get("hook_name_out"),
        metadata=config["metadata"],
    )
