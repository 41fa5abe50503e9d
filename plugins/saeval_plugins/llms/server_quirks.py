"""Adapts requests to servers that deviate from OpenAI's API (no system turn, streaming only, …), as errors reveal."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from saeval.plugin import Reply

log = logging.getLogger("saeval")

_SIGNS = {
    "no system turn": r"system (?:role|message|prompt|turn|instruction)s?\b.{0,40}(?:\bnot\b|n't|unsupported)"
    r"|only user and assistant roles|roles must alternate|developer instruction is not enabled"
    r"|(?:unsupported|invalid|unknown).{0,30}\bsystem\b",
    "streams only": r"only.{0,30}\bstream|stream.{0,30}must be (?:set to )?true|non-?stream\w*.{0,30}not ",
    "max_completion_tokens": r"max_tokens.{0,80}max_completion_tokens",
}
"""Error texts that reveal each deviation."""

_OBJECTS, _FREE = "schemas of objects only", "no schemas"
_OF_SCHEMAS = {
    _OBJECTS: r"schema.{0,120}\btype\b.{0,20}\bobject|(?:root|top.?level).{0,60}\bobject",
    _FREE: r"response_format|json_?schema|structured.?output|guided|grammar",
}
"""Error texts for requests with a schema; the first that matches counts."""

_IN_OBJECT = re.compile(r'\{\s*"answer"\s*:\s*(.*?)\s*\}\s*\Z', re.DOTALL)


@dataclass
class ServerQuirks:
    """Deviations of one server.

    Attributes:
        found: Names of its deviations.
    """

    found: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of_objects(cls) -> ServerQuirks:
        """Return the quirks of a server whose schemas must describe an object, such as OpenAI's."""
        return cls(frozenset({_OBJECTS}))

    @property
    def follows_schemas(self) -> bool:
        """Whether the server follows schemas: true until it refuses one."""
        return _FREE not in self.found

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a chat request in the form that the server accepts."""
        made = dict(body)
        if "no system turn" in self.found:
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

    def learn(self, error: str, used: frozenset[str], *, schema: bool = False) -> bool:
        """Learn a deviation from an error; return whether the request should be adapted and sent again.

        Args:
            error: The server's error message.
            used: Deviations known when the request was sent.
            schema: Whether the request had a schema.
        """
        wanted = {way for way, sign in _SIGNS.items() if re.search(sign, error, re.IGNORECASE)}
        if schema and not wanted:
            fitting = (way for way, sign in _OF_SCHEMAS.items() if re.search(sign, error, re.IGNORECASE))
            wanted = set(islice((way for way in fitting if way not in used), 1))
        for way in sorted(wanted - self.found):
            log.info("requests are adapted to the server from now on: %s (server error: %s)", way, error)
        self.found |= wanted
        return bool(wanted - used)


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
