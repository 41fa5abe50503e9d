"""Describes pydantic's complaints about values that a user wrote, with what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from saeval._util.errors import InputError

_LONGEST = 80  # characters of a value that a message repeats


def complaint(error: Any, model: type[BaseModel] | None) -> str:
    """Return what is wrong with a value, without its place.

    Args:
        error: The complaint, as pydantic gives it.
        model: The model that the value should be one of, if pydantic complains that it is no mapping.
    """
    given = error["input"]
    shown = repr(given)
    if error["type"] in ("model_type", "model_attributes_type") and model is not None and model.model_fields:
        return f"should be a mapping, such as {_as_mapping(model, given)} (got {shown[:_LONGEST]})"
    if error["type"] == "dict_type":
        first = given[0] if isinstance(given, list) and given else given
        key = first if isinstance(first, str) else "…"
        return f"should be a mapping, such as {{{key}: …}} (got {shown[:_LONGEST]})"
    if error["type"] == "list_type" and isinstance(given, str):
        return f"should be a list, such as [{given[:_LONGEST]}] (got {shown[:_LONGEST]})"
    message = re.sub(r"^Input (should|must)", r"\1", error["msg"].removeprefix("Value error, "))
    if error["loc"] and not isinstance(given, Mapping) and len(shown) <= _LONGEST:
        message += f" (got {shown})"
    return message


def refuse_text(name: str, given: object) -> None:
    """Check that an argument which should be a list is not a single text, whose characters would be its entries.

    Raises:
        InputError: If it is.
    """
    if isinstance(given, str | PurePath):
        raise InputError(f"{name} is {str(given)!r}; give a list, such as [{str(given)!r}]")


def field_names(model: type[BaseModel]) -> list[str]:
    """Return the names of a model's fields as a user writes them."""
    return [_written(name, field) for name, field in model.model_fields.items()]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in an annotation, such as in `list[Model] | None`; None if there is none."""
    return next((part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _as_mapping(model: type[BaseModel], given: object) -> str:
    """Return the mapping that was probably meant: the first key that can have the value, with it."""
    for name, field in model.model_fields.items():
        if given is not None and _accepts(field, given):
            return f"{{{_written(name, field)}: {given}}}"
    return f"{{{field_names(model)[0]}: …}}"


def _accepts(field: FieldInfo, given: object) -> bool:
    """Return whether a field can have a value; a number is no text or switch here, but a text may be a path."""
    try:
        TypeAdapter(field.rebuild_annotation()).validate_python(given, strict=not isinstance(given, str))
    except ValidationError:
        return False
    return True


def _written(name: str, field: FieldInfo) -> str:
    return field.alias or name
