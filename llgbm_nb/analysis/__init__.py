"""Numbers from a `DeltaSet`: numpy in, numpy and pandas out, and sentences that say what there is to see.

No files, no torch, no pictures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "geometry": ["Pairs", "centered", "cluster_tree", "compared", "directions", "domain_means", "nearest", "norms",
                 "pairs", "separation", "settings_beside", "similarity", "spread_sample"],
    "groups": ["Groups", "agreement", "as_domains", "find_groups", "group_table"],
    "silhouettes": ["ALL_ALIKE", "ALL_ZERO", "Silhouette", "silhouette", "silhouette_by_layer", "silhouette_samples"],
    "projection": ["pca", "tsne", "turned"],
    "sentences": ["about_base_norms", "about_groups", "about_layers", "about_map", "about_neighbours", "about_norms",
                  "about_pairs", "about_probe_ends", "about_probes", "about_silhouettes"],
    "tables": ["failure_text", "label_text", "neighbour_overview", "neighbour_table", "overview", "summary",
               "summary_text", "table", "times"],
})  # fmt: skip
