"""May one believe it? Rounding, chance, other layers and probes, the words behind a delta, the alternatives.

An extra: the main job does without.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "rounding": ["precision_check", "trust", "trust_text"],
    "chance": ["Chance", "Reliability", "chance_text", "permutation_test", "reliability", "reliability_text"],
    "labels": ["by_label"],
    "layer_choice": ["Choice", "by_probe_count", "choice_text", "choose", "joined", "probe_set_deltas", "sampled",
                     "silhouette_grid"],
    "tokens": ["beside_the_mean", "domain_tokens", "tokens_apart", "top_tokens"],
    "alternatives": ["compare_methods", "methods_table", "methods_text"],
    "soundness": ["check_soundness"],
    "figures": ["chance_figure", "count_figure", "grid_figure", "trust_figure"],
})  # fmt: skip
