"""Pushes runs and activation stores to the Hugging Face hub or a folder, and pulls them, with checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from saeval._util import (
    CHECKSUMS,
    InputError,
    mark,
    new_folder,
    os_reason,
    read_json,
    refuse_links,
    refuse_pipe,
    report_bad_values,
    write_atomic,
)
from saeval.exchange.cards import is_shareable, read_spec, run_card, store_card
from saeval.results import open_run

BUNDLE_FORMAT = "saeval.bundle/1"
_INDEX = "saeval.json"
_CELL_FILES = (
    "latents.parquet",
    "examples.parquet",
    "explanations.jsonl",
    "scores.parquet",
    "judgements.parquet",
    "activations.parquet",
    "calls.parquet",
)
_REPORTS = ("report.md", "leaderboard.csv", "leaderboard.parquet")
_PLACE = re.compile(r"hf://datasets/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?")


class HubPlace(NamedTuple):
    """A dataset repository on the hub: `hf://datasets/owner/name`, with an optional `@revision`."""

    repo: str
    revision: str | None


def hub_place(text: str) -> HubPlace | None:
    """Return the repository that a text names; None if it is a path.

    Raises:
        InputError: If the text begins with `hf:` but is not a valid repository.
    """
    if not text.startswith("hf:"):
        return None
    match = _PLACE.fullmatch(text)
    if match is None or ".." in text:
        raise InputError(f"{text}: write hf://datasets/OWNER/NAME")
    return HubPlace(match[1], match[2])


def push(path: Path, dest: str, *, public: bool = False) -> str:
    """Send a run or a store to a directory or to the hub.

    For a run, results, tables and reports are sent. The journal, the calls and the logs are not sent, because they name
    local files, nor is a spec that names some. The tables of all cells are added as Parquet, so that `datasets` can
    read them.

    Args:
        path: A run directory, or the directory of a store.
        dest: A directory to create, or `hf://datasets/OWNER/NAME`, which requires HF_TOKEN; HF_ENDPOINT is respected.
        public: Whether a new repository is public.

    Returns:
        The destination.

    Raises:
        InputError: If it is neither a run nor a store, or cannot be written or sent.
        StoreError: If the store is damaged.
    """
    place = hub_place(dest)
    if place is None:
        with new_folder(Path(dest)) as folder:
            _bundle(path, folder)
        return dest
    if place.revision is not None:
        raise InputError(f"{dest}: a push creates a new revision; omit @{place.revision}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _bundle(path, folder)
        return _upload(folder, place.repo, public)


def pull(src: str, out: Path) -> str:
    """Fetch a run or store that `push` sent. Fetches only listed files, and verifies their checksums.

    Args:
        src: A directory, or `hf://datasets/OWNER/NAME`, with an optional `@REVISION`.
        out: The directory to create: a run directory or a store.

    Returns:
        "run" or "store".

    Raises:
        InputError: If it is missing, incomplete, or was not sent by `push`.
    """
    place = hub_place(src)
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as temporary:
        fetch = (lambda name: Path(src) / name) if place is None else _downloader(place, Path(temporary))
        index = read_json(fetch(_INDEX))
        kind, files = _checked(src, index)
        for name, facts in files:
            data = fetch(name)
            _verify(f"{src}: {name}", data, facts)
            inside = PurePosixPath(name).relative_to(kind)
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data, target)
        if kind == "run":
            mark(folder)
    return kind


def _checked(src: str, index: Any) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Return the kind ("run" or "store") and the files that an index lists.

    Raises:
        InputError: If it is not an index, or names a file outside its folder.
    """
    if not isinstance(index, dict) or index.get("format") != BUNDLE_FORMAT or index.get("kind") not in ("run", "store"):
        raise InputError(f"{src}: {_INDEX} does not have the format {BUNDLE_FORMAT}; push it again with this saeval")
    kind, listed = str(index["kind"]), index.get("files")
    if not isinstance(listed, dict) or not all(isinstance(facts, dict) for facts in listed.values()):
        raise InputError(f"{src}: {_INDEX} lists no files")
    for name in listed:
        if not re.fullmatch(r"[^/\\\x00-\x1f]+(/[^/\\\x00-\x1f]+)*", name) or {"..", "."} & set(name.split("/")):
            raise InputError(f"{src}: {_INDEX} names {name!r:.80}, which is not a file inside it")
    return kind, [(name, facts) for name, facts in listed.items() if name.startswith(f"{kind}/")]


