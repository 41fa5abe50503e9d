"""Pydantic types that replace characters that UTF-8 cannot encode."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from saeval._util.encodable import clean, clean_text

CleanText = Annotated[str, BeforeValidator(lambda value: clean_text(value) if isinstance(value, str) else value)]
"""A string field that accepts any text, and stores text that UTF-8 can encode."""

CleanJson = BeforeValidator(clean)
"""Marks a field of JSON data whose strings are cleaned."""
