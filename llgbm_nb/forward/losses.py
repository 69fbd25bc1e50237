"""The loss of responses under several LoRAs at once, in the engine's passes: pairs of prompt and response in a row.

    loss of a pair = mean over the response's tokens of -log p(token | what is before it)        nats

The LM head sees the rows alone that predict a response's token. Where texts come from is unknown here.
"""

from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from ..errors import InputError
from .base import BaseModel
from .head import read_head
from .lora import Lora
from .memory import keep_freed_memory
from .packing import PASS_TOKENS, Pack, keeps_state, pack_probes, packed_states
from .stacked_route import TOKENS_AT_ONCE, StackedRoute
from .states import last_token_states

ROWS = 512  # that the LM head sees at once


class ResponseLosses:
    """The losses of tokenized pairs on `base`: (ids, labels) each, labels -100 where there is no loss (the prompt).

    Raises InputError for a pair without a response, and for a base whose passes several adapters cannot share.
    """

    def __init__(self, base: BaseModel, pairs: list[tuple[list[int], list[int]]]):
        if short := [number for number, (_, labels) in enumerate(pairs, 1) if all(each < 0 for each in labels[1:])]:
            raise InputError(f"pair {short[0]} has no response that a loss could be of")
        if base.model.dtype != torch.float32:
            raise InputError(
                f"the base is in {str(base.model.dtype)[6:]}; losses of several adapters need it in float32"
            )
        keep_freed_memory()
        self._head, self._notes, ids = read_head(base), [], [ids for ids, _ in pairs]
        layers = [self._head.layers]
        packs = pack_probes(ids, base.device, 0 if keeps_state(base.body) else PASS_TOKENS, share=False)
        states = last_token_states(base.model, ids, base.device)[:, layers]
        self._route = StackedRoute(base, packs, layers, states, None, 1, self._notes.append)  # without records
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

    def __call__(self, loras: list[Lora]) -> torch.Tensor:
        """The loss of every pair under each LoRA: float32 (LoRAs, pairs), on the CPU."""
        groups = [loras[i : i + self._at_once] for i in range(0, len(loras), self._at_once)]
        return torch.cat([self._of_group(group) for group in groups]) if groups else torch.zeros(0, 0)

    @torch.inference_mode()
    def _of_group(self, loras: list[Lora]) -> torch.Tensor:
        return torch.cat([self._of_pack(pack, loras) for pack in self._labels], dim=1).cpu()

    def _of_pack(self, pack: Pack, loras: list[Lora]) -> torch.Tensor:
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
