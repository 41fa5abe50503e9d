"""What real models send: an answer is read from a whole reply only, and what surrounds it is no part of it."""

from __future__ import annotations

import json
import time

import pytest
from fake_server import body, content
from planted_run import spec, truthful, truthful_server
from saeval_plugins.scorers._number import find_number
from saeval_plugins.scorers.intruder import parse_choice

import saeval
from saeval.plugin import (
    CutOff,
    ParseError,
    Reply,
    TokenLogprobs,
    answer_probabilities,
    finish_reason,
    parse_list,
    whole_answer,
)

SMALL = {"latents": {"n": 2, "min_windows": 20}, "baselines": [], "scorers": {"detection": {}}}


@pytest.fixture(autouse=True)
def _quick_and_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)


def judging(messages):
    return messages[-1]["content"].startswith("Explanation:")


def run_with(reply, out, **changes):
    """Run a small task whose server answers by `reply(messages)`, a fault or text."""
    with truthful_server() as server:

        def choose(request, _):
            made = reply(request["messages"])
            return made if callable(made) else content(made)

        server.chooses = choose
        result = saeval.run(spec(server, **{**SMALL, **changes}), out=out)
    return result, server


# --- whole or not ---


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("stop", "stop"), ("end_turn", "stop"), ("COMPLETE", "stop"), ("eos_token", "stop"), ("STOP", "stop"),
        ("length", "length"), ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("model_length", "length"),
        ("content_filter", "refusal"), ("SAFETY", "refusal"), ("refusal", "refusal"),
        ("abort", "other"), ("error", "other"), ("insufficient_system_resource", "other"), ("tool_calls", "other"),
        (None, "other"), ("", "other"), (3, "other"), ("news of tomorrow", "other"), ({"type": "abort"}, "other"),
        ({"type": "stop", "matched": 2}, "stop"), (" stop\n", "stop"), ("eosFound", "stop"), ("token_limit", "length"),
        ("ERROR_LIMIT", "length"), ("sensitive", "refusal"), (["stop"], "other"), ("stopped", "other"),
        ("content_filter: PROHIBITED_CONTENT", "refusal"), ("stop: nothing more", "other"), (": safety", "other"),
    ],
)  # fmt: skip
def test_only_documented_reasons_mean_a_whole_answer(reason, meaning):
    assert finish_reason(reason) == meaning


@pytest.mark.parametrize("read", [lambda r: parse_list(r, 2), lambda r: parse_choice(r, 5), find_number, whole_answer])
@pytest.mark.parametrize("finish", ["length", "other", "refusal"])
def test_no_parser_reads_a_reply_that_is_not_whole(read, finish):
    with pytest.raises(ParseError):
        read(Reply("[1, 0]\n3", finish_reason=finish))


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource", None])
def test_interrupted_answers_are_asked_for_again_and_never_read(tmp_path, reason):
    seen = set()

    def reply(messages):
        key = json.dumps(messages)
        first, _ = key not in seen, seen.add(key)
        if judging(messages):
            return content("[1, 1, 1, 1, 1]", reason) if first else truthful(messages)
        return content("EXPLANATION: words about the", reason) if first else truthful(messages)

    result, server = run_with(reply, tmp_path / "run")
    row = result.cells[0].scores[0]
    assert (row.value, row.n, row.unparsed) == (1.0, 2, 0)
    assert len(server.calls) == 2 * len(seen)


def test_draft_in_a_reply_that_was_cut_is_no_answer(tmp_path):
    def reply(messages):
        if judging(messages):
            return content("At first sight\n[1, 1, 1, 1, 1]\nbut wait, Window 1", "length")
        return truthful(messages)

    result, server = run_with(reply, tmp_path / "run")
    row = result.cells[0].scores[0]
    assert row.value is None and row.failed == 2
    assert any("max_tokens" in warning for warning in result.warnings)
    assert {call["max_tokens"] for call in server.calls if judging(call["messages"])} == {100, 4096}


