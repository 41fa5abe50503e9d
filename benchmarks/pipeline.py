"""How well a run keeps a slow language model busy: no place should be empty while there is work for it."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.harness import HERE, Bench, Figure
from benchmarks.pipeline_run import PLACES


def measure(bench: Bench) -> list[Figure]:
    """Return the share of the places for calls that are filled, in one process and on Ray."""
    rounds = 1 if bench.quick else bench.rounds
    method = (
        f"sum of all latencies over {PLACES} × the time from the first request to the last answer; six cells × 32 "
        "latents × detection and fuzzing, a loopback server whose latency is lognormal (median 1 s, sigma 0.8)"
    )
    figures = [Figure("pipeline_filled", [_filled(bench, "local") for _ in range(rounds)], "", method, 0.85)]
    if not bench.quick:
        ray = [_filled(bench, "ray") for _ in range(rounds)]
        figures.append(Figure("pipeline_filled_ray", ray, "", f"{method}; two Ray workers", 0.68))
    return figures


def _filled(bench: Bench, executor: str) -> float:
    command = [sys.executable, "-m", "benchmarks.pipeline_server"]
    with subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        bench.saeval("pipeline_run", server.stdout.readline().strip(), executor)
        server.stdin.close()
        told = json.loads(server.stdout.readline())
    return float(told["busy"] / (PLACES * told["span"]))
