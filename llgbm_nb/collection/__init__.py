"""What there is to measure: adapters on disk, in lists and on the hub, their domains and the bases that they name.

No model is run here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "adapters": ["Adapter", "UNKNOWN", "is_lora"],
    "bases": ["base_of", "by_base", "same_base"],
    "find": ["find_adapter_paths", "find_adapters"],
    "labels": ["label_table", "stem"],
    "hub_lists": ["fetch", "listed_adapters", "read_list", "write_list"],
})  # fmt: skip