def test_reasoning_that_takes_more_than_the_limit_gets_room_once(tmp_path):
    with truthful_server() as server:

        def choose(request, _):
            if request["max_tokens"] >= 1000:
                return None
            time.sleep(0.2)  # meanwhile the other questions wait for a slot
            return content("", "length", reasoning_content="hm " * 100)

        server.chooses = choose
        task = spec(server, **{**SMALL, "latents": {"n": 6, "min_windows": 20}})
        for role in task["llms"].values():
            role["concurrency"] = 2
        result = saeval.run(task, out=tmp_path / "run")
        row = result.cells[0].scores[0]
        assert (row.value, row.failed) == (1.0, 0)
        short = [call for call in server.calls if call["max_tokens"] == 100]
        assert 2 <= len(short) <= 4  # the first of each role, since it was not known yet that room is needed
        asked = len(server.calls)
        saeval.run(task, out=tmp_path / "again")
        assert len(server.calls) == asked


# --- reasoning and marks ---

WRAPPINGS = {
    "closed": "<think>{draft}</think>{answer}",
    "unopened": "{draft}\n</think>\n\n{answer}",
    "nested": "<think>{draft} <think>{draft}</think> {draft}</think>{answer}",
    "thinking": "<thinking>{draft}</thinking>\n{answer}",
    "namespace": "<seed:think>{draft}</seed:think>{answer}",
    "brackets": "[THINK]{draft}[/THINK]{answer}",
    "lozenges": "◁think▷{draft}◁/think▷{answer}",
    "pipes": "<|START_THINKING|>{draft}<|END_THINKING|><|START_RESPONSE|>{answer}<|END_RESPONSE|>",
    "thought": "<|begin_of_thought|>{draft}<|end_of_thought|>\n<|begin_of_solution|>{answer}<|end_of_solution|>",
    "harmony": "<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>",
    "harmony without marks": "analysisLet me see. {draft}assistantfinal{answer}",
    "answer tags": "{draft}\n<answer>{answer}</answer>",
    "end of turn": "{answer}<|im_end|>\n",
    "next turn": "{answer}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{draft}",
    "beginning of turn": "<|im_start|>assistant\n{answer}</s>",
}


@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_answers_are_read_in_whatever_wrapping(tmp_path, wrapping):
    def reply(messages):
        draft = "Perhaps [0, 0, 0, 0, 0]" if judging(messages) else "Perhaps\nEXPLANATION: nouns?"
        return wrapping.format(draft=draft, answer=truthful(messages))

    result, _ = run_with(reply, tmp_path / "run")
    row = result.cells[0].scores[0]
    assert (row.value, row.n, row.unparsed) == (1.0, 2, 0)


@pytest.mark.parametrize("parts", ["parts", "separate field"])
def test_content_in_parts_and_reasoning_in_a_field_of_its_own(tmp_path, parts):
    def reply(messages):
        text = truthful(messages)
        if parts == "separate field":
            return content(text, reasoning_content="[0, 0, 0, 0, 0]\nEXPLANATION: nouns?")
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": "[0, 0, 0, 0, 0]"}]}
        return content([thought, {"type": "text", "text": text}])

    result, _ = run_with(reply, tmp_path / "run")
    assert result.cells[0].scores[0].value == 1.0
    shown = result.calls["reply"].to_pylist()
    assert shown and all("[0, 0, 0, 0, 0]" in reply for reply in shown), "the transcript does not show the reasoning"


def test_reasoning_without_an_answer_is_no_answer(tmp_path):
    result, _ = run_with(
        lambda m: "<think>[1, 1, 1, 1, 1]</think>" if judging(m) else truthful(m), tmp_path / "run", run={"patience": 0}
    )
    assert result.cells[0].scores[0].value is None
    assert any("apart from reasoning" in warning for warning in result.warnings)


# --- single answers ---


