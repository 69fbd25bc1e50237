"""The differences a(M) - a(B) of many adapters of one base: which adapter takes which route.

    plain LoRA        several in one pass over a twin of the base, as differences (`stacked_route`)
    what PEFT loads   one at a time on the base itself, off again, and the base checked (`peft_route`)
    full checkpoint   a model of its own, loaded with transformers (`checkpoint`)

Each route has the base measured in the same shape, so that an adapter that changes nothing differs by exactly zero.
This module knows nothing of the cache.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from ..collection.adapters import Adapter, check_tokenizer
from ..errors import InputError, first_sentence
from ..settings import Settings
from .base import BaseModel, difference_dtype
from .checkpoint import load_checkpoint
from .experts import picks_experts
from .memory import hand_back_memory, keep_freed_memory
from .packing import PASS_TOKENS, keeps_state, pack_probes
from .peft_route import IN_BATCHES, BaseChanged, adapted_states, applied, base_state, read_config
from .stacked_route import Measured, StackedRoute
from .states import last_token_states, one_by_one_states, tokenize

PEFT, FULL = "PEFT", "full model"


class Engine:
    """One base model, loaded, with its probes.

    `load` gives a `BaseModel`, and is called again only if an adapter could not be taken off it. `layers` are layer
    numbers, ascending; `base_states` is a(B) there, float32 (probes, layers, hidden), and `notes` are sentences that
    the user should read. Raises InputError for a probe that `tokenize` refuses.
    """

    def __init__(self, load: Callable[[], BaseModel], probes: list[str], layers: list[int], settings: Settings):
        keep_freed_memory()
        self._load, self._layers, self._settings = load, layers, settings
        self.notes: list[str] = []
        self._base = load()
        self._ids = tokenize(self._base.tokenizer, probes, settings.max_length)
        self._all_base_states = last_token_states(self._base.model, self._ids, self._base.device)
        self._state = base_state(self._base.model)  # now: BigBird changes its config by what it sees
        if (has := self._all_base_states.shape[1]) <= max(layers):
            raise InputError(f"the base gives hidden states of layers 0 to {has - 1}; its config says {max(layers)}")
        self.base_states, self._one_by_one = self._all_base_states[:, layers], None
        # Whatever the numbers say of a base that keeps state: an adapter may make it forget less than it does.
        alone = keeps_state(self._base.body)
        self._packs = pack_probes(self._ids, self._base.device, 0 if alone else PASS_TOKENS)
        self._stacked = self._new_route(settings.adapters_per_pass)

    def measure(self, adapters: Iterable[Adapter]) -> Iterator[Measured]:
        """Every adapter's outcome as soon as there is one: plain LoRA first, in groups, then the others one by one."""
        others: list[Adapter] = []
        for outcome in self._stacked.measure(adapters):
            if isinstance(outcome, Adapter):
                others.append(outcome)
            else:
                yield outcome
        outcome = None  # it holds the last adapter's states
        if others:
            self._stacked.drop()  # kept for the next adapters, if there are any, where nothing else needs the memory
        for adapter in others:
            yield self._measure_alone(adapter)

    def _new_route(self, copies: int) -> StackedRoute:
        low = difference_dtype(self._settings.dtype)
        if self._settings.dtype != "float32" and picks_experts(self._base.body):
            if low:
                low = torch.float32
                self._note("this base sends each token to a few experts; rounding would turn some choices: in float32")
            else:
                name = self._settings.dtype.removesuffix("-plain")
                self._note(
                    f"this base sends each token to a few experts; rounding turns some choices: rather take {name}"
                )
        return StackedRoute(self._base, self._packs, self._layers, self.base_states, low, copies, self._note)

    def _load_again(self) -> None:
        copies, self._stacked, self._base = self._stacked.copies, None, None  # two bases never lie in memory at once
        hand_back_memory()
        self._base = self._load()
        last_token_states(self._base.model, self._ids[:1], self._base.device)
        self._state = base_state(self._base.model)
        self._stacked = self._new_route(copies)

    def _measure_alone(self, adapter: Adapter) -> Measured:
        start, route = time.perf_counter(), FULL if adapter.is_checkpoint else PEFT
        differences, reason, spoiled = None, "", False
        try:
            _ = adapter.files  # says what is missing
            if adapter.is_checkpoint:
                model = load_checkpoint(adapter, self._base, self._settings.trust_remote_code)
                states = last_token_states(model, self._ids, self._base.device)
                differences = states[:, self._layers] - self.base_states
            else:
                check_tokenizer(adapter, self._base.tokenizer)
                base = self._base_as(adapter)
                with applied(self._base.model, adapter, self._state) as wrapped:
                    states = adapted_states(wrapped, self._ids, self._base.device)
                    differences = (states - base)[:, self._layers]
        except BaseChanged as error:  # if it was measured, then on the right base all the same
            reason, spoiled = str(error.__context__ or "it changed the base and could not be measured"), True
        except InputError as error:
            reason = str(error)
        except Exception as error:  # whatever PEFT or torch raise for an adapter that they cannot use
            reason = f"{type(error).__name__}: {first_sentence(error)}"
            spoiled = base_state(self._base.model) != self._state
        if spoiled:  # outside of the handlers, whose errors hold on to the old model
            wrapped = model = None
            self._load_again()
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
