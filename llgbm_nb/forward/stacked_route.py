"""The fast route: plain LoRA adapters of one base, several in a forward pass over its `Twin`.

    read ahead -> groups of `copies` adapters -> a pass for each pack of probes -> a(M) - a(B)

Before it is used on a base, its own pass is held against transformers', and it is checked that an adapter's bits depend
neither on its place in a pass nor on its neighbours. Memory that runs out halves the group. What cannot go this way
comes out as the adapter that it was; this module knows nothing of what becomes of it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch

from ..collection.adapters import Adapter, check_tokenizer
from ..errors import InputError, first_sentence
from .base import BaseModel
from .lora import Lora, LoraReader, is_plain
from .memory import hand_back_memory, out_of_memory
from .packing import PASS_TOKENS, Pack, blocks_of, in_parts, pack_probes, packed_states, with_another_first
from .peft_route import read_config
from .states import check_finite
from .twin import Twin, Unstackable

STACKED = "stacked"
TOKENS_AT_ONCE = {"cpu": 600, "mps": 1024}  # of all copies in one pass; measured on a CPU, else 4096: guesses
RECORD_BYTES = 4 * 2**30  # what difference propagation may keep of the base at once; beyond it, the probes are split
ALIGNED = 16  # tokens: float32 numbers in a line of a processor's cache
WORTH_SAYING = 0.01  # of a delta's norm: more than half precision usually moves it
BLOCK = 16  # adapters that share one base pass, where the probes are split


@dataclass(frozen=True)
class Measured:
    """One adapter's outcome. `differences` is float32 (probes, layers, hidden), or None with a `reason`."""

    adapter: Adapter
    route: str
    seconds: float
    differences: np.ndarray | None = None
    reason: str = ""
    shape: str = ""  # of the pass: "2 adapters x 182 tokens"


_Plain = tuple[Adapter, Lora]  # one that has been read, and is plain LoRA


