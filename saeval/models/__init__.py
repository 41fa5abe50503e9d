"""Subject models and what is read from them: loading, hookpoints, steering, sparse coders, embeddings, fidelity."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
