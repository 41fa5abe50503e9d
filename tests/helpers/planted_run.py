"""Whole runs on planted latents, explained and judged over real HTTP by a server that knows the rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, fake_server

from saeval._run.journal_entries import expanded
from saeval.plugin import Message, Request
from saeval.testing.planted import rule_explainer, rule_judge
from saeval.testing.toys import ScriptedLLM


def answer(model: ScriptedLLM, messages: list[dict[str, str]]) -> str:
    """Run a scripted model's answer to its end outside of any event loop."""
    request = Request(tuple(Message(m["role"], m["content"]) for m in messages))  # type: ignore[arg-type]
    try:
        model.complete(request).send(None)
    except StopIteration as done:
        return str(done.value.text)
    raise AssertionError("a scripted model never waits")


def truthful(messages: list[dict[str, str]]) -> str:
    """Explain or judge truthfully, whichever is asked."""
    model = rule_judge() if messages[-1]["content"].startswith("Explanation:") else rule_explainer()
    return answer(model, messages)


def spec(server: FakeServer, **changes: Any) -> dict[str, Any]:
    """A task on planted latents whose models are the server's."""
    model = {"model": "openai_compatible/rules", "api_base": server.url, "max_tokens": 100, "retries": 1}
    return {
        "saeval": 1, "task": "planted", "version": "1.0",
        "llms": {"explainer": model, "judge": model},
        "source": {"use": "synthetic", "with": {"n_latents": 8, "documents": 60}},
        "latents": {"n": 6, "min_windows": 20},
        "sampler": {"use": "random", "with": {"explain": 10, "score": 20, "non_activating": {"n": 20}}},
        "explainer": "default",
        "scorers": {"detection": {}, "fuzzing": {"when": {"latents": 3}}},
        "baselines": ["shuffled_explanation", "random_explanation", "top_tokens"],
        "measure": ["l0", "frac_alive"],
        **changes,
    }  # fmt: skip


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Keep what is cached meanwhile in a folder of its own, for fixtures that many tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        yield


@contextmanager
def truthful_server() -> Iterator[FakeServer]:
    """Run the server that answers truthfully."""
    with fake_server(truthful) as server:
        yield server


def finished(run: Path) -> dict[str, dict[str, Any]]:
    """Results in a run's journal, by key."""
    lines = (run / "journal.jsonl").read_text().splitlines() if (run / "journal.jsonl").exists() else []
    entries = []
    for line in lines:
        with suppress(ValueError):  # a kill may have cut a line; what it held was done again
            entries.append(json.loads(line.partition(" ")[2]))
    return {entry["key"]: expanded(entry["value"])["result"] for entry in entries}
