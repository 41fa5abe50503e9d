"""What texts share at start and end is split off, and nothing is lost."""

from __future__ import annotations

from os.path import commonprefix

from hypothesis import given, settings, strategies as st

from saeval._util.shared_text import without_shared

texts = st.lists(st.text("ab\ud83d😀", max_size=8), max_size=5)


@settings(deadline=None)
@given(texts, st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_start_and_end_that_texts_share_are_the_longest_and_nothing_is_lost(middles, start, end):
    whole = [start + middle + end for middle in middles]
    before, after, rest = without_shared(whole)
    assert [before + middle + after for middle in rest] == whole
    assert before == commonprefix(whole)  # noqa: RUF071 - not paths
    assert commonprefix([middle[::-1] for middle in rest]) == ""  # noqa: RUF071
