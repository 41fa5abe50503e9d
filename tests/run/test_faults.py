"""Whatever a server does, every call ends, retries are bounded, and a score is right or absent, never a little wrong."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import contextmanager, suppress

import pytest
from fake_server import body, content, drip, drop, error, hang
from planted_run import finished, spec, truthful, truthful_server

import saeval
from saeval import InputError, StoreError
from saeval._run.failures import GaveUp

SMALL = {
    "baselines": ["shuffled_explanation"],
    "scorers": {"detection": {}},
    "latents": {"select": "list", "indices": [0, 1, 2, 3]},
}

FEWER = {"sampler": {"use": "random", "with": {"explain": 10, "score": 10, "non_activating": {"n": 10}}}}
"""Half of the calls."""


@pytest.fixture(autouse=True)
def _quick_and_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567890abcdef")
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)


@pytest.fixture(params=["openai_compatible/rules", pytest.param("openai/rules", marks=pytest.mark.slow)])
def model(request):
    return request.param


def task(server, model, *, timeout=20, retries=2, **changes):
    role = {
        "model": model,
        "api_base": server.url,
        "max_tokens": 100,
        "retries": retries,
        "timeout": timeout,
        "identity": "rules",
    }
    run = {"patience": 0, **changes.pop("run", {})}
    return spec(server, **{**SMALL, "llms": {"explainer": role, "judge": role}, "run": run, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Run a task without faults, once for all tests; return its results by key of the journal, and its scores."""

    known = {}

    def run(model, **changes):
        key = json.dumps([model, changes])
        if key not in known:
            folder = tmp_path_factory.mktemp("calm")
            with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
                patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
                patch.setenv("OPENAI_API_KEY", "sk-canary-1234567890abcdef")
                done = saeval.run(task(server, model, **changes), out=folder / "run")
            known[key] = finished(folder / "run"), done.cells[0].scores
        return known[key]

    return run


def once(fault):
    """Choose a fault for the first attempt at every request."""
    seen = Counter()

    def choose(request, _):
        seen[json.dumps(request, sort_keys=True)] += 1
        return fault if seen[json.dumps(request, sort_keys=True)] == 1 else None

    return choose


def about(word, fault):
    """Choose a fault for one of the batches in which an explanation by this word is judged."""
    chosen = []

    def choose(request, _):
        asked = request["messages"][-1]["content"]
        if asked.startswith(f"Explanation: the word '{word}'"):
            chosen.append(asked)
        return fault if chosen and asked == chosen[0] else None

    return choose


