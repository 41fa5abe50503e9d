"""Adapts requests to servers that deviate from OpenAI's API (no system turn, streaming only, …), as errors reveal."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from saeval.plugin import Reply, Request, content_hash
from saeval_plugins.llms.openai_chat import ServerError

log = logging.getLogger("saeval")

_NO_SYSTEM = "no system turn"
_TURN = r"\bsystem[\W_]{1,3}(?:role|message|prompt|turn|instruction)s?\b"
_ACCEPT = r"(?:support|allow|accept|permit|implement|enabl|available|recogni[sz]|valid)"
_NOT = rf"(?:not|n't) (?:\w+ )?{_ACCEPT}\w*"
_WRONG = r"(?:unsupported|invalid|unknown|unexpected)"
_SIGNS = {
    _NO_SYSTEM: rf"{_TURN}.{{0,30}}{_NOT}|{_TURN} (?:is |are )?(?:unsupported|disallowed)"
    rf"|{_NOT} (?:\w+ ){{0,2}}{_TURN}|{_WRONG} {_TURN}|{_WRONG} (?:value|message type)\W{{1,4}}system\b"
    rf"|{_WRONG}\b.{{0,40}}\brole\b.{{0,40}}\bsystem\b|\bsystem\W{{1,3}}is not one of"
    r"|only user and assistant roles|roles must alternate|developer instruction is not enabled",
    "streams only": r"only.{0,30}\bstream|stream.{0,30}must be (?:set to )?true|non-?stream\w*.{0,30}not ",
    "max_completion_tokens": r"max_tokens(?!\W{1,3}or\b).{0,80}max_completion_tokens",
}
"""Error texts that reveal each deviation."""

_OBJECTS, _FREE = "schemas of objects only", "no schemas"
_OF_SCHEMAS = {
    _OBJECTS: r"schema.{0,120}\btype\b.{0,20}\bobject|(?:root|top.?level).{0,60}\bobject",
    _FREE: r"response_format|json_?schema|structured.?output|guided|grammar",
}
"""Error texts for requests with a schema; the first that matches counts."""

_REMEMBERED = 4096  # number of requests whose last error is kept
_VARYING = re.compile(r"\S*\d\S*")  # numbers of requests and times

_IN_OBJECT = re.compile(r'\{\s*"answer"\s*:\s*(.*?)\s*\}\s*\Z', re.DOTALL)


@dataclass
class ServerQuirks:
    """Deviations of one server.

    Attributes:
        found: Names of its deviations.
        once: Messages of server errors that reveal a deviation if the same request gets them again, by request.
    """

    found: frozenset[str] = field(default_factory=frozenset)
    once: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_objects(cls) -> ServerQuirks:
        """Return the quirks of a server whose schemas must describe an object, such as OpenAI's."""
        return cls(frozenset({_OBJECTS}))

    @property
    def follows_schemas(self) -> bool:
        """Whether the server follows schemas: true until it refuses one."""
        return _FREE not in self.found

    @property
    def merges_system_turn(self) -> bool:
        """Whether the system turn's text is sent in the first user turn."""
        return _NO_SYSTEM in self.found

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a chat request in the form that the server accepts."""
        made = dict(body)
        if self.merges_system_turn:
            made["messages"] = _without_system(body["messages"])
        if "streams only" in self.found:
            made |= {"stream": True, "stream_options": {"include_usage": True}}
        if "max_completion_tokens" in self.found:
            made["max_completion_tokens"] = made.pop("max_tokens")
        if "response_format" in body and _FREE in self.found:
            del made["response_format"]
        elif "response_format" in body and _OBJECTS in self.found:
            made["response_format"] = _in_object(body["response_format"])
        return made

    async def adapting(self, request: Request, ask: Callable[[Request], Awaitable[Reply]]) -> Reply:
        """Return the reply to a request; if an error reveals a deviation, adapt the request and ask again.

        Args:
            request: The request.
            ask: Sends it, adapted.
        """
        while True:
            used = self.found
            try:
                reply = await ask(request)
            except ServerError as error:
                if not self._learn(error, used, request):
                    raise
                continue
            if self.once:
                self.once.pop(_key(request), None)
            return reply if request.schema is None else unwrapped(reply)

    def _learn(self, error: ServerError, used: frozenset[str], request: Request) -> bool:
        """Learn a deviation from an error; return whether the request should be adapted and sent again.

        Args:
            error: The server's error.
            used: Deviations known when the request was sent.
            request: The request.
        """
        wanted = _revealed(error.said, used, request)
        if not wanted or (error.retryable and not wanted <= self.found and not self._again(error.said, request)):
            return False
        for way in sorted(wanted - self.found):
            log.info("requests are adapted to the server from now on: %s (server error: %s)", way, error)
        self.found |= wanted
        return bool(wanted - used)

    def _again(self, said: str, request: Request) -> bool:
        """Return whether the last error of a request had the same message; an error that passes is no deviation.

        Some servers (llama.cpp, TGI) report errors of the chat template with the status of a server error.
        """
        key, said = _key(request), _VARYING.sub("", said)
        if self.once.pop(key, None) == said:
            return True
        self.once[key] = said
        if len(self.once) > _REMEMBERED:
            del self.once[next(iter(self.once))]
        return False


def _revealed(said: str, used: frozenset[str], request: Request) -> set[str]:
    """Return the deviations that a server's message reveals."""
    wanted = {way for way, sign in _SIGNS.items() if re.search(sign, said, re.IGNORECASE)}
    if all(message.role != "system" for message in request.messages):
        wanted.discard(_NO_SYSTEM)
    if request.schema is None or wanted:
        return wanted
    fitting = (way for way, sign in _OF_SCHEMAS.items() if re.search(sign, said, re.IGNORECASE))
    return set(islice((way for way in fitting if way not in used), 1))


def _key(request: Request) -> str:
    return content_hash(request.content())


def unwrapped(reply: Reply) -> Reply:
    """Return a reply without the enclosing object, which is added for servers that require object schemas."""
    found = _IN_OBJECT.search(reply.text)
    return reply if found is None else replace(reply, text=reply.text[: found.start()] + found[1])


def _in_object(response_format: dict[str, Any]) -> dict[str, Any]:
    """Return a response format whose schema is an object that contains the answer."""
    inside = response_format["json_schema"]
    schema = {
        "type": "object",
        "properties": {"answer": inside["schema"]},
        "required": ["answer"],
        "additionalProperties": False,
    }
    return {**response_format, "json_schema": {**inside, "schema": schema}}


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a conversation with the system turn moved to the start of the first user turn."""
    if not messages or messages[0]["role"] != "system" or len(messages) < 2:
        return messages
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
