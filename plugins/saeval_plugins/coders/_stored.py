"""Loads coders from a local folder or a repository on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
import re
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from saeval.plugin import Coder, InputError, SpecPath, file_sha256
from saeval_plugins.coders._folders import what_is

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

_HUB_REASONS = {
    "GatedRepoError": "the repository is gated: accept its terms on Hugging Face, then log in with `hf auth login`",
    "RepositoryNotFoundError": "there is no such repository; check its name, or log in (`hf auth login`) if private",
    "RevisionNotFoundError": "the repository has no such revision; check `revision`",
    "HFValidationError": "that is not a repository name; use OWNER/NAME, such as google/gemma-scope-2b-pt-res",
}
"""Reasons why a repository cannot be read, by exception in the chain."""


class StoredCoder(Coder):
    """A coder stored in another library's file format.

    When a task is checked, files on the hub are only looked up; they are downloaded when activations are collected.
    The usual variables `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply.
    """

    made_by: ClassVar[str]
    """Name of the library in messages."""
    config_file: ClassVar[str | None] = None
    """Name of the configuration file, if the format has one."""
    needs_config: ClassVar[bool] = True
    """Whether every coder of the format has a configuration file."""
    weight_files: ClassVar[tuple[str, ...]]
    """Possible names of the weights file."""
    hub_names: ClassVar[str | None] = None
    """Pattern of hub ids with coders of this format, if ids reveal it."""

    path: SpecPath | None = None
    """Local folder."""
    repo: str | None = None
    """Repository on the Hugging Face hub, instead of `path`."""
    folder: str | None = None
    """Folder within `path` or `repo`."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""

    @classmethod
    def by_name(cls, name: str) -> Mapping[str, Any] | None:
        """Return the options for a folder of this format, or for `OWNER/REPOSITORY[/FOLDER]` on the hub."""
        folder = Path(name).expanduser()
        if folder.exists():
            weights = any((folder / file).is_file() for file in cls.weight_files)
            return {"path": str(folder.absolute())} if weights else None
        owner, _, rest = name.partition("/")
        repository, _, inside = rest.partition("/")
        if cls.hub_names is None or not re.match(cls.hub_names, name) or not repository:
            return None
        return {"repo": f"{owner}/{repository}", **({"folder": inside} if inside else {})}

    @model_validator(mode="after")
    def _one_place(self) -> StoredCoder:
        if (self.path is None) == (self.repo is None):
            raise ValueError("set either path (a folder) or repo (on the Hugging Face hub)")
        if self.revision is not None and self.repo is None:
            raise ValueError("revision requires repo")
        return self

    def fingerprint(self) -> JsonValue:
        """Return hashes of the files, independent of their location."""
        return [self.name, *(file_sha256(self._file(name)) for name in self._names())]

    @property
    def _where(self) -> str:
        """Path of the folder, with `/` separators; some formats read facts from the folder names."""
        if self.path is None:
            return f"{self.repo}/{self.folder or ''}".strip("/")
        return self._local.absolute().as_posix()

    @property
    def _label(self) -> str:
        """Name of the coder in messages."""
        return f"coder {self._where}"

    @property
    def _local(self) -> Path:
        """The local folder; `path` may also be a file in it."""
        assert self.path is not None
        path = self.path / self.folder if self.folder else self.path
        inside = path.name in (self.config_file, *self.weight_files) and path.is_file()
        return path.parent if inside or path.name in self.weight_files else path

    def _names(self) -> list[str]:
        """Return the names of the coder's files, weights last.

        Raises:
            InputError: If a file is missing.
        """
        weights = next((name for name in self.weight_files if self._has(name)), None)
        config = self.config_file if self.needs_config else None
        if config is not None and not self._has(config):
            raise self._missing_file(config)
        if weights is None:
            raise self._missing_file(" or ".join(self.weight_files))
        return [weights] if config is None else [config, weights]

    def _has(self, name: str) -> bool:
        if self.path is None:
            return self._in_repo(name) in self._listing
        if not self._local.is_dir():
            raise InputError(f"{self._label}: {what_is(self._local, self.name)}")
        return (self._local / name).is_file()

    def _missing_file(self, name: str) -> InputError:
        hint = what_is(self._local, self.name) if self.path is not None else ""
        if self.path is None:
            folders = sorted({file.rpartition("/")[0] for file in self._listing if file.endswith(self.weight_files)})
            close = difflib.get_close_matches(self.folder or "", folders, n=1, cutoff=0.3) or folders[:1]
            hint = f"did you mean folder: {close[0] or 'none'}?" if close else f"it is not a coder of {self.made_by}"
        return InputError(f"{self._label}: has no {name}; {hint}")

    def _file(self, name: str) -> Path:
        """Return a file's local path, downloading it from the hub if necessary."""
        return self._local / name if self.path is not None else self._fetched(name)

    # --- On the hub ---

    def _in_repo(self, name: str) -> str:
        return f"{self.folder.strip('/')}/{name}" if self.folder else name

    @cached_property
    def _listing(self) -> frozenset[str]:
        """Names of all files in the repository; if the hub is unreachable, of the files downloaded earlier."""
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

        repo = str(self.repo)
        try:
            return frozenset(HfApi(endpoint=_endpoint()).list_repo_files(repo, revision=self.revision))
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:  # gated ones, too
            raise self._unreachable(error) from error
        except Exception as error:
            own = [self._in_repo(name) for name in (self.config_file, *self.weight_files) if name]
            here = {name for name in own if isinstance(try_to_load_from_cache(repo, name, revision=self.revision), str)}
            if not any(name.endswith(self.weight_files) for name in here):
                raise self._unreachable(error) from error
            return frozenset(here)

    @cached_property
    def _fetched_files(self) -> dict[str, Path]:
        return {}

    def _fetched(self, name: str) -> Path:
        from huggingface_hub import snapshot_download

        if name not in self._fetched_files:
            file = self._in_repo(name)
            try:
                root = snapshot_download(
                    str(self.repo), revision=self.revision, allow_patterns=[escape(file)], endpoint=_endpoint()
                )
            except Exception as error:  # the hub raises many kinds
                raise self._unreachable(error) from error
            if not (Path(root) / file).is_file():
                raise self._missing_file(name)
            self._fetched_files[name] = Path(root) / file
        return self._fetched_files[name]

    def _unreachable(self, error: BaseException) -> InputError:
        kinds: set[str] = set()
        cause: BaseException | None = error
        while cause is not None:
            kinds.add(type(cause).__name__)
            cause = cause.__cause__ or cause.__context__
        known = next((text for kind, text in _HUB_REASONS.items() if kind in kinds), None)
        return InputError(
            f"{self._label} cannot be downloaded from the Hugging Face hub: "
            + (
                known
                or "it is not on this machine, and the hub cannot be reached; connect (and unset HF_HUB_OFFLINE), "
                f"or set `path` to a local folder ({type(error).__name__})"
            )
        )

    def _width_mismatch(self, reads: int, d_in: int, place: str | None, model: str | None = None) -> InputError:
        """Return the error that the coder's width differs from that of the hookpoint."""
        made_for = f"; it was made for {place}" + (f" of {model}" if model else "") if place else ""
        return InputError(
            f"{self._label} reads activations of width {reads}, but those at the hookpoint have width {d_in}"
            f"{made_for}: change `hookpoint`, `model` or the coder"
        )


def _endpoint() -> str | None:
    """Return the hub's address from the current environment; huggingface_hub reads it only once, at import."""
    return os.environ.get("HF_ENDPOINT") or None
