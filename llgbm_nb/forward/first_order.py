"""What an adapter would do for the loss of some text, to first order: from one backward pass of the base alone.

    gain(W + D) = L(W) - L(W + D) ~ -<dL/dW, D>        D = scale * B A, summed over the modules      nats per token

L is the mean over pairs of `losses`' loss of a pair. Where texts come from and what the number is good for is unknown
here.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers.pytorch_utils import Conv1D

from ..collection.adapters import Adapter
from ..errors import InputError, first_sentence
from .base import BaseModel
from .checkpoint import load_checkpoint
from .head import read_head
from .lora import Lora, body_prefix, kind_of
from .packing import PASS_TOKENS, fine, in_parts
from .peft_route import applied


class LossGradient:
    """dL/dW of the base's linear layers, for tokenized pairs (ids, labels) as `ResponseLosses` takes them.

    `losses` are those of the pairs, float32 (pairs,); `gradients` are {module of the body: (out, in)}, float32, which
    takes as much memory as the linear layers in float32. Raises InputError for a base that cannot be differentiated.
    """

    def __init__(self, base: BaseModel, pairs: list[tuple[list[int], list[int]]]):
        self._head, self._pairs = read_head(base), len(pairs)
        self.gradients: dict[str, torch.Tensor] = {}  # {module of the body: (out, in)}
        lengths = [len(ids) for ids, _ in pairs]
        order = sorted(range(len(pairs)), key=lengths.__getitem__)
        self.losses = torch.zeros(len(pairs))
        try:
            with self._kept(base):
                for part in in_parts(order, lengths.__getitem__, PASS_TOKENS):
                    self.losses[part] = self._backward(base, [pairs[number] for number in part])
        except RuntimeError as error:
            raise InputError(f"the base's loss has no gradient: {first_sentence(error)}") from error
        self.norm = float(sum(g.double().square().sum() for g in self.gradients.values())) ** 0.5

    def gain(self, lora: Lora) -> float | None:
        """How much the adapter lowers L, to first order; None if it changes more than linear layers."""
        if not lora.factors.keys() <= self.gradients.keys():
            return None
        found = 0.0
        for name, (a, b, scale) in lora.factors.items():
            gradient = self.gradients[name]
            found -= scale * float(((b.to(gradient).T @ gradient) * a.to(gradient)).sum())
        return found

    def gain_and_norm(self, changes: Iterable[tuple[str, torch.Tensor]]) -> tuple[float, float] | None:
        """The same for `linear_changes`, and the Frobenius norm of all of them; None for what is no linear layer."""
        found = square = 0.0
        for name, change in changes:
            if name not in self.gradients:
                return None
            found -= float((self.gradients[name] * change).sum())
            square += float(change.double().square().sum())
        return found, square**0.5

    def _backward(self, base: BaseModel, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """The losses of some pairs, which share a padded pass; their gradients are added to those that there are."""
        ids, labels = ([torch.tensor(row) for row in column] for column in zip(*pairs, strict=True))
        mask = pad_sequence([torch.ones_like(row) for row in ids], True).to(base.device)
        labels = pad_sequence(labels, True, -100)[:, 1:].to(base.device)
        states = base.body(input_ids=pad_sequence(ids, True).to(base.device), attention_mask=mask, use_cache=False)
        pair, column = (labels >= 0).nonzero(as_tuple=True)
        logits = self._head.logits(fine(states.last_hidden_state[pair, column]))
        losses = cross_entropy(logits, labels[pair, column], reduction="none")
        means = losses.new_zeros(len(pairs)).index_add(0, pair, losses) / pair.bincount(minlength=len(pairs))
        (means.sum() / self._pairs).backward()
        return means.detach().cpu()

    @contextlib.contextmanager
    def _kept(self, base: BaseModel) -> Iterator[None]:
        """While open, backward passes through the base leave dL/dW here, and nothing in the base."""

        def output(name: str, module: nn.Module, args: tuple, y: torch.Tensor) -> None:
            y.register_hook(partial(self._add, name, args[0].detach()))

        def begin(module: nn.Module, args: tuple, y: torch.Tensor) -> torch.Tensor:
            return y.detach().requires_grad_()  # so that what comes after has gradients

        with contextlib.ExitStack() as hooks:
            for name, module in base.body.named_modules():
                if kind_of(module) in (nn.Linear, Conv1D):
                    hooks.enter_context(module.register_forward_hook(partial(output, name)))
            hooks.enter_context(base.body.get_input_embeddings().register_forward_hook(begin))
            hooks.enter_context(torch.enable_grad())
            yield

    def _add(self, name: str, x: torch.Tensor, gradient: torch.Tensor) -> None:
        x, gradient = (fine(each).reshape(-1, each.shape[-1]) for each in (x, gradient))
        if name in self.gradients:
            self.gradients[name].addmm_(gradient.T, x)
        else:
            self.gradients[name] = gradient.T @ x


def linear_changes(base: BaseModel, adapter: Adapter, trust_remote_code=False) -> Iterator[tuple[str, torch.Tensor]]:
    """(module of the body, change of its weight (out, in)), one at a time, of an adapter as PEFT merges it, or of the
    linear layers of a full checkpoint.

    Raises InputError for an adapter that cannot be used, and for one that PEFT cannot merge into the base's weights.
    """
    prefix = body_prefix(base.model)
    if adapter.is_checkpoint:
        others = dict(load_checkpoint(adapter, base, trust_remote_code).named_modules())
        for name, module in base.model.named_modules():
            if name.startswith(prefix) and kind_of(module) in (nn.Linear, Conv1D):
                yield name.removeprefix(prefix), _upright(module, others[name].weight.data - module.weight.data)
        return
    with applied(base.model, adapter) as wrapped:
        inner = wrapped.get_base_model()
        if any(isinstance(module, AuxiliaryTrainingWrapper) for module in inner.modules()):
            raise InputError("it has modules of its own, besides the change of weights")
        for name, layer in [each for each in inner.named_modules() if isinstance(each[1], BaseTunerLayer)]:
            module = layer.get_base_layer()
            if (weight := getattr(module, "weight", None)) is None:
                raise InputError("it changes what is no layer's weight")
            before = weight.data
            try:
                layer.merge(safe_merge=True)
                change = _upright(module, weight.data - before)
            except Exception as error:  # whatever a kind's layers raise that cannot be merged
                raise InputError(f"PEFT cannot merge it: {first_sentence(error)}") from error
            finally:
                weight.data = before
            yield name.removeprefix(prefix), change


def _upright(module: nn.Module, change: torch.Tensor) -> torch.Tensor:
    return fine(change.T if isinstance(module, Conv1D) else change)


def change_norm(lora: Lora) -> float:
    """The Frobenius norm of an adapter's change of the weights, scale * B A, over all its modules together."""
    squares = [
        scale**2 * float(((b.mT.double() @ b.double()) * (a.double() @ a.mT.double())).sum())
        for a, b, scale in lora.factors.values()
    ]
    return max(0.0, sum(squares)) ** 0.5
