"""Files that users and their specs name are plain ones: a pipe, a device or a lying head is refused in a sentence."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from saeval._util import write_atomic
from saeval.cli.group import main

FORMATS = ("delphi", "neuronpedia", "saebench", "auto-interp-explanations", "jsonl", "parquet")
RULES = [{"latent": 0, "explanation": "greetings", "pattern": "hello"}]
SYNTHETIC = {"use": "synthetic", "with": {"n_latents": 4, "documents": 30}}


@contextmanager
def within(seconds):
    """End what waits for a pipe."""

    def late(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(*arguments):
    """What a command refuses with."""
    with within(30):
        done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    return done.output


def on_live_model(coder, place):
    (place / "text.txt").write_text("hello world " * 50)
    return {
        "use": "transformers",
        "with": {"model": "gpt2", "coder": coder, "hookpoint": "h.0", "corpus": {"path": str(place / "text.txt")}},
    }


def rules(place, corpus):
    (place / "rules.yaml").write_text(yaml.safe_dump(RULES))
    return {"source": {"use": "rules", "with": {"path": str(place / "rules.yaml"), "corpus": {"path": str(corpus)}}}}


FIELDS = {
    "corpus.txt": lambda place, file: rules(place, file),
    "corpus.parquet": lambda place, file: rules(place, file),
    "rules.yml": lambda place, file: {
        "source": {"use": "rules", "with": {"path": str(file), "corpus": {"path": str(place / "rules.yml")}}}
    },
    "explanations.json": lambda place, file: {"explainer": {"use": "precomputed", "with": {"path": str(file)}}},
    "ratings.csv": lambda place, file: {"scorers": {"human": {"with": {"path": str(file)}}}},
    "replies.jsonl": lambda place, file: {"llms": {"judge": {"model": f"replay/{file}"}}, "scorers": {"detection": {}}},
    "weights": lambda place, file: {"llms": {"judge": {"model": f"hf/{file}"}}, "scorers": {"detection": {}}},
    "plugin.py": lambda place, file: {"explainer": {"use": f"{file}:Mine"}},
    "included.yaml": lambda place, file: {"include": [file.name]},
    "direction.json": lambda place, file: {
        "source": on_live_model({"use": "direction", "with": {"path": str(file)}}, place)
    },
    "coder": lambda place, file: {"source": on_live_model({"use": "sae_lens", "with": {"path": str(file)}}, place)},
    "store": lambda place, file: {"source": {"use": "recorded", "with": {"path": str(file)}}},
}


def write_spec(place, changes):
    spec = {
        "saeval": 1, "task": "t", "version": "1.0", "source": SYNTHETIC, "latents": {"n": 1, "min_windows": 5},
        "sampler": "random", "explainer": "top_tokens", "scorers": {"embedding": {}}, **changes,
    }  # fmt: skip
    (place / "task.yaml").write_text(yaml.safe_dump(spec))
    return place / "task.yaml"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipe_or_device_is_refused_wherever_a_spec_names_a_file(tmp_path, name, kind):
    file = tmp_path / name
    os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")
    assert f"is a {kind}, not a plain file" in said("validate", write_spec(tmp_path, FIELDS[name](tmp_path, file)))


@pytest.mark.parametrize("name", ["coder/cfg.json", "coder/layers.3/cfg.json", "weights/config.json", "store/mask.npy"])
def test_pipe_in_a_folder_that_a_spec_names_is_refused_with_its_line(tmp_path, name):
    folder = tmp_path / name.partition("/")[0]
    (tmp_path / name).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / name)
    output = said("validate", write_spec(tmp_path, FIELDS[folder.name](tmp_path, folder)))
    assert "task.yaml:" in output and f"{tmp_path / name}: is a pipe" in output


def test_socket_beside_texts_is_none_of_the_corpus(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("hello there, hello again. " * 40)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(texts / "s"))
        spec = write_spec(tmp_path, {**rules(tmp_path, texts), "scorers": {"example_embedding": {}}})
        assert "socket" not in CliRunner().invoke(main, ["validate", str(spec)]).output


@pytest.mark.parametrize("name", [name for name in FIELDS if name.partition(".")[2]])
def test_folder_in_place_of_a_file_is_a_sentence(tmp_path, name):
    (tmp_path / name).mkdir()
    assert "Traceback" not in said("validate", write_spec(tmp_path, FIELDS[name](tmp_path, tmp_path / name)))


READERS = [
    ("validate",), ("run",), ("report",), ("leaderboard",), ("compare",), ("view",), ("export", "-f", "jsonl", "--out", "new"),
    *(("import", "-f", format_, "--out", "new") for format_ in FORMATS),
]  # fmt: skip


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
@pytest.mark.parametrize("name", ["given.yaml", "given.json"])
def test_pipe_as_an_argument_is_refused(tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name)
    more = (name,) if arguments[0] == "compare" else ()
    assert "is a pipe" in said(*arguments, name, *more)


# --- heads that claim more than there is ---


def head(shape):
    """The head of a NumPy file, without what it claims."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})
    return out.getvalue()


def claiming(file, shape):
    """Write a file whose head claims an array of this shape."""
    if file.suffix == ".npy":
        file.write_bytes(head(shape))
    elif file.suffix == ".npz":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("weight.npy", head(shape) + b"\0" * 64)
    else:
        size = 4 * int(np.prod(shape, dtype=object))
        about = json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        file.write_bytes(len(about).to_bytes(8, "little") + about)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("shape", [[1_000_000, 1_000_000], [10**12], [2**40, 2**40]])
def test_head_that_claims_terabytes_is_refused_before_they_are_allocated(tmp_path, suffix, shape):
    file = tmp_path / f"direction{suffix}"
    claiming(file, shape)
    spec = write_spec(tmp_path, {"source": on_live_model({"use": "direction", "with": {"path": str(file)}}, tmp_path)})
    assert f"{file.name} is damaged or truncated" in said("validate", spec)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_array_that_is_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, suffix):
    file = tmp_path / f"direction{suffix}"
    claiming(file, [10**12])
    with file.open("r+b") as sparse:
        sparse.truncate(file.stat().st_size + 4 * 10**12)
    spec = write_spec(tmp_path, {"source": on_live_model({"use": "direction", "with": {"path": str(file)}}, tmp_path)})
    output = said("validate", spec)
    assert "3,725.3 GiB of memory" in output and "are free" in output


def test_pipe_and_device_are_written_to_and_stay_what_they_are(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, "some text")
    reader.join(10)
    assert read == [b"some text"] and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    code = "from pathlib import Path; from saeval._util import write_atomic; write_atomic(Path('/dev/stdout'), 'shown')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "shown"
