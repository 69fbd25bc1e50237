"""One adapter on the base through PEFT, and off again: the base comes back as it was, and that is checked.

Wrapping the same base in a `PeftModel` again and again leaves earlier adapters' layers behind, so that an adapter with
fewer target modules is measured with somebody else's.
"""

import contextlib
import copy
import dataclasses
import warnings

import numpy as np
import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from transformers.pytorch_utils import Conv1D

from ..collection.adapters import CONFIG, Adapter
from ..errors import InputError, first_sentence
from .patterns import check_patterns
from .states import last_token_states, one_by_one_states


class BaseChanged(RuntimeError):
    """Taking an adapter off did not give the base back. The model must be loaded anew."""


# Kinds whose layers see each token by itself, and that live in the model's body: tested to give the same in a batch of
# padded probes without the LM head. Any other is measured as `PeftModel` runs it, one probe at a time.
IN_BATCHES = {"LORA", "IA3", "LOHA", "LOKR", "OFT", "VERA", "BOFT", "ADALORA"}
# Settings of other programs that change nothing of what an adapter computes, and whose they are.
_HARMLESS = {
    "unsloth_fixed",  # Unsloth: it has gone over the config
    "merge_weights",  # PEFT before 0.4: to be merged when evaluated
    "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",  # ms-swift: dtype and learning rates in training
}  # fmt: skip
# Ways to start a LoRA that take something off the base which PEFT does not find again when it loads the adapter.
_UNLOADABLE = {
    "corda": "CorDA takes off what it found with data of its own, which is not saved",
    "loftq": "LoftQ is for a base that it has quantised itself",
}
RANKED = {"LORA", "LOHA", "VERA", "ADALORA", "HRA", "RANDLORA", "PVERA"}  # kinds with tensors as large as `r` says


@contextlib.contextmanager
def applied(model: torch.nn.Module, adapter: Adapter, before: tuple | None = None):
    """The `PeftModel` of `model`, a causal LM, which carries `adapter` in place for the length of the `with` block.

    Its weights are used in float32, as PEFT does. Raises InputError for an adapter that cannot be used (the message
    says why) and BaseChanged, on leaving, if the base's config or modules or the bits of its parameters are not what
    they were. `before` is the bare model's `base_state`, if it is known.
    """
    before = before or base_state(model)
    modules, data = dict(model.named_modules()), [(p, p.data) for p in model.parameters()]
    biases = {name: p.clone() for name, p in model.named_parameters() if name.endswith("bias")}
    settings = copy.deepcopy(model.config.__dict__)  # layer_replication counts the layers anew in it
    try:
        yield _wrap(model, adapter)
    finally:
        _restore(model, modules)  # PEFT's own unload would leave modules_to_save in place of the base's
        model.config.__dict__.clear()
        model.config.__dict__.update(settings)
        for parameter, tensor in data:
            parameter.data = tensor
        with torch.no_grad():
            for name, bias in biases.items():  # trained ones are written into the base's
                model.get_parameter(name).copy_(bias)
        model.eval().requires_grad_(False)
        if base_state(model) != before:
            raise BaseChanged(f"{adapter.name} changed the base model in place")


def adapted_states(wrapped: PeftModel, token_ids: list[list[int]], device) -> np.ndarray:
    """a(M) as in `last_token_states`, of what `applied` gives."""
    if wrapped.peft_type in IN_BATCHES:
        return last_token_states(wrapped.get_base_model(), token_ids, device)
    return one_by_one_states(wrapped, token_ids, device)


