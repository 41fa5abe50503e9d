"""Writes the replies of a run to recordings for the model `replay/FILE`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from saeval._util import InputError, write_atomic
from saeval.llm.cache import AnswerCache
from saeval.llm.ledger import CallLedger


def export_replies(ledgers: Sequence[CallLedger], store: AnswerCache, role: str, path: Path) -> int:
    """Write a role's replies in a run to a recording, which the model `replay/PATH` plays back.

    Args:
        ledgers: The run's ledger, or those of its seeds.
        store: The cache of answers.
        role: Role of the spec.
        path: The recording to write, if there are replies; log-probabilities of continuations are not included.

    Returns:
        The number of replies.

    Raises:
        InputError: If several models answered, whose replies to one request would be confused.
    """
    models: set[str] = set()
    keys: dict[str, str] = {}
    for ledger in ledgers:
        for call in ledger.calls():
            if call.role == role and call.answer:
                models.add(call.model)
                if call.status == "ok":
                    keys[call.request] = call.answer
    if len(models) > 1:
        raise InputError(f"{role}: several models answered ({', '.join(sorted(models))}); export runs of one of them")
    kept = {request: store.get(key, unreadable=True) for request, key in keys.items()}
    lines = [
        json.dumps({"key": request, "text": answer["text"], "logprobs": answer.get("logprobs")}, ensure_ascii=False)
        for request, answer in kept.items()
        if answer and "text" in answer
    ]
    if lines:
        write_atomic(path, "\n".join(lines) + "\n")
    return len(lines)
