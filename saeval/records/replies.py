"""Decides whether a reply is complete, and separates its answer from reasoning."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from saeval._util import CutOff, ParseError, clean_text
from saeval.records.messages import FinishReason, Reply

_STOP = {
    "stop", "eos", "eos_token", "endoftext", "end_turn", "end", "stop_sequence", "complete", "completed", "finished",
    "stop_criteria_met", "normal", "eosfound", "stopstringfound", "reason_stop",
}  # fmt: skip
_LENGTH = {
    "length", "max_tokens", "max_output_tokens", "model_length", "max_length", "token_limit", "error_limit", "context",
    "model_context_window_exceeded", "maxpredictedtokensreached", "contextlengthreached", "reason_max_len",
    "reason_max_context",
}  # fmt: skip
_REFUSAL = {
    "content_filter", "content_filtered", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii",
    "guardrail_intervened", "error_toxic", "sensitive", "model_armor",
}  # fmt: skip


def finish_reason(reason: object) -> FinishReason:
    """Normalise a provider's finish reason; `other` for every reason that is not known.

    Knows the words of OpenAI, Anthropic, Gemini, Cohere, Mistral, TGI, Bedrock, AI21, watsonx, Reka, Zhipu, Baidu, LM
    Studio and xAI, in upper or lower case; SGLang returns a mapping with the word as its `type`, and Gemini's endpoint
    in OpenAI's format adds the reason of a filter after a colon.

    Example:
        >>> [finish_reason(reason) for reason in ("stop", "MAX_TOKENS", "abort", None, {"type": "stop"})]
        ['stop', 'length', 'other', 'other', 'stop']
    """
    reason = reason.get("type") if isinstance(reason, dict) else reason
    word = reason.strip().lower() if isinstance(reason, str) else ""
    if word in _STOP:
        return "stop"
    if word in _LENGTH:
        return "length"
    return "refusal" if word.partition(":")[0] in _REFUSAL else "other"


def whole_answer(reply: Reply | str) -> str:
    """Return the answer in a reply, without reasoning and special tokens of the chat format.

    Every parser gets its text from here, so that incomplete replies are never parsed.

    Args:
        reply: The reply; a plain string counts as complete.

    Raises:
        CutOff: If the reply ended at the token limit.
        ParseError: If the model declined, or the reply was interrupted.
    """
    if isinstance(reply, str):
        return split_reply(reply)[1]
    if reply.finish_reason == "length":
        raise CutOff("the reply was cut off at its token limit; raise the role's max_tokens or max_tokens_if_cut")
    if reply.finish_reason == "refusal":
        raise ParseError("the model declined")
    if reply.finish_reason != "stop":
        raise ParseError("the reply was interrupted")
    return split_reply(reply.text)[1]


def readable(reply: Reply) -> Reply:
    """Return a reply with reasoning and answer separated, and control characters replaced by U+FFFD."""
    reasoning, answer = split_reply(_cleaned(reply.text))
    reasoning = "\n".join(part for part in (_cleaned(reply.reasoning), reasoning) if part.strip())
    if (answer, reasoning) == (reply.text, reply.reasoning):
        return reply
    return replace(reply, text=answer, reasoning=reasoning)


def _cleaned(text: str) -> str:
    return _CONTROLS.sub("\ufffd", clean_text(text))


_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_QUOTES = "`'\"“”‘’"


def _mark(pattern: str, flags: re.RegexFlag = re.IGNORECASE) -> re.Pattern[str]:
    """Return a pattern that matches a tag or special token, unless it is quoted (the text only mentions it then)."""
    return re.compile(rf"(?<![{_QUOTES}])(?:{pattern})|(?<=[{_QUOTES}])(?:{pattern})(?![{_QUOTES}])", flags)


_NAMES = r"(?:[\w.-]+[:_])?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis)"
_OPEN = _mark(
    rf"<{_NAMES}>|\[(?:think|thinking|reasoning)\]|◁think▷|<unused94>|<\|channel>(?:thought|analysis)"
    r"|<\|(?:think|thinking|think_start|begin_of_thought|begin_of_thinking|start_thinking)\|>"
)
_CLOSE = _mark(
    rf"</{_NAMES}>|\[/(?:think|thinking|reasoning)\]|◁/think▷|<unused95>|<channel\|>"
    r"|<\|(?:/think|/thinking|think_end|end_of_thought|end_of_thinking|end_thinking)\|>"
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<\n]*(?:<\|constrain\|>[^<\n]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>")
_BARE_CHANNELS = re.compile(r"\A\s*(?:analysis|commentary)(?=[A-Z\s]).*assistant\s?final", re.DOTALL)
_ANSWER = re.compile(r"^[ \t]*<(answer|final_answer)>(.*?)</\1>\s*\Z", re.DOTALL | re.IGNORECASE | re.MULTILINE)
_TURN_START = (
    r"<\|im_start\|>|<\|start\|>|<start_of_turn>|<\|turn>|<\|start_header_id\|>|<\|assistant\|>|<\|start_response\|>"
    r"|<\|begin_of_solution\|>|<\|begin_of_text\|>|<bos>|<s>"
)
_TURN_END = (
    r"<\|(?:im_end|eot_id|eom_id|eot|end|endoftext|end_of_text|end_of_turn|endofturn|end_of_turn_token|return|eos"
    r"|assistant_end|message_end|end_response|end_of_solution)\|>|<end_of_turn>|<turn\|>|<eos>|\[\|endofturn\|\]"
    r"|<｜end▁of▁sentence｜>|(?:(?<=\S)|^)</s>"
)
_BEGINS = re.compile(
    rf"\A\s*(?:{_TURN_START})(?:assistant|model)?(?:<\|end_header_id\|>|<\|message\|>)?\s*", re.IGNORECASE
)
_ENDS = _mark(rf"(?:{_TURN_END})(?=\s*(?:\Z|{_TURN_START}|{_TURN_END})|[ \t]*\n)", re.IGNORECASE | re.MULTILINE)


@lru_cache(maxsize=256)  # each reply is read several times while it is under way
def split_reply(text: str) -> tuple[str, str]:
    """Split a reply into reasoning and answer, and remove special tokens of the chat format from the answer.

    Reasoning is everything up to the last closing tag, with or without an opening tag, since chat templates put opening
    tags into the prompt. If nothing follows the closing tag, the answer is the text before the first opening tag.
    Everything after an opening tag without closing tag is reasoning. In OpenAI's harmony format the answer is the last
    `final` channel.

    Example:
        >>> split_reply("Perhaps [0].</think>\\n[1]<|im_end|>")
        ('Perhaps [0].</think>', '\\n[1]')
    """
    reasoning, answer = _channels(text) or _tags(text)
    if found := _ANSWER.search(answer):
        reasoning, answer = reasoning + answer[: found.start()], found[2]
    answer = _BEGINS.sub("", answer)
    end = _ENDS.search(answer)
    return reasoning, answer[: end.start()] if end else answer


def _channels(text: str) -> tuple[str, str] | None:
    """Split a reply in the harmony format, with or without its special tokens; return None for other formats."""
    if bare := _BARE_CHANNELS.match(text):
        return text[: bare.end()], text[bare.end() :]
    channels = list(_CHANNEL.finditer(text))
    if not channels:
        return None
    last = channels[-1]
    if last[1] != "final":
        return text, ""
    end = _CHANNEL_END.search(text, last.end())
    return text[: last.start()], text[last.end() : end.start() if end else len(text)]


def _tags(text: str) -> tuple[str, str]:
    first, closings = _OPEN.search(text), list(_CLOSE.finditer(text))
    reasoning, answer = "", text
    if closings:
        end = closings[-1].end()
        reasoning, answer = text[:end], text[end:]
        if not answer.strip() and first and first.start() < end:
            reasoning, answer = text[first.start() :], text[: first.start()]
    if unclosed := _OPEN.search(answer):
        reasoning, answer = reasoning + answer[unclosed.start() :], answer[: unclosed.start()]
    return reasoning, answer
