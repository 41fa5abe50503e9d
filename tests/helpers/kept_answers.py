"""The answers that a cache keeps, by their keys."""

from __future__ import annotations

import sqlite3

from saeval.plugin import Message, Request, content_hash


def key_of(body, identity):
    """The key under which the answer to a request is kept."""
    messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    request = Request(messages, body["max_tokens"], body["temperature"], tuple(body.get("stop", ())))
    return content_hash("complete", identity, request.content())


def kept(cache):
    """Keys of all answers on disk."""
    if not (cache / "calls.sqlite").exists():
        return set()
    database = sqlite3.connect(cache / "calls.sqlite")
    try:
        return {key for (key,) in database.execute("SELECT lower(hex(key)) FROM kept")}
    except sqlite3.OperationalError:  # killed before there was a table
        return set()
    finally:
        database.close()
