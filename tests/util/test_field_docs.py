"""The docstrings beneath fields are the schema's text, read when it is asked for."""

from __future__ import annotations

import sys

from pydantic import Field

from saeval._util.field_docs import Documented, descriptions
from saeval.plugin import Plugin


class Base(Documented):
    plain: int = 0
    """Beneath it, on
    two lines."""
    silent: int = 0
    said: int = Field(default=0, description="In its Field.")
    """Not this one."""
    moved: int = 0
    """Of the base."""


class Derived(Base):
    use_: str = Field(default="", alias="use")
    """Under another name."""
    moved: int = 1
    """Of the derived."""

    class Inner(Documented):
        plain: int = 0
        """Of the inner one."""


class Outer(Documented):
    inner: Derived = Derived()
    """A mapping."""


def test_docstrings_beneath_fields_are_found_by_class_and_inherited():
    assert descriptions(Base) == {
        "plain": "Beneath it, on\ntwo lines.",
        "said": "In its Field.",
        "moved": "Of the base.",
    }
    assert descriptions(Derived) == {**descriptions(Base), "use_": "Under another name.", "moved": "Of the derived."}
    assert descriptions(Derived.Inner) == {"plain": "Of the inner one."}


def test_schema_holds_them_under_aliases_and_in_nested_models():
    schema = Outer.model_json_schema()
    assert schema["properties"]["inner"]["description"] == "A mapping."
    properties = schema["$defs"]["Derived"]["properties"]
    assert properties["use"]["description"] == "Under another name."
    assert properties["said"]["description"] == "In its Field."
    assert "description" not in properties["silent"]
    assert "description" in Derived.model_json_schema(by_alias=False)["properties"]["use_"]


def test_class_made_in_a_function_is_documented_and_one_without_source_is_not():
    class Local(Plugin):
        option: int = 0
        """Of a local class."""

    assert descriptions(Local) == {"option": "Of a local class."}
    made: dict = {"__name__": "no_such_module"}
    exec("from saeval.plugin import Plugin\nclass Made(Plugin):\n    option: int = 0\n    '''Lost.'''", made)
    assert "no_such_module" not in sys.modules
    assert descriptions(made["Made"]) == {}
    assert "option" in made["Made"].model_json_schema()["properties"]
