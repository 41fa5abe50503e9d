"""Reads a finished activation store made elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import JsonValue

from saeval.plugin import ActivationSource, ActivationStore, SpecPath, file_sha256

if TYPE_CHECKING:
    from saeval.plugin import ActivationWriter


class Recorded(ActivationSource):
    """Reads a store made elsewhere, without needing the model, the coder or the corpus.

    Stores lie in `cache/stores/`; `saeval push` and `saeval pull` transfer them. The checksum of every file is
    verified. A store of synthetic activations stays marked as such.
    """

    name = "recorded"

    path: SpecPath
    """Directory of the store, the one that holds `manifest.json`."""

    @property
    def synthetic(self) -> bool:  # type: ignore[override]
        """Whether the store says that its activations are made up."""
        try:
            return bool(json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))["facts"].get("synthetic"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # `check` says what is wrong with it

    def check(self) -> None:
        """Open the store, and see whether every file has its size."""
        ActivationStore.open(self.path)

    def fingerprint(self) -> JsonValue:
        """Return the hash of the manifest, which holds the checksum of every file."""
        manifest = self.path / "manifest.json"
        return [self.name, file_sha256(manifest) if manifest.is_file() else None]

    def collect(self, writer: ActivationWriter) -> None:
        """Verify the store, and hand it over."""
        writer.adopt(ActivationStore.open(self.path, verify=True))
