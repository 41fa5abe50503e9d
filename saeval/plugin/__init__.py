"""Everything a plugin author needs: base classes, data, and the helpers that the built-in plugins use.

Built-in plugins import from here only. Names load on first use; `__init__.pyi` lists them and says where each is
defined.
"""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
