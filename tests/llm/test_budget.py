"""The spending limit holds with many calls in flight, names what was spent, and slows or blocks no other call."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from click.testing import CliRunner
from fake_server import body as body_of, content, error, fake_server
from gateways import ask, direct, gateway
from planted_run import spec, truthful_server

import saeval
from saeval import BudgetExceeded
from saeval.cli.group import main
from saeval.llm.budget import Budget
from saeval.plugin import Request, Usage

CENT = {"usd_per_million_input": 100.0, "usd_per_million_output": 0.0}  # a call of the fake server takes 100 tokens


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)


def requests(n):
    return [Request.of(f"question {i}") for i in range(n)]


@pytest.mark.parametrize("concurrency", [1, 7, 200, "auto"])
@pytest.mark.parametrize("limit", [0.05, 0.123])
def test_limit_is_exceeded_by_a_call_at_most_whatever_the_concurrency(tmp_path, concurrency, limit):
    with fake_server() as server:
        server.delay = 0.05
        gate = gateway(tmp_path, direct(server), limit=limit, concurrency=concurrency, **CENT)
        replies = ask(gate, *requests(150))
    stopped = {str(reply) for reply in replies if isinstance(reply, BudgetExceeded)}
    assert limit <= server.answered * 0.01 < limit + 0.01 + 1e-9
    assert sum(not isinstance(reply, Exception) for reply in replies) == server.answered
    assert stopped == {
        f"${server.answered * 0.01:.4f} spent of ${limit:.4f} allowed; rerun with a higher --max-cost to resume"
    }
    assert gate._log.spent() == pytest.approx(server.answered * 0.01)


DOLLARS_PER_TOKEN = 1e-4
PER_TOKEN = {"usd_per_million_input": 0.0, "usd_per_million_output": 1e6 * DOLLARS_PER_TOKEN}


def answered_with(tokens):
    """A server's choice of answers by the number of tokens that a request and its place give it."""

    def chooses(body, number):
        given = tokens(body["max_tokens"], number)
        reason = "length" if given == body["max_tokens"] else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": reason}
        usage = {"prompt_tokens": 10, "completion_tokens": given, "total_tokens": 10 + given}

        async def late(request):
            await asyncio.sleep(0.05)
            head = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
            return body_of(json.dumps({**head, "choices": [choice], "usage": usage}))(request)

        return late

    return chooses


@pytest.mark.parametrize(
    ("tokens", "settings", "over"),
    [
        (lambda most, number: 1 if number <= 60 else most - 1, {"max_tokens": 500}, 500),
        (lambda most, number: most if most == 10 else 900, {"max_tokens": 10, "max_tokens_if_cut": 1000}, 1000),
        (lambda most, number: 1 if number <= 4 else 1000, {"max_tokens": 256}, 8 * 1000),
    ],
    ids=["cheap first calls", "raised token limits", "server that ignores token limits"],
)
def test_limit_holds_although_later_calls_cost_a_thousand_times_the_first(tmp_path, tokens, settings, over):
    with fake_server() as server:
        server.chooses = answered_with(tokens)
        gate = gateway(tmp_path, direct(server), limit=0.5, concurrency=100, **settings, **PER_TOKEN)
        replies = ask(gate, *requests(200))
    assert any(isinstance(reply, BudgetExceeded) for reply in replies)
    assert 0.5 <= gate._log.spent() <= 0.5 + over * DOLLARS_PER_TOKEN


