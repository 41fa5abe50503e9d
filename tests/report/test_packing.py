"""Bytes of a page survive the characters that carry them."""

from __future__ import annotations

import gzip
import json
import math
from base64 import b64decode

from hypothesis import given, settings, strategies as st

from saeval.report.html.text import dense, packed_json


def _decoded(text: str) -> bytes:
    longer, bits = int(text[0]), "".join(f"{ord(character) - 0x4000:015b}" for character in text[1:])
    content = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8))
    return content[: len(content) - longer]


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_characters_of_15_bits_hold_all_bytes(content):
    text = dense(content)
    assert _decoded(text) == content
    assert all(0x4000 <= ord(character) < 0xC000 for character in text[1:])


def test_numbers_that_are_not_finite_and_unpaired_surrogates_leave_a_page_readable():
    data = {"\ud800": [math.nan, math.inf, 0.1, 10**20], "é": ["\udfff", "</script>", None, True]}
    text = gzip.decompress(b64decode(packed_json(data))).decode()
    assert json.loads(text) == {"\ufffd": [None, None, 0.1, 10**20], "é": ["\ufffd", "</script>", None, True]}
