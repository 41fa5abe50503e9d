"""Estimates the speed of models on this machine, from their size and the device."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from saeval._util import InputError, measured, rounded
from saeval.models import model_facts, resolved
from saeval.plugin.base import ActivationSource

# FLOP/s of matrix products, and bytes/s of reading weights when generating one token at a time
_CORE, _CORE_BYTES = 6e10, 1e10  # per core in float32: Gemma 3 270M, and an encoder of 131,072 latents, on two cores
_GPU_16, _GPU_32, _GPU_BYTES = 1e14, 1.5e13, 1e12  # assumed for a GPU of 2020 (A100), not measured
_MOST = 50_000.0  # maximum tokens per second written to the store
_SIZE = re.compile(r"(?<![\w.])(?:[a-z]+)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


class Device(NamedTuple):
    """Speed of a device.

    Attributes:
        name: Name of the device.
        flops: FLOP/s in the model's precision.
        flops32: FLOP/s in float32.
        bandwidth: Memory bandwidth in bytes per second.
        bytes: Bytes per weight.
    """

    name: str
    flops: float
    flops32: float
    bandwidth: float
    bytes: int


def device_of(plugin: Any) -> Device:
    """Return the device that a source or a model in process runs on."""
    kind, dtype = resolved(str(getattr(plugin, "device", "auto")), str(getattr(plugin, "dtype", "auto")))
    size = 4 if "32" in dtype else 2
    if kind.startswith("cpu"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        rate = cores * _CORE * (1.0 if size == 4 else 0.4)  # 16 bits are slower without hardware support
        return Device(f"CPU, {cores} cores", rate, cores * _CORE, cores * _CORE_BYTES, size)
    return Device(kind, _GPU_32 if size == 4 else _GPU_16, _GPU_32, _GPU_BYTES, size)


def parameters(model: str) -> float | None:
    """Return the active parameters in a model's blocks, from its files or the size in its name; None if unknown.

    The size in a name includes embeddings, which are most of a small model but little of a large one.
    """
    facts = model_facts(model)
    if facts is not None and facts.parameters is not None:
        return float(facts.parameters)
    found = _SIZE.findall(model.rpartition("/")[2])
    if not found:
        return None
    number, unit = found[0]
    named = float(number) * (1e9 if unit.lower() == "b" else 1e6)
    return named * (0.4 if named < 5e8 else 0.7 if named < 2e9 else 0.9)


class Collecting(NamedTuple):
    """Estimated speed of collecting.

    Attributes:
        first: Seconds per token of a model pass with one coder.
        further: Seconds per token for each further coder in the same pass.
        about: Description of the model and device that the estimate is based on.
    """

    first: float
    further: float
    about: str


def collecting(source: ActivationSource) -> Collecting | None:
    """Estimate the speed of a source; None if the size of its model is unknown."""
    model = getattr(source, "model", None)
    size = parameters(model) if isinstance(model, str) else None
    if size is None:
        return None
    device = device_of(source)
    share, read = _read(source, str(model))
    encode = _encoder(source) * 2 / device.flops32
    first = max(1 / _MOST, 2 * size * share / device.flops + encode)
    pace = measured(rounded(1 / first, 2))
    about = f"{model}, {_short(size)} parameters in its blocks{read}, on {device.name}: ~{pace} tokens per second"
    return Collecting(first, encode, about)


def asking(plugin: Any, fresh: float, given: float) -> float | None:
    """Estimate the seconds that a model in process takes; None if its size is unknown.

    Args:
        plugin: The model's plugin.
        fresh: Number of tokens to read.
        given: Number of tokens to generate.
    """
    size = parameters(str(getattr(plugin, "model", "")))
    if size is None:
        return None
    device = device_of(plugin)
    return (
        fresh * 3 * size / device.flops + given * size * device.bytes / device.bandwidth
    )  # factor 3 instead of 2 includes the output layer


def _read(source: ActivationSource, model: str) -> tuple[float, str]:
    """Return the share of the blocks up to the hookpoint, and a description."""
    facts = model_facts(model)
    place = getattr(source, "hookpoint", None) or _coder(source, "hookpoint")
    block = re.search(r"\d+", str(place or ""))
    if facts is None or not facts.blocks or block is None:
        return 1.0, ""
    run = min(facts.blocks, int(block[0]) + 1)
    return run / facts.blocks, f" ({run} of {facts.blocks} blocks)"


def _encoder(source: ActivationSource) -> float:
    """Return the number of weights in the coder's encoder if known without a download, else 0."""
    made = _coder(source, "made_for")
    width = _coder(source, "width")
    return float((getattr(made, "latents", None) or 0) * (width or 0))


def _coder(source: ActivationSource, what: str) -> Any:
    """Return a fact about a source's coder that is known without a download, else None."""
    ask = getattr(getattr(source, "coder", None), what, None)
    try:
        return None if ask is None else ask(fetch=False) if what == "made_for" else ask()
    except (InputError, OSError):
        return None


def _short(count: float) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
