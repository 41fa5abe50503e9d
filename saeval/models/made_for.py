"""Compares a coder's training setup, as stated in its files, with its use in a spec."""

from __future__ import annotations

import re
from typing import NamedTuple


class MadeFor(NamedTuple):
    """Facts about a coder's training; None if its files do not state them.

    Attributes:
        place: The hookpoint it reads, by its name in the files.
        layer: Number of the block, if no hookpoint is named.
        model: The model.
        context_size: Tokens per context in training, including BOS.
        prepend_bos: Whether contexts began with BOS.
        l0: Active latents per token: the k of a top-k coder, or a measured mean.
        latents: Width of its dictionary.
        partial: Whether this is known without a download, and its files contain more.
    """

    place: str | None = None
    layer: int | None = None
    model: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    l0: float | None = None
    latents: int | None = None
    partial: bool = False


# --- Places ---

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|h|block)\.(\d+)(?:\.(.*))?$")
_STREAM = {  # position in the stream relative to the block's input
    "": 1, "output": 1, "input": 0, "hook_resid_post": 1, "hook_resid_pre": 0,
}  # fmt: skip
_PARTS = {
    "mlp": r"(hook_)?mlp|feed_forward|ffn|post_feedforward_layernorm|post_mlp_layernorm",
    "attention": r"(hook_)?attn|self_attn|self_attention|attention",
}


_OLD = re.compile(r"(resid_post|resid_pre|mlp_out|attn_out|attention_out)_layer_?(\d+)")
_BRIDGE = {
    "hook_in": "hook_resid_pre", "hook_out": "hook_resid_post", "mlp.hook_out": "hook_mlp_out",
    "attn.hook_out": "hook_attn_out",
    "attn.o.hook_in": "attn.hook_z", "mlp.out.hook_in": "mlp.hook_post", "ln1.hook_in": "hook_resid_pre",
    "ln2.hook_in": "hook_resid_mid",
}  # fmt: skip
"""TransformerLens' older hook names, by the names in its TransformerBridge."""


def plain_place(name: str) -> str:
    """Normalise the name of a hookpoint from any supported tool.

    TransformerBridge's names and `resid_post_layer_9` (dictionary_learning) become TransformerLens' older names;
    `model.layers[9].output[0]` (nnsight) and `.model.layers.9` (Delphi) become module paths.

    Example:
        >>> plain_place("blocks.9.hook_out"), plain_place("resid_post_layer_9")
        ('blocks.9.hook_resid_post', 'blocks.9.hook_resid_post')
        >>> plain_place("model.layers[9].output[0]")
        'model.layers.9.output'
    """
    if old := _OLD.fullmatch(name):
        return f"blocks.{old[2]}.hook_{old[1].replace('attention', 'attn')}"
    name = name.removesuffix(".hook_sae_input")
    if name == "embed.hook_out":
        return "hook_embed"
    if block := re.fullmatch(r"(blocks\.\d+)\.(.+)", name):
        return f"{block[1]}.{_BRIDGE.get(block[2], block[2])}"
    name = re.sub(r"\.(output|input)(\[0\])+$", r".\1", name)
    return re.sub(r"\[(\d+)\]", r".\1", name).removeprefix(".")


class Site(NamedTuple):
    """The location of a hookpoint, parsed from its name.

    Attributes:
        part: `stream`, `mlp`, `attention`, or empty for another part.
        layer: Number of the block; for the stream, of the block that reads it.
    """

    part: str
    layer: int


def site(name: str) -> Site | None:
    """Return the location of a hookpoint from any tool's name for it; None if it cannot be parsed.

    Example:
        >>> site("blocks.9.hook_resid_post") == site("model.layers.9") == site("layers.10.input")
        True
    """
    match = _BLOCK.search(plain_place(name))
    if match is None:
        return None
    layer, rest = int(match[1]), match[2] or ""
    if rest in _STREAM:
        return Site("stream", layer + _STREAM[rest])
    part = next((part for part, pattern in _PARTS.items() if re.match(rf"({pattern})(\.|_out|_in|$)", rest)), "")
    return Site(part, layer)


def block_number(name: str) -> int | None:
    """Return the block number in a hookpoint's name; None if it has none."""
    match = _BLOCK.search(plain_place(name))
    return int(match[1]) if match else None


