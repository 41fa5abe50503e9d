"""A run on a Ray cluster is the run on one machine: the same numbers, each once, whatever workers and nodes die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from kept_answers import kept, key_of
from planted_run import finished, spec, truthful_server
from root import ROOT
from tiny import tiny_corpus, tiny_model, tiny_sae

import saeval
from saeval import BudgetExceeded, InputError, SaevalError
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

pytestmark = pytest.mark.slow

MARKS = '''
import asyncio
import os
import time
from pathlib import Path
from saeval.plugin import Metric, Outcome, Score, Scorer

class Marks(Scorer):
    """Leaves a file for each process that it runs in."""

    name = "marks"
    metrics = (Metric("constant", True, 0.0, 1.0),)
    folder: str
    """Where."""
    deadly: int | None = None
    """A latent that kills the process."""
    waits: int | None = None
    """A latent that never ends."""
    blocks: int | None = None
    """A latent that lets nothing else go on either."""
    bulk: int = 0
    """Judged windows of each latent, which make its result large."""

    async def score(self, explanation, examples, context):
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "local"
        Path(self.folder, f"{node}.{os.getpid()}").touch()
        if context.latent.index == self.deadly and node != "local":
            os.kill(os.getpid(), 9)
        if context.latent.index == self.waits:
            await asyncio.Event().wait()
        if context.latent.index == self.blocks:
            time.sleep(3600)
        window = examples.activating[0].id
        windows = (Outcome(example=window, active=True, predicted=True) for _ in range(self.bulk))
        return Score(values={"constant": 1.0}, outcomes=tuple(windows))
'''


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray cluster of two nodes on this machine, on loopback, with a token."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "RAY_USAGE_STATS_ENABLED": "0", "OPENAI_API_KEY": "sk-canary-1234567890abcdef",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        patch.setenv("RAY_ADDRESS", cluster.address)
        second = cluster.add_node(**options)
        try:
            yield cluster, second
        finally:
            cluster.shutdown()


@pytest.fixture
def server():
    with truthful_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def local(task, out, monkeypatch):
    """The same task in this process, with a cache of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(out.with_name("local-cache")))
        saeval.run(task, out=out)


def on_ray(task, **changes):
    return {**task, "run": {"executor": "ray", "workers": 2, **task.get("run", {}), **changes}}


def marks(tmp_path, **options):
    (tmp_path / "marks.py").write_text(MARKS)
    (tmp_path / "processes").mkdir()
    return {"use": f"{tmp_path}/marks.py:Marks", "with": {"folder": str(tmp_path / "processes"), **options}}


def results(run):
    """What a run found out, but for its name and times."""
    data = json.loads((run / "results.json").read_text())
    return {k: v for k, v in data.items() if k not in ("run_id", "seconds")}


def checksums(cache):
    """Files of all stores in a cache, with their checksums."""
    return {m.parent.name: json.loads(m.read_text())["files"] for m in (cache / "stores").glob("*/manifest.json")}


def asked(server):
    return Counter(json.dumps(call, sort_keys=True) for call in server.calls)


