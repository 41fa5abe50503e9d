"""Loads models from files and the hub with transformers, and explains failures."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._util import PREFIX, InputError, asset_check, asset_path, counted, first_line, free_memory
from saeval.models.facts import json_mapping, local_model
from saeval.models.gguf import check_gguf, fast_gguf
from saeval.models.model_files import check_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS = (".safetensors", ".bin", ".gguf")
"""Suffixes of files with a model's weights."""
SPREAD = "balanced"
"""Device name for a model distributed over all GPUs."""
LOADING = threading.Lock()
"""Lock to hold while transformers builds a model, of whatever kind, in any thread.

It builds models without memory, in another default dtype and without tying weights, by changing torch and its own
classes for the whole process. Of two models that are built at once, one may keep weights without values.
"""
_SIGNS_OF_A_GPU = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/proc/driver/nvidia")


def resolved(device: str, dtype: str) -> tuple[str, str]:
    """Return the device and precision that `auto` means on this machine.

    Imports torch only if the system may have a GPU, so that cache keys can be computed quickly.

    Args:
        device: Torch device, `auto` or `balanced`.
        dtype: Precision, or `auto`: bfloat16 on a GPU, float32 elsewhere.
    """
    if "auto" not in (device, dtype):
        return device, dtype
    gpu = _has_gpu()
    device = ("cuda" if gpu else "cpu") if device == "auto" else device
    if dtype == "auto":
        dtype = "bfloat16" if gpu and not device.startswith("cpu") else "float32"
    return device, dtype


def _has_gpu() -> bool:
    if sys.platform == "linux" and "torch" not in sys.modules and not any(map(os.path.exists, _SIGNS_OF_A_GPU)):
        return False
    import torch

    return torch.cuda.is_available()


def check_model(name: str) -> None:
    """Check that a packaged or local model exists; hub ids are not checked.

    Raises:
        InputError: If not.
    """
    if name.startswith(PREFIX):
        asset_check(name)
    elif (path := local_model(name)) is not None:
        if not path.exists():
            raise InputError(f"model {name}: no such file or folder")
        if path.is_dir():
            check_folder(name, path)
        elif path.suffix == ".gguf":
            check_gguf(path)
        else:
            raise InputError(f"model {name}: is a file; give the folder that contains it, or a .gguf file")
    elif "://" in name:
        raise InputError(
            f"model {name} is an address; give the name on the Hugging Face hub, such as google/gemma-3-270m"
        )


def check_room(name: str, revision: str | None, device: str, dtype: Any) -> None:
    """Check that a model can be loaded without a download, and that its weights fit into the free memory.

    Args:
        name: Hub id, model directory, `.gguf` file, or `package:NAME` of a packaged model, which always fits.
        revision: Revision of the hub id.
        device: Torch device; a distributed model goes from the disk to the GPUs and needs no memory beside them.
        dtype: Torch dtype of its weights in memory.

    Raises:
        InputError: If not.
    """
    if name.startswith(PREFIX):
        return
    path = local_model(name) or _downloaded(name, revision)
    files = [] if path is None else [path] if path.is_file() else list(path.iterdir())
    sizes: Counter[str] = Counter()
    for file in files:
        if file.suffix in WEIGHTS:
            sizes[file.suffix] += file.stat().st_size
    if path is None or not sizes:
        raise InputError(f"model {name} is not on this machine")
    ((suffix, size),) = sizes.most_common(1)  # a folder may contain the same weights in several formats
    config = json_mapping(path / "config.json")
    single = "float32" in (config.get("dtype"), config.get("torch_dtype"))
    stored = 0.5 if suffix == ".gguf" else 4 if single else 2  # bytes per weight
    needed, free = size / stored * dtype.itemsize, free_memory()
    if device != SPREAD and free is not None and needed > free:
        raise InputError(f"model {name} needs {needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free")


