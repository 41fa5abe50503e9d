"""Subject models and sparse coders: loading, hookpoints, steering, encoding, embeddings, fidelity."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