@pytest.mark.parametrize("reply", ["[1]", "1", "Answer: [1]", "**[1]**", '{"answers": [1]}', "```json\n[1]\n```", "The answer is [1].", "So\n[\n1\n]"])  # fmt: skip
def test_list_of_one_answer_has_its_line_for_itself(reply):
    assert [answer.value for answer in parse_list(reply, 1)] == [True]


@pytest.mark.parametrize(
    "reply",
    ["Nothing in window [1] fits, so the answer is 0.", "[1] holds no such word.", "Window [1]:", "see [1]\nno", "[1]\nthus\n[0]"],
)  # fmt: skip
def test_reference_to_a_window_is_no_answer(reply):
    with pytest.raises(ParseError):
        parse_list(reply, 1)


# --- log-probabilities ---


def pieces(text, sure):
    found = []
    for token in [text[i] for i in range(len(text))]:
        one = {"1": 0.99, "0": 0.01}.get(token, 0.5) if sure else 0.5
        import math

        found.append(TokenLogprobs(token, (("1", math.log(one)), ("0", math.log(1 - one)))))
    return tuple(found)


def test_probabilities_are_those_of_the_answer_and_not_of_the_same_list_in_the_reasoning():
    reply = Reply("[1, 0]", logprobs=pieces("Perhaps [1, 0]?\n</think>\n", False) + pieces("[1, 0]", True))
    one, zero = answer_probabilities(reply, parse_list(reply, 2))
    assert (round(one, 2), round(zero, 2)) == (0.99, 0.01)


SHAPES = {
    "null": lambda g: {**g, "top_logprobs": [*g["top_logprobs"], {"token": "y", "logprob": None}]},
    "no token": lambda g: {key: value for key, value in g.items() if key != "token"},
    "mapping": lambda g: {**g, "top_logprobs": {a["token"]: a["logprob"] for a in g["top_logprobs"]}},
    "numbers": lambda g: 7,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_log_probabilities_of_another_shape_lose_the_probability_and_not_the_answer(tmp_path, shape):
    def reply(messages):
        text = truthful(messages)
        if not judging(messages):
            return text
        top = [{"token": "0", "logprob": -0.1}, {"token": "1", "logprob": -2.5}]
        return content(
            text, logprobs={"content": [shape({"token": c, "logprob": -0.1, "top_logprobs": top}) for c in text]}
        )

    result, _ = run_with(reply, tmp_path / "run", scorers={"detection": {"with": {"top_logprobs": 5}}})
    assert result.cells[0].scores[0].value == 1.0


def test_odd_usage_and_other_extras_never_lose_an_answer(tmp_path):
    odd = iter(
        [{"prompt_tokens": "many"}, {"prompt_tokens": float("nan")}, {"completion_tokens": -5}, "n/a", [1], {"prompt_tokens": 10**400}]
    )  # fmt: skip

    def reply(messages):
        choice = {"message": {"content": truthful(messages)}, "finish_reason": "stop", "logprobs": "none"}
        return body(json.dumps({"choices": [choice], "usage": next(odd, {}), "model": 3, "system_fingerprint": {}}))

    result, _ = run_with(reply, tmp_path / "run")
    assert (result.cells[0].scores[0].value, result.cells[0].scores[0].failed) == (1.0, 0)
    assert all(row.input_tokens >= 0 and row.output_tokens >= 0 for row in result.ledger)


def test_control_characters_of_a_reply_are_marked(tmp_path):
    run_with(lambda m: truthful(m) if judging(m) else truthful(m) + "\x00\x1b", tmp_path / "run")
    (cell,) = (tmp_path / "run/cells").iterdir()
    texts = [json.loads(line)["text"] for line in (cell / "explanations.jsonl").read_text().splitlines()]
    assert texts and all(text.endswith("\ufffd\ufffd") for text in texts)


def test_a_cut_reply_says_what_to_raise():
    with pytest.raises(CutOff, match="max_tokens"):
        whole_answer(Reply("EXPLANATION: a", finish_reason="length"))