def until(true):
    """Wait for something that should be true soon."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_two_nodes_give_the_same_as_one_process_bit_for_bit(two_nodes, server, tmp_path, monkeypatch):
    task = spec(
        server, scorers={"marks": marks(tmp_path), "detection": {}, "fuzzing": {"when": {"latents": 3}}},
        matrix={"documents": [60, 80]},
        source={"use": "synthetic", "with": {"n_latents": 8, "documents": "${matrix.documents}"}},
    )  # fmt: skip
    local(task, tmp_path / "local", monkeypatch)
    alone, _ = asked(server), server.calls.clear()
    saeval.run(on_ray(task), out=tmp_path / "ray")
    assert results(tmp_path / "ray") == results(tmp_path / "local")
    assert finished(tmp_path / "ray") == finished(tmp_path / "local")
    assert asked(server) == alone
    assert checksums(tmp_path / "cache") == checksums(tmp_path / "local-cache") != {}
    nodes = {path.name.split(".")[0] for path in (tmp_path / "processes").iterdir()}
    assert len(nodes - {"local"}) == 2
    server.calls.clear()
    saeval.run(task, out=tmp_path / "ray")  # goes on, and finds all done
    assert not server.calls


def test_latent_that_kills_its_workers_fails_alone(two_nodes, server, tmp_path):
    server.delay = 0.05  # longer than it takes to write an answer, so that calls that are lost were in flight
    deadly = marks(tmp_path, deadly=3)
    task = spec(server, scorers={"marks": deadly, "detection": {}}, baselines=[], latents={"select": "list", "indices": [1, 2, 3, 4, 5]})  # fmt: skip
    saeval.run(on_ray(task, max_failed=1.0), out=tmp_path / "run")
    marked, judged = (
        r for r in saeval.read(tmp_path / "run").cells[0].scores if r.metric in ("constant", "balanced_accuracy")
    )
    assert (marked.n, marked.failed) == (4, 1) and (judged.n, judged.failed) == (5, 0)
    (reason,) = {r["reason"] for r in finished(tmp_path / "run").values() if r["status"] == "failed"}
    assert reason.startswith("4 workers died at this work")
    # A worker that dies takes calls under way along; before its third try, the latent is set apart from the others.
    assert len(server.calls) - len(asked(server)) <= 2 * server.most_in_flight


def test_plugins_that_hang_in_workers_are_cancelled(two_nodes, server, tmp_path):
    hangs = marks(tmp_path, waits=2, blocks=3)
    task = spec(server, scorers={"marks": hangs, "detection": {}}, baselines=[], latents={"select": "list", "indices": [1, 2, 3, 4, 5]})  # fmt: skip
    saeval.run(on_ray(task, max_failed=1.0, hang_after=3), out=tmp_path / "run")
    marked, judged = (
        r for r in saeval.read(tmp_path / "run").cells[0].scores if r.metric in ("constant", "balanced_accuracy")
    )
    assert (marked.n, marked.failed) == (3, 2) and (judged.n, judged.failed) == (5, 0)
    reasons = sorted(r["reason"] for r in finished(tmp_path / "run").values() if r["status"] == "failed")
    assert "stuck for run.hang_after" in reasons[0] and "neither finished nor asked" in reasons[1]


def test_results_that_are_lost_with_their_node_are_made_again(two_nodes, server, tmp_path, monkeypatch):
    cluster, _ = two_nodes
    task = spec(server, scorers={"marks": marks(tmp_path, bulk=3_000)}, baselines=["random_explanation"])
    local(task, tmp_path / "local", monkeypatch)
    third = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)

    def lose():
        until(lambda: any(path.name.startswith(third.node_id) for path in (tmp_path / "processes").iterdir()))
        cluster.remove_node(third, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    saeval.run(on_ray(task, workers=3), out=tmp_path / "ray")
    thread.join()
    assert "is lost" in (tmp_path / "ray" / "logs" / "run.log").read_text()
    assert finished(tmp_path / "ray") == finished(tmp_path / "local")
    assert len((tmp_path / "ray" / "journal.jsonl").read_text().splitlines()) == len(finished(tmp_path / "ray"))


def test_limits_of_spending_and_concurrency_hold_over_all_workers(two_nodes, server, tmp_path):
    server.delay = 0.2
    task = spec(server, baselines=["random_explanation"])
    for role in task["llms"].values():
        role |= {"usd_per_million_input": 1e4, "usd_per_million_output": 0.0, "concurrency": 8}  # a dollar a call
    task["llms"]["judge"] = {**task["llms"]["judge"], "model": "openai_compatible/judging"}
    with pytest.raises(BudgetExceeded, match=r"of \$30.0000 allowed"):
        saeval.run(on_ray(task, max_cost_usd=30), out=tmp_path / "run")
    assert saeval.read(tmp_path / "run").partial
    stopped = len(server.calls)
    assert 30 <= stopped <= 30 + 2 * 8  # those under way, and as many that begin until the workers hear of it
    assert sum(line.usd for line in saeval.read(tmp_path / "run").ledger) == stopped
    saeval.run(on_ray(task), out=tmp_path / "run")
    assert len(server.calls) == len(asked(server)) > 100
    assert server.most_by_model["judging"] == 8 >= server.most_by_model["rules"] > 0  # a limit is one of its role


def test_worker_that_has_other_files_refuses_to_work(two_nodes, server, tmp_path, monkeypatch):
    monkeypatch.setattr("saeval._run.executors.ray.identity", lambda task: "other")
    with pytest.raises(SaevalError, match="differ from those of the machine that runs saeval"):
        saeval.run(on_ray(spec(server)), out=tmp_path / "run")


def test_parts_of_the_scaling_page_make_up_a_whole(server, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "scaling.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567890abcdef")
    Path("million.yaml").write_text(yaml.safe_dump(spec(server, scorers={"detection": {}}, baselines=[])))
    found: dict = {}
    exec(code, found)
    assert set(found["scores"]["latent"].to_pylist()) == set(range(8))


def test_missing_extra_is_one_sentence(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'saeval\[ray\]'"):
        saeval.run(on_ray(spec(server)), out=tmp_path / "run")


def descendants(pid):
    """Processes below a process."""
    found, parents = {pid}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids):
    """Addresses that processes listen on, as the kernel writes them."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes |= {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}  # IPv4, the same in IPv6, ::1


