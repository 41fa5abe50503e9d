"""Answers of a closed set are held to a schema where the role says so and the server can; all else stays as it was."""

from __future__ import annotations

import json
import sys
import zlib
from types import SimpleNamespace

import pytest
from fake_server import content, error, fake_server
from gateways import ask, direct, gateway, through_litellm
from planted_run import spec, truthful, truthful_server
from saeval_plugins.llms import LiteLLM, Replay
from saeval_plugins.llms.replay import replay_key
from saeval_plugins.llms.vllm import VLLM

import saeval
from saeval.llm.answers import json_text
from saeval.plugin import AnswerSchema, Request, content_hash

BITS = Request.of("Which?", max_tokens=9, temperature=0.0, schema=AnswerSchema.array(2, (0, 1)))
REFUSALS = {
    "objects only": "Invalid schema for response_format 'answer': schema must be a JSON Schema of 'type: \"object\"', got "
    "'type: \"array\"'.",
    "none": "[{'type': 'extra_forbidden', 'loc': ('body', 'response_format'), 'msg': 'Extra inputs are not permitted'}]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def schema_of(body):
    return body["response_format"]["json_schema"]["schema"] if "response_format" in body else None


def talker(knows):
    """Return how a model answers that replies in prose every third time unless it is held to a schema.

    Args:
        knows: Schemas its server takes: `arrays`, `objects only` or `none`.
    """

    def chosen(body, number):
        prompt, schema = body["messages"][-1]["content"], schema_of(body)
        if schema is not None and knows != "arrays" and not (knows == "objects only" and schema["type"] == "object"):
            return error(400, REFUSALS[knows])
        if not prompt.startswith("Explanation:") or (schema is None and zlib.crc32(prompt.encode()) % 3):
            return None
        if schema is None:
            return content("Windows 1 and 2 fit it.")
        answer = truthful(body["messages"])
        return content(f'{{ "answer": {answer} }}' if schema["type"] == "object" else answer)

    return chosen


def judged(server, out, structured):
    """Run detection and return its row, and what the run told."""
    task = spec(server, scorers={"detection": {"with": {"batch": 2}}}, baselines=[])
    task["llms"]["judge"] = {**task["llms"]["judge"], **({"structured": True} if structured else {})}
    row = saeval.run(task, out=out, display="none").cells[0].scores[0]
    return row, (out / "logs" / "run.log").read_text()


def test_run_with_structured_answers_leaves_none_unparsed(tmp_path):
    with truthful_server() as server:
        server.chooses = talker("arrays")
        free, _ = judged(server, tmp_path / "free", structured=False)
        assert not any(map(schema_of, server.calls))
        held, _ = judged(server, tmp_path / "held", structured=True)
        explained = [body for body in server.calls if not body["messages"][-1]["content"].startswith("Explanation:")]
        assert not any(map(schema_of, explained)), "explanations are no closed set"
    assert held.unparsed == 0 < 0.1 < free.unparsed / free.windows
    assert held.value == 1.0


@pytest.mark.parametrize("knows", ["objects only", "none"])
def test_server_that_takes_other_schemas_or_none_is_asked_in_its_way_from_then_on(tmp_path, knows):
    with truthful_server() as server:
        server.chooses = talker(knows)
        row, log = judged(server, tmp_path / "run", structured=True)
        refused = [body for body in server.calls if (schema_of(body) or {}).get("type") == "array"]
        last = schema_of(server.calls[-1])
    assert (row.unparsed == 0) == (knows == "objects only") and not row.failed
    assert 0 < len(refused) <= 8, "a refusal is remembered; only calls under way meet it, too"
    assert (last is None) == (knows == "none")
    assert log.count("rejects JSON schemas") == (knows == "none")


@pytest.mark.parametrize("client", [direct, pytest.param(through_litellm, marks=pytest.mark.slow)])
def test_answer_inside_an_object_is_read_as_if_it_stood_alone(tmp_path, client):
    with fake_server('{"answer": [1, 0]}') as server:
        (reply,) = ask(gateway(tmp_path, client(server), structured=True), BITS)
        assert schema_of(server.calls[0])["type"] == ("array" if client is direct else "object")
    assert reply.text == "[1, 0]"


def test_requests_have_their_old_keys_unless_their_role_is_structured(tmp_path):
    plain = Request.of("Which?", max_tokens=9, temperature=0.0)
    old = {
        "messages": [{"role": "user", "content": "Which?"}], "max_tokens": 9, "temperature": 0.0, "stop": [],
        "top_logprobs": 0, "repeat": 0,
    }  # fmt: skip
    assert json_text(plain) == json_text(old) and replay_key(plain) == content_hash(old) and "schema" not in repr(BITS)
    assert json_text(BITS) != json_text(plain) and replay_key(BITS) != replay_key(plain)
    with fake_server("[1, 0]") as server:
        free = gateway(tmp_path, direct(server))
        ask(free, plain, BITS)
        assert len(server.calls) == 1, "without `structured`, a request with a schema is the one without"
        ask(gateway(tmp_path, direct(server), structured=True), BITS)
        assert len(server.calls) == 2 and schema_of(server.calls[1]) == BITS.schema.schema


def test_model_that_cannot_be_held_to_a_schema_is_refused_before_anything_runs(tmp_path, monkeypatch):
    with truthful_server() as server:
        task = spec(server)
        task["llms"]["judge"] = {"model": "litellm/anthropic/claude-3-haiku-20240307", "structured": True}
        with pytest.raises(saeval.SpecError, match=r"structured.*does not support JSON schemas.*omit `structured`"):
            saeval.run(task, out=tmp_path / "run", display="none")
    assert LiteLLM(model="hosted_vllm/m").follows_schemas and not LiteLLM(model="gemini/m").follows_schemas
    assert Replay(model=str(tmp_path)).follows_schemas


@pytest.mark.parametrize("release", ["structured_outputs", "guided_decoding"])
def test_vllm_in_process_gets_the_schema_under_the_name_its_release_has_for_it(monkeypatch, release):
    made = {"structured_outputs": "StructuredOutputsParams", "guided_decoding": "GuidedDecodingParams"}[release]
    params = SimpleNamespace(**{made: lambda json: ("held to", json)})
    vllm = SimpleNamespace(SamplingParams=dict, sampling_params=params)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    waiting = SimpleNamespace(options={"max_tokens": 9, "schema": BITS.schema.text})
    free = SimpleNamespace(options={"max_tokens": 9})
    (held, other) = VLLM(model="m")._params([waiting, free])
    assert held == {"max_tokens": 9, release: ("held to", BITS.schema.text)} and other == {"max_tokens": 9}
    assert json.loads(held[release][1])["maxItems"] == 2
