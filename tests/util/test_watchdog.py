"""Plugins that hang are called off, whatever they wait for; models may take their time; memory is watched."""

from __future__ import annotations

import asyncio
import time

import pytest

from saeval._util import watchdog as watch
from saeval._util.watchdog import Hung, Patience, interrupt_if_blocked, memory_left


async def test_work_that_never_ends_is_cancelled():
    with pytest.raises(Hung, match="neither finished nor asked"):
        await Patience(0.1).wait_for(asyncio.Event().wait())


async def test_work_that_ignores_cancellation_is_abandoned():
    async def stubborn():
        for _ in range(5):
            try:
                await asyncio.sleep(0.3)
            except asyncio.CancelledError:
                continue

    began = time.monotonic()
    with pytest.raises(Hung):
        await Patience(0.05).wait_for(stubborn())
    assert time.monotonic() - began < 1  # of 1.5 s


async def test_work_that_asks_a_model_is_waited_for():
    patience = Patience(0.1)

    async def slow_model():
        with patience.asking():
            await asyncio.sleep(0.4)
        return "answer"

    assert await patience.wait_for(slow_model()) == "answer"


async def test_time_without_work_does_not_count():
    patience = Patience(0.1)
    await asyncio.sleep(0.2)
    assert await patience.wait_for(asyncio.sleep(0.01, "done")) == "done"


async def test_work_is_not_hung_while_others_get_on():
    patience = Patience(0.3)

    async def waits_for_its_turn():
        await asyncio.sleep(0.8)
        return "done"

    async def others():
        for _ in range(8):
            await patience.wait_for(asyncio.sleep(0.1))

    done, _ = await asyncio.gather(patience.wait_for(waits_for_its_turn()), others())
    assert done == "done"


def test_code_that_blocks_the_loop_is_interrupted_and_the_loop_goes_on():
    async def main():
        with interrupt_if_blocked(0.2):
            with pytest.raises(Hung, match="blocked the whole run"):
                time.sleep(5)
            with pytest.raises(Hung, match="blocked the whole run"):
                while True:
                    pass
            for _ in range(6):
                await asyncio.sleep(0.1)  # longer than the limit in all, but the loop turns
        await asyncio.sleep(0.3)
        return "done"

    began = time.monotonic()
    assert asyncio.run(main()) == "done"
    assert time.monotonic() - began < 4


def test_memory_left_is_the_least_of_the_machines_and_the_containers(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:   600 kB\n")
    monkeypatch.setattr(watch, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(watch, "_GROUP", tmp_path)
    assert memory_left() == pytest.approx(0.6)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_left() == pytest.approx(0.6)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 150\nactive_file 50\n")
    assert memory_left() == pytest.approx(0.3)
    monkeypatch.setattr(watch, "_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(watch, "_GROUP", tmp_path / "missing")
    assert memory_left() is None
