"""How many calls are in flight follows from what the server does: in simulations on a clock of their own, so exactly."""

from __future__ import annotations

import asyncio
import random

import pytest

from saeval.llm.concurrency import AdaptiveLimiter, Limiter


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing is left to do, and then at once."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


class Server:
    """Answers after `latency` seconds, give or take, as many at once as it has slots, and refuses what exceeds `most`."""

    def __init__(self, *, latency=0.05, spread=0.0, slots=10**9, most=10**9, faulty=0.0):
        self.latency, self.spread, self.most, self.faulty = latency, spread, most, faulty
        self.working = asyncio.Semaphore(slots)
        self.random = random.Random(0)
        self.in_flight = self.answered = self.refused = self.most_in_flight = 0

    async def ask(self):
        """Return whether the call is refused."""
        if self.in_flight >= self.most:
            self.refused += 1
            await asyncio.sleep(0.001)
            return True
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        async with self.working:
            await asyncio.sleep(self.latency * (1 + self.spread * self.random.uniform(-1, 1)))
        self.in_flight -= 1
        self.answered += 1
        return self.random.random() < self.faulty


def simulate(server, seconds, *, limit=None, askers=300, changes=()):
    """Let many ask for so long; return the gate and what the server answered in the second half."""

    async def main():
        loop = asyncio.get_running_loop()
        limiter = Limiter(limit) if limit else AdaptiveLimiter(loop.time)
        counts = []

        async def asker():
            while True:
                epoch = await limiter.enter()
                refused = await server.ask()
                limiter.leave(epoch, refused)
                if refused:
                    await asyncio.sleep(0.5)

        tasks = [asyncio.ensure_future(asker()) for _ in range(askers)]
        for half in range(2):
            await asyncio.sleep(seconds / 2)
            counts.append(server.answered)
            if half == 0 and changes:
                changes[0](server)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return limiter, (counts[1] - counts[0]) / (seconds / 2)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main())


def test_given_limit_is_kept():
    server = Server()
    simulate(server, 2, limit=5)
    assert server.most_in_flight == 5


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_server_that_bears_all_gets_all(spread):
    limiter, _ = simulate(Server(spread=spread), 4)
    assert limiter.limit >= 200  # now and then, less is tried


@pytest.mark.parametrize("most", [3, 17, 40, 100])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_server_that_refuses_is_used_to_its_limit(most, spread):
    server = Server(most=most, spread=spread)
    _, rate = simulate(server, 10)
    assert rate > 0.8 * most / 0.05
    assert server.refused < 0.1 * server.answered


@pytest.mark.parametrize("slots", [10, 40, 100])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_server_that_queues_is_used_to_its_limit_and_hardly_beyond(slots, spread):
    server = Server(slots=slots, spread=spread)
    limiter, rate = simulate(server, 10)
    assert rate > 0.8 * slots / 0.05
    assert limiter.limit <= 1.6 * slots


def test_burst_of_refusals_is_one_and_what_the_server_bears_later_is_found_again():
    server = Server(most=100)
    limiter, _ = simulate(server, 20, changes=[lambda s: setattr(s, "most", 20)])
    assert 12 <= limiter.limit <= 25
    server = Server(most=20)
    limiter, _ = simulate(server, 20, changes=[lambda s: setattr(s, "most", 100)])
    assert limiter.limit > 60


def test_faults_that_come_at_any_limit_do_not_lower_it():
    limiter, _ = simulate(Server(faulty=0.03), 10)
    assert limiter.limit >= 200  # now and then, less is tried


def test_cancelled_call_gives_its_place_to_the_next():
    async def main():
        limiter = Limiter(1)
        first = await limiter.enter()
        waiting = [asyncio.ensure_future(limiter.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        limiter.leave(first, False)
        waiting[0].cancel()  # it has the place, and does not know yet
        return await asyncio.wait_for(waiting[2], 1), limiter.in_flight

    assert asyncio.run(main()) == (0, 1)
