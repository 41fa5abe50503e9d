"""Servers say in many ways how long to wait, and are waited for as long as a run has patience."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from fake_server import error, fake_server
from gateways import ask, direct, gateway, through_litellm
from planted_run import spec, truthful_server
from saeval_plugins.llms.retry_after import wait_asked_for

import saeval
from saeval.plugin import Request

SMALL = {"latents": {"n": 2, "min_windows": 20}, "baselines": [], "scorers": {"detection": {}}}


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "25"}, "", 25), ({"retry-after-ms": "2500"}, "", 2.5), ({"x-ratelimit-reset-requests": "6m0s"}, "", 360),
        ({"x-ratelimit-reset-requests": "1h", "x-ratelimit-reset-tokens": "5s", "x-ratelimit-remaining-tokens": "0"}, "", 5),
        ({"RateLimit-Reset": "12"}, "", 12), ({}, "Rate limit reached. Please try again in 1m30.5s.", 90.5),
        ({}, "please retry after 20 seconds", 20), ({}, '{"details": [{"retryDelay": "34s"}]}', 34),
        ({}, '{"error": "Model m is currently loading", "estimated_time": 20.5}', 20.5), ({}, '{"retry_after_ms": 1500}', 1.5),
        ({}, "Try again in 250ms", 0.25), ({"Retry-After": "soon"}, "", None), ({}, "slow down", None), ({}, "", None),
    ],
)  # fmt: skip
def test_wait_is_found_wherever_a_server_says_it(headers, body, seconds):
    assert wait_asked_for(headers, body) == seconds


def test_dates_and_times_since_1970_are_waits():
    assert 8 < wait_asked_for({"x-ratelimit-reset": str(time.time() + 10)}) <= 10
    assert wait_asked_for({"anthropic-ratelimit-requests-reset": "2099-01-01T00:00:00Z"}) > 1e9
    assert wait_asked_for({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


USUAL = {
    "x-ratelimit-limit-requests": "14400", "x-ratelimit-remaining-requests": "13000", "x-ratelimit-reset-requests": "2h20m0s",
    "x-ratelimit-remaining-tokens": "17000", "x-ratelimit-reset-tokens": "12ms",
}  # fmt: skip
"""Headers of every reply of some servers."""


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (500, USUAL, None), (502, {"ratelimit-reset": "60", "ratelimit-remaining": "4"}, None), (503, USUAL, None),
        (529, {"anthropic-ratelimit-tokens-reset": "40s"}, None), (None, USUAL, None), (400, {"x-ratelimit-reset": "7"}, None),
        (429, {"x-ratelimit-reset-requests": "7s"}, 7), (500, {**USUAL, "x-ratelimit-remaining-tokens": "0"}, 0.012),
        (503, {"ratelimit-reset": "60", "ratelimit-remaining": "0"}, 60), (500, {**USUAL, "Retry-After": "3"}, 3),
        (503, {"x-ratelimit-remaining": "0", "x-ratelimit-reset-tokens": "9s"}, 9),
        (500, {"x-ratelimit-remaining": "0", "x-ratelimit-reset-tokens": "9s"}, None),
        (500, {"x-ratelimit-remaining": "-1", "x-ratelimit-reset": "9"}, None),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9", "x-ratelimit-reset-tokens": "1h"}, 9),
    ],
)  # fmt: skip
def test_reset_of_a_limit_is_a_wait_only_where_the_limit_can_be_the_reason(status, headers, seconds):
    assert wait_asked_for(headers, "", status) == seconds


def test_date_beyond_all_calendars_is_no_wait():
    assert wait_asked_for({"Retry-After": "Mon, 1 Jan 99999999999 00:00:00 GMT"}) is None


@pytest.mark.parametrize("client", [direct, pytest.param(through_litellm, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reset", ["2h20m0s", "8ms"])
@pytest.mark.parametrize("status", [500, 502])
def test_server_error_with_the_usual_headers_is_retried_as_one_without(tmp_path, monkeypatch, client, reset, status):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    fault = error(status, "The server had an error", headers={**USUAL, "x-ratelimit-reset-requests": reset})
    with fake_server("fine") as server:
        gate = gateway(tmp_path, client(server), retries=2)
        gate._patience = 60
        server.faults = [fault]
        assert ask(gate, Request.of("once"))[0].text == "fine"
        server.always, server.calls = fault, []
        (failed,) = ask(gate, Request.of("always"))
        assert isinstance(failed, saeval.LLMError) and not failed.busy and failed.retry_after is None
        assert len(server.calls) == 3


@pytest.mark.parametrize("client", [direct, pytest.param(through_litellm, marks=pytest.mark.slow)])
def test_limit_that_is_used_up_is_waited_for_with_any_status(tmp_path, monkeypatch, client):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}
    with fake_server("fine") as server:
        gate = gateway(tmp_path, client(server), retries=0)
        gate._patience = 30
        server.faults = [error(status, headers=headers) for status in (429, 500, 503)]
        assert ask(gate, Request.of("x"))[0].text == "fine"
        assert len(server.calls) == 4


@pytest.mark.parametrize("fault", [error(429, "slow down"), error(503, "Loading model"), error(529)])
@pytest.mark.parametrize("patience", [30, 0])
def test_server_that_asks_for_time_is_waited_for_within_the_runs_patience(tmp_path, monkeypatch, fault, patience):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    asked = Counter()

    def choose(request, _):
        asked[str(request["messages"])] += 1
        return fault if asked[str(request["messages"])] <= 4 else None

    with truthful_server() as server:
        server.chooses = choose
        result = saeval.run(spec(server, **SMALL, run={"patience": patience}), out=tmp_path / "run")
        assert result.cells[0].scores[0].n == (2 if patience else 0)
        assert max(asked.values()) == (5 if patience else 2)


@pytest.mark.parametrize("status", [413, 422, 424, 400])
def test_call_that_failed_costs_its_latent_whatever_the_status(tmp_path, monkeypatch, status):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    chosen = []

    def choose(request, _):
        prompt = request["messages"][-1]["content"]
        if prompt.startswith("Explanation:") and not chosen:
            chosen.append(prompt)
        return error(status, "maximum context length is 4096 tokens") if prompt in chosen else None

    with truthful_server() as server:
        server.chooses = choose
        row = saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0]
        assert (row.n, row.failed) == (1, 1)
        server.chooses = lambda request, _: None
        row = saeval.run(spec(server, **SMALL), out=tmp_path / "run", retry="failed").cells[0].scores[0]
        assert (row.n, row.failed, row.value) == (2, 0, 1.0)


@pytest.mark.parametrize("status", [520, 522, 524, 501, 598])
def test_every_server_error_that_passes_changes_nothing(tmp_path, monkeypatch, status):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    seen = set()

    def choose(request, _):
        key = str(request["messages"])
        first = key not in seen
        seen.add(key)
        return error(status, "<html>") if first else None

    with truthful_server() as server:
        server.chooses = choose
        row = saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0]
    assert (row.n, row.failed, row.value) == (2, 0, 1.0)


BUSY = error(503, "Loading model", headers={"Retry-After": "0.1"})


def test_time_in_the_queue_of_a_role_uses_up_no_patience(tmp_path, monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    asked = Counter()

    def choose(request, _):
        prompt = request["messages"][-1]["content"]
        asked[prompt] += 1
        return BUSY if prompt == "last" and asked[prompt] <= 4 else None

    with fake_server("yes") as server:
        server.delay, server.chooses = 0.12, choose
        gate = gateway(tmp_path, direct(server), patience=1.0, concurrency=1, retries=0)
        replies = ask(gate, *(Request.of(f"{i}") for i in range(12)), Request.of("last"))
    assert [reply.text for reply in replies] == ["yes"] * 13
    assert asked["last"] == 5


def test_outage_shorter_than_patience_fails_no_call_however_many_are_queued(tmp_path, monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    outage = []

    def choose(_, number):
        if number < 20:
            return None
        outage.append(time.monotonic())
        return BUSY if outage[-1] - outage[0] < 0.7 else None

    with fake_server("yes") as server:
        server.delay, server.chooses = 0.05, choose
        gate = gateway(tmp_path, direct(server), patience=1.2, concurrency=1, retries=0)
        replies = ask(gate, *(Request.of(f"{i}") for i in range(60)))
    assert [getattr(reply, "text", reply) for reply in replies] == ["yes"] * 60


def test_outage_longer_than_patience_fails_the_call_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    with fake_server() as server:
        server.always = BUSY
        began = time.monotonic()
        (failed,) = ask(gateway(tmp_path, direct(server), patience=0.5, retries=0), Request.of("x"))
    assert "status 503" in str(failed)
    assert 0.3 < time.monotonic() - began < 3


@pytest.mark.parametrize("asked", ["0", "0.001", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_server_that_asks_for_no_time_is_asked_less_and_less_often(tmp_path, monkeypatch, asked):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.05)
    with fake_server() as server:
        server.always = error(429, headers={"Retry-After": asked})
        failed = ask(gateway(tmp_path, direct(server), patience=0.6, retries=0), Request.of("x"))[0]
        assert isinstance(failed, saeval.LLMError) and failed.busy
        assert 3 <= len(server.calls) <= 7  # at intervals that are equal on average, about 25
