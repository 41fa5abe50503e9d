"""Validates a document against the schema, and describes each mistake in a sentence with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from saeval._util import (
    MARK,
    SHORTEST,
    SpecError,
    complaint,
    did_you_mean,
    field_names,
    holds_secret,
    model_in,
    names_secret,
    placeholder,
    random_looking,
    refresh_environment,
)
from saeval.task.spec.document import KeyPath, SpecDocument
from saeval.task.spec.models import Spec


def parse(document: SpecDocument) -> Spec:
    """Validate a document, after the matrix is filled in, against the schema.

    Raises:
        SpecError: With all mistakes: place, value, and a suggestion; with none if the matrix could not be filled in
            where they are.
    """
    refuse_secrets(document)
    try:
        return Spec.model_validate(document.data)
    except ValidationError as error:
        mistakes = [mistake for mistake in error.errors() if not document.is_unfilled(tuple(mistake["loc"]))]
        problems = [explain_error(mistake, document.where, Spec) for mistake in mistakes]
        raise SpecError(list(dict.fromkeys(problems))) from None


_KEY_ADVICE = (
    "keys and passwords do not belong in a spec, which is shared and copied into results; set the provider's "
    "environment variable"
)
_PLAIN = ("model", "revision", "commit", "sha256", "digest", "api_base")
"""Options of a model that may contain long random-looking words."""


def refuse_secrets(document: SpecDocument) -> None:
    """Check that a document contains no credentials, before any other message could quote them.

    Raises:
        SpecError: With the place of each credential, but not its value.
    """
    refresh_environment()
    problems = [f"{document.where(path)}: {_KEY_ADVICE} ({why})" for path, why in _secrets(document.data, ())]
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))


def _secrets(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield the place of every credential, and how it was recognised: by value, pattern, or name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = str(key)
            if holds_secret(name):
                yield (*path, MARK), "a key"
            elif _named_secret(name, inner, of_model=path[:1] == ("llms",) and len(path) > 1):
                yield (*path, key), "its name says so"
            else:
                yield from _secrets(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _secrets(inner, (*path, i))
    elif isinstance(value, str):
        if why := holds_secret(value):
            yield path, f"it {why}"
        elif path[:1] == ("llms",) and not set(_PLAIN) & set(path) and random_looking(value):
            yield path, "it looks like a key"


def _named_secret(name: str, value: Any, *, of_model: bool) -> bool:
    """Return whether a value is a credential by its key; placeholders, numbers and booleans are not.

    Mappings count only in a model's options: elsewhere the key may be a label, such as `simulation_by_token`.
    """
    if not names_secret(name, of_model=of_model) or (isinstance(value, dict) and not of_model):
        return False
    texts = list(_texts(value))
    return any(text.strip() and not placeholder(text) and (of_model or len(text) >= SHORTEST) for text in texts)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def explain_error(error: Any, where: Callable[[KeyPath], str], model: type[BaseModel], prefix: KeyPath = ()) -> str:
    """Describe a pydantic error in a sentence: place, mistake, value, and remedy."""
    loc: KeyPath = tuple(error["loc"])
    place = where((*prefix, *loc))
    if error["type"] == "extra_forbidden":
        known = field_names(_model_at(model, loc[:-1]))
        advice = "; options of the plugin go under `with`" if "with" in known else ""
        return f"{place}: no such key{did_you_mean(str(loc[-1]), known)}; allowed keys: {', '.join(known)}{advice}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    return f"{place}: {complaint(error, _model_at(model, loc))}"


def _model_at(model: type[BaseModel], loc: KeyPath) -> type[BaseModel]:
    """Return the model at a place in a model, or the innermost around it."""
    at = model
    for key in loc:
        fields = at.model_fields.items()
        annotation = next((field.annotation for name, field in fields if key in (name, field.alias)), None)
        at = model_in(annotation) or at
    return at
