"""The differences a(M) - a(B) of many adapters of one base: which way each goes, in which groups, and what it is
compared with.

    plain LoRA        several in one pass over a twin of the base (`lora`, `packing`), as differences (`difference`)
    what PEFT loads   one at a time on the base itself, off again, and the base checked (`peft_adapter`)
    full checkpoint   a model of its own, loaded with transformers (`checkpoint`)

Each way has the base measured in the same shape, so that an adapter that changes nothing differs by exactly zero. This
module knows nothing of the cache.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ..collection.adapters import Adapter, check_tokenizer
from ..errors import InputError, first_sentence
from ..settings import Settings
from .base import BaseModel, difference_dtype
from .checkpoint import load_checkpoint
from .lora import Lora, LoraReader, is_plain
from .memory import _out_of_memory, hand_back_memory, keep_freed_memory
from .packing import blocks_of, pack_probes, packed_states
from .peft_route import IN_BATCHES, BaseChanged, adapted_states, applied, base_state, read_config
from .states import check_finite, last_token_states, one_by_one_states, tokenize
from .twin import DifferenceLinear, DifferenceStack, Stack, StackedLinear, Unstackable, bucket, put_on, twin

STACKED, PEFT, FULL = "stacked", "PEFT", "full model"


TOKENS_AT_ONCE = {"cpu": 600, "mps": 1024}  # of all copies in one pass; measured on a CPU, a guess elsewhere


TOKENS_ON_CUDA = 4096


RECORD_BYTES = 4 * 2**30  # what difference propagation may keep of the base at once; beyond it, the probes are split


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


class Engine:
    """One base model, loaded, with its probes.

    `load` gives a `BaseModel`, and is called again only if an adapter could not be taken off it. `difference` is the
    dtype in which difference propagation multiplies (of a float32 base), or None for plain passes. `layers` are layer
    numbers, ascending. `adapters_per_pass` 0 takes what suits the device. Raises InputError for a probe that `tokenize`
    refuses.
    """

    def __init__(self, load: Callable[[], BaseModel], probes: list[str], layers: list[int], settings: Settings):
        keep_freed_memory()
        self._load, self._difference, self._layers = load, difference_dtype(settings.dtype), layers
        self._trust = settings.trust_remote_code
        self._base = self._stack = None
        self.notes: list[str] = []  # what the user should know of the run
        self._start()
        self._ids = tokenize(self._base.tokenizer, probes, settings.max_length)
        self._all_base_states = last_token_states(self._base.model, self._ids, self._base.device)
        self.base_states, self._one_by_one = self._all_base_states[:, layers], None
        self._packs = pack_probes(self._ids, self._base.device)
        self._copies = settings.adapters_per_pass or max(
            1, self._tokens_at_once() // max(p.tokens for p in self._packs)
        )

    def measure(self, adapters: Iterable[Adapter]) -> Iterator[Measured]:
        """Every adapter's outcome as soon as there is one: plain LoRA first, in groups, then the others one by one."""
        others: list[Adapter] = []
        plain = self._read_plain(adapters, others)
        for block in self._blocks(plain, others):
            yield from self._measure_block(block, others)
        block = None  # it holds the last group's weights
        if others:
            self._drop_twin()  # kept for the next adapters, if there are any, where nothing else needs the memory
        for adapter in others:
            yield self._measure_alone(adapter)

    def _start(self) -> None:
        again, self._base = self._base is not None, None  # two copies never lie in memory at once
        self._drop_twin()
        if again:
            hand_back_memory()
        self._base = self._load()
        self._state = base_state(self._base.model)

    def _tokens_at_once(self) -> int:
        return TOKENS_AT_ONCE.get(self._base.device.type, TOKENS_ON_CUDA)

    # -- plain LoRA ----------------------------------------------------------------------------------------------------

    def _read_plain(self, adapters: Iterable[Adapter], others: list[Adapter]) -> Iterator["Measured | _Plain"]:
        """Adapters that are plain LoRA, read from disk some ahead of their turn; the rest go into `others`."""
        with ThreadPoolExecutor(1, "reader") as reader:
            ahead: deque = deque()
            for adapter in adapters:
                config = None if adapter.is_checkpoint else _config(adapter)
                if config is None or not is_plain(config) or not self._has_twin():
                    others.append(adapter)
                    continue
                ahead.append((adapter, config, reader.submit(adapter.read_tensors)))
                if len(ahead) > self._copies:
                    yield from self._next_plain(ahead, others)
            while ahead:
                yield from self._next_plain(ahead, others)

    def _next_plain(self, ahead: deque, others: list[Adapter]) -> Iterator["Measured | _Plain"]:
        adapter, config, reading = ahead.popleft()
        try:
            tensors = reading.result()
            check_tokenizer(adapter, self._base.tokenizer)
            lora = self._read_lora(config, tensors)
        except InputError as error:
            yield Measured(adapter, STACKED, 0.0, reason=str(error))
        except Exception:  # a config that PEFT's own functions stumble over: let PEFT say what is wrong
            others.append(adapter)
        else:
            if lora is None:
                others.append(adapter)
            else:
                yield _Plain(adapter, lora)

    def _blocks(self, plain: Iterator, others: list[Adapter]) -> Iterator[list]:
        """All adapters that see the probes before the next base pass: one group, or many if the probes are split."""
        waiting: dict[int, list[_Plain]] = {}
        for each in plain:
            if isinstance(each, Measured):
                yield [each]
                continue
            if self._plain_twin is False:  # it was lost on the way, to memory
                others.append(each.adapter)
                continue
            size = BLOCK if len(self._chunks()) > 1 else self._copies
            group = waiting.setdefault(bucket(each.lora) if self._stack.padded else 0, [])
            group.append(each)
            if len(group) >= size:
                yield group[:]
                group.clear()
        yield from filter(None, waiting.values())

    def _measure_block(self, block: list, others: list[Adapter]) -> Iterator[Measured]:
        if isinstance(block[0], Measured):
            yield block[0]
            return
        start = time.perf_counter()
        try:
            states = [[] for _ in block]
            for chunk in self._chunks():
                self._record(chunk)
                for first in range(0, len(block), self._copies):
                    loras = [each.lora for each in block[first : first + self._copies]]
                    self._put_on(loras)
                    for pack in chunk:
                        found = self._pass(pack, loras) - self._twin_base[pack]
                        for number in range(len(loras)):
                            states[first + number].append(found[number])
        except Exception as error:
            reason = "" if _out_of_memory(error) else first_sentence(error)
        else:
            reason = None
        # What follows is outside of the handler, whose error holds on to the pass's tensors.
        if reason == "":
            yield from self._halve(block, others)
            return
        if reason:  # alone, through PEFT, each will say what is wrong with it
            self._note(f"{len(block)} adapters went through PEFT, as a pass with all of them failed: {reason}")
            others.extend(each.adapter for each in block)
            return
        seconds = (time.perf_counter() - start) / len(block)
        shape = f"{self._copies} x {'+'.join(str(pack.tokens) for pack in self._packs)} tokens"
        for each, parts in zip(block, states, strict=True):
            differences, reason = torch.cat(parts).numpy(), ""
            try:
                check_finite(
                    differences + self.base_states, self._layers, str(self._difference or self._base.model.dtype)
                )
            except InputError as error:
                differences, reason = None, str(error)
            yield Measured(each.adapter, STACKED, seconds, differences, reason, shape)

    def _halve(self, block: list, others: list[Adapter]) -> Iterator[Measured]:
        if self._copies == 1:
            for each in block:
                yield Measured(each.adapter, STACKED, 0.0, reason="a pass of this adapter alone does not fit in memory")
            return
        self._copies //= 2
        self._note(f"memory ran out: from here on {self._copies} adapters share a pass")
        self._drop_twin()
        if not self._has_twin():
            others.extend(each.adapter for each in block)
            return
        for first in range(0, len(block), self._copies):
            yield from self._measure_block(block[first : first + self._copies], others)

    # -- the twin and its passes ---------------------------------------------------------------------------------------

    def _has_twin(self) -> bool:
        """Whether plain LoRA can go the stacked way on this base: found out once, by comparing the base's own pass."""
        if self._plain_twin is None:
            try:
                self._make_twin()
                self._measure_base()
            except Exception as error:  # an architecture of its own: any kind of error can come out of its forward pass
                reason = "" if _out_of_memory(error) and self._copies > 1 else first_sentence(error)
            else:
                return True
            self._drop_twin()  # outside of the handler, whose error holds on to tensors
            if reason:
                self._note(f"every adapter goes through PEFT, one at a time: {reason}")
                self._plain_twin = False
            else:
                self._copies //= 2
                self._note(f"memory ran out: from here on {self._copies} adapters share a pass")
                return self._has_twin()
        return self._plain_twin is not False

    def _drop_twin(self) -> None:
        """Free the twin: its laid-out weights and records. It is made again when it is needed."""
        held = self._stack is not None
        self._plain_twin = self._stack = self._names = self._read_lora = None
        self._twin_base, self._all_chunks = {}, []
        if held:
            hand_back_memory()

    def _make_twin(self) -> None:
        body, padded = self._base.body, self._base.device.type != "cpu"
        blocks_of(body)
        self._stack = DifferenceStack(1, padded, self._difference) if self._difference else Stack(1, padded)
        self._plain_twin = twin(body, self._stack, DifferenceLinear if self._difference else StackedLinear)
        self._names, self._read_lora = dict(self._plain_twin.named_modules()), LoraReader(self._base.model)

    def _chunks(self) -> list[list]:
        """The packs that difference propagation can hold records of at once; all of them where that is enough."""
        return self._all_chunks or [self._packs]

    def _measure_base(self) -> None:
        """a(B) on the twin, in the shape of the run's passes, held against transformers' own pass."""
        self._all_chunks = []
        if self._difference:
            per_token = self._record(self._packs[:1]) / self._packs[0].tokens
            self._all_chunks = _chunks(self._packs, RECORD_BYTES / max(1, per_token))
        for chunk in self._chunks():
            self._record(chunk)
            self._put_on([])
            for pack in chunk:
                base = self._pass(pack, [])
                same = all(torch.equal(base[0], other) for other in base[1:])
                if self._difference:
                    same = same and torch.equal(base[0], self._twin_base[pack])
                if same and self._copies > 1 and pack is self._packs[0]:
                    self._put_on([self._any_lora()])  # in the first place, and the others must not see it
                    found = self._pass(pack, [self._any_lora()])
                    same = all(torch.equal(base[0], other) for other in found[1:])
                    self._put_on([])
                if not same:  # a place's bits depend on where it is in the pass, or on what is beside it
                    if self._copies == 1:
                        raise Unstackable("its passes do not repeat bit for bit")
                    self._copies = 1
                    self._note("results would depend on the place in a pass or on the neighbours: one adapter a pass")
                    return self._measure_base()
                self._twin_base[pack] = base[0]
        ours = torch.cat([self._twin_base[pack] for pack in self._packs]).numpy()
        far = np.linalg.norm(ours - self.base_states, axis=-1) / np.linalg.norm(self.base_states, axis=-1)
        if not far.max() < (1e-4 if self._base.model.dtype == torch.float32 else 0.05):
            raise Unstackable(f"its own pass differs from transformers' by {far.max():.1g} of the hidden state's norm")
        if self._difference:
            total = per_token * sum(pack.tokens for pack in self._packs) / 2**20
            split = f", in {len(self._all_chunks)} parts of the probes" if len(self._all_chunks) > 1 else ""
            self._note(f"{total:.0f} MiB of memory hold the base's inputs and outputs of its layers meanwhile{split}")

    def _record(self, chunk: list) -> int:
        """For difference propagation: the base's pass over these packs, kept unless it is there. Returns its bytes."""
        if not self._difference:
            return 0
        if any(pack not in self._stack.records for pack in chunk):
            self._stack.records.clear()
            self._stack.copies = 1
            self._put_on([])
            for pack in chunk:
                self._stack.rows = (pack.tokens, len(pack.last))
                self._stack.record(pack)
                self._twin_base[pack] = packed_states(self._plain_twin, pack, 1, self._layers)[0].cpu()
        return self._stack.bytes

    def _any_lora(self) -> Lora:
        """A LoRA on every linear layer that changes the hidden states well beyond rounding."""
        random = torch.Generator().manual_seed(0)
        layers = {name: m for name, m in self._names.items() if isinstance(m, StackedLinear)}
        sizes = {name: layer.weight.shape for name, layer in layers.items()}
        return Lora(
            {
                name: (torch.randn(4, i, generator=random) / i**0.5, torch.randn(o, 4, generator=random) * 0.02, 1.0)
                for name, (o, i) in sizes.items()
            }
        )

    def _put_on(self, loras: list[Lora]) -> None:
        put_on(self._plain_twin, loras, self._base.device, self._copies)

    def _pass(self, pack, loras: list[Lora]) -> torch.Tensor:
        """One pass of the run's shape with `loras` put on: float32 (copies, probes, layers, hidden) on the CPU."""
        self._stack.copies, self._stack.rows = self._copies, (pack.tokens, len(pack.last))
        if self._difference:
            self._stack.replay(pack, loras, self._names)
        try:
            return packed_states(self._plain_twin, pack, self._copies, self._layers).cpu()
        finally:
            if self._difference:
                self._stack.forget()

    # -- one at a time -------------------------------------------------------------------------------------------------

    def _measure_alone(self, adapter: Adapter) -> Measured:
        start, route = time.perf_counter(), FULL if adapter.is_checkpoint else PEFT
        differences, reason, spoiled = None, "it changed the base and could not be measured", True
        try:
            _ = adapter.files  # says what is missing
            if adapter.is_checkpoint:
                spoiled = False  # it is a model of its own
                model = load_checkpoint(adapter, self._base, self._trust)
                states = last_token_states(model, self._ids, self._base.device)[:, self._layers]
                differences = states - self.base_states
            else:
                check_tokenizer(adapter, self._base.tokenizer)
                base = self._base_as(adapter)
                with applied(self._base.model, adapter, self._state) as wrapped:
                    states = adapted_states(wrapped, self._ids, self._base.device)
                    differences = (states - base)[:, self._layers]
                spoiled = False
        except BaseChanged as error:  # if it was measured, then on the right base all the same
            reason = str(error.__context__ or reason)
        except InputError as error:
            reason, spoiled = str(error), False
        except Exception as error:  # whatever PEFT or torch raise for an adapter that they cannot use
            reason = f"{type(error).__name__}: {first_sentence(error)}"
            spoiled = base_state(self._base.model) != self._state
        if spoiled:  # outside of the handlers, whose errors hold on to the old model
            wrapped = None
            self._start()
        seconds = time.perf_counter() - start
        if differences is None:
            return Measured(adapter, route, seconds, reason=reason)
        return Measured(adapter, route, seconds, differences, "", f"{len(self._ids)} probes")

    def _base_as(self, adapter: Adapter) -> np.ndarray:
        """a(B) at all layers, in passes of the shape that PEFT's kind of adapter is measured in."""
        if read_config(adapter).peft_type in IN_BATCHES:
            return self._all_base_states
        if self._one_by_one is None:
            self._one_by_one = one_by_one_states(self._base.model, self._ids, self._base.device)
        return self._one_by_one

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class _Plain:
    adapter: Adapter
    lora: Lora


def _config(adapter: Adapter):
    try:
        _ = adapter.weights_file  # without a config, PEFT would ask the hub for one
        return read_config(adapter)
    except InputError:  # the way through PEFT says it again
        return None


def _chunks(packs: list, tokens: float) -> list[list]:
    chunks: list[list] = []
    for pack in packs:
        if not chunks or sum(p.tokens for p in chunks[-1]) + pack.tokens > tokens:
            chunks.append([])
        chunks[-1].append(pack)
    return chunks