PASSING = {
    "rate limit": error(429), "rate limit with a time": error(429, headers={"Retry-After": "0.05"}),
    "server error": error(500), "overload": error(503), "dropped": drop, "empty": content(""), "null": content(None),
    "truncated": body('{"choices": [{"mess'), "error in 200": body('{"error": {"message": "overloaded"}}'),
    "no choices": body('{"choices": []}'), "no JSON": body("<html>bad gateway</html>"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_fault_that_passes_changes_nothing(tmp_path, undisturbed, model, fault):
    with truthful_server() as server:
        calm, scores = undisturbed(model, **FEWER)
        server.chooses = once(fault)
        result = saeval.run(task(server, model, **FEWER), out=tmp_path / "run")
        asked = Counter(json.dumps(call, sort_keys=True) for call in server.calls)
        assert set(asked.values()) == {2}
    assert finished(tmp_path / "run") == calm
    assert result.cells[0].scores == scores


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_fault_that_stays_on_one_batch_costs_its_latent_and_changes_no_score(tmp_path, undisturbed, model, fault):
    with truthful_server() as server:
        calm, _ = undisturbed(model, **FEWER)
        server.chooses = about("harbor", fault)
        result = saeval.run(task(server, model, **FEWER), out=tmp_path / "run")
        asked = Counter(json.dumps(call, sort_keys=True) for call in server.calls)
        assert max(asked.values()) == 3  # one attempt and two retries
    found = finished(tmp_path / "run")
    failed = {key for key, value in found.items() if value["status"] == "failed"}
    assert found.keys() == calm.keys() and len(failed) == 1
    assert all(found[key]["reason"] for key in failed)
    assert {k: v for k, v in found.items() if k not in failed} == {k: v for k, v in calm.items() if k not in failed}
    row = result.cells[0].scores[0]
    assert (row.tried, row.n, row.failed) == (4, 3, 1)


@pytest.mark.parametrize("fault", [hang, drip], ids=["hang", "slow drip"])
def test_call_that_never_ends_is_ended(tmp_path, undisturbed, model, fault):
    with truthful_server() as server:
        calm, _ = undisturbed(model)
        server.chooses = about("harbor", fault)
        saeval.run(task(server, model, timeout=1.0, retries=1), out=tmp_path / "run")
    found = finished(tmp_path / "run")
    (failed,) = (value for value in found.values() if value["status"] == "failed")
    assert "no answer within 1 s" in failed["reason"]
    assert all(calm[key] == value for key, value in found.items() if value["status"] == "ok")


REFUSALS = {
    "in words": content("no", refusal="I will not"), "filtered": content("", "content_filter"),
    "prompt filtered": error(400, "declined", code="content_filter"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal_is_counted_and_never_an_answer(tmp_path, model, fault):
    with truthful_server() as server:
        server.chooses = about("harbor", fault)
        result = saeval.run(task(server, model), out=tmp_path / "run")
        assert max(Counter(json.dumps(call, sort_keys=True) for call in server.calls).values()) == 1
    row = result.cells[0].scores[0]
    assert (row.n, row.unparsed) == (4, 5)  # the model's own doing, so its other judgements stand
    statuses = Counter(o["status"] for value in finished(tmp_path / "run").values() for o in value.get("outcomes", ()))
    assert statuses["refused"] == 5
    assert any("5 of 160 windows (3%) have no answer" in warning for warning in result.warnings)


LASTING = {
    "invalid key": error(401, "invalid key"), "no such model": error(404, "no such model"),
    "no credit": error(429, "you exceeded your quota", code="insufficient_quota"),
    "permanent 500": error(500, "out of memory"), "rate limit": error(429, "slow down, request 8f3a12"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING.keys())
def test_error_that_is_always_the_same_stops_the_run_early_and_a_fixed_one_resumes(tmp_path, model, fault):
    changes = {"run": {"give_up_after": 3, "concurrency": 4}}
    with truthful_server() as server:
        server.always = fault
        with pytest.raises(GaveUp, match="the first 3 latents all failed for one reason"):
            saeval.run(task(server, model, **changes), out=tmp_path / "run")
        assert len(server.calls) <= 4 * 3
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "gave up"
        assert finished(tmp_path / "run") == {}
        server.always = None
        row = saeval.run(task(server, model, **changes), out=tmp_path / "run").cells[0].scores[0]
    assert (row.n, row.failed) == (4, 0)


def test_outage_in_the_middle_stops_the_run_without_writing_its_failures_down(tmp_path, undisturbed):
    changes = {"run": {"give_up_after": 2, "concurrency": 1}, "baselines": []}
    with truthful_server() as server:
        calm, _ = undisturbed("openai_compatible/rules", **changes)
        server.chooses = lambda request, number: error(401, "key revoked") if number > 4 + 8 + 3 else None
        with pytest.raises(GaveUp, match="2 latents in a row all failed for one reason: .*key revoked"):
            saeval.run(task(server, "openai_compatible/rules", **changes), out=tmp_path / "run")
        assert finished(tmp_path / "run").items() <= calm.items()
        server.chooses, answered = lambda request, number: None, server.answered
        saeval.run(task(server, "openai_compatible/rules", **changes), out=tmp_path / "run")
        assert server.answered - answered == 5 + 2 * 8  # what is missing of one latent, and two more
    assert finished(tmp_path / "run") == calm


def test_failures_of_all_latents_are_not_believed_when_no_call_succeeded(tmp_path):
    with truthful_server() as server:
        server.always = error(500)
        result = saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")  # 4 latents, gives up at 10
        assert result.cells[0].scores[0].failed == 4
        server.always = None
        assert saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run").cells[0].scores[0].n == 4


def test_throughput_recovers_after_a_burst_of_errors(tmp_path):
    with truthful_server() as server:
        server.delay = 0.02
        server.chooses = lambda _, number: error(500) if 40 < number <= 60 else None
        saeval.run(task(server, "openai_compatible/rules", retries=5), out=tmp_path / "run", limit=2)
        server.most_in_flight = 0
        result = saeval.run(task(server, "openai_compatible/rules", retries=5), out=tmp_path / "run")
    assert result.cells[0].scores[0].failed == 0
    assert server.most_in_flight >= 8


def test_step_that_hides_a_failed_call_has_no_result(tmp_path):
    (tmp_path / "hiding.py").write_text(
        "from saeval.plugin import Explainer, Explanation, LLMError, Request\n"
        "class Hiding(Explainer):\n"
        "    name = 'hiding'\n"
        "    llm_role = 'explainer'\n"
        "    async def explain(self, examples, context):\n"
        "        try:\n"
        "            reply = await context.llm.complete(Request.of(f'word {examples.latent}'))\n"
        "        except LLMError:\n"
        "            return Explanation(text='something')\n"
        "        return Explanation(text=reply.text)\n"
    )
    with truthful_server() as server:
        server.reply = lambda messages: "words" if messages[0]["content"].startswith("word") else truthful(messages)
        server.chooses = lambda request, _: (
            error(500) if "word planted/2" in request["messages"][0]["content"] else None
        )
        saeval.run(
            task(server, "openai_compatible/rules", explainer=f"{tmp_path}/hiding.py:Hiding", baselines=[]),
            out=tmp_path / "run",
        )
    texts = Counter(v["text"] for v in finished(tmp_path / "run").values() if "text" in v)
    assert texts == {"words": 3, "": 1}


# --- done again ---


def test_retry_does_failed_latents_again_and_asks_nothing_else(tmp_path, undisturbed):
    with truthful_server() as server:
        calm, scores = undisturbed("openai_compatible/rules")
        server.chooses = about("harbor", error(500))
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        server.chooses, server.calls = lambda request, number: None, []
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        assert server.calls == []  # failures are results too
        result = saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run", retry="failed")
        assert len(server.calls) == 1  # the other seven batches of that latent are kept
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run", retry="failed")
        assert len(server.calls) == 1
    assert finished(tmp_path / "run") == calm
    assert result.cells[0].scores == scores


def test_retried_explanation_moves_two_shuffled_ones_and_no_more(tmp_path, undisturbed):
    with truthful_server() as server:
        calm, scores = undisturbed("openai_compatible/rules")
        bad = []

        def one_explanation(request, _):
            asked = request["messages"][-1]["content"]
            if not bad and not asked.startswith("Explanation:"):
                bad.append(asked)
            return error(500) if asked in bad else None

        server.chooses = one_explanation
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        server.chooses, server.calls = lambda request, number: None, []
        result = saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run", retry="failed")
        assert len(server.calls) == 1 + 8 + 2 * 8
    assert result.cells[0].scores == scores
    assert calm.items() <= finished(tmp_path / "run").items()


def test_server_that_asks_to_wait_is_not_asked_before(tmp_path):
    times = []

    def choose(request, number):
        times.append(time.monotonic())
        return error(429, headers={"Retry-After": "0.5"}) if number == 1 else None

    with truthful_server() as server:
        server.chooses = choose
        saeval.run(
            task(server, "openai_compatible/rules", run={"concurrency": 1}, baselines=[]), out=tmp_path / "run", limit=1
        )
    assert times[1] - times[0] >= 0.5


# --- disks ---


@contextmanager
def tiny_disk(place, size):
    """A file system with little room; where none can be mounted, the test is not for this machine."""
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def small_files(most):
    """Let this process write files of so many bytes at most, as a quota would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@pytest.mark.parametrize("full", ["cache", "run"])
@pytest.mark.parametrize("size", ["16k", "64k", "256k", "400k", "800k"])
def test_full_disk_is_one_clear_sentence_and_more_room_resumes(tmp_path, monkeypatch, undisturbed, full, size):
    with truthful_server() as server:
        calm, _ = undisturbed("openai_compatible/rules")
        with tiny_disk(tmp_path / "disk", size):
            place = tmp_path / "disk" / "x"
            cache, run = (place, tmp_path / "run") if full == "cache" else (tmp_path / "cache", place)
            monkeypatch.setenv("SAEVAL_CACHE", str(cache))
            with suppress(StoreError, InputError):  # each of them a sentence
                saeval.run(task(server, "openai_compatible/rules"), out=run)
            if run.exists():
                assert finished(run).items() <= calm.items()
            subprocess.run(["mount", "-o", "remount,size=50m", tmp_path / "disk"], check=True)
            saeval.run(task(server, "openai_compatible/rules"), out=run)
            assert finished(run) == calm
        asked = Counter(json.dumps(call, sort_keys=True) for call in server.calls)
        twice = sum(n - 1 for n in asked.values())
        assert twice <= 32 * 8  # at most what was under way when there was no room


@pytest.mark.parametrize("most", [200, 5_000, 20_000, 60_000])
def test_quota_is_one_clear_sentence_and_costs_nothing_that_was_finished(tmp_path, undisturbed, most):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with truthful_server() as server:
        calm, _ = undisturbed("openai_compatible/rules")
        small_files(most)
        try:
            with pytest.raises((StoreError, InputError)):
                saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
    assert finished(tmp_path / "run") == calm


def test_cache_that_cannot_be_made_is_one_clear_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with truthful_server() as server:
        for place in (tmp_path / "file" / "cache", "/proc/saeval"):
            monkeypatch.setenv("SAEVAL_CACHE", str(place))
            with pytest.raises((StoreError, InputError), match="set SAEVAL_CACHE to another folder"):
                saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        assert not server.calls


def test_cache_that_cannot_be_written_to_is_one_clear_sentence(tmp_path, monkeypatch):
    with truthful_server() as server, tiny_disk(tmp_path / "disk", "10m"):
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "disk"))
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run", limit=1)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        with pytest.raises(StoreError, match="cannot be used .*folder is writable"):
            saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "manifest"])
def test_damaged_activations_are_found_and_collected_again(tmp_path, undisturbed, damage):
    with truthful_server() as server:
        calm, _ = undisturbed("openai_compatible/rules")
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run", limit=1)
        (store,) = (tmp_path / "cache" / "stores").glob("*/")
        file = store / ("manifest.json" if damage == "manifest" else "position.npy")
        data = bytearray(file.read_bytes())
        data[-2 if damage == "manifest" else len(data) // 2] ^= 4
        file.write_bytes(data[:-5] if damage == "cut" else data)
        if damage == "gone":
            file.unlink()
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
    assert finished(tmp_path / "run") == calm


def test_flipped_byte_in_journal_or_answers_changes_no_score(tmp_path, undisturbed):
    with truthful_server() as server:
        calm, scores = undisturbed("openai_compatible/rules")
        saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        asked = len(server.calls)
        journal = tmp_path / "run" / "journal.jsonl"
        journal.write_bytes(journal.read_bytes().replace(b'"balanced_accuracy": 1.0', b'"balanced_accuracy": 0.9', 1))
        result = saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        assert len(server.calls) == asked  # what the journal lost is in the cache
        assert result.cells[0].scores == scores
        database = sqlite3.connect(tmp_path / "cache" / "calls.sqlite")
        database.execute("UPDATE kept SET answer = replace(answer, '[1', '[0')")
        database.commit()
        database.close()
        journal.unlink()
        result = saeval.run(task(server, "openai_compatible/rules"), out=tmp_path / "run")
        assert len(server.calls) > asked
        assert result.cells[0].scores == scores
    assert finished(tmp_path / "run") == calm
