"""Keys stay where they are, and nothing in a spec, a store, a reply or a run directory reaches beyond its place."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import run_command
from fake_server import content, drop, error
from planted_run import spec, truthful, truthful_server

import saeval
from saeval import InputError, SpecError
from saeval.plugin import without_secrets
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.testing.planted import planted_store

CANARY = "zq7canary4Xw1b9Kd0tR"  # looks like no key, so that only its value gives it away
DANGEROUS = ("\x1b", "\x07", "\x9b", "\x9d", "\u202e", "\u2066", "\r")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def files_with(text, folder):
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


# --- keys ---


SAYS_KEY = {
    "wrong key": error(401, f"Incorrect API key provided: {CANARY}"),
    "server error": error(500, f"Traceback: headers={{'Authorization': 'Bearer {CANARY}'}}"),
    "bad request": error(400, f"key {CANARY} may not do this"), "refusal": content("no", refusal=f"not for {CANARY}"),
    "error in 200": lambda request: error(200, f"bad {CANARY}")(request), "dropped": drop,
}  # fmt: skip
RAISES = f"""
from saeval.plugin import Explainer
class Raises(Explainer):
    name = "raises"
    async def explain(self, examples, context):
        raise RuntimeError("Authorization: Bearer {CANARY}")
"""


@pytest.mark.parametrize("model", ["openai_compatible/rules", pytest.param("openai/rules", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", SAYS_KEY.values(), ids=SAYS_KEY.keys())
def test_key_is_sent_but_in_no_file_log_traceback_result_or_output(tmp_path, capfd, monkeypatch, model, fault):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    with truthful_server() as server:
        role = {"model": model, "api_base": server.url, "max_tokens": 100, "retries": 1}
        task = spec(server, llms={"explainer": role, "judge": role}, baselines=[], scorers={"detection": {}})
        server.chooses = lambda _, number: fault if number % 3 == 0 else None
        result = saeval.run(task, out=tmp_path / "run")
        assert any(CANARY in headers.get("Authorization", "") for headers in server.headers)
    assert files_with("detection", tmp_path)
    assert files_with(CANARY, tmp_path) == []
    assert CANARY not in result.model_dump_json() + "".join(capfd.readouterr())


def test_key_in_an_exception_of_a_plugin_is_skipped(tmp_path, capfd):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "raises.py").write_text(RAISES)
    with truthful_server() as server:
        task = spec(server, explainer=f"{tmp_path}/plugins/raises.py:Raises", baselines=[], scorers={"detection": {}})
        saeval.run(task, out=tmp_path / "run")
    assert "RuntimeError" in (tmp_path / "run" / "journal.jsonl").read_text()
    assert "Traceback" in (tmp_path / "run" / "logs" / "run.log").read_text()
    assert files_with(CANARY, tmp_path / "run") == []
    assert CANARY not in "".join(capfd.readouterr())


def test_key_is_not_in_the_arguments_or_the_title_of_the_process(tmp_path):
    with truthful_server() as server:
        server.delay = 0.05
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server)))
        command = [sys.executable, "-m", "saeval", "run", "--task", "task.yaml", "--out", "run"]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while server.answered < 5 and child.poll() is None:
            time.sleep(0.01)
        if Path("/proc/self").exists():
            seen = [Path(f"/proc/{child.pid}/{name}").read_bytes() for name in ("cmdline", "comm", "status")]
            assert b"saeval" in seen[0] and CANARY.encode() not in b"".join(seen)
        child.kill()
        child.wait()


KEY_PLACES = [
    {"api_key": CANARY}, {"extra": {"api_key": CANARY}}, {"extra": {"extra_headers": {"Authorization": f"Bearer {CANARY}"}}},
    {"extra": {"headers": [{"x-api-key": CANARY}]}}, {"access_token": CANARY},
]  # fmt: skip


@pytest.mark.parametrize("options", KEY_PLACES, ids=str)
def test_key_in_a_spec_is_refused_wherever_it_is(options):
    with truthful_server() as server:
        role = {"model": "openai/x", "api_base": server.url, **options}
        with pytest.raises(SpecError, match="do not belong in a spec") as refused:
            load_task(spec(server, llms={"explainer": role, "judge": role}), registry=Registry())
        assert CANARY not in str(refused.value)


def test_key_given_by_set_or_in_an_address_is_refused(tmp_path):
    with truthful_server() as server:
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server)))
        for assignment in (
            f"llms.judge.api_key={CANARY}",
            f"llms.judge.extra={{api_key: {CANARY}}}",
            f"llms.judge.api_base=http://user:{CANARY}@localhost/v1",
        ):
            done = run_command("validate", "--task", "task.yaml", "--set", assignment, cwd=tmp_path, code=2)
            assert CANARY not in done.stdout + done.stderr


def test_words_of_a_server_keep_their_sense_without_the_key():
    assert without_secrets("the key was revoked; ask for a new key") == "the key was revoked; ask for a new key"
    assert without_secrets(f"wrong: {CANARY}.") == "wrong: …."
    assert without_secrets("got sk-proj-abc123def456") == "got …"
    assert "abc" not in without_secrets("Authorization: Bearer abcdefgh")


# --- specs ---


BOMB = "".join(f"{a}: &{a} [{', '.join([f'*{b}'] * 9)}]\n" for a, b in zip("bcdefghij", "abcdefghi", strict=True))
HOSTILE_SPECS = {
    "bomb": f"a: &a [x, x, x]\n{BOMB}", "deep list": "a: " + "[" * 50_000 + "]" * 50_000,
    "deep mapping": "".join(f"{' ' * i}a:\n" for i in range(3_000)), "tag": "a: !!python/object/apply:os.system ['true']",
    "long": "a: " + "x" * 3_000_000, "itself": "a: &a [*a]",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_SPECS.values(), ids=HOSTILE_SPECS.keys())
def test_hostile_spec_is_one_quick_sentence(tmp_path, text):
    (tmp_path / "task.yaml").write_text(text)
    began = time.monotonic()
    done = run_command("validate", "--task", "task.yaml", cwd=tmp_path, code=2)
    assert time.monotonic() - began < 20
    assert 0 < len(done.stderr) < 1000


def test_deep_value_on_the_command_line_is_one_sentence(tmp_path):
    with truthful_server() as server:
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server)))
        deep = "a=" + "[" * 5_000 + "]" * 5_000
        done = run_command("validate", "--task", "task.yaml", "--set", deep, cwd=tmp_path, code=2)
    assert done.stderr == "--set a: the value is not YAML\n1 mistake; nothing was run\n"


# --- places ---


EVIL = "../../../evil\x1b]0;pwned\x07\u202e"


def test_names_of_axes_latents_and_places_lead_nowhere_else(tmp_path):
    planted_store(tmp_path / "home" / "store", n_latents=4, documents=60)
    manifest = tmp_path / "home" / "store" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["facts"] |= {"hookpoint": EVIL, "architecture": EVIL, "subject": EVIL}
    manifest.write_text(json.dumps(facts))
    with truthful_server() as server:
        task = spec(
            server, matrix={"coder": [{"id": EVIL}, {"id": "/etc/x"}]}, baselines=[], scorers={"detection": {}},
            source={"use": "recorded", "with": {"path": str(tmp_path / "home" / "store")}}, latents={"n": 1, "min_windows": 20},
        )  # fmt: skip
        (tmp_path / "home" / "task.yaml").write_text(yaml.safe_dump(task))
        done = run_command("run", "--task", "task.yaml", "--out", "a/b/run", cwd=tmp_path / "home")
    assert not any(mark in done.stdout + done.stderr for mark in DANGEROUS)
    assert {p.name for p in tmp_path.iterdir()} == {"home", "cache"}
    assert {p.name for p in (tmp_path / "home").iterdir()} == {"a", "store", "task.yaml"}
    cells = [p.name for p in (tmp_path / "home" / "a" / "b" / "run" / "cells").iterdir()]
    assert len(cells) == 2 and not any("/" in c or "\x1b" in c for c in cells)


@pytest.mark.parametrize("name", ["journal.jsonl", "calls.jsonl", "results.json", "logs/run.log", "cells", "report"])
def test_symbolic_link_in_a_run_directory_is_refused(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    (folder / ".saeval").touch()
    (folder / name).symlink_to(victim)
    with truthful_server() as server:
        with pytest.raises(InputError, match="is a symbolic link"):
            saeval.run(spec(server), out=folder)
        assert not server.calls
    assert victim.read_text() == "mine"


def test_run_directory_may_itself_be_reached_by_a_link(tmp_path):
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "big-disk")
    with truthful_server() as server:
        saeval.run(spec(server, baselines=[], scorers={"detection": {}}), out=tmp_path / "run", limit=1)
    assert (tmp_path / "big-disk" / "results.json").exists()


# --- terminals ---


HOSTILE = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202eevil\u2066\r the word 'harbor'"


@pytest.mark.parametrize(
    "how",
    [["--display", "plain"], pytest.param(["--display", "json", "--json"], marks=pytest.mark.slow)],
    ids=["plain", "json"],
)
def test_hostile_reply_can_do_nothing_to_a_terminal(tmp_path, how):
    def reply(messages):
        asked = messages[-1]["content"]
        return f"no list {HOSTILE}" if asked.startswith("Explanation:") and "lantern" in asked else truthful(messages)

    with truthful_server() as server:
        server.reply = lambda messages: (
            f"EXPLANATION: {HOSTILE} {truthful(messages)}" if "EXPLANATION" in truthful(messages) else reply(messages)
        )
        server.chooses = lambda _, number: error(400, f"bad {HOSTILE}") if number % 5 == 0 else None
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server, baselines=[])))
        shown = [run_command("run", "--task", "task.yaml", "--out", "run", *how, cwd=tmp_path, code=None)]
        shown += [run_command(*command, cwd=tmp_path) for command in (("report", "run"), ("list", "runs"))]
        server.always = error(401, f"bad {HOSTILE}")
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(spec(server, run={"give_up_after": 2, "seed": 1})))
        shown.append(run_command("run", "--task", "other.yaml", "--out", "other", cwd=tmp_path, code=None))
    assert "all failed for one reason" in shown[-1].stderr
    output = "".join(done.stdout + done.stderr for done in shown)
    assert not [mark for mark in DANGEROUS if mark in output]
    for file in (tmp_path / "run" / "report").glob("*.md"):
        assert not [mark for mark in DANGEROUS if mark in file.read_text()]
