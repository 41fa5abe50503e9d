"""Recognises the tool that wrote a folder of coder files."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_MOST = 5  # names that a message lists


def what_is(folder: Path, format_: str) -> str:
    """Describe what a folder contains and what to do, for the message that it has no coder of the expected format.

    Args:
        folder: The folder, which may not exist.
        format_: Name of the coder plugin that should read it.
    """
    if folder.is_file():
        return _of_file(folder, format_)
    if not folder.is_dir():
        return "no such folder"
    other = _maker(folder)
    if other and other[0] == format_:
        return f"check that {format_} saved it and that all files were copied"
    if other and other[0]:
        return f"it contains {other[1]}: write `use: {other[0]}`"
    if other and not other[0]:
        return f"it contains {other[1]}"
    inside = sorted(child.name for child in folder.iterdir() if child.is_dir() and _maker(child))
    deeper = [] if inside else _deeper(folder)
    if inside or deeper:
        shown = ", ".join((inside or deeper)[:_MOST]) + (" …" if len(inside or deeper) > _MOST else "")
        return f"its subfolders contain coders: name one of them ({shown})"
    there = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    return f"it contains {', '.join(there[:_MOST]) + (' …' if len(there) > _MOST else '')}" if there else "it is empty"


def _of_file(file: Path, format_: str) -> str:
    maker = _maker(file.parent)
    if maker and maker[0] == format_:
        return f"it is a file; set `path` to its folder, {file.parent}"
    if maker:
        return f"it is a file in a folder with {maker[1]}" + (f": write `use: {maker[0]}`" if maker[0] else "")
    if re.fullmatch(r"ae_\d+\.pt", file.name):
        return (
            "it is a training checkpoint of dictionary_learning; copy it as ae.pt into a folder with the "
            "run's config.json"
        )
    return (
        f"it is a single file ({_shape(file)}), and {format_} reads folders; convert it, or set `path` to a folder "
        f"that {format_} saved"
    )


def _maker(folder: Path) -> tuple[str, str] | None:
    """Return the plugin that reads a folder's content (empty if none does) and a description of it; None if unknown."""
    names = {child.name for child in folder.iterdir() if child.is_file()}
    if "sae_weights.safetensors" in names:
        return "sae_lens", "an SAE of sae-lens"
    if "sae.safetensors" in names:
        return "sparsify", "a coder of sparsify"
    if "ae.pt" in names:
        return "dictionary_learning", "an SAE of dictionary_learning"
    if names & {"params.npz", "params.safetensors"}:
        return "gemma_scope", "a coder of Gemma Scope"
    config = _json(folder / "config.json")
    if "adapter_config.json" in names:
        return "", "a LoRA adapter, not a coder"
    if "model_type" in config or "architectures" in config:
        return "", "a language model, not a coder: name it under `model`"
    if "hyperparams.json" in names:
        return (
            "",
            "a coder in Llama Scope's own format; load it through sae-lens (`use: sae_lens` with release and sae_id)",
        )
    if any(name.startswith("layer_") and name.endswith(".safetensors") for name in names) and "config.yaml" in names:
        return (
            "",
            "transcoders of circuit-tracer, one file per layer; load them through sae-lens (`use: sae_lens` with "
            "release and sae_id)",
        )
    if any(name.endswith(".sae.pt") for name in names):
        return "", "files of Qwen Scope; load them through sae-lens (`use: sae_lens` with release and sae_id)"
    return None


def _deeper(folder: Path) -> list[str]:
    """Return folders two levels down that contain coders, as sweeps over settings and seeds create them."""
    children = (child for child in sorted(folder.iterdir()) if child.is_dir())
    return [
        f"{child.name}/{below.name}"
        for child in children
        for below in sorted(child.iterdir())
        if below.is_dir() and _maker(below)
    ]


def _shape(file: Path) -> str:
    return f"{file.stat().st_size / 2**20:.1f} MB of {file.suffix or 'no suffix'}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
