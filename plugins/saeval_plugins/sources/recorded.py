"""Reads a finished activation store from another machine or run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import JsonValue

from saeval.plugin import ActivationSource, ActivationStore, SpecPath, file_sha256

if TYPE_CHECKING:
    from saeval.plugin import ActivationWriter


class Recorded(ActivationSource):
    """Reads a finished activation store, without the model, the coder or the corpus.

    Stores are in `cache/stores/`; `saeval push` and `saeval pull` transfer them. The checksum of every file is
    verified. Results from a store of synthetic activations are marked as synthetic.
    """

    name = "recorded"

    path: SpecPath
    """Directory of the store, which contains `manifest.json`."""

    @property
    def synthetic(self) -> bool:  # type: ignore[override]
        """Whether the store's activations are synthetic."""
        try:
            return bool(json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))["facts"].get("synthetic"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # `check` reports what is wrong

    def check(self) -> None:
        """Open the store and check the size of every file."""
        ActivationStore.open(self.path)

    def fingerprint(self) -> JsonValue:
        """Return the hash of the manifest, which lists every file's checksum."""
        manifest = self.path / "manifest.json"
        return [self.name, file_sha256(manifest) if manifest.is_file() else None]

    def collect(self, writer: ActivationWriter) -> None:
        """Verify the store and use it as this source's store."""
        writer.adopt(ActivationStore.open(self.path, verify=True))
