"""Checks that a model's files exist and are complete before loading them, reading only their headers."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

from saeval._util import InputError, first_line, os_reason
from saeval.models.facts import json_mapping

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LFS = b"version https://git-lfs"  # pointer that Git checks out in place of a large file if Git LFS is not installed
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files that transformers loads, in its order; an index of several files may replace each."""
_ANY_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json",
    "vocab.bpe",
)  # fmt: skip
_JSON = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "generation_config.json",
)  # fmt: skip
"""Files beside `config.json` that transformers parses."""
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of `torch.save` files, since version 1.6 and before


def check_folder(name: str, folder: Path) -> None:
    """Check that a folder contains a complete model and tokenizer.

    Args:
        name: Name of the model in messages.
        folder: Its folder.

    Raises:
        InputError: If not, with a description of the content.
    """
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            base = json_mapping(folder / "adapter_config.json").get("base_model_name_or_path", "its base model")
            raise InputError(
                f"model {name}: it is a LoRA adapter of {base} (adapter_config.json), not a complete model; merge it "
                "with peft's `merge_and_unload()`, save model and tokenizer in one folder, and give that folder"
            )
        raise InputError(f"model {name}: has no config.json, so it is not a model folder")
    _check_whole(name, folder / "config.json")
    config = json_mapping(folder / "config.json")
    if not config:
        raise InputError(f"model {name}: its config.json cannot be read; copy the folder again")
    if config.get("is_encoder_decoder") is True:
        raise InputError(
            f"model {name} has an encoder and a decoder ({config.get('model_type')}); choose a causal language model"
        )
    for weights in _weights(name, folder, config):
        _check_whole(name, weights)
    if not any((folder / file).exists() for file in _TOKENIZERS) and not any(folder.glob("*.tiktoken")):
        raise InputError(
            f"model {name}: has no tokenizer (no {_TOKENIZERS[0]}); save it there with "
            "`tokenizer.save_pretrained(folder)`"
        )
    for file in sorted({*_JSON, *_TOKENIZERS}):
        if (folder / file).is_file():
            _check_whole(name, folder / file)


def weight_names(folder: Path) -> list[str]:
    """Return the names of the weights in a model folder; empty if the headers of its files do not list them."""
    from safetensors import safe_open

    index = json_mapping(folder / f"{_WEIGHTS[0]}.index.json").get("weight_map")
    if not (folder / _WEIGHTS[0]).exists():
        return list(index) if isinstance(index, dict) else []
    with safe_open(folder / _WEIGHTS[0], framework="np") as tensors:
        return list(tensors.keys())


def _weights(name: str, folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Return the weight files that transformers loads from a folder.

    Raises:
        InputError: If there is none, or a file of an index is missing.
    """
    for file in _WEIGHTS:
        if (folder / file).exists():
            return [folder / file]
        index = folder / f"{file}.index.json"
        if not index.exists():
            continue
        named = json_mapping(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise _damaged(name, index, "it names no weight files")
        files = sorted({str(part) for part in named.values()})
        if missing := [part for part in files if not (folder / part).exists()]:
            raise InputError(
                f"model {name}: missing weight files: {len(missing)} of {len(files)}, such as {missing[0]}; fetch "
                "it again"
            )
        return [folder / part for part in files]
    others = [file for pattern in _ANY_WEIGHTS for file in sorted(folder.glob(pattern))]
    if not others:
        raise InputError(f"model {name}: has no weights ({_WEIGHTS[0]}); fetch it again")
    if "transformers_weights" not in config:  # the setting that names a weight file in the configuration
        there = others[0].name
        way_out = f"give the path of {there} itself" if there.endswith(".gguf") else "save it with `save_pretrained`"
        raise InputError(f"model {name}: contains {there}, but not {' or '.join(_WEIGHTS)}; {way_out}")
    return others


def _check_whole(name: str, file: Path) -> None:
    """Check that the header and length of a file are valid.

    Raises:
        InputError: If the file is damaged or truncated.
    """
    try:
        head = _head(file)
        if head == _LFS:
            raise InputError(f"model {name}: {file.name} is a Git LFS pointer; run `git lfs pull` in its folder")
        if file.suffix == ".safetensors":
            _read_safetensors(file)
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix in (".bin", ".pt", ".pth"):
            _read_saved(file, head)
        elif not head.strip(b"\0"):
            raise ValueError("it is empty")
    except OSError as error:
        raise InputError(f"model {name}: {file.name} cannot be read: {os_reason(error)}") from None
    except (ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise _damaged(name, file, error) from None


def _head(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(len(_LFS))


def _read_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):  # compares the lengths in the header with the file's length
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _read_saved(file: Path, head: bytes) -> None:
    """Read the directory of a `torch.save` archive, and the header of each member."""
    if head.startswith(_ZIP):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                archive.open(member).close()
    elif not head.startswith(_PICKLE):
        raise ValueError("it was not written by torch.save")


def _damaged(name: str, file: Path, why: object) -> InputError:
    line = first_line(why)[:150]
    return InputError(f"model {name}: {file.name} is damaged or cut off ({line}); copy it again")