def test_cluster_of_our_own_is_closed_to_others_and_ends_with_the_run(server, tmp_path):
    server.delay = 1
    slow = spec(server)
    for role in slow["llms"].values():
        role["concurrency"] = 4  # so that it lasts until it is ended
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(on_ray(slow)))
    command = [sys.executable, "-m", "saeval", "run", "--task", task, "--out", tmp_path / "run", "--display", "none"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "OPENAI_API_KEY": "sk-canary-1234567890abcdef"
    }
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: server.answered >= 6 or child.poll() is not None)
    processes = descendants(child.pid)
    arguments = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
    assert any("gcs_server" in a for a in arguments) and any("raylet" in a for a in arguments)
    assert listening(processes) <= LOOPBACK != set()
    (address,) = {found for a in arguments for found in re.findall(r"--gcs-address=(127\.0\.0\.1:\d+)", a)}
    program = (
        f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None, 10); print('inside')"
    )
    for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}):
        other = subprocess.run([sys.executable, "-c", program], env=env | token, capture_output=True, text=True)
        assert "InvalidAuthToken" in other.stderr and "inside" not in other.stdout
    child.send_signal(signal.SIGTERM)
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "rerun the same command" in errors and "Traceback" not in errors, errors
    assert not out
    calls = [json.dumps(call, sort_keys=True) for call in server.calls]
    until(lambda: not any(map(alive, processes)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "calls.jsonl").read_text().splitlines()]
    answers = {line["answer"] for line in lines if not line.get("probe")}
    assert len(answers) == len(set(calls))  # those under way were waited for and written down


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- One model pass, divided among workers ---


SHORT_SHARDS = """
from saeval_plugins.sources.transformers import Transformers

class ShortShards(Transformers):
    name = "short_shards"
    _shard_tokens = 15_000
"""


@pytest.fixture
def long_pass(tmp_path):
    """A task whose model pass has six shards."""
    (tmp_path / "short.py").write_text(SHORT_SHARDS)
    options = {
        "model": str(tiny_model(tmp_path / "model")), "hookpoint": "layers.1", "batch_tokens": 1024,
        "corpus": {"path": str(tiny_corpus(tmp_path / "corpus.jsonl", 400)), "context": 100},
        "coder": {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}},
    }  # fmt: skip
    return {
        "saeval": 1, "task": "pass", "version": "1.0", "source": {"use": f"{tmp_path}/short.py:ShortShards", "with": options},
        "latents": {"n": 2, "min_windows": 20}, "llms": {"judge": {"model": "scripted/no", "reply": "[0, 0, 0, 0, 0]"}},
        "sampler": {"use": "random", "with": {"explain": 10, "score": 5, "non_activating": {"n": 5}}},
        "explainer": "top_tokens", "scorers": {"detection": {}}, "baselines": [], "measure": ["l0", "frac_alive", "fvu"],
    }  # fmt: skip


