"""What a machine runs short of is said as that; it is never taken for damage, and no advice deletes anything sound."""

from __future__ import annotations

import errno
import resource
import sqlite3
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import run_command
from planted_run import spec, truthful_server
from saeval_plugins.coders.sae_lens import SaeLens
from tiny import tiny_model, tiny_sae

import saeval
from saeval._util import InputError, StoreError, shortage
from saeval.activations import ActivationStore
from saeval.activations.store.files import map_array
from saeval.llm import AnswerCache
from saeval.plugin import LiveModel
from saeval.testing import planted_store

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_more_files():
    """Let this process open no further file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    planted_store(path, n_latents=4, documents=60)
    return path


def test_files_of_a_model_and_a_coder_that_cannot_be_opened_are_not_called_damaged(tmp_path):
    model, sae = tiny_model(tmp_path / "model"), tiny_sae(tmp_path / "sae")
    LiveModel.check(str(model))  # so that all modules are there
    SaeLens(path=sae).check()
    for check in (lambda: LiveModel.check(str(model)), lambda: SaeLens(path=sae).check()):
        with no_more_files(), pytest.raises(InputError, match="(?i)too many (open files|files are open)") as refused:
            check()
        assert "damaged" not in str(refused.value) and "again" not in str(refused.value)


@NEEDS_PROC
def test_open_store_keeps_no_file_open(store):
    opened = [ActivationStore.open(store)]
    before = descriptors()
    opened += [ActivationStore.open(store) for _ in range(20)]
    assert all(len(s.activations(1)[0]) for s in opened)
    assert descriptors() == before


def test_mapped_array_is_the_array_that_was_saved(tmp_path):
    for array in (
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 5), np.float16),
        np.asfortranarray(np.eye(3)),
        np.array(7),
    ):
        np.save(tmp_path / "a.npy", array)
        found = map_array(tmp_path / "a.npy")
        assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()
        assert not found.flags.writeable
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        map_array(tmp_path / "a.npy")


def test_too_many_open_files_are_said_as_that(store, tmp_path):
    ActivationStore.open(store)
    with suppress(InputError):
        saeval.read(store)  # so that all modules are there
    with no_more_files(), pytest.raises(InputError, match="too many files are open") as refused:
        ActivationStore.open(store)
    assert "delete" not in str(refused.value) and "ulimit -n" in str(refused.value)
    with no_more_files(), pytest.raises(InputError, match="too many files are open"):
        saeval.read(store)
    with no_more_files(), pytest.raises(StoreError) as refused:
        AnswerCache(tmp_path / "calls.sqlite")
    assert "delete" not in str(refused.value)


def test_cache_that_is_damaged_is_moved_away_and_a_full_one_is_not(tmp_path):
    (tmp_path / "calls.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="move it away"):
        AnswerCache(tmp_path / "calls.sqlite")
    full = AnswerCache(tmp_path / "full.sqlite")
    full._db.execute("PRAGMA max_page_count=20")
    with pytest.raises(StoreError, match="free some space") as refused:
        full.put({"key": {"text": "x" * 1_000_000}})
    assert "delete" not in str(refused.value) and "move" not in str(refused.value)
    full.close()


def test_shortages_are_known_by_their_cause():
    assert "full" in shortage(OSError(errno.ENOSPC, "No space left"))
    assert "memory" in shortage(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise ValueError("not an array") from error
    except ValueError as error:
        assert "too many files" in shortage(error)
    assert (
        shortage(FileNotFoundError(errno.ENOENT, "")) is None and shortage(sqlite3.OperationalError("locked")) is None
    )


@pytest.mark.slow
def test_run_of_many_cells_needs_few_open_files(tmp_path):
    """Every cell kept seven open; macOS allows 256 in all."""
    cells = 24
    with truthful_server() as server:
        task = spec(
            server, baselines=[], scorers={"detection": {}}, latents={"n": 1, "min_windows": 20}, matrix={"seed": [*range(cells)]},
            source={"use": "synthetic", "with": {"n_latents": 4, "documents": 60, "seed": "${matrix.seed}"}}, run={"concurrency": 4},
        )  # fmt: skip
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))  # noqa: E731 - of the child
        command = ("run", "--task", "task.yaml", "--out", "run", "--display", "none")
        run_command(*command, cwd=tmp_path, env={"SAEVAL_CACHE": str(tmp_path / "cache")}, preexec_fn=few)
    assert len(saeval.read(tmp_path / "run").cells) == cells


@pytest.mark.slow
def test_too_little_memory_is_no_traceback(tmp_path):
    little = lambda: resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))  # noqa: E731 - of the child
    command = ("run", "--task", "quickstart", "--out", "run", "--display", "none")
    env = {"SAEVAL_CACHE": str(tmp_path / "cache"), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    assert run_command(*command, cwd=tmp_path, env=env, code=None, preexec_fn=little).returncode != 0
