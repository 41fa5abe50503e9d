"""How fast saeval asks language models over HTTP, against clients without its promises, and how it finds a server's
limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from benchmarks.harness import HERE, Bench, Figure

_LATENCY = 0.05
_SERVER = "a loopback server in its own process, which answers after 50 ms"
_LIMIT = 40
_MADE = "conversations of 3.7 kB, all different; connections are open already"


def measure(bench: Bench) -> list[Figure]:
    """Return requests a second as shares of what other clients reach, and the share of a server's limit that is
    used."""
    with _server(_LATENCY) as url:
        return [*_direct(bench, url), *_litellm(bench, url), *_adaptive(bench)]


@contextmanager
def _server(*arguments: object) -> Iterator[str]:
    """Run the server for as long as the block lasts, and lend its address."""
    command = [sys.executable, "-m", "benchmarks.call_server", *map(str, arguments)]
    with subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


def _asked(bench: Bench, url: str, requests: int, in_flight: int, *sides: str) -> dict[str, list[Mapping[str, float]]]:
    """Have the sides take turns; return what each round measured, by side."""
    found: dict[str, list[Mapping[str, float]]] = {side: [] for side in sides}
    for _ in range(bench.rounds):
        for side in sides:
            found[side].append(bench.saeval("call_client", side, url, requests, in_flight))
    return found


def _share(
    name: str, found: Mapping[str, list[Mapping[str, float]]], ours: str, theirs: str, method: str, target: float | None
) -> Figure:
    """Return requests a second of one side divided by the other's, with both sides' CPU time."""
    values = [a["per_second"] / b["per_second"] for a, b in zip(found[ours], found[theirs], strict=True)]
    sides = {f"{side}, requests/s": [round_["per_second"] for round_ in found[side]] for side in (ours, theirs)}
    sides |= {f"{side}, CPU ms/request": [round_["cpu_ms"] for round_ in found[side]] for side in (ours, theirs)}
    return Figure(name, values, "×", method, target, sides=sides)


def _direct(bench: Bench, url: str) -> list[Figure]:
    figures = []
    for in_flight in (64, 256):
        found = _asked(bench, url, 40 * in_flight, in_flight, "aiohttp", "gateway")
        method = (
            "wall-clock requests/s of the gateway over `openai_compatible`, answers and ledger on disk, over those "
            f"of a bare aiohttp client; {in_flight} in flight, {_SERVER}; {_MADE}"
        )
        figures.append(_share(f"gateway_vs_aiohttp_{in_flight}", found, "gateway", "aiohttp", method, 0.8))
    lower = min(figures, key=lambda figure: figure.median)
    return [Figure("gateway_vs_aiohttp", lower.values, "×", "the lower of the two below", 0.8), *figures]


def _litellm(bench: Bench, url: str) -> list[Figure]:
    found = _asked(bench, url, 600, 50, "litellm", "gateway_litellm", "gateway_2_processes")
    method = (
        f"wall-clock requests/s of the gateway over `litellm` in one process, over those of `litellm.acompletion`; "
        f"50 in flight, {_SERVER}; {_MADE}"
    )
    more = (
        "the same of the gateway with `processes: 2`, over that with one; it needs two idle cores besides the server's"
    )
    return [
        _share("litellm_vs_bare", found, "gateway_litellm", "litellm", method, 0.95),
        _share("litellm_2_processes", found, "gateway_2_processes", "gateway_litellm", more, None),
    ]


def _adaptive(bench: Bench) -> list[Figure]:
    latency, requests, turns = 0.2, *((3000, 1) if bench.quick else (6000, bench.rounds))
    figures = []
    for name, what, arguments in (
        ("adaptive_refusing", "refuses calls above 40 in flight with status 429", (latency, _LIMIT)),
        ("adaptive_queueing", "works on 40 calls at once, queues the others", (latency, "inf", _LIMIT)),
    ):
        with _server(*arguments) as url:
            rounds = [bench.saeval("call_client", "gateway_auto", url, requests, 400) for _ in range(turns)]
        rates = [found["per_second"] for found in rounds]
        values = [rate / (_LIMIT / latency) for rate in rates]
        method = (
            f"requests/s of the gateway with `concurrency: auto`, which starts at 8, over the first {requests:,} "
            f"requests, as a share of the maximum of a server that {what} and answers after 200 ms (200 per second)"
        )
        figures.append(Figure(name, values, "×", method, 0.8, sides={"gateway, requests/s": rates}))
    return figures
