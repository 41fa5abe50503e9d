"""Exports the replies of a run as a recording for the model `replay/PATH`."""

from __future__ import annotations

import json
from pathlib import Path

from saeval._util import InputError, write_atomic
from saeval.llm.cache import AnswerCache
from saeval.llm.ledger import CallLedger


def export_replay(log: CallLedger, store: AnswerCache, role: str, path: Path) -> int:
    """Write a role's replies in a run to a recording, which the model `replay/PATH` plays back.

    Args:
        log: The run's ledger.
        store: The cache of answers.
        role: Role of the spec.
        path: The recording to write; log-probabilities of continuations are not included.

    Returns:
        The number of replies.

    Raises:
        InputError: If there are none.
    """
    kept = {request: store.get(key) for request, key in log.answers(role).items()}
    lines = [
        json.dumps({"key": request, "text": answer["text"], "logprobs": answer.get("logprobs")}, ensure_ascii=False)
        + "\n"
        for request, answer in kept.items()
        if answer and "text" in answer
    ]
    if not lines:
        raise InputError(
            f"{log.path}: the cache has no replies of the role {role!r} from this run, so there is nothing to export"
        )
    write_atomic(path, "".join(lines))
    return len(lines)
