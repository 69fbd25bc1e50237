"""The loss of responses under several LoRAs at once, in the engine's passes: pairs of prompt and response in a row.

    loss of a pair = mean over the response's tokens of -log p(token | what is before it)        nats

The LM head sees the rows alone that predict a response's token. Where texts come from is unknown here.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..collection.adapters import Adapter
from ..errors import InputError
from .base import BaseModel, difference_dtype
from .checkpoint import load_checkpoint
from .head import read_head
from .lora import Lora, LoraReader, body_prefix, is_plain
from .memory import keep_freed_memory
from .packing import PASS_TOKENS, Pack, keeps_state, pack_probes, packed_states
from .peft_route import applied, read_config
from .stacked_route import TOKENS_AT_ONCE, StackedRoute
from .states import last_token_states

ROWS = 512  # that the LM head sees at once


class ResponseLosses:
    """The losses of tokenized pairs on `base`: (ids, labels) each, labels -100 where there is no loss (the prompt).

    `dtype` is that of the products of differences to the base, as in `Settings`; float32 does without differences.
    Raises InputError for a pair without a response, and for a base whose passes several adapters cannot share.
    """

    def __init__(self, base: BaseModel, pairs: list[tuple[list[int], list[int]]], dtype: str = "float32"):
        check_responses(pairs)
        if base.model.dtype != torch.float32:
            raise InputError(
                f"the base is in {str(base.model.dtype)[6:]}; losses of several adapters need it in float32"
            )
        keep_freed_memory()
        self._head, self._notes, ids = read_head(base), [], [ids for ids, _ in pairs]
        layers = [self._head.layers]
        packs = pack_probes(ids, base.device, 0 if keeps_state(base.body) else PASS_TOKENS, share=False)
        states = last_token_states(base.model, ids, base.device)[:, layers]
        self._low = None if dtype == "float32" else difference_dtype(dtype)
        self._route = StackedRoute(base, packs, layers, states, self._low, 1, self._notes.append)
        if not self._route.is_usable():
            raise InputError(f"several adapters cannot share this base's passes: {self._notes[-1]}")
        self._labels, first = {}, 0
        for pack in self._route.packs:
            mine = pairs[first : first + len(pack.last)]
            first += len(mine)
            labels = torch.tensor([each for _, labels in mine for each in [*labels[1:], -100]], device=base.device)
            labels = torch.cat([labels, labels.new_full((pack.tokens - len(labels),), -100)])  # of a padded row
            rows = (labels >= 0).nonzero()[:, 0]
            number = torch.bucketize(rows, pack.last)  # of the pair that each row is of
            self._labels[replace(pack, read=rows)] = labels[rows], number
        self._route.packs = [*self._labels]
        self._at_once = max(1, TOKENS_AT_ONCE.get(base.device.type, 4096) // max(p.tokens for p in self._labels))

    @torch.inference_mode()
    def __call__(self, loras: list[Lora]) -> torch.Tensor:
        """The loss of every pair under each LoRA: float32 (LoRAs, pairs), on the CPU."""
        groups = [loras[i : i + self._at_once] for i in range(0, len(loras), self._at_once)]
        return torch.cat([self._of_pack(pack, groups) for pack in self._labels], dim=1).cpu()

    def _of_pack(self, pack: Pack, groups: list[list[Lora]]) -> torch.Tensor:
        if self._low:
            self._route.twin.records.clear()
            with self._route.twin.recording(pack):
                packed_states(self._route.twin.tree, pack, 1, [self._head.layers], self._route.after)
        found = [self._of_group(pack, group) for group in groups]
        return torch.cat(found) if found else torch.zeros(0, len(pack.last))

    def _of_group(self, pack: Pack, loras: list[Lora]) -> torch.Tensor:
        route, (labels, number), copies = self._route, self._labels[pack], len(loras)
        route.twin.put_on(loras, copies)
        with route.twin.replaying(pack):
            states = packed_states(route.twin.tree, pack, copies, [self._head.layers], route.after)[:, :, 0]
        losses = torch.stack([
            torch.cat([
                cross_entropy(self._head.logits(rows), theirs, reduction="none")
                for rows, theirs in zip(each.split(ROWS), labels.split(ROWS), strict=True)
            ])
            for each in states
        ])  # fmt: skip
        sums = losses.new_zeros(copies, len(pack.last)).index_add_(1, number, losses)
        return sums / number.bincount(minlength=len(pack.last))


class AdapterLosses:
    """The loss of tokenized pairs, as `ResponseLosses` takes them, under adapters on disk.

    On a base whose passes several adapters cannot share, PEFT runs all of them, one at a time. Raises InputError for a
    pair without a response.
    """

    def __init__(
        self, base: BaseModel, pairs: list[tuple[list[int], list[int]]], dtype: str = "float32",
        trust_remote_code: bool = False,
    ):  # fmt: skip
        check_responses(pairs)
        self._base, self._pairs, self._read = base, pairs, LoraReader(base.model)
        self._trust_remote_code = trust_remote_code
        try:
            self._together, self._why_not = ResponseLosses(base, pairs, dtype), None
            self.bare = self._together([Lora({})])[0].double().numpy()  # of the base: (pairs,)
        except InputError as error:
            self._together, self._why_not = None, error
            self.bare = self._of_model(base.model)

    def __call__(self, adapters: Sequence[Adapter]) -> np.ndarray:
        """float64 (adapters, pairs): plain LoRA together, others by PEFT, one at a time.

        Raises InputError for an adapter that cannot be read or put on the base.
        """
        loras = [self._together and self.lora(adapter) for adapter in adapters]
        plain = [lora for lora in loras if lora is not None]
        together = iter(self.of_loras(plain).double().numpy()) if plain else iter(())
        found = [self.by_peft(a) if lora is None else next(together) for a, lora in zip(adapters, loras, strict=True)]
        return np.array(found).reshape(len(adapters), len(self._pairs))

    def of_loras(self, loras: list[Lora]) -> torch.Tensor:
        """As `ResponseLosses`. Raises InputError if the base's passes cannot be shared."""
        if self._why_not:
            raise self._why_not
        return self._together(loras)

    def lora(self, adapter: Adapter) -> Lora | None:
        """The adapter, read, if it is plain LoRA that leaves the LM head as it is."""
        config = None if adapter.is_checkpoint else read_config(adapter)
        if config is None or not is_plain(config) or config.ensure_weight_tying:
            return None
        tensors, body = adapter.read_tensors(), f"base_model.model.{body_prefix(self._base.model)}"
        return self._read(config, tensors) if all(name.startswith(body) for name in tensors) else None

    def by_peft(self, adapter: Adapter) -> np.ndarray:
        """The same of one adapter, (pairs,), from PEFT and transformers alone; or of a full checkpoint."""
        if adapter.is_checkpoint:
            return self._of_model(load_checkpoint(adapter, self._base, self._trust_remote_code))
        with applied(self._base.model, adapter) as wrapped:
            return self._of_model(wrapped)

    @torch.no_grad()
    def _of_model(self, model) -> np.ndarray:
        found = []
        for pair in self._pairs:
            ids, labels = (torch.tensor([each], device=self._base.device) for each in pair)
            found.append(model(input_ids=ids, labels=labels).loss.item())
        return np.array(found)


def check_responses(pairs: list[tuple[list[int], list[int]]]) -> None:
    """Raises InputError for a pair without a response that a loss could be of."""
    if short := [number for number, (_, labels) in enumerate(pairs, 1) if all(each < 0 for each in labels[1:])]:
        raise InputError(f"pair {short[0]} has no response that a loss could be of")