def _verify(where: str, file: Path, facts: dict[str, Any]) -> None:
    refuse_pipe(file)
    try:
        size, sha = file.stat().st_size, _sha256(file)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({os_reason(error)})") from None
    if size != facts.get("bytes") or sha != facts.get("sha256"):
        raise InputError(
            f"{where} differs from the file that was sent ({size} bytes, expected {facts.get('bytes')}); push it again"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


# --- files to send ---


def _bundle(path: Path, folder: Path) -> None:
    """Assemble the files to send."""
    if (path / "results.json").is_file():
        kind, card = "run", _bundle_run(path, folder)
    elif (path / "manifest.json").is_file():
        kind, card = "store", _bundle_store(path, folder)
    else:
        raise InputError(f"{path}: is neither a run directory (results.json) nor a store (manifest.json)")
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    listed = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    index = {"format": BUNDLE_FORMAT, "kind": kind, "files": listed}
    write_atomic(folder / _INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")


def _bundle_run(path: Path, folder: Path) -> str:
    """Copy the files of a run to the folder, and return its card."""
    from saeval.exchange.saeval_tables import TABLE_COLUMNS, write

    refuse_links(path)  # the target of a link is not part of the run, and may be private
    result, cells = open_run(path)
    names = ["results.json", CHECKSUMS, *(f"report/{name}" for name in _REPORTS)]
    names += [f"cells/{cell.name}/{name}" for cell in cells for name in _CELL_FILES]
    for name in names:
        if (path / name).is_file():
            target = folder / "run" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, target)
    (folder / "tables").mkdir()
    with report_bad_values(path):
        write(result, cells, folder / "tables", {}, "parquet")
    spec = read_spec(path / "spec.yaml")
    if has_spec := spec is not None and is_shareable(spec):
        shutil.copyfile(path / "spec.yaml", folder / "run" / "spec.yaml")
    return run_card(result, TABLE_COLUMNS, has_spec=has_spec)


def _bundle_store(path: Path, folder: Path) -> str:
    """Copy the files of a store to the folder, and return its card."""
    from saeval.activations import ActivationStore

    store = ActivationStore.open(path, verify=True)
    (folder / "store").mkdir()
    for name in (*store.manifest["files"], "manifest.json"):
        shutil.copyfile(path / name, folder / "store" / name)
    return store_card(store.n_latents, store.n_tokens, store.facts)


# --- the hub ---


def _token() -> str | None:
    """Return the token from the environment; tokens in files are not used."""
    return os.environ.get("HF_TOKEN") or None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Convert errors of the hub in this block to messages without the request, which contains the token."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever huggingface_hub and its HTTP client raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"the hub answered {status}" if status else type(error).__name__
        raise InputError(
            f"hf://datasets/{repo}: {why}; check its name, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and your connection"
        ) from None


def _upload(folder: Path, repo: str, public: bool) -> str:
    from huggingface_hub import HfApi

    token = _token()
    if token is None:
        raise InputError(f"hf://datasets/{repo}: set HF_TOKEN to a token that may write there")
    api = HfApi(endpoint=_endpoint(), token=token)
    with _hub_errors(repo):
        api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=folder, commit_message="Results made with saeval"
        )
    return f"hf://datasets/{repo}"


def _downloader(place: HubPlace, folder: Path) -> Callable[[str], Path]:
    """Return a function that fetches one file of a repository."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint(), token=_token() or False)

    def fetch(name: str) -> Path:
        with _hub_errors(place.repo):
            return Path(
                api.hf_hub_download(place.repo, name, repo_type="dataset", revision=place.revision, local_dir=folder)
            )

    return fetch
