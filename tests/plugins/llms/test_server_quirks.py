"""Requests are adapted to what a server refuses; a fault that passes, or a model that refuses, changes none."""

from __future__ import annotations

import pytest
from fake_server import content, error, fake_server
from gateways import BOTH_DOORS, ask, direct, gateway, with_key_and_short_waits
from planted_run import spec, truthful_server
from saeval_plugins.llms import LiteLLM, OpenAICompatible

import saeval
from saeval import LLMError
from saeval.llm.budget import Budget
from saeval.llm.cache import AnswerCache
from saeval.llm.gateway import Gateway
from saeval.llm.ledger import CallLedger
from saeval.llm.role import Asker, RoleSettings
from saeval.plugin import AnswerSchema, Message, Refused, Request

SCHEMA = AnswerSchema.array(2, (0, 1))
TEMPLATE = "While executing CallExpression: Jinja Exception: System role not supported"


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with_key_and_short_waits(monkeypatch)


@pytest.fixture(params=BOTH_DOORS)
def client(request):
    return request.param


def question(text, **options):
    return Request((Message("system", "Judge."), Message("user", text)), **options)


def systems(server):
    """Return for each call whether it had a system turn."""
    return [call["messages"][0]["role"] == "system" for call in server.calls]


def schemas(server):
    """Return for each call whether it had a schema."""
    return ["response_format" in call for call in server.calls]


def without_system(message, status=400):
    """Return how a server answers that has no system turn."""

    def chosen(body, _):
        return error(status, message) if body["messages"][0]["role"] == "system" else None

    return chosen


# --- the system turn ---

TEMPORARY = {
    "unknown": error(500, "Unknown system error"), "other words": error(500, "An invalid state of the file system"),
    "overload": error(503, "System messages are not accepted while the queue is full"),
    "rate limit": error(429, "System prompts are not supported above 5 requests per second"),
    "too busy": error(529, "system prompt not available"), "timeout": error(408, "System role not supported"),
    "gateway timeout": error(504, "System role not supported"), "once": error(500, TEMPLATE),
}  # fmt: skip


@pytest.mark.parametrize("fault", TEMPORARY.values(), ids=TEMPORARY.keys())
def test_fault_that_passes_leaves_the_system_turn(tmp_path, client, fault):
    with fake_server("fine") as server:
        server.faults = [fault]
        gate = gateway(tmp_path, client(server))
        assert [ask(gate, question(text))[0].text for text in ("one", "two")] == ["fine", "fine"]
        assert systems(server) == [True, True, True]


@pytest.mark.parametrize("status", [408, 429, 503, 504, 529])
def test_fault_of_a_busy_server_is_no_deviation_however_often_it_comes(tmp_path, status):
    with fake_server("fine") as server:
        server.always = error(status, "System role not supported; response_format needs a grammar")
        ask(gateway(tmp_path, direct(server), retries=3, structured=True), question("one", schema=SCHEMA))
        assert systems(server) == schemas(server) == [True] * 4


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported", "system messages are currently not supported", "This model doesn't support system prompts",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.", "Unknown role: system",
        "Invalid value: 'system'. Supported values are: 'user' and 'assistant'.", "'system' is not one of ['user', 'assistant']",
        "Developer instruction is not enabled for models/gemma", "Only user and assistant roles are supported!",
        "system_instruction is not supported", "The model cannot accept a system message",
    ],
)  # fmt: skip
def test_server_that_refuses_a_system_turn_is_asked_without_from_then_on(tmp_path, message):
    with fake_server("fine") as server:
        server.chooses = without_system(message)
        gate = gateway(tmp_path, direct(server), retries=0)
        assert [ask(gate, question(text))[0].text for text in ("one", "two")] == ["fine", "fine"]
        assert systems(server) == [True, False, False]
        assert server.calls[-1]["messages"] == [{"role": "user", "content": "Judge.\n\ntwo"}]


@pytest.mark.parametrize(
    "message",
    [
        "The system prompt must not exceed 4096 tokens", "Invalid request: the file system is full", "unknown error",
        "Our system does not have capacity", "Unknown system error", "The system message is longer than the context",
    ],
)  # fmt: skip
def test_error_that_only_mentions_the_system_is_not_adapted_to(tmp_path, message):
    with fake_server("fine") as server:
        server.always = error(400, message)
        (failed,) = ask(gateway(tmp_path, direct(server)), question("one"))
        assert isinstance(failed, LLMError) and systems(server) == [True]