def _downloaded(name: str, revision: str | None) -> Path | None:
    """Return the folder of a hub id in the hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # neither a path nor a valid name; `load_model` explains it
        found = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(found).parent if isinstance(found, str) else None
    return None


def load_model(name: str, revision: str | None, device: str, dtype: Any) -> tuple[Any, Any, bool]:
    """Return a causal language model in evaluation mode, its tokenizer, and whether it has a head; hold `LOADING`.

    Code from a model's repository is never run.

    Args:
        name: Hub id, model directory, `.gguf` file, or `package:NAME` of a packaged model.
        revision: Revision of the hub id.
        device: Torch device, or `balanced` to distribute the model over all GPUs (requires the package accelerate).
        dtype: Torch dtype of its weights.

    Raises:
        InputError: If the model cannot be found or read.
    """
    check_model(name)
    spread = device if device == SPREAD else None
    if spread and find_spec("accelerate") is None:
        raise InputError("`device: balanced` needs the package accelerate: pip install accelerate")
    path = asset_path(name) if name.startswith(PREFIX) else local_model(name)
    try:
        with _quiet():
            if path is not None and path.is_file():
                with fast_gguf(path):
                    model, tokenizer, missing = _from_pretrained(path.parent, dtype, spread, gguf_file=path.name)
            else:
                model, tokenizer, missing = _from_pretrained(path or name, dtype, spread, revision=revision)
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds of exceptions
        raise InputError(f"model {name} {_reason(error, local=path is not None)}") from error
    lacks_head = bool(missing) and _head(model).issuperset(missing)  # activations do not need a head
    if missing and not lacks_head:
        some = ", ".join(sorted(missing)[:3])
        raise InputError(f"model {name}: its files lack {counted(len(missing), 'weight')} ({some} …); fetch it again")
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0  # RWKV would halve its residual stream every few blocks
    try:
        model = model.eval().requires_grad_(False)
        model = model if spread else model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"model {name} cannot be put on the device {device!r}: {first_line(error):.200}") from error
    return model, tokenizer, not lacks_head


def _from_pretrained(
    place: str | Path, dtype: Any, device_map: str | None, **options: Any
) -> tuple[Any, Any, list[str]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    model, info = AutoModelForCausalLM.from_pretrained(
        place, dtype=dtype, device_map=device_map, trust_remote_code=False, output_loading_info=True, **options
    )
    return model, tokenizer, list(info["missing_keys"])


def _head(model: Any) -> set[str]:
    """Return the names of the weights of the model's unembedding."""
    head = model.get_output_embeddings()
    names = {path: module for path, module in model.named_modules() if module is head}
    return {f"{path}.{name}" for path in names for name, _ in head.named_parameters()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars and warnings, which concern other uses of models."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


_HUB_REASONS = {
    "GatedRepoError": "is gated: accept its terms on its Hugging Face page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "is not on the Hugging Face hub; check its name, or log in (`hf auth login`) if private",
    "HFValidationError": "is neither a folder nor a valid name on the Hugging Face hub, such as google/gemma-3-270m",
    "RevisionNotFoundError": "has no such revision on the Hugging Face hub",
    "LocalEntryNotFoundError": "is not on this machine, and the Hugging Face hub cannot be reached; connect (and unset "
    "HF_HUB_OFFLINE), or give the path of a model folder or .gguf file",
}
"""Why a model could not be loaded from the hub, by the exceptions in the chain."""


def _reason(error: Exception, *, local: bool) -> str:
    """Return the reason why a model could not be loaded, with the remedy."""
    if "trust_remote_code" in str(error):
        return "requires code from its repository, which saeval does not run; choose a model that transformers supports"
    if local:
        return (
            f"cannot be read ({type(error).__name__}: {first_line(error):.200}); is it complete, and a causal language "
            f"model?"
        )
    kinds: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    known = (text for kind, text in _HUB_REASONS.items() if kind in kinds)
    return next(known, f"cannot be loaded ({type(error).__name__}: {first_line(error):.200})")
