"""Deltas on disk: by adapter, never stale, never torn, readable with numpy and json alone.

Models are unknown here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "delta_cache": ["DeltaCache", "configuration", "open_cache"],
})  # fmt: skip
