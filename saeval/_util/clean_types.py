"""Pydantic types that make incoming text encodable."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from saeval._util.encodable import clean, clean_text

CleanText = Annotated[str, BeforeValidator(lambda value: clean_text(value) if isinstance(value, str) else value)]
"""A string field that takes any text, and holds one that can be written."""

CleanJson = BeforeValidator(clean)
"""Marks a field of JSON data whose strings are cleaned."""
