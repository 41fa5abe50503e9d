"""saeval: explain the latents of sparse autoencoders in words, score the explanations, compare SAEs.

Users import from here, plugin authors from `saeval.plugin`. Names load on first use; `__init__.pyi`
lists them and says where each lives.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
