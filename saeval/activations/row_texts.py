"""Finds the text in a row of a corpus (a field, several fields, or a conversation), and counts oddities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeval._util import InputError, counted, parse_json

Template = Callable[[Sequence[Mapping[str, str]]], str]
"""Renders a conversation (turns with `role` and `content`) as the text that the model reads."""
Fields = str | Sequence[str]
"""A field of a row, or several whose texts are joined."""
CHATS = ("messages", "conversations", "conversation")
"""Names of fields that contain a conversation."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_FEW_UNREADABLE = 1e-4  # share of U+FFFD characters that a valid text may contain
_LONGEST_NAME, _MOST_NAMES = 60, 12  # limits on field names in a message


@dataclass
class Notes:
    """Counts of rows, documents and oddities while reading a corpus.

    Attributes:
        rows: Number of rows read.
        empty: Number of rows skipped because they contain null instead of text.
        duplicates: Number of documents dropped as duplicates of earlier ones.
        documents: Number of documents before duplicates were dropped.
        parts: Number of documents into which a corpus of one text was divided; 0 if it was not divided.
        characters: Number of characters read.
        unreadable: Number of these characters that replace invalid UTF-8 (U+FFFD).
    """

    rows: int = 0
    empty: int = 0
    duplicates: int = 0
    documents: int = 0
    parts: int = 0
    characters: int = 0
    unreadable: int = 0

    def warnings(self) -> list[str]:
        """Return the warnings for the results, one sentence each."""
        found = []
        if self.empty:
            without = "holds no text and was" if self.empty == 1 else "hold no text and were"
            found.append(f"{self.empty} of {counted(self.rows, 'row')} of the corpus {without} skipped.")
        if self.duplicates:
            found.append(
                f"corpus.dedup dropped {self.duplicates:,} of {counted(self.documents, 'document')} as duplicates "
                "of earlier ones."
            )
        if self.unreadable > _FEW_UNREADABLE * self.characters:
            found.append(
                f"{self.unreadable:,} of {self.characters:,} characters of the corpus are U+FFFD, so its text is not "
                "UTF-8; save it as UTF-8 (`iconv -f latin1 -t utf-8`)."
            )
        if self.parts:
            found.append(
                f"The corpus is one text; it was divided into {self.parts} documents, so that explaining and scoring "
                "share none (`corpus.split: none` keeps it whole)."
            )
        return found


def text_of(row: Any, field: Fields, where: str, template: Template | None, notes: Notes) -> str | None:
    """Return the text of a row, from its fields or its conversation; None if the value is null.

    Args:
        row: The row.
        field: The field; the texts of several fields are joined by a blank line, without empty and null ones.
        where: Name of the row in messages.
        template: Renders conversations; None if there is no template.
        notes: Counts the rows.

    Raises:
        InputError: If the row has no text.
    """
    notes.rows += 1
    if not isinstance(field, str):
        row, field = {"joined": _joined(row, field, where)}, "joined"
    found = isinstance(row, Mapping) and field in row
    value = row[field] if found else None
    chat = None if found else next((k for k in CHATS if isinstance(row, Mapping) and k in row), None)
    if chat is not None and field == "text":
        value = _parsed(row[chat])
    elif found and field in CHATS and _turns(parsed := _parsed(value)):
        value = parsed
    if isinstance(value, str) or (isinstance(row, str) and field == "text"):
        return row if isinstance(row, str) else value
    seen_text = notes.rows > notes.empty + 1
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    if nothing and isinstance(row, Mapping) and (found or chat or seen_text):
        notes.empty += 1
        return None
    if turns := _turns(value):
        if template is None:
            raise InputError(
                f"corpus {where}: holds a conversation, but the model's tokenizer has no chat template; use the "
                "tokenizer of an instruction-tuned model, or write each conversation into a field `text`"
            )
        return template(turns)
    raise InputError(f"corpus {where}: {_no_text(row, field)}")


def _joined(row: Any, fields: Sequence[str], where: str) -> str | None:
    texts = []
    for field in fields:
        value = row.get(field) if isinstance(row, Mapping) else None
        nothing = value is None or (isinstance(value, float) and math.isnan(value))
        if isinstance(value, str):
            texts += [value] if value.strip() else []
        elif not nothing or not isinstance(row, Mapping) or field not in row:
            raise InputError(f"corpus {where}: {_no_text(row, field)}")
    return "\n\n".join(texts) or None


def _no_text(row: Any, field: str) -> str:
    """Return a message with the row's actual content and the remedy."""
    have = [str(name) for name in row] if isinstance(row, Mapping) else []
    texts = [name for name in have if isinstance(row.get(name), str) and name != "id"]
    way_out = "; write each document's text into a field `text`"
    if any(len(name) > _LONGEST_NAME for name in have):
        way_out = "; the first line of a table must name its columns"
    elif texts:
        longest = max(texts, key=lambda name: len(row[name]))
        way_out = f"; set corpus.field to {longest!r}"
    elif "input_ids" in have:
        way_out = ", which are already tokens; give the original text"
    if field in have:
        return f"{field!r} holds no text but {_kind_of_value(row[field])}{way_out}"
    names = [name[:_LONGEST_NAME] for name in have[:_MOST_NAMES]] + ["…"] * (len(have) > _MOST_NAMES)
    return f"no text under {field!r}; it has: {', '.join(names) or type(row).__name__}{way_out}"


def _kind_of_value(value: Any) -> str:
    kinds = {list: "a list", dict: "a mapping", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _parsed(value: Any) -> Any:
    """Parse a conversation that its row stores as a JSON string; return any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError:
        return value


def _turns(value: Any) -> list[dict[str, str]]:
    """Return a conversation as turns with `role` and `content`, from any usual key names; empty for other values."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return []
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return []
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list):  # in parts: keep those with text
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        content = "" if content is None and isinstance(role, str) else content  # null for a tool call
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        turns.append({"role": _ROLES.get(role, role), "content": content})
    return turns
