"""A streamed dataset whose reading was killed goes on where it stopped, and gives the same tokens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saeval import InputError
from saeval.activations import streams
from saeval.plugin import Corpus

ROWS, SHARDS = 60, 5
READ = """
import sys
from pathlib import Path
sys.path.insert(0, "HERE")
import test_streams
from saeval.activations import streams
streams._EVERY = 20
place, keep, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
test_streams.tokens(place, keep, last)
"""


def tokens(place, keep=None, killed_at=None, **options):
    """Pack a dataset, a token per word; killed at the n-th document if one is given."""
    seen = []

    def encode(text):
        seen.append(text)
        if len(seen) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [int(word.removeprefix("w")) for word in text.split()]

    packed = Corpus(dataset=str(place), context=8, **options).pack(encode, [1], 0, keep=keep)
    return packed, seen


@pytest.fixture(params=["jsonl", "parquet"])
def place(tmp_path, request):
    """A dataset of several shards, as `datasets` streams it."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(SHARDS):
        rows = [{"text": f"w{shard} w{n} w7 w8", "n": n} for n in range(ROWS)]
        file = folder / f"train-{shard}.{request.param}"
        if request.param == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=25)
    return folder


def same(one, other):
    return one.names == other.names and all(np.array_equal(*pair) for pair in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("place", ["parquet"], indirect=True)
def test_reading_that_was_killed_resumes_in_mid_stream(place, tmp_path, caplog):
    caplog.set_level("INFO", logger="saeval")
    whole, _ = tokens(place)
    keep = tmp_path / "store.stream.partial"
    command = [sys.executable, "-c", READ.replace("HERE", str(Path(__file__).parent)), str(place), str(keep), "210"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    second = sorted(place.iterdir())[1]  # the first one is looked into for its columns
    second.write_bytes(b"what was read before is not read again" * 9)
    resumed, _ = tokens(place, keep)
    assert same(resumed, whole)
    assert "saved the first 200 rows of the dataset" in caplog.text


def test_what_was_read_is_enough_for_a_reading_that_ends_there(place, tmp_path, monkeypatch):
    keep = tmp_path / "store.stream.partial"
    whole, _ = tokens(place, keep, tokens=100)
    monkeypatch.setattr("datasets.load_dataset", None)
    assert same(tokens(place, keep, tokens=100)[0], whole)


@pytest.mark.parametrize("damage", ["cut", "rows", "state"])
def test_rows_that_are_damaged_are_read_again(place, tmp_path, damage):
    keep = tmp_path / "store.stream.partial"
    whole, _ = tokens(place, keep)
    rows = keep / "rows.jsonl.gz"
    if damage == "state":
        (keep / "state.json").write_text("{")
    else:
        rows.write_bytes(b"x" if damage == "cut" else b"x" * rows.stat().st_size)
    if damage == "rows":
        with pytest.raises(InputError, match="was damaged .* is deleted; run the same command again"):
            tokens(place, keep)
    assert same(tokens(place, keep)[0], whole)


def test_rows_of_other_fields_are_not_taken_for_these(place, tmp_path):
    keep = tmp_path / "store.stream.partial"
    tokens(place, keep)
    assert tokens(place, keep, field=("text", "text"))[1][0] == "w0 w0 w7 w8\n\nw0 w0 w7 w8"


def test_streams_that_cannot_tell_their_place_are_skipped_through(place, tmp_path, monkeypatch):
    keep = tmp_path / "store.stream.partial"
    whole, _ = tokens(place)
    monkeypatch.setattr(streams, "_EVERY", 20)
    monkeypatch.setattr(streams.KeptRows, "_place", lambda self: None)
    tokens(place, keep, tokens=300)
    assert same(tokens(place, keep)[0], whole)


def test_error_in_the_stream_is_told_with_what_came_before_kept(place, tmp_path, monkeypatch):
    keep = tmp_path / "store.stream.partial"
    whole, _ = tokens(place)
    third = sorted(place.iterdir())[2]
    content = third.read_bytes()
    third.write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="could not be read"):
        tokens(place, keep)
    third.write_bytes(content)
    assert json.loads((keep / "state.json").read_text())["rows"] == 2 * ROWS
    assert same(tokens(place, keep)[0], whole)
