"""A full fine-tuned checkpoint, a folder with a model's `config.json` and weights: measured as a model of its own."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..collection.adapters import Adapter, check_tokenizer
from ..errors import InputError, first_sentence
from ..progress_bar import quiet_transformers
from .base import BaseModel


def load_checkpoint(adapter: Adapter, base: BaseModel, trust_remote_code: bool = False) -> torch.nn.Module:
    """The checkpoint as a causal LM in the base's dtype and on its device.

    Raises InputError if it is not the base's architecture in the base's sizes, if weights are missing, left over or not
    finite, or if its tokenizer has tokens that the base's lacks. Pickled weights are refused.
    """
    if not any(file.suffix == ".safetensors" for file in adapter.files):
        raise InputError("its weights are pickled, and are not read; save the model with safetensors")
    options = dict(trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True)
    try:
        with quiet_transformers():
            check_tokenizer(adapter, base.tokenizer)
            config = AutoConfig.from_pretrained(adapter.path, trust_remote_code=trust_remote_code)
            ours, theirs = config.get_text_config(), base.model.config.get_text_config()
            for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):  # the rest may be its own
                its, the_bases = getattr(ours, key, None), getattr(theirs, key, None)
                if its != the_bases:
                    raise InputError(f"it is no fine-tune of this base, where {key} is not {its} but {the_bases}")
            _check_sizes(config, base, trust_remote_code)
            options |= dict(config=config, dtype=base.model.dtype)
            model, report = AutoModelForCausalLM.from_pretrained(adapter.path, **options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"it cannot be loaded as a model: {first_sentence(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, report.get(what) or ())):
            raise InputError(f"its weights do not fit its config.json: {what.replace('_', ' ')}, such as {keys[0]}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"its weights have values that are not finite, in {name}")
    return model.to(base.device).eval().requires_grad_(False)


def _check_sizes(config, base: BaseModel, trust_remote_code: bool) -> None:
    """Raises InputError for a config that asks for far more memory than the base takes, before it is taken."""
    numbers = (each.get_text_config().to_dict().items() for each in (base.model.config, config))
    usual, own = ({key: number for key, number in each if type(number) is int} for each in numbers)
    if above := [key for key, number in own.items() if number > 10 * max(usual.values())]:
        raise InputError(f"it is no fine-tune of this base: its {above[0]} is {own[above[0]]:,}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    count, there = (sum(each.numel() for each in one.parameters()) for one in (model, base.model))
    if count > 2 * there:
        raise InputError(f"it is no fine-tune of this base: it has {count:,} weights, the base {there:,}")