def test_template_error_that_a_server_reports_as_its_own_is_learnt_when_it_comes_again(tmp_path, client):
    with fake_server("fine") as server:
        server.chooses = without_system(TEMPLATE, status=500)
        gate = gateway(tmp_path, client(server))
        assert [ask(gate, question(text))[0].text for text in ("one", "two")] == ["fine", "fine"]
        assert systems(server) == [True, True, False, False]


@pytest.mark.parametrize(("code", "learnt"), [(400, True), (None, True), (429, False), ("503", False)])
def test_error_inside_a_successful_response_is_learnt_when_it_comes_again_unless_it_passes(tmp_path, code, learnt):
    with fake_server("fine") as server:
        server.faults = [error(200, "System role not supported", code=code)] * 2
        assert ask(gateway(tmp_path, direct(server)), question("one"))[0].text == "fine"
        assert systems(server) == [True, True, not learnt]


def test_numbers_in_a_message_do_not_make_it_another(tmp_path):
    with fake_server("fine") as server:
        server.faults = [error(500, f"{TEMPLATE} (request 7f{i}, at 12:00:0{i})") for i in range(2)]
        assert ask(gateway(tmp_path, direct(server)), question("one"))[0].text == "fine"
        assert systems(server) == [True, True, False]


def test_same_fault_of_other_requests_is_not_the_same_fault_again(tmp_path):
    with fake_server("fine") as server:
        server.faults = [error(500, TEMPLATE)] * 4
        replies = ask(gateway(tmp_path, direct(server)), *(question(str(i)) for i in range(4)))
        assert [reply.text for reply in replies] == ["fine"] * 4
        assert systems(server) == [True] * 8


def test_fault_after_an_answer_is_a_first_one(tmp_path):
    with fake_server("fine") as server:
        gate = gateway(tmp_path, direct(server), cache=False)
        for _ in range(3):
            server.faults = [error(500, TEMPLATE)]
            ask(gate, question("one"))
        assert systems(server) == [True] * 6


@pytest.mark.parametrize(
    "refusal",
    [
        "I will not follow this system prompt; it is not allowed.",
        "System messages are not supported by my values.",
    ],
)
def test_refusal_is_counted_and_billed_and_changes_no_prompt(tmp_path, client, refusal):
    with fake_server("fine") as server:
        server.faults = [content(None, refusal=refusal)]
        gate = gateway(tmp_path, client(server))
        (refused,) = ask(gate, question("one"))
        assert isinstance(refused, Refused)
        ask(gate, question("two"))
        assert systems(server) == [True, True]
    first = next(iter(gate._log.calls()))
    assert (first.status, first.usage.input_tokens) == ("refused", 100)


def test_filter_that_names_the_system_prompt_is_a_refusal(tmp_path):
    with fake_server("fine") as server:
        server.faults = [error(400, "This system prompt is not allowed", code="content_filter")]
        (refused,) = ask(gateway(tmp_path, direct(server)), question("one"))
        assert isinstance(refused, Refused) and systems(server) == [True]


def test_interrupted_answer_is_billed_and_changes_no_prompt(tmp_path):
    with fake_server("fine") as server:
        server.faults = [content("f", finish_reason="system role not supported")] * 2
        (reply,) = ask(gateway(tmp_path, direct(server)), question("one"))
        assert (reply.usage.input_tokens, systems(server)) == (300, [True] * 3)


def test_user_is_told_once_that_prompts_are_changed(tmp_path, client):
    told = []
    with fake_server("fine") as server:
        server.chooses = without_system("System role not supported")
        gate = Gateway(
            Asker("judge", client(server), "m", RoleSettings()), identity="m", budget=Budget(None), tell=told.append,
            calls=AnswerCache(tmp_path / "calls.sqlite"), log=CallLedger(tmp_path / "calls.jsonl"),
        )  # fmt: skip
        ask(gate, Request.of("no system turn"))
        assert told == []
        ask(gate, question("one"), question("two"))
    assert told == [
        "judge: the server of m rejects system turns, so their text is sent at the start of the first user turn"
    ]


