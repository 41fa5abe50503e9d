"""Answers on disk: found whatever their number, and read where earlier versions kept them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest
from planted_run import spec, truthful_server

import saeval
from saeval._util import StoreError, text_checksum
from saeval.llm import AnswerCache, key_index
from saeval.plugin import content_hash
from saeval.records import Reply, Usage


def keys(n, first=0):
    return [content_hash("answer", i) for i in range(first, first + n)]


def reply(key):
    return Reply(f"[1, {key}]", Usage(812, 16, 0, 0.000123, "provider"), served="gpt")


@pytest.fixture
def short_runs(monkeypatch):
    monkeypatch.setattr(key_index, "_RECENT", 40)
    monkeypatch.setattr(key_index, "_LARGEST", 300)


def test_answers_are_found_in_runs_of_the_index_and_beside_them(tmp_path, short_runs):
    cache = AnswerCache(tmp_path / "calls.sqlite")
    for i in range(0, 900, 10):
        cache.put({key: reply(key) for key in keys(10, i)}, "m")
    for one in (cache, AnswerCache(cache.path)):
        assert [one.get(key)["text"] for key in keys(900)] == [f"[1, {key}]" for key in keys(900)]
        assert one.get(content_hash("another")) is None
    assert 3 <= len(cache._index._runs) <= 12 and len(cache._index._recent) < 50
    cache.put({keys(1)[0]: {"text": "changed"}}, "m")
    cache.mark(keys(2)[1], "unreadable")
    assert (cache.get(keys(1)[0]), cache.get(keys(2)[1])) == ({"text": "changed"}, None)
    assert [(kept.status, kept.answers) for kept in cache.listed()] == [("ok", 899), ("unreadable", 1)]
    assert cache.clear(keys(300)) == 300
    assert [cache.get(key) is None for key in keys(400)] == [True] * 300 + [False] * 100
    cache.put({key: reply(key) for key in keys(300)}, "m")
    assert all(AnswerCache(cache.path).get(key) for key in keys(900))


def test_processes_find_at_once_what_others_have_added(tmp_path, short_runs):
    one, other = AnswerCache(tmp_path / "calls.sqlite"), AnswerCache(tmp_path / "calls.sqlite")
    for i in range(0, 200, 20):
        (one if i % 40 else other).put({key: reply(key) for key in keys(20, i)})
        assert all(cache.get(key) for cache in (one, other) for key in keys(i + 20))
    other.clear(keys(200))
    assert not any(one.get(key) for key in keys(200))
    other.put({key: reply(key) for key in keys(30)})
    assert all(one.get(key) for key in keys(30))


def test_number_that_a_deleted_row_had_is_not_mistaken_for_it(tmp_path):
    one, other = AnswerCache(tmp_path / "calls.sqlite"), AnswerCache(tmp_path / "calls.sqlite")
    first, second = keys(2)
    one.put({first: reply(first)})
    other.clear([first])
    other.put({second: reply(second)})  # in the row that the first answer had
    assert one.get(first, age=60) is None and one.get(first) is None
    one.mark(first, "unreadable")
    one.put({first: reply(first)})
    for cache in (one, other, AnswerCache(tmp_path / "calls.sqlite")):
        assert cache.get(first)["text"] == f"[1, {first}]"
    assert other.get(second)["text"] == f"[1, {second}]"


def test_answers_are_written_about_once(tmp_path):
    """An index of random keys writes some 16 kB for an answer of 275 bytes; see `benchmarks/`."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from saeval.llm import AnswerCache
        from saeval.plugin import content_hash
        from saeval.records import Reply, Usage
        cache = AnswerCache(Path(sys.argv[1]))
        for i in range(0, 36_000, 50):
            keys = [content_hash(j) for j in range(i, i + 50)]
            cache.put({key: Reply("[1, 0, 1, 0, 1]", Usage(812, 16, 0, 0.000123, "provider")) for key in keys})
        cache.close()
        print([int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("wchar")][0])
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "calls.sqlite"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) / 36_000 < 1000


def old_layout(path, answers):
    """A cache as versions before 3 wrote it."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")
    for column, default in (("model", ""), ("status", "ok")):
        database.execute(f"ALTER TABLE answers ADD COLUMN {column} TEXT NOT NULL DEFAULT '{default}'")
    rows = [(key, f"{text}\n{text_checksum(text)}") for key, text in answers.items()]
    database.executemany("INSERT INTO answers VALUES (?, ?, 'm', 'ok')", rows)
    database.execute("PRAGMA user_version=2")
    database.execute("PRAGMA journal_mode=WAL")
    database.commit()
    database.close()


def as_before(path):
    """Put the answers of a cache into the layout of versions before this one."""
    database = sqlite3.connect(path)
    found = dict(database.execute("SELECT lower(hex(key)), answer FROM kept"))
    database.close()
    path.unlink()
    old_layout(path, {key: answer.partition("\n")[0] for key, answer in found.items()})
    return found


def test_answers_that_an_earlier_version_kept_are_not_paid_for_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        task = spec(server, baselines=[], scorers={"detection": {}})
        first = saeval.run(task, out=tmp_path / "first")
        asked = len(server.calls)
        kept = as_before(tmp_path / "cache" / "calls.sqlite")
        second = saeval.run(task, out=tmp_path / "second")
        assert len(server.calls) == asked and len(kept) == asked
        assert first.cells == second.cells
        cache = AnswerCache(tmp_path / "cache" / "calls.sqlite")
        assert cache.find("m") == set(kept) and cache.listed()[0].answers == asked
        some = sorted(kept)[:3]
        cache.mark(some[0], "unreadable")
        cache.put({some[1]: {"text": "as it is now"}}, "m")
        assert (cache.get(some[0]), cache.get(some[1])) == (None, {"text": "as it is now"})
        assert sum(kept.answers for kept in cache.listed()) == asked
        assert cache.clear(kept) == asked
        assert cache.find() == set()


def test_a_cache_of_a_newer_version_is_left_where_it_is(tmp_path):
    file = tmp_path / "calls.sqlite"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version=9")
    with pytest.raises(StoreError, match="newer saeval .format 9.; use that version, or point SAEVAL_CACHE"):
        AnswerCache(file)