def test_run_with_many_calls_in_flight_stops_at_its_limit_and_names_what_it_spent(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        server.delay = 0.2
        task = spec(server)
        task["llms"] = {role: {**model, **CENT, "concurrency": 100} for role, model in task["llms"].items()}
        with pytest.raises(BudgetExceeded, match=r"^\$0.1[0-9]00 spent of \$0.1000 allowed") as stopped:
            saeval.run(task, out=tmp_path / "run", max_cost=0.1)
        spent = sum(row.usd for row in saeval.read(tmp_path / "run").ledger)
        assert server.answered == round(spent * 100) <= 10 + 1
        assert f"${spent:.4f} spent" in str(stopped.value)
        result = saeval.run(task, out=tmp_path / "run", max_cost=100)
    assert not result.partial


def test_limit_of_a_group_is_named_whole_and_includes_what_all_its_tasks_spent(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        task = spec(server, scorers={"detection": {}})
        task["llms"] = {role: {**model, **CENT} for role, model in task["llms"].items()}
        alone = sum(row.usd for row in saeval.run(task, out=tmp_path / "alone").ledger)
        for name in ("one", "two", "three"):
            task["source"]["with"]["seed"] = len(name)  # other latents, so that no answer is in the cache
            (tmp_path / f"{name}.yaml").write_text(json.dumps({**task, "task": name, "run": {"seed": len(name)}}))
        (tmp_path / "all.yaml").write_text("{saeval: 1, group: all, tasks: [./one.yaml, ./three.yaml, ./two.yaml]}")
        limit = round(1.5 * alone, 2)
        command = ["run", str(tmp_path / "all.yaml"), "--out", str(tmp_path / "out"), "--max-cost", str(limit)]
        said = CliRunner().invoke(main, command)
    runs = [saeval.read(tmp_path / "out" / name) for name in ("one", "three")]
    spent = sum(row.usd for run in runs for row in run.ledger)
    assert f"${spent:.4f} spent of ${limit:.4f} allowed" in said.output and spent <= limit + 0.02
    assert [run.partial for run in runs] == [False, True] and not (tmp_path / "out" / "two").exists()


def test_calls_that_cost_nothing_or_have_no_limit_are_all_in_flight_at_once(tmp_path):
    free = {"usd_per_million_input": 0.0, "usd_per_million_output": 0.0}
    for name, options in (("free", {"limit": 1.0, **free}), ("no limit", CENT)):
        (tmp_path / name).mkdir()
        with fake_server() as server:
            server.delay = 0.3
            ask(gateway(tmp_path / name, direct(server), concurrency=40, **options), *requests(40))
            assert server.most_in_flight == 40


def test_unknown_price_slows_no_call_but_the_first(tmp_path):
    with fake_server() as server:
        server.delay = 0.1
        gate = gateway(tmp_path, direct(server), limit=1.0, concurrency=40)
        ask(gate, *requests(60))
        assert server.most_in_flight == 40


def test_limit_far_away_slows_no_call_but_the_first(tmp_path):
    with fake_server() as server:
        server.delay = 0.1
        replies = ask(gateway(tmp_path, direct(server), limit=50.0, concurrency=40, **CENT), *requests(100))
        assert server.most_in_flight == 40 and not any(isinstance(reply, Exception) for reply in replies)


def test_calls_that_fail_make_room_for_others(tmp_path):
    with fake_server() as server:
        server.chooses = lambda _, number: error(503) if number % 3 else None
        gate = gateway(tmp_path, direct(server), limit=0.2, concurrency=50, retries=30, **CENT)
        replies = ask(gate, *requests(60))
    assert sum(isinstance(reply, BudgetExceeded) for reply in replies) == 40
    assert gate._caller._budget.spent == pytest.approx(0.2)


def test_attempts_that_are_billed_without_an_answer_count(tmp_path):
    with fake_server() as server:
        server.always = content("")
        gate = gateway(tmp_path, direct(server), limit=0.1, concurrency=50, retries=3, **CENT)
        ask(gate, *requests(40))
        assert len(server.calls) in (10, 11)


def test_cancelled_calls_make_room_for_others(tmp_path):
    async def main(gate):
        try:
            first = [asyncio.ensure_future(gate.complete(request)) for request in requests(30)]
            await asyncio.sleep(0.05)  # four are in flight, the others wait
            for call in first:
                call.cancel()
            others = (gate.complete(Request.of(f"other {i}")) for i in range(5))
            return await asyncio.wait_for(asyncio.gather(*others), 5)
        finally:
            await gate.finish()
            await gate._llm.aclose()

    with fake_server("yes") as server:
        server.delay = 0.2
        replies = asyncio.run(main(gateway(tmp_path, direct(server), limit=0.12, concurrency=30, **CENT)))
        assert [reply.text for reply in replies] == ["yes"] * 5
        assert server.answered == 9


def test_roles_share_the_limit_and_none_waits_for_the_first_price_of_another():
    async def main():
        budget = Budget(1.0)
        slow, quick = budget.role(), budget.role()
        for _ in range(4):
            await slow.enter()
        waiting = asyncio.ensure_future(slow.enter())
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.wait_for(quick.enter(), 1)  # every role may have one
        budget.add(Usage(usd=0.18), "m")
        quick.add(Usage(usd=0.18))
        quick.leave()
        others = [asyncio.ensure_future(quick.enter()) for _ in range(2)]
        await asyncio.sleep(0)
        assert [call.done() for call in others] == [False, False]  # four calls in flight may cost 0.72
        slow.leave()  # failed, and cost nothing
        await asyncio.sleep(0)
        assert (waiting.done(), [call.done() for call in others]) == (True, [False, False])
        for _ in range(2):
            slow.leave()
        await asyncio.sleep(0)
        assert [call.done() for call in others] == [True, True]

    asyncio.run(main())


def test_workers_that_share_a_limit_do_not_each_spend_the_whole():
    workers, price = 4, 0.01
    budgets = [Budget(1.0, workers=workers) for _ in range(workers)]
    bills = []

    async def call(budget, role):
        await role.enter()
        await asyncio.sleep(0.002)
        budget.add(Usage(usd=price), "m")
        role.add(Usage(usd=price))
        bills.append(price)
        for other in budgets:
            other.update(sum(bills))
        role.leave()

    async def main():
        roles = [(budget, budget.role()) for budget in budgets]
        calls = [call(*roles[i % workers]) for i in range(400)]
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert all(isinstance(end, BudgetExceeded) for end in found if end is not None)
        assert 1.0 - 1e-9 <= sum(bills) <= 1.25  # nearly 2 if the calls of each worker may take all that is left

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(12))
def test_no_call_waits_forever_whatever_fails_or_is_cancelled(seed):
    chance = random.Random(seed)
    limit = chance.choice([0.0, 0.07, 0.5, 3.0])

    async def call(budget, role, price):
        await role.enter()
        try:
            await asyncio.sleep(chance.random() * 0.004)
            if chance.random() < 0.3:
                raise ValueError
            usage = Usage(usd=None if price is None else price * (0.5 + chance.random()))
            budget.add(usage, "m")
            role.add(usage)
        finally:
            role.leave()

    async def main():
        budget = Budget(limit)
        roles = [(budget.role(free=free), price) for free, price in ((False, 0.01), (False, None), (True, 0.0))]
        calls = []
        for _ in range(300):
            calls.append(asyncio.ensure_future(call(budget, *chance.choice(roles))))
            if chance.random() < 0.3:
                chance.choice(calls).cancel()
            if chance.random() < 0.2:
                await asyncio.sleep(0.001)
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert all(role.in_flight == 0 for role, _ in roles)
        assert not any(place for role, _ in roles for place in role.waiting if not place.done())
        assert budget.spent <= limit + 0.05
        if any(isinstance(end, BudgetExceeded) for end in found):
            assert budget.spent >= limit

    asyncio.run(main())


def test_stopping_at_the_limit_takes_no_longer_than_the_calls_in_flight(tmp_path):
    with fake_server() as server:
        server.delay = 0.2
        began = time.monotonic()
        ask(gateway(tmp_path, direct(server), limit=0.04, concurrency=300, **CENT), *requests(300))
        assert time.monotonic() - began < 5 and server.answered == 4