class StackedRoute:
    """Measures plain LoRA adapters on `base`, `copies` at a time (0: as many as pay); fewer once memory has run out.

    `layers` are layer numbers, ascending, and `base_states` is a(B) there, float32 (probes, layers, hidden). `low` is
    as in `Twin`, and so is `gradients`. `note` is called with sentences that the user should read.
    """

    def __init__(
        self, base: BaseModel, packs: list[Pack], layers: list[int], base_states: np.ndarray,
        low: torch.dtype | None, copies: int, note: Callable[[str], None], gradients: bool = False,
    ):  # fmt: skip
        self._base, self.packs, self._layers, self._low, self._note = base, packs, layers, low, note
        self._base_states, self.copies = base_states, copies or _copies_that_pay(packs)
        self._read_lora, self._gradients = LoraReader(base.model), gradients
        self._unusable = False  # found out with the first adapter
        self._rounding_known = low in (None, torch.float32)
        self.after, self._multiple = False, 1  # as in `packed_states` and in `pack_probes`
        self.drop()

    def measure(self, adapters: Iterable[Adapter]) -> Iterator[Measured | Adapter]:
        """Every adapter's outcome, or the adapter itself if another route has to measure it; in any order."""
        waiting: dict[int, list[_Plain]] = {}
        for each in self._read(adapters):
            if not isinstance(each, tuple):
                yield each
            elif self._unusable:  # it was lost on the way, to memory
                yield each[0]
            else:
                block = waiting.setdefault(self.twin.together(each[1]), [])
                block.append(each)
                if len(block) >= (BLOCK if len(self._chunks) > 1 else self.copies):
                    yield from self._measure_block(block[:])
                    block.clear()
        for block in filter(None, waiting.values()):
            yield from self._measure_block(block) if self.is_usable() else (adapter for adapter, _ in block)

    def is_usable(self) -> bool:
        """Whether adapters can be stacked on this base: found out once, by comparing the base's own pass."""
        while self.twin is None and not self._unusable:
            try:
                blocks_of(self._base.body)  # raises where there is no list of layers
                self.twin = Twin(self._base.body, self._base.device, self._low, self._gradients)
                self._measure_base()
                break
            except Exception as error:  # an architecture of its own: any kind of error can come out of its forward pass
                reason, is_memory = first_sentence(error), out_of_memory(error)
            self.drop()  # with no error at hand, which would hold on to the tensors of its pass
            if is_memory and self.copies > 1:
                self._halve()
            elif any(len(pack.last) > 1 for pack in self.packs):
                self._note(f"each probe has a pass of its own: {reason}")
                self._pack_anew(0)
            else:
                self._note(f"every adapter goes through PEFT, one at a time: {reason}")
                self._unusable = True
        return not self._unusable

    def record(self, pack: Pack) -> None:
        """Have the base's records of `pack` at hand, and of what else they are held with."""
        self._record(next(chunk for chunk in self._chunks if pack in chunk))

    def drop(self) -> None:
        """Free the twin: its laid-out weights and records. It is made again when it is needed."""
        held = getattr(self, "twin", None) is not None
        self.twin: Twin | None = None
        self.twin_base: dict[Pack, torch.Tensor] = {}  # a(B) on the twin: float32 (probes, layers, hidden)
        self._chunks = [self.packs]  # the packs that difference propagation can hold records of at once
        if held:
            hand_back_memory()

    def _read(self, adapters: Iterable[Adapter]) -> Iterator[Measured | Adapter | _Plain]:
        """Adapters that are plain LoRA, read from disk some ahead of their turn."""
        with ThreadPoolExecutor(1, "reader") as reader:
            ahead: deque = deque()
            for adapter in adapters:
                config = _config(adapter)
                if config is None or not is_plain(config) or not self.is_usable():
                    yield adapter
                    continue
                ahead.append((adapter, config, reader.submit(adapter.read_tensors)))
                if len(ahead) > self.copies:
                    yield self._parsed(*ahead.popleft())
            while ahead:
                yield self._parsed(*ahead.popleft())

    def _parsed(self, adapter: Adapter, config, reading: Future) -> Measured | Adapter | _Plain:
        try:
            tensors = reading.result()
            check_tokenizer(adapter, self._base.tokenizer)
            lora = self._read_lora(config, tensors)
        except InputError as error:
            return Measured(adapter, STACKED, 0.0, reason=str(error))
        except Exception:  # a config that PEFT's own functions stumble over: let PEFT say what is wrong
            return adapter
        return adapter if lora is None else (adapter, lora)

    def _measure_block(self, block: list[_Plain]) -> Iterator[Measured | Adapter]:
        """Adapters that see the probes before the next base pass: one group, or many if the probes are split."""
        start, reason = time.perf_counter(), ""
        try:
            found = self._differences([lora for _, lora in block])
            self._measure_rounding([lora for _, lora in block], found)
        except Exception as error:
            reason, is_memory = first_sentence(error), out_of_memory(error)
        if not reason:
            seconds = (time.perf_counter() - start) / len(block)
            for (adapter, _), differences in zip(block, found, strict=True):
                yield self._checked(adapter, differences, seconds)
        elif is_memory:
            yield from self._measure_halves(block)
        else:  # alone, through PEFT, each will say what is wrong with it
            self._note(f"{len(block)} adapters went through PEFT, as a pass with all of them failed: {reason}")
            yield from (adapter for adapter, _ in block)

    def _differences(self, loras: list[Lora]) -> list[np.ndarray]:
        """a(M) - a(B) of each adapter: float32 (probes, layers, hidden)."""
        states = [[] for _ in loras]
        for chunk in self._chunks:
            self._record(chunk)
            for first in range(0, len(loras), self.copies):
                group = loras[first : first + self.copies]
                self.twin.put_on(group, self.copies)
                for pack in chunk:
                    found = self._pass(pack) - self.twin_base[pack]
                    for number in range(len(group)):
                        states[first + number].append(found[number])
        return [torch.cat(parts).numpy() for parts in states]

    def _measure_rounding(self, loras: list[Lora], found: list[np.ndarray]) -> None:
        """Once, with the first adapters that do anything: say so if half precision moves a delta by over 1 %."""
        changed = [each for each in zip(loras, found, strict=True) if each[1].any()][: self.copies]
        if self._rounding_known or not changed:
            return
        self._rounding_known, chunk, count = True, self._chunks[0], sum(len(pack.last) for pack in self._chunks[0])
        self._record(chunk)
        self.twin.put_on([lora for lora, _ in changed], self.copies)
        with self.twin.in_float32():
            passes = [self._pass(pack) - self.twin_base[pack] for pack in chunk]
        exact = torch.cat(passes, dim=1)[: len(changed)].mean(1)  # (adapters, layers, hidden)
        ours = torch.stack([torch.from_numpy(differences[:count]).mean(0) for _, differences in changed])
        off = ((ours - exact).norm(dim=-1) / exact.norm(dim=-1)).nan_to_num(0).max()
        if off > WORTH_SAYING:
            self._note(
                f"{str(self._low)[6:]} moves a delta by up to {off:.1%} of its norm on this base; float32 is exact"
            )

    def _checked(self, adapter: Adapter, differences: np.ndarray, seconds: float) -> Measured:
        shape = f"{self.copies} x {'+'.join(str(pack.tokens) for pack in self.packs)} tokens"
        try:
            check_finite(differences + self._base_states, self._layers, str(self._low or self._base.model.dtype))
            return Measured(adapter, STACKED, seconds, differences, "", shape)
        except InputError as error:
            return Measured(adapter, STACKED, seconds, None, str(error), shape)

    def _measure_halves(self, block: list[_Plain]) -> Iterator[Measured | Adapter]:
        """Memory ran out: the same with half as many adapters a pass."""
        if self.copies == 1:
            reason = "a pass of this adapter alone does not fit in memory"
            yield from (Measured(adapter, STACKED, 0.0, reason=reason) for adapter, _ in block)
            return
        self._halve()
        self.drop()
        if self.is_usable():
            for first in range(0, len(block), self.copies):
                yield from self._measure_block(block[first : first + self.copies])
        else:
            yield from (adapter for adapter, _ in block)

    def _halve(self) -> None:
        self.copies //= 2
        self._note(f"memory ran out: from here on {self.copies} adapters share a pass")

    def _pack_anew(self, limit: int, multiple: int = 1) -> None:
        ids, pay = [row.tolist() for pack in self.packs for row in pack.probes], _copies_that_pay(self.packs)
        shared = any(len(pack.last) > len(pack.grid) for pack in self.packs)
        self.packs, self._multiple = pack_probes(ids, self._base.device, limit, multiple, shared), multiple
        self._chunks = [self.packs]
        if self.copies == pay:  # neither asked for nor halved
            self.copies = _copies_that_pay(self.packs)

    def _measure_base(self) -> None:
        """a(B) on the twin, in the shape of the run's passes, held against transformers' own pass."""
        together = next((pack for pack in self.packs if len(pack.grid) > 1), None)
        if together and not _keeps_apart(self, together):
            raise Unstackable("in one row, a probe would see the one before")
        self._chunks, kept = [self.packs], 0
        if self._low:
            self._record(self.packs[:1])
            per_token = self.twin.record_bytes / self.packs[0].tokens
            limit = 0 if self._gradients else RECORD_BYTES / max(1, per_token)  # a training step takes any one pack
            self._chunks = in_parts(self.packs, attrgetter("tokens"), limit)
            kept = per_token * sum(pack.tokens for pack in self.packs) / 2**20
        for chunk in self._chunks:
            self._record(chunk)
            for pack in chunk:
                if not self._is_independent(pack):
                    if self.copies == 1:
                        raise Unstackable("its passes do not repeat bit for bit")
                    if self._multiple == 1:  # attention of its own, whose products depend on where a row begins
                        self._pack_anew(PASS_TOKENS if together else 0, ALIGNED)
                    else:
                        self.copies = 1
                        self._note("results would depend on the place or on the neighbours: one adapter a pass")
                    self._measure_base()
                    return
        ours = torch.cat([self.twin_base[pack] for pack in self.packs]).numpy()
        far = np.linalg.norm(ours - self._base_states, axis=-1) / np.linalg.norm(self._base_states, axis=-1)
        if not far.max() < (1e-4 if self._base.model.dtype == torch.float32 else 0.05):
            self.after = not self.after
            if self.after:
                self.twin.records.clear()
                self._measure_base()
                return
            raise Unstackable(f"its own pass differs from transformers' by {far.max():.1g} of the hidden state's norm")
        if self._low:
            split = f", in {len(self._chunks)} parts of the probes" if len(self._chunks) > 1 else ""
            self._note(f"{kept:.0f} MiB of memory hold the base's inputs and outputs of its layers meanwhile{split}")

    def _is_independent(self, pack: Pack) -> bool:
        """Whether every place of a pass gives the base's bits, whatever is beside it; if so, keeps a(B) of `pack`."""
        self.twin.put_on([], self.copies)
        base = self._pass(pack)
        same = all(torch.equal(base[0], other) for other in base[1:])
        if self._low:
            same = same and torch.equal(base[0], self.twin_base[pack])
        if same and self.copies > 1 and pack is self.packs[0]:
            self.twin.put_on([self.twin.any_lora()], self.copies)  # in the first place; the others must not see it
            found = self._pass(pack)
            same = all(torch.equal(base[0], other) for other in found[1:])
        if same:
            self.twin_base[pack] = base[0]
        return same

    def _record(self, chunk: list[Pack]) -> None:
        """For difference propagation: the base's pass over these packs, kept unless it is there."""
        if not self._low or all(pack in self.twin.records for pack in chunk):
            return
        self.twin.records.clear()
        for pack in chunk:
            with self.twin.recording(pack):
                self.twin_base[pack] = packed_states(self.twin.tree, pack, 1, self._layers, self.after)[0].cpu()

    def _pass(self, pack: Pack, copies: int = 0) -> torch.Tensor:
        """One pass over `pack` of what is put on: float32 (copies, probes, layers, hidden) on the CPU."""
        with self.twin.replaying(pack):
            return packed_states(self.twin.tree, pack, copies or self.copies, self._layers, self.after).cpu()


def _keeps_apart(route: StackedRoute, pack: Pack) -> bool:
    """Whether probes in one row see nothing of the first, with a strong LoRA on every layer, gates among them."""
    [two] = pack_probes([row.tolist() for row in pack.texts[:2]], route._base.device, share=False)
    both = [two, with_another_first(two)]
    route._record(both)
    route.twin.put_on([route.twin.any_lora(0.5)], 1)
    one, other = (route._pass(each, 1)[0, 1] for each in both)  # the second probe: (layers, hidden)
    within = 1e-5 if route._base.model.dtype == torch.float32 else 0.05  # experts round by how many tokens they have
    return torch.equal(one, other) or bool((one - other).norm() <= within * one.norm())


def _copies_that_pay(packs: list[Pack]) -> int:
    return max(1, TOKENS_AT_ONCE.get(packs[0].ids.device.type, 4096) // max(pack.tokens for pack in packs))


def _config(adapter: Adapter):
    try:
        _ = adapter.weights_file  # without a config, as a checkpoint is, PEFT would ask the hub for one
        return read_config(adapter)
    except InputError:  # the route through PEFT says it again
        return None
