"""Pictures from numbers: matplotlib figures, and the live explorer.

How the numbers came to be is unknown here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "collection": ["base_norms", "domain_means", "every_pair", "losses", "new_figure", "norms", "probe_similarity",
                   "projection_map", "sentence", "show", "silhouette_bars", "silhouette_layers", "token_counts"],
    "explorer": ["Explorer", "explore"],
    "styles": ["domain_styles"],
    "view": ["View", "view_of"],
})  # fmt: skip
