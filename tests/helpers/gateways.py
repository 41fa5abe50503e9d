"""Gateways around the clients of a loopback server."""

from __future__ import annotations

import asyncio

import pytest
from saeval_plugins.llms import LiteLLM, OpenAICompatible

from saeval.llm.budget import Budget
from saeval.llm.cache import AnswerCache
from saeval.llm.gateway import Gateway
from saeval.llm.ledger import CallLedger
from saeval.llm.role import Asker, RoleSettings


def gateway(folder, llm, *, limit=None, identity="m", patience=0.0, **settings):
    return Gateway(
        Asker("judge", llm, f"{llm.name}/{llm.model}", RoleSettings(**settings)), identity=identity,
        calls=AnswerCache(folder / "calls.sqlite"), log=CallLedger(folder / "calls.jsonl"), budget=Budget(limit),
        patience=patience,
    )  # fmt: skip


def direct(server, **options):
    return OpenAICompatible(model="m", api_base=server.url, **options)


def through_litellm(server):
    return LiteLLM(model="openai/m", api_base=server.url)


BOTH_DOORS = [direct, pytest.param(through_litellm, marks=pytest.mark.slow)]
"""Clients of a server in OpenAI's format, as parameters of tests."""


def with_key_and_short_waits(monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def ask(gate, *requests, **options):
    """Ask all at once and close; return answers, errors in their place."""

    async def main():
        try:
            return await asyncio.gather(*(gate.complete(r) for r in requests), return_exceptions=True)
        finally:
            await gate._llm.aclose()

    return asyncio.run(main())