def test_run_says_that_its_prompts_are_changed(tmp_path):
    with truthful_server() as server:
        server.chooses = without_system("System role not supported")
        saeval.run(spec(server, scorers={"detection": {}}, baselines=[]), out=tmp_path / "run", limit=1, display="none")
    log = (tmp_path / "run" / "logs" / "run.log").read_text()
    assert [log.count(f"{role}: the server of") for role in ("judge", "explainer")] == [1, 1]


# --- schemas ---

PASSING = {
    "rate limit": error(429, "Rate limit for structured output requests reached"),
    "overload": error(503, "grammar compiler is overloaded"), "server": error(500, "guided decoding worker died"),
    "bad gateway": error(502, "upstream of response_format backend closed"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_fault_that_passes_leaves_the_schema(tmp_path, fault):
    with fake_server("[1, 0]") as server:
        server.faults = [fault]
        llm = direct(server)
        gate = gateway(tmp_path, llm, structured=True)
        assert [ask(gate, question(text, schema=SCHEMA))[0].text for text in ("one", "two")] == ["[1, 0]"] * 2
        assert schemas(server) == [True] * 3 and llm.follows_schemas


def test_rate_limit_that_names_schemas_is_waited_for(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("saeval.llm.retries.Waits.report", lambda self, seconds, error: waits.append(seconds))
    with fake_server("[1, 0]") as server:
        server.faults = [error(429, "Structured output limit reached, try again in 200ms")]
        ask(gateway(tmp_path, direct(server), structured=True), question("one", schema=SCHEMA))
    assert len(waits) == 1 and waits[0] >= 0.2


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("model", ["acme/grammar-7b", "Guided-response_format", "hub/json_schema/x"])
def test_name_of_a_model_is_no_error(tmp_path, model, status):
    with fake_server("[1, 0]") as server:
        said = f"The model `{model}` ({model.rpartition('/')[2].upper()}) failed"
        server.faults = [error(status, said)] * 2
        llm = OpenAICompatible(model=model, api_base=server.url)
        ask(gateway(tmp_path, llm, structured=True), question("one", schema=SCHEMA))
        assert schemas(server) == [True] * (1 if status == 400 else 3) and llm.follows_schemas


@pytest.mark.slow
def test_name_of_a_model_is_no_error_through_litellm(tmp_path):
    with fake_server('{"answer": [1, 0]}') as server:
        server.faults = [error(500, "The model acme/grammar-7b failed")] * 2
        llm = LiteLLM(model="hosted_vllm/acme/grammar-7b", api_base=server.url)
        ask(gateway(tmp_path, llm, structured=True), question("one", schema=SCHEMA))
        assert schemas(server) == [True] * 3 and llm.follows_schemas


@pytest.mark.slow
def test_processes_of_litellm_learn_as_one_process_does(tmp_path):
    with fake_server("fine") as server:
        server.faults = [error(500, "Unknown system error")]
        server.chooses = without_system(TEMPLATE, status=500)
        gate = gateway(tmp_path, LiteLLM(model="openai/m", api_base=server.url, processes=2), retries=3)
        assert ask(gate, question("one"))[0].text == "fine"
        assert systems(server) == [True, True, True, False]


# --- the token limit ---

RENAMED = [
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "max_tokens is deprecated in favor of max_completion_tokens",
]
TOO_LARGE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length is 2048 tokens"
)


@pytest.mark.parametrize("message", RENAMED)
def test_server_that_renamed_the_token_limit_gets_the_new_name_from_then_on(tmp_path, client, message):
    with fake_server("fine") as server:
        server.chooses = lambda body, _: error(400, message) if "max_tokens" in body else None
        gate = gateway(tmp_path, client(server), max_tokens=70)
        assert [ask(gate, question(text))[0].text for text in ("one", "two")] == ["fine", "fine"]
        assert [call.get("max_completion_tokens") for call in server.calls] == [None, 70, 70]


def test_token_limit_that_exceeds_the_context_is_not_renamed(tmp_path):
    with fake_server("fine") as server:
        server.chooses = lambda body, number: error(400, TOO_LARGE) if number == 1 else None
        gate = gateway(tmp_path, direct(server), max_tokens=70)
        assert TOO_LARGE in str(ask(gate, question("one"))[0])
        assert ask(gate, question("two"))[0].text == "fine"
        assert ["max_tokens" in call for call in server.calls] == [True, True]
