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

import numpy as np
import pyarrow as pa
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked if a command ran in this process before
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


def test_numbers_arrays_columns_and_paths_in_a_spec_are_as_if_written_in_yaml(tmp_path):
    torch = pytest.importorskip("torch")
    written = simple(run={"seed": 3}, latents={"select": "list", "indices": [1, 2], "min_windows": 20})
    expected = saeval.run(written, out=tmp_path / "written")
    kept = (tmp_path / "written" / "spec.yaml").read_text()
    for i, indices in enumerate(
        [
            np.array([1, 2]),
            torch.tensor([1, 2]),
            pa.chunked_array([[1], [2]]),
            [np.int32(1), torch.tensor(2)],
            range(1, 3),
        ]
    ):
        latents = {"select": "list", "indices": indices, "min_windows": np.int64(20)}
        made = saeval.run(simple(run={"seed": np.int64(3)}, latents=latents), out=tmp_path / f"made-{i}")
        assert made.spec_sha == expected.spec_sha
        assert (tmp_path / f"made-{i}" / "spec.yaml").read_text() == kept
    set_later = {"run.seed": np.int64(3), "latents": {**written["latents"], "indices": np.array([1, 2])}}
    assert saeval.run(simple(), overrides=set_later, out=tmp_path / "later").cells == expected.cells


def test_parts_of_a_typed_spec_hold_numbers_of_numpy_and_may_be_in_a_mapping(tmp_path):
    source = saeval.PartSpec(use="synthetic", with_={"n_latents": np.int64(6), "documents": 60})
    judge = saeval.RoleSpec(model="scripted/rule", reply="[0, 0, 0, 0, 0]", temperature=np.float32(0.5))
    typed = saeval.Spec(**simple(source=source, llms={"judge": judge}))
    as_mapping = typed.as_mapping()
    assert as_mapping["source"]["with"] == simple()["source"]["with"]
    assert type(as_mapping["llms"]["judge"]["temperature"]) is float
    mixed = saeval.run(simple(source=source, llms={"judge": judge}), out=tmp_path / "mixed")
    assert mixed.cells == saeval.run(typed, out=tmp_path / "typed").cells


def test_value_that_is_no_data_is_a_mistake_in_the_spec():
    with pytest.raises(
        saeval.SpecError, match=r"^latents\.indices: should be a number, text, list or mapping \(got {1, 2}\)$"
    ):
        saeval.run(simple(latents={"select": "list", "indices": {1, 2}}))
    with pytest.raises(saeval.SpecError, match=r"^--set latents\.indices: should be"):
        saeval.run(simple(), overrides={"latents.indices": {1, 2}})


def test_options_of_a_run_accept_numbers_of_numpy_and_refuse_what_is_no_mapping(tmp_path):
    assert saeval.run(simple(), out=tmp_path / "run", limit=np.int64(1), max_cost=np.float32(1)).partial
    assert json.loads((tmp_path / "run" / "run.json").read_text())["limit"] == 1
    with pytest.raises(saeval.InputError, match=r"overrides is \['run.seed=1'\]; give a mapping, such as"):
        saeval.run(simple(), out=tmp_path / "run", overrides=["run.seed=1"])
    with pytest.raises(saeval.InputError, match="llms is 'openai/gpt-4o'; give a mapping, such as"):
        saeval.run(simple(), out=tmp_path / "run", llms="openai/gpt-4o")


def test_tilde_in_a_run_directory_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = saeval.run(simple(), out="~/runs/a")
    assert (tmp_path / "home" / "runs" / "a" / "results.json").is_file() and not (tmp_path / "~").exists()
    assert saeval.read("~/runs/a") == run and saeval.read("~/runs/a").calls.num_rows > 0
    saeval.run(simple(explainer="random"), out="~/runs/b")
    assert "b:all" in repr(saeval.compare("~/runs/a", "~/runs/b:all"))
    assert len(saeval.join(["~/runs/a"]).groups(None)[""].standings) == 1


def test_single_text_where_a_list_belongs_is_named(tmp_path):
    saeval.run(simple(), out=tmp_path / "run")
    run = str(tmp_path / "run")
    with pytest.raises(saeval.InputError, match="^there are no runs to join; give"):
        saeval.join([])
    for call, name in (
        (lambda: saeval.join(run), "runs"),
        (lambda: saeval.join([run], keep="coder"), "keep"),
        (lambda: saeval.compare(run, run, metrics="detection.f1"), "metrics"),
        (lambda: saeval.similarities(tmp_path / "run"), "references"),
        (lambda: saeval.similarities([run, run], by="decoder"), "by"),
    ):
        with pytest.raises(saeval.InputError, match=rf"^{name} is '.*'; give a list, such as \['"):
            call()