def certainly_different(first: str, second: str) -> bool:
    """Return whether two names certainly mean different hookpoints: another block, or another part of it."""
    a, b = site(first), site(second)
    if a is None or b is None:
        return False
    if a.part and b.part:
        return a != b
    return not _blocks(a) & _blocks(b)


def _blocks(place: Site) -> set[int]:
    """Return the blocks that a location is in or adjacent to."""
    return {place.layer - 1, place.layer} if place.part == "stream" else {place.layer}


# --- Models ---

_TUNED = ("it", "instruct", "chat", "sft", "dpo", "rlhf", "deduped", "base", "pt")
_GPT2 = {"": "small", "small": "small", "medium": "medium", "large": "large", "xl": "xl"}
_KINDS = {
    "gpt2": r"gpt2", "pythia": r"gpt_neox", "gemma": r"gemma.*", "llama": r"llama.*|mllama.*", "qwen": r"qwen.*",
    "mistral": r"mistral.*|ministral.*",
    "mixtral": r"mixtral", "opt": r"opt", "bloom": r"bloom", "mamba": r".*mamba.*", "gpt-neo": r"gpt_neo",
    "gpt-j": r"gptj", "rwkv": r"rwkv.*",
    "falcon": r"falcon.*", "olmo": r"olmo.*", "smollm": r"llama|smollm3", "tinyllama": r"llama",
    "stablelm": r"stablelm", "gpt-oss": r"gpt_oss",
}  # fmt: skip
_NAMED = re.compile(
    rf"(?:meta-)?(?P<family>{'|'.join(sorted(map(re.escape, _KINDS), key=len, reverse=True))}|phi|deepseek|granite)"
    r"-?(?P<version>v?\d+(?:\.\d+)?(?![\d.]*[mb](?:-|$)))?-?(?P<words>(?:[a-z]+-)*?)"
    r"(?P<size>\d+(?:\.\d+)?[mb])(?:-(?P<rest>.*))?$"
)


class KnownModel(NamedTuple):
    """A model of a known family, parsed from its name.

    Attributes:
        family: The family, with version and kind.
        size: Its size.
        tuned: Kinds of tuning after pretraining.
    """

    family: str
    size: str
    tuned: frozenset[str]


def known_model(name: str) -> KnownModel | None:
    """Parse the name of a model of a known family; return None for other names.

    Example:
        >>> known_model("google/gemma-2-2b") == known_model("gemma-2-2b")
        True
        >>> known_model("google/gemma-2-2b") == known_model("google/gemma-2b")
        False
        >>> known_model("my-model") is None
        True
    """
    short = name.lower().rstrip("/").rpartition("/")[2].replace("_", "-")
    if gpt2 := re.fullmatch(r"(distil)?gpt-?2(?:-(small|medium|large|xl))?", short):
        return KnownModel("distilgpt2" if gpt2[1] else "gpt2", _GPT2[gpt2[2] or ""], frozenset())
    if "distill" in short:
        return None
    match = _NAMED.match(short)
    if match is None:
        return None
    words = set((match["rest"] or "").split("-")) & set(_TUNED)
    words = {"instruct" if word in ("it", "chat") else word for word in words} - {"base", "pt"}
    version = (match["version"] or "").removeprefix("v")
    family = "-".join(part for part in (match["family"], version, match["words"].rstrip("-")) if part)
    return KnownModel(family, match["size"], frozenset(words))


def other_model(made_for: str, used: str, kind: str | None) -> bool:
    """Return whether a coder was certainly trained on another model; unknown names do not conflict.

    Args:
        made_for: The coder's model, as its files name it.
        used: The model of the spec.
        kind: `model_type` of a local model, since its path may have any name; None for others.
    """
    theirs = known_model(made_for)
    if theirs is None:
        return False
    if kind is not None:
        pattern = _KINDS.get(re.sub(r"-[\d.].*$", "", theirs.family))
        return bool(kind) and pattern is not None and re.fullmatch(pattern, kind) is None
    ours = known_model(used)
    return ours is not None and ours[:2] != theirs[:2]


def other_tuning(made_for: str, used: str) -> bool:
    """Return whether two names mean the same model with different tuning."""
    theirs, ours = known_model(made_for), known_model(used)
    return theirs is not None and ours is not None and theirs[:2] == ours[:2] and theirs.tuned != ours.tuned
