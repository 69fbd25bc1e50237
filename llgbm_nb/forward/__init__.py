"""One base, many adapters: a(M) - a(B).

The base is loaded once; an adapter takes one of three routes over it. The cache and the pictures are unknown here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "base": ["BaseModel", "load_base", "load_tokenizer"],
    "base_files": ["base_fingerprint", "base_folder"],
    "states": ["last_token_states", "noise_floor", "tokenize"],
    "demo_base": ["DEMO_BASE"],
    "engine": ["Engine", "Measured"],
    "head": ["Head", "read_head"],
    "live": ["LiveDeltas"],
    "losses": ["ResponseLosses"],
    "first_order": ["LossGradient"],
    "peft_route": ["applied"],
})  # fmt: skip
