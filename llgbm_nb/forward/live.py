"""a(M) - a(B) of several LoRAs at once, as a tensor that can be differentiated with respect to their factors.

    A, B of each student -> one pass of all students for each pack of probes -> (students, probes, layers, hidden)

The passes are the stacked route's, by difference propagation in the base's float32 (or float64). Its records are made
without gradients, those of one pack at a time, so nothing that is trained touches the base, and the numbers are those
that the cache holds of such an adapter. Targets and losses are unknown here.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .base import BaseModel, difference_dtype
from .experts import Unstackable
from .lora import Lora, body_prefix, kind_of
from .memory import keep_freed_memory
from .packing import PASS_TOKENS, Pack, blocks_of, by_probe, keeps_state, live_states, pack_probes
from .stacked_route import StackedRoute
from .states import last_token_states


class LiveDeltas:
    """The differences of LoRAs on `base` at tokenized probes (`tokenize`), at `layers` (numbers, ascending).

    `base_states` is a(B), float32 (probes, layers, hidden). With `checkpointing` a pass keeps the inputs of decoder
    layers alone and computes the rest again on its way back: a third to a half more time, a fraction of the memory.
    `dtype` is that of the products of differences, as in `Settings`: half precision is faster where the processor has
    it. Probes of together at most `batch_tokens` tokens share a pass. Raises InputError for a base in half precision,
    and for one whose passes several adapters cannot share.
    """

    def __init__(
        self, base: BaseModel, token_ids: list[list[int]], layers: list[int], checkpointing: bool = False,
        dtype: str = "float32", batch_tokens: int = PASS_TOKENS,
    ):  # fmt: skip
        keep_freed_memory()
        self.device, self.checkpointing, self.notes, self._layers = base.device, checkpointing, [], layers
        if base.model.dtype not in (torch.float32, torch.float64):
            raise InputError(f"the base is in {str(base.model.dtype)[6:]}; gradients of deltas need it in float32")
        low = base.model.dtype if base.model.dtype == torch.float64 else difference_dtype(dtype)
        if low is None:
            raise InputError(f"dtype is {dtype!r}; gradients of deltas take float32, bfloat16 or float16")
        self.base_states: np.ndarray = last_token_states(base.model, token_ids, base.device)[:, layers]
        self._modules, self._body = dict(base.body.named_modules()), body_prefix(base.model)
        packs = pack_probes(token_ids, base.device, 0 if keeps_state(base.body) else batch_tokens)
        self._route = StackedRoute(base, packs, layers, self.base_states, low, 1, self.notes.append, gradients=True)
        if not self._route.is_usable():
            raise InputError(f"several adapters cannot share this base's passes: {self.notes[-1]}")

    def lora(self, tensors: Mapping[str, torch.Tensor], scale: float = 1.0) -> Lora:
        """A LoRA of live tensors by PEFT's names ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": A);
        `scale` is lora_alpha / r. Raises InputError for a name or a shape that does not fit the base.
        """
        lora = Lora.of_tensors(tensors, scale, self._body)
        self._check(lora)
        return lora

    def __call__(self, loras: list[Lora], batch: int | None = None) -> torch.Tensor:
        """a(M) - a(B) of each: float32 (students, probes, layers, hidden), on the base's device.

        The probes are all, or those of one of the `batches`.
        """
        packs = self._route.packs if batch is None else [self._route.packs[batch]]
        try:
            return torch.cat([self._pass(pack, loras) for pack in packs], dim=1)
        except Unstackable as error:
            raise InputError(f"no deltas of these LoRAs on this base: {error}") from error

    @property
    def batches(self) -> list[range]:
        """The numbers of the probes that share a pass."""
        ends = np.cumsum([len(pack.last) for pack in self._route.packs]).tolist()
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _pass(self, pack: Pack, loras: list[Lora]) -> torch.Tensor:
        twin, route = self._route.twin, self._route
        route.record(pack)
        twin.put_on(loras, len(loras))
        with contextlib.ExitStack() as stack:
            stack.enter_context(twin.replaying(pack))
            if self.checkpointing:
                stack.enter_context(self._checkpointed(pack))
            states = live_states(twin.tree, pack, len(loras), self._layers, route.after)
        return states - route.twin_base[pack].to(states.device)

    @contextlib.contextmanager
    def _checkpointed(self, pack: Pack) -> Iterator[None]:
        """While open, decoder layers keep their inputs alone; not the last, as hooks in it are gone on the way back."""
        twin = self._route.twin
        put_on_again = twin.what_is_on()

        @contextlib.contextmanager
        def once_more() -> Iterator[None]:
            self._route.record(pack)  # another pass may have been made since, and its records are others
            put_on_again()
            with twin.replaying(pack), by_probe(twin.tree, pack):
                yield

        def contexts():
            return contextlib.nullcontext(), once_more()

        blocks = blocks_of(twin.tree)[:-1]
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward  # the class's own is seen again

    def _check(self, lora: Lora) -> None:
        for name, (a, b, _) in lora.factors.items():
            if (module := self._modules.get(name)) is None or (kind := kind_of(module)) is None:
                raise InputError(f"the base has no layer {name!r} that a LoRA can change")
            outputs, inputs = module.weight.shape if kind is nn.Linear else module.weight.shape[::-1]
            if a.dim() != 2 or a.shape[1] != inputs or tuple(b.shape) != (outputs, len(a)):
                found, wanted = f"{tuple(a.shape)} and {tuple(b.shape)}", f"(r, {inputs}) and ({outputs}, r)"
                raise InputError(f"A and B of {name} are {found}; the base's layer takes {wanted}")
