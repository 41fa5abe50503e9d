"""Reads the docstrings below the fields of pydantic models, on demand.

Pydantic's `use_attribute_docstrings` parses the source of every class when the class is created. That takes a third of
the time of `saeval validate`, although only `saeval show` and the schema need the texts.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler


class Documented(BaseModel):
    """Base of the models of specs and results: frozen, without unknown keys, with docstrings in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON Schema with the fields' docstrings as descriptions."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            alias = cls.model_fields[name].alias
            properties.get(alias, properties.get(name, {})).setdefault("description", text)
        return schema


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the description of each field of a model: `Field(description=…)`, else the docstring below the field."""
    beneath: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            beneath |= attribute_docstrings(cls)
    texts = {name: field.description or beneath.get(name) for name, field in model.model_fields.items()}
    return {name: text for name, text in texts.items() if text}


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Return the docstrings below a class's own annotated attributes; empty if its source is not available."""
    return _docstrings(cls.__module__).get(cls.__qualname__, {})


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the attribute docstrings in a module, by the qualified name of their class."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {name: dict(_beneath(cls)) for name, cls in _classes(tree, "")}


def _classes(node: ast.AST, inside: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield inside + child.name, child
            yield from _classes(child, f"{inside}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{inside}{child.name}.<locals>.")
        else:
            yield from _classes(child, inside)


def _beneath(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for above, below in pairwise(cls.body):
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield ast.unparse(above.target), inspect.cleandoc(str(below.value.value))