def base_state(model: torch.nn.Module) -> tuple:
    """What must be the same before and after: config, module types by name, and checksums of parameters and buffers."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return repr(model.config.to_dict()), modules, tuple((name, _checksum(tensor)) for name, tensor in tensors)


def _checksum(tensor: torch.Tensor) -> int:
    flat = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
    whole = flat.numel() // 8 * 8  # in 64-bit words, summed with wrap-around: exact, and as fast as memory
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())


def _wrap(model: torch.nn.Module, adapter: Adapter) -> PeftModel:
    tensors = adapter.read_tensors()
    config = read_config(adapter)
    config.inference_mode, layers = True, model.config.get_text_config().num_hidden_layers
    check_patterns(config, [name for name, _ in model.named_modules()])
    _check_sizes(config, tensors, layers)
    try:
        with warnings.catch_warnings(action="ignore"):
            wrapped = PeftModel(model, config)
    except Exception as error:
        raise InputError(f"its config does not fit the base: {first_sentence(error)}") from error
    start = str(getattr(config, "init_lora_weights", "")).lower()
    if start == "olora" and any(isinstance(getattr(m, "base_layer", None), Conv1D) for m in wrapped.modules()):
        raise InputError("it is OLoRA on Conv1D layers, which PEFT loads wrongly; convert it to LoRA with PEFT")
    try:
        with warnings.catch_warnings(action="ignore"):
            result = set_peft_model_state_dict(wrapped, tensors)
    except Exception as error:  # of torch's long list of wrong shapes, only the first is reported
        wrong = [line.strip().rstrip(".") + "." for line in str(error).splitlines() if "size mismatch" in line]
        raise InputError(f"its weights do not fit the base: {(wrong or [first_sentence(error)])[0]}") from error
    asked = (PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, ""), "modules_to_save.")
    parameters = dict(wrapped.named_parameters(remove_duplicate=False))
    there = {id(each) for name, each in parameters.items() if name not in set(result.missing_keys)}
    lacking = [key for key in result.missing_keys if id(parameters.get(key)) not in there]  # one under another name
    missing = [key for key in lacking if ".default" in key and any(part in key for part in asked)]
    if (bias := getattr(config, "bias", "none")) != "none":
        saved = ".bias" if bias == "all" else "base_layer.bias"  # of dt_bias and the like PEFT saves none
        missing += [key for key in result.missing_keys if key.endswith(saved)]
    if missing:
        raise InputError(f"its weights lack {len(missing)} tensors that its config asks for, such as {missing[0]}")
    if some := result.unexpected_keys:
        raise InputError(f"its weights hold {len(some)} tensors that have no place in the base, such as {some[0]}")
    return wrapped.eval()


def _check_sizes(config: PeftConfig, tensors: dict[str, torch.Tensor], layers: int) -> None:
    """Raises InputError if a config asks for more than its tensors hold, before anything is allocated for it."""
    try:
        now = sum(max(0, end - start) for start, end in getattr(config, "layer_replication", None) or [(0, layers)])
        ranks = [getattr(config, "r", 0), *(getattr(config, "rank_pattern", None) or {}).values()]
        rank = max(each for each in ranks if type(each) is int) if config.peft_type in RANKED else 0
    except (TypeError, ValueError) as error:
        raise InputError(f"its config does not fit the base: {first_sentence(error)}") from error
    if now != layers:
        raise InputError(f"it makes {now} layers of the base's {layers} (layer_replication); there is no difference")
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if rank > largest:
        raise InputError(
            f"its config asks for rank {rank}, but no tensor of it has more than {largest} rows or columns"
        )


def read_config(adapter: Adapter) -> PeftConfig:
    """An adapter's PEFT config. Raises InputError for kinds and settings that have no delta, or not a known one."""
    if (start := str(adapter.config.get("init_lora_weights")).lower()) in _UNLOADABLE:
        raise InputError(f"its init_lora_weights is {start}: {_UNLOADABLE[start]}; convert it to LoRA with PEFT")
    try:
        with warnings.catch_warnings(action="ignore"):
            config = PeftConfig.from_pretrained(adapter.path)
    except Exception as error:
        kind = adapter.config.get("peft_type")
        if adapter.config and kind not in [*PEFT_TYPE_TO_CONFIG_MAPPING]:
            raise InputError(f"its peft_type is {kind!r}, which the installed PEFT does not know") from error
        raise InputError(f"PEFT cannot read its {CONFIG}: {first_sentence(error)}") from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise InputError(f"{config.peft_type.value} changes the prompt, not the layers; it has no delta")
    if config.peft_type == "POLY":
        raise InputError("Poly is a mixture that is told its task with every text; it has no delta of its own")
    # PEFT leaves out settings that it does not know, with a warning: the adapter would be another one.
    known = {field.name for field in dataclasses.fields(config)} | _HARMLESS
    if unknown := sorted(key for key, value in adapter.config.items() if value and key not in known | _off(adapter)):
        raise InputError(f"its {CONFIG} has settings that this version of PEFT does not know: {', '.join(unknown)}")
    if getattr(config, "alora_invocation_tokens", None):
        raise InputError("aLoRA is switched on by tokens in the prompt; it has no delta of its own")
    if getattr(config, "sample_at_inference", False):
        raise InputError("it draws noise in every pass (sample_at_inference); set that to false in its config")
    if "niter" in str(getattr(config, "init_lora_weights", "")):
        raise InputError("it takes a random approximation (pissa_niter) off the base; convert it to LoRA with PEFT")
    return config


def _off(adapter: Adapter) -> set[str]:
    """Settings of what an adapter's config switches off: `qalora_group_size` beside `use_qalora: false`."""
    off = [key.removeprefix("use_") for key, value in adapter.config.items() if key.startswith("use_") and not value]
    return {key for key in adapter.config for feature in off if key.startswith(f"{feature}_")}


def _restore(model: torch.nn.Module, modules: dict[str, torch.nn.Module]) -> None:
    """Put the modules back that PEFT has replaced, all or (after an error) some, and take its hooks off them."""
    for name, module in modules.items():
        if name and model.get_submodule(name) is not module:
            model.set_submodule(name, module)
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for number, hook in list(table.items()):  # transformers has its own, which stay
                if str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith("peft"):
                    del table[number]
    if hasattr(model, "peft_config"):
        del model.peft_config
