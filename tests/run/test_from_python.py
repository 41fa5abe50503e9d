"""`saeval.run` does what it should in notebooks, daemons and worker processes, with values of other libraries."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import signal
import sys
import threading
import time

import pytest
from planted_run import spec, truthful_server

import saeval


def simple(**changes):
    """A task that needs no server."""
    return {
        "saeval": 1,
        "task": "simple",
        "version": "1.0",
        "source": {"use": "synthetic", "with": {"n_latents": 6, "documents": 60}},
        "latents": {"n": 2, "min_windows": 20},
        "sampler": {"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "explainer": "top_tokens",
        "scorers": {"detection": {}},
        "llms": {"judge": {"model": "scripted/rule", "reply": "[0, 0, 0, 0, 0]"}},
        **changes,
    }


def test_ctrl_c_in_a_notebook_stops_the_run_at_once_and_it_resumes(tmp_path):
    def press(server):
        while server.answered < 5:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    async def notebook(task):
        return saeval.run(task, out=tmp_path / "run")

    with truthful_server() as server:
        server.delay = 0.03
        task = spec(server, run={"concurrency": 1})
        threading.Thread(target=press, args=(server,), daemon=True).start()
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(notebook(task))
        stopped = server.answered
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
        assert signal.getsignal(signal.SIGINT) is before
        server.delay = 0.0
        whole = asyncio.run(notebook(task))
    assert not whole.partial and stopped < server.answered / 2


@pytest.mark.parametrize("display", [None, "plain", "rich"])
def test_run_without_standard_error_works_and_shows_nothing(tmp_path, monkeypatch, display):
    gone = io.StringIO()
    gone.close()
    for i, stream in enumerate((None, gone)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert saeval.run(simple(), out=tmp_path / f"run-{i}", display=display).cells[0].scores[0].n == 2


def test_error_about_a_spec_says_the_same_after_it_was_sent_from_a_worker():
    with pytest.raises(saeval.SpecError) as raised:
        saeval.run({"saeval": 1, "task": "empty"})
    sent = pickle.loads(pickle.dumps(raised.value))
    assert (type(sent), str(sent), sent.problems) == (saeval.SpecError, str(raised.value), raised.value.problems)
    assert len(sent.problems) > 1
