"""Divides a Ray cluster's CPUs and GPUs among workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from saeval._util import InputError


class Shares(NamedTuple):
    """Number of workers, and the resources of each.

    Attributes:
        workers: Number of processes.
        cpus: CPUs per worker; Ray also sets the number of threads by it.
        gpus: GPUs per worker; a fraction means that several workers share a GPU.
    """

    workers: int
    cpus: int
    gpus: float


def divide(
    nodes: Sequence[Mapping[str, float]], wanted: int | None, gpus_per_worker: float | None, *, models: bool
) -> Shares:
    """Return the workers of a cluster: one per GPU if workers load models and there are GPUs, else one per CPU.

    Args:
        nodes: `CPU` and `GPU` of each node.
        wanted: Number of workers, if the spec sets it.
        gpus_per_worker: GPUs per worker, if the spec sets it.
        models: Whether workers load models.

    Raises:
        InputError: If the cluster has too few resources for the workers.
    """
    nodes = [node for node in nodes if node.get("CPU")]
    if not nodes:
        raise InputError("run.executor: the Ray cluster has no node with a CPU")
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus_per_worker is not None or (models and with_gpus):
        return _by_gpus(with_gpus, wanted, gpus_per_worker)
    workers = wanted or int(sum(node["CPU"] for node in nodes))
    gpus = sum(int(node["GPU"]) for node in with_gpus)
    return Shares(workers, _cpus(nodes, workers), _each(gpus, workers))


def _by_gpus(nodes: Sequence[Mapping[str, float]], wanted: int | None, each: float | None) -> Shares:
    gpus = sum(int(node["GPU"]) for node in nodes)
    if each is None and wanted is not None:
        each = min(_each(gpus, wanted), min(int(node["GPU"]) for node in nodes))
        if each >= 1:  # use all GPUs, but a worker cannot span nodes
            each = max(n for n in range(1, int(each) + 1) if _room(nodes, n) >= wanted)
    each = 1.0 if each is None else float(each)
    room = _room(nodes, each)
    workers = room if wanted is None else wanted
    if not 0 < workers <= room:
        have = ", ".join(f"{node['GPU']:g}" for node in nodes) or "0"
        raise InputError(
            f"run.gpus_per_worker: {max(workers, 1)} workers with {each:g} GPUs each do not fit a Ray cluster whose "
            f"nodes have {have} GPUs; set run.gpus_per_worker or run.workers lower"
        )
    return Shares(workers, _cpus(nodes, workers), each)


def _room(nodes: Sequence[Mapping[str, float]], each: float) -> int:
    """Return the number of workers that fit, each on one node."""
    if each < 1:
        return sum(int(node["GPU"]) for node in nodes) * math.floor(1 / each + 1e-9)
    return sum(int(node["GPU"]) // int(each) for node in nodes)


def _each(gpus: int, workers: int) -> float:
    """Return the GPUs per worker such that all workers fit: a whole number, or an equal fraction of one."""
    return float(gpus // workers) if gpus >= workers else 1 / math.ceil(workers / gpus) if gpus else 0.0


def _cpus(nodes: Sequence[Mapping[str, float]], workers: int) -> int:
    return max(1, int(min(node["CPU"] for node in nodes)) // -(-workers // len(nodes)))
