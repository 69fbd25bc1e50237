"""One adapter on the base through PEFT, and off again: the base comes back as it was, and that is checked.

Wrapping the same base in a `PeftModel` again and again leaves earlier adapters' layers behind, so that an adapter with
fewer target modules is measured with somebody else's. Here the base is unwrapped after each one, and its modules and
the checksums of its parameters are compared with those from before.
"""

import contextlib
import dataclasses
import warnings

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from .activations import first_sentence
from .adapters import CONFIG, Adapter
from .errors import InputError


class BaseChanged(RuntimeError):
    """Taking an adapter off did not give the base back. The model must be loaded anew."""


@contextlib.contextmanager
def applied(model: torch.nn.Module, adapter: Adapter, before: tuple | None = None):
    """`model`, a transformers causal LM, changed in place to carry `adapter` for the length of the `with` block.

    The adapter's weights are used in float32, as PEFT does. On leaving, the model is unwrapped. Raises InputError for
    an adapter that cannot be used (the message says why), and BaseChanged, on leaving, if the base's modules or
    the bits of its parameters are not what they were. `before` is the `base_state` of the bare model, if it is known.
    """
    before = before or base_state(model)
    modules, data = dict(model.named_modules()), [(p, p.data) for p in model.parameters()]
    biases = {name: p.clone() for name, p in model.named_parameters() if name.endswith("bias")}
    try:
        _wrap(model, adapter)
        yield model
    finally:
        _restore(model, modules)  # PEFT's own unload would leave modules_to_save in place of the base's
        for parameter, tensor in data:
            parameter.data = tensor
        with torch.no_grad():
            for name, bias in biases.items():  # trained ones are written into the base's
                model.get_parameter(name).copy_(bias)
        model.eval().requires_grad_(False)
        if base_state(model) != before:
            raise BaseChanged(f"{adapter.name} changed the base model in place")


def base_state(model: torch.nn.Module) -> tuple:
    """What must be the same before and after: module types by name, and checksums of all parameters and buffers."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return modules, tuple((name, _checksum(tensor)) for name, tensor in tensors)


def _checksum(tensor: torch.Tensor) -> int:
    flat = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
    whole = flat.numel() // 8 * 8
    # 64-bit words summed with wrap-around: exact, and as fast as memory.
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())


def _wrap(model: torch.nn.Module, adapter: Adapter) -> None:
    tensors = adapter.read_tensors()
    config = read_config(adapter)
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel(model, config)
    except Exception as error:
        raise InputError(f"its config does not fit the base: {first_sentence(error)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = set_peft_model_state_dict(wrapped, tensors)
        prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
        asked = (prefix, "modules_to_save.")
        missing = [key for key in result.missing_keys if ".default" in key and any(part in key for part in asked)]
        bias = getattr(config, "bias", "none")
        if bias != "none":
            end = "bias" if bias == "all" else "base_layer.bias"
            missing += [key for key in result.missing_keys if key.endswith(end)]
        if missing:
            raise InputError(f"its weights lack {len(missing)} tensors that its config asks for, such as {missing[0]}")
        if result.unexpected_keys:
            some = result.unexpected_keys
            raise InputError(f"its weights hold {len(some)} tensors that have no place in the base, such as {some[0]}")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"its weights do not fit the base: {_shape_reason(error)}") from error
    wrapped.eval()


def read_config(adapter: Adapter) -> PeftConfig:
    """An adapter's PEFT config. Raises InputError for kinds and settings that have no delta, or not a known one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(adapter.path)
    except Exception as error:
        raise InputError(f"PEFT cannot read its {CONFIG}: {first_sentence(error)}") from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise InputError(f"{config.peft_type.value} changes the prompt, not the layers; it has no delta")
    # PEFT leaves out settings that it does not know, with a warning: the adapter would be another one.
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(key for key, value in adapter.config.items() if value and key not in known):
        raise InputError(f"its {CONFIG} has settings that this version of PEFT does not know: {', '.join(unknown)}")
    if getattr(config, "alora_invocation_tokens", None):
        raise InputError("aLoRA is switched on by tokens in the prompt; it has no delta of its own")
    if "niter" in str(getattr(config, "init_lora_weights", "")):
        raise InputError(
            "it subtracts a random approximation (pissa_niter) from the base; convert it to LoRA with PEFT"
        )
    return config


def _restore(model: torch.nn.Module, modules: dict[str, torch.nn.Module]) -> None:
    """Put the modules back that PEFT has replaced, be it all of them or, after an error, some."""
    for name, module in modules.items():
        if name and model.get_submodule(name) is not module:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _shape_reason(error: Exception) -> str:
    """Of torch's long list of mismatched shapes, the first line that names one."""
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return lines[0].rstrip(".") + "." if lines else first_sentence(error)
