"""A document held against the schema: every mistake becomes a sentence with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from saeval._util import SpecError, did_you_mean
from saeval.task.spec.document import Document, KeyPath
from saeval.task.spec.models import TaskSpec


def parse(document: Document) -> TaskSpec:
    """Check a (filled) document against the schema.

    Raises:
        SpecError: With every mistake, its place, the value seen, and a suggestion.
    """
    data = dict(document.data)
    for key in ("source", "sampler", "explainer"):
        if key in data:
            data[key] = _named(data[key])
    if isinstance(scorers := data.get("scorers"), dict):
        data["scorers"] = {k: {"use": k, **(v or {})} if isinstance(v, dict | None) else v for k, v in scorers.items()}
    if isinstance(baselines := data.get("baselines"), list):
        data["baselines"] = [_named(b) for b in baselines]
    if isinstance(run := data.get("run"), dict) and isinstance(trackers := run.get("trackers"), list):
        data["run"] = {**run, "trackers": [_named(t) for t in trackers]}
    problems = [f"{document.where(path)}: {_KEY_ADVICE}" for path in _secrets(document.data, ())]
    try:
        spec = TaskSpec.model_validate(data)
    except ValidationError as error:
        problems += [explain_error(e, document.where, TaskSpec) for e in error.errors()]
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return spec


def _named(part: Any) -> Any:
    """Return a part that is given by its name alone in full."""
    return {"use": part} if isinstance(part, str) else part


_SECRET = re.compile(
    r"(^|[_-])(api[_-]?key|secret|password|access[_-]?token|auth[_-]?token|credentials?|authorization)$", re.IGNORECASE
)
_KEY_ADVICE = "keys and passwords do not belong in a spec, which is shared and copied into results; set the provider's environment variable"


def _secrets(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if _SECRET.search(str(key)):
                yield (*path, key)
            yield from _secrets(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _secrets(inner, (*path, i))


def explain_error(error: Any, where: Callable[[KeyPath], str], model: type[BaseModel], prefix: KeyPath = ()) -> str:
    """Turn one pydantic error into a sentence: place, what is wrong, the value seen, what to do."""
    loc: KeyPath = tuple(error["loc"])
    place = where((*prefix, *loc))
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return f"{place}: no such key{did_you_mean(str(loc[-1]), known)}; it can have: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input (should|must)", r"\1", message)
    shown = repr(error["input"])
    if loc and not isinstance(error["input"], Mapping) and len(shown) <= 80:
        message += f" (got {shown})"
    return f"{place}: {message}"


def _fields_at(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Names of the fields that may stand at a place inside a model."""
    at: Any = model
    for key in loc:
        field = next((f for n, f in at.model_fields.items() if key in (n, f.alias)), None) if _is_model(at) else None
        annotation = field.annotation if field else at
        at = next((a for a in (annotation, *_flatten(annotation)) if _is_model(a)), at)
    return [f.alias or n for n, f in at.model_fields.items()] if _is_model(at) else []


def _flatten(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _flatten(argument)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
