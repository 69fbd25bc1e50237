"""The base's LM head: what makes logits of hidden states, checked against the model's own.

logits = softcap(scale * (h W^T + bias))        h: the last hidden state, which is normed
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.modules.module import register_module_forward_hook

from ..errors import InputError, first_sentence
from .base import BaseModel
from .packing import blocks_of


@dataclass(frozen=True, eq=False)
class Head:
    """What makes tokens of hidden states: the base's final norm and LM head in float32, and its tokenizer."""

    norm: nn.Module = field(repr=False)
    weight: torch.Tensor = field(repr=False)  # (vocabulary, hidden); the base's own where that is float32
    bias: torch.Tensor = field(repr=False)  # (vocabulary,); zeros if the head has none
    scale: float  # of the product: `logit_scale` (Cohere), 1 / `logits_scaling` (Granite); 1 in other models
    softcap: float | None  # of the logits, as in Gemma-2
    layers: int  # the number of the model's last layer
    tokenizer: object = field(repr=False)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """Normed rows (…, hidden) to raw logits (…, vocabulary), without bias and softcap; of a change, the change."""
        return self.scale * linear(rows, self.weight)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Normed rows (…, hidden) to the model's logits (…, vocabulary), where the rows are."""
        logits = self.product(rows) + self.scale * self.bias.to(rows.device)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def capped(self, raw: torch.Tensor) -> torch.Tensor:
        """The model's logits, with bias and softcap, from what `product` gave: float64, on the CPU."""
        logits = raw.cpu().double() + self.scale * self.bias.cpu().double()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@torch.inference_mode()
def read_head(base: BaseModel) -> Head:
    """The head of a base; InputError if it has none. A pass of four tokens finds the final norm and checks everything:

    norm(output of the last decoder layer) = hidden_states[-1], and head(hidden_states[-1]) = the model's own logits
    """
    model, config = base.model, base.model.config.get_text_config()
    sorry = f"the tokens of this architecture ({type(model).__name__}) cannot be read: "
    ids, states, calls = torch.arange(4, device=base.device)[None], [], []

    def keep(module, args, y):
        if module is blocks[-1]:
            states.append(y[0] if isinstance(y, tuple) else y)
        elif states and args and torch.is_tensor(args[0]) and torch.is_tensor(y):  # after the last decoder layer
            calls.append((module, args[0], y))

    try:
        blocks, last = blocks_of(base.body), model.get_output_embeddings()
        with register_module_forward_hook(keep):
            output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        # What models raise that are built otherwise: no list of layers, other arguments, no text-only pass.
        raise InputError(sorry + first_sentence(error)) from error
    if getattr(output, "logits", None) is None or getattr(output, "hidden_states", None) is None or not states:
        raise InputError(f"{sorry}it gives no logits, or no hidden states.")
    if getattr(getattr(last, "weight", None), "shape", None) != (output.logits.shape[-1], config.hidden_size):
        raise InputError(f"{sorry}its LM head is no matrix of a row for each token.")
    state, final = states[-1], output.hidden_states[-1]
    norms = [module for module, x, y in calls if _alike(x, state, 0.0) and _alike(y, final)]
    if not norms and not _alike(state, final):
        raise InputError(f"{sorry}there is no norm between its last decoder layer and its last hidden state.")
    bias = torch.zeros(len(last.weight)) if getattr(last, "bias", None) is None else last.bias.detach().float()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    head = Head(
        copy.deepcopy(norms[0]).float() if norms else nn.Identity(), last.weight.detach().float(), bias, scale,
        getattr(config, "final_logit_softcapping", None), len(blocks), base.tokenizer,
    )  # fmt: skip
    error = 1e-4 if state.dtype == torch.float32 else 0.05  # half precision is the model's, not this head's
    for rows in (final.float(), head.norm(state.float())):  # the head alone, and with our copy of the norm
        if not _alike(head.capped(head.product(rows)), output.logits, error):
            raise InputError(f"{sorry}its logits are not its LM head's product with the last hidden state.")
    return head


def _alike(x: torch.Tensor, y: torch.Tensor, error: float = 1e-6) -> bool:
    """Whether two tensors are the same but for an `error` of their norm."""
    x, y = x.cpu().double(), y.cpu().double()
    return x.shape == y.shape and bool((x - y).norm() <= error * y.norm())