class Watch(threading.Thread):
    """Notes which pieces of a pass there are, by their files' numbers, and has an accident at the first."""

    def __init__(self, cache, accident):
        super().__init__()
        self.cache, self.accident, self.over = cache, accident, threading.Event()
        self.seen: dict[str, set[int]] = {}

    def run(self):
        while not self.over.wait(0.002):
            with suppress(OSError):  # what is finished is moved away
                for notes in self.cache.glob("stores/*.partial/[0-9]*/piece.json"):
                    self.seen.setdefault(notes.parent.name, set()).add(notes.parent.stat().st_ino)
            if self.accident and self.seen:
                self.accident()
                self.accident = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def collecting():
    """Processes that collect."""
    return [p for p in descendants(os.getpid()) if b"collect_cells" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_pass_divided_among_workers_one_of_which_dies_makes_the_same_store(two_nodes, long_pass, tmp_path, monkeypatch):
    local(long_pass, tmp_path / "local", monkeypatch)
    with Watch(tmp_path / "cache", lambda: os.kill(collecting()[0], signal.SIGKILL)) as watch:
        saeval.run(on_ray(long_pass), out=tmp_path / "ray")
    assert watch.accident is None
    assert len(watch.seen) == 6
    assert {len(numbers) for numbers in watch.seen.values()} == {1}, "no piece is made twice"
    assert checksums(tmp_path / "cache") == checksums(tmp_path / "local-cache") != {}
    mine, other = results(tmp_path / "ray"), results(tmp_path / "local")
    assert mine["cells"][0]["measures"]["fvu"] > 0
    assert mine == other
    assert not list(tmp_path.glob("cache/stores/*.partial"))


def test_served_model_that_changed_is_refused_on_resume_and_its_answers_are_not_kept(two_nodes, server, tmp_path):
    task = on_ray(spec(server, baselines=[], scorers={"detection": {}}, latents={"n": 2, "min_windows": 20}))
    saeval.run(task, out=tmp_path / "run", limit=1)
    whole = server._completion
    server._completion = lambda *given: {**whole(*given), "model": "another-build"}
    before = len(server.calls)
    with pytest.raises(InputError, match="another-build answers now, but rules answered before.*--allow-model-change"):
        saeval.run(task, out=tmp_path / "run")
    refused = len(server.calls) - before
    assert refused
    with pytest.raises(InputError, match="--allow-model-change"):
        saeval.run(task, out=tmp_path / "run")  # none of them was kept
    result = saeval.run(task, out=tmp_path / "run", allow_model_change=True)
    assert any("another-build" in warning for warning in result.warnings)


def test_worker_killed_and_node_lost_lose_nothing_and_pay_nothing_twice(two_nodes, server, tmp_path, monkeypatch):
    cluster, second = two_nodes
    server.delay = 0.02
    task = spec(server, scorers={"marks": marks(tmp_path), "detection": {}, "fuzzing": {"when": {"latents": 3}}})
    task["llms"]["judge"]["concurrency"] = 8
    identity = load_task(task, registry=Registry()).roles["judge"].identity
    local(task, tmp_path / "local", monkeypatch)
    whole, before = server.answered, []
    for path in (tmp_path / "processes").iterdir():
        path.unlink()
    server.calls.clear()

    def reach(answered):
        until(lambda: server.answered >= whole + answered)

    def lose(what):
        """Lose something, and note what had been paid for by then."""
        what()
        paid = kept(tmp_path / "cache")
        before.append((paid, len(server.calls)))

    def kill_worker():
        here = [path.name for path in (tmp_path / "processes").iterdir()]
        os.kill(int(next(n for n in here if not n.startswith(second.node_id)).split(".")[1]), signal.SIGKILL)

    def accidents():
        reach(whole // 4)
        lose(kill_worker)
        reach(whole // 2)
        lose(lambda: cluster.remove_node(second, allow_graceful=False))

    thread = threading.Thread(target=accidents)
    thread.start()
    saeval.run(on_ray(task), out=tmp_path / "ray")
    thread.join()
    keys = [key_of(call, identity) for call in server.calls]
    for paid, seen in before:
        assert not paid & set(keys[seen:])  # nothing that was finished is asked again
    # Only what was under way is: of each of two lost workers 4 calls in flight, and 4 answers not yet written.
    assert len(keys) - len(set(keys)) <= 2 * (4 + 4)
    assert set(keys) == kept(tmp_path / "cache")
    assert finished(tmp_path / "ray") == finished(tmp_path / "local")
    lines = (tmp_path / "ray" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(finished(tmp_path / "ray"))  # each result is written down once
    mine, other = results(tmp_path / "ray"), results(tmp_path / "local")
    del mine["ledger"], other["ledger"]  # what was under way was paid for, and is
    assert mine == other
