"""Probes laid end to end in one row, without padding, and the pass that reads their last tokens' hidden states.

    ids        t00 t01 t02 | t10 t11 | t20 t21 t22 t23          one row, copied once for each adapter of the pass
    positions    0   1   2 |   0   1 |   0   1   2   3          they tell transformers where a probe begins
    last                 ^         ^                 ^          the rows that the last layer has to compute

A probe that goes on from the one before it shares its tokens: probes that grow (t0, t0 t1, t0 t1 t2) are one text with
several last tokens.

Only the rows of the last tokens are kept of each layer, the pass stops at the deepest layer asked for, there is no LM
head, and in the last layer the MLP sees the last tokens alone. This module knows nothing of adapters.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PASS_TOKENS = 512  # of one copy of the probes; more of them go in several passes
# In the names of modules by which a token reaches later ones without attention: these know nothing of a probe's end.
_STATEFUL = ("mamba", "ssm", "recurrent", "rglru", "rwkv", "delta", "shortconv", "linearattention", "lightning", "lstm")


def fine(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 if it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True, eq=False)
class Pack:
    """Some probes in one row; each is a key of its own. All tensors are int64 on the model's device."""

    ids: torch.Tensor  # (tokens,)
    positions: torch.Tensor  # (tokens,)
    last: torch.Tensor  # (probes,): where each probe's last token stands
    grid: torch.Tensor  # (texts, longest): where each token stands, padded with the text's first
    back: torch.Tensor  # (tokens,): where each token stands in the flattened grid
    read: torch.Tensor  # the rows whose hidden states are kept: those of `last`, or others that are asked for

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def probes(self) -> tuple[torch.Tensor, ...]:
        """The tokens of each probe."""
        starts = self.last - self.positions[self.last]
        return tuple(self.ids[start : end + 1] for start, end in zip(starts.tolist(), self.last.tolist(), strict=True))

    @property
    def texts(self) -> tuple[torch.Tensor, ...]:
        """The tokens of each text, which is a probe that no other goes on from."""
        starts = (self.last - self.positions[self.last]).tolist()
        ends = zip(self.probes, starts, [*starts[1:], None], strict=True)
        return tuple(probe for probe, start, following in ends if start != following)


def pack_probes(
    token_ids: list[list[int]], device="cpu", limit: int = PASS_TOKENS, multiple: int = 1, share: bool = True
) -> list[Pack]:
    """The probes in their order, as few rows as possible of at most `limit` tokens (a longer probe has its own).

    Unless `limit` is 0, probes that go on from the one before `share` its tokens. Rows are padded to a `multiple` of
    tokens, with the last one: what follows a token does not reach it.
    """
    texts = growing(token_ids) if share and limit else [[ids] for ids in token_ids]
    return [_pack(group, device, multiple) for group in in_parts(texts, lambda probes: len(probes[-1]), limit)]


def growing(token_ids: list[list[int]]) -> list[list[list[int]]]:
    """The probes in their order, as lists of those that go on from the one before."""
    texts: list[list[list[int]]] = []
    for ids in token_ids:
        if texts and len(before := texts[-1][-1]) < len(ids) and ids[: len(before)] == before:
            texts[-1].append(ids)
        else:
            texts.append([ids])
    return texts


def keeps_state(body: nn.Module) -> bool:
    """Whether a base has recurrent or convolution layers: from one probe of a row, these would see the one before."""
    kinds = (nn.Conv1d, nn.RNNBase)
    return any(isinstance(m, kinds) or any(w in type(m).__name__.lower() for w in _STATEFUL) for m in body.modules())


def with_another_first(pack: Pack) -> Pack:
    """The pack with other tokens in its first probe: what every other probe sees must stay as it is."""
    ids, first = pack.ids.clone(), int(pack.last[0]) + 1
    turned = ids[:first].flip(0)
    ids[:first] = turned if not torch.equal(turned, ids[:first]) else ids[-1]
    return replace(pack, ids=ids)


def in_parts(items: list, size: Callable[[object], int], limit: float) -> list[list]:
    """The items in their order, in as few parts as possible of at most `limit` in all (a larger one has its own)."""
    parts: list[list] = []
    for item in items:
        if not parts or sum(map(size, parts[-1])) + size(item) > limit:
            parts.append([])
        parts[-1].append(item)
    return parts


def _pack(group: list[list[list[int]]], device, multiple: int) -> Pack:
    texts = [probes[-1] for probes in group]
    starts = [sum(map(len, texts[:number])) for number in range(len(texts))]
    last = [start + len(ids) - 1 for start, probes in zip(starts, group, strict=True) for ids in probes]
    texts[-1] = texts[-1] + texts[-1][-1:] * (-sum(map(len, texts)) % multiple)
    lengths, longest = [len(tokens) for tokens in texts], max(map(len, texts))
    values = (
        [token for tokens in texts for token in tokens],
        [position for length in lengths for position in range(length)],
        last,
        [[s + (p if p < n else 0) for p in range(longest)] for s, n in zip(starts, lengths, strict=True)],
        [number * longest + position for number, length in enumerate(lengths) for position in range(length)],
    )
    tensors = [torch.tensor(each, device=device) for each in values]
    return Pack(*tensors, read=tensors[2])


class _LayersRead(Exception):
    """Ends a forward pass from inside: every layer that was asked for has been read."""


def blocks_of(body: nn.Module) -> nn.ModuleList:
    """The decoder layers. Raises LookupError if there is no list of as many modules as the config has layers."""
    count = body.config.get_text_config().num_hidden_layers
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise LookupError(f"no list of {count} decoder layers")


def live_states(
    body: nn.Module, pack: Pack, copies: int, layers: list[int], after: bool = False
) -> torch.Tensor:  # fmt: skip
    """Hidden states of `layers` (0: embeddings) at the probes' last tokens: float32 (copies, probes, layers, hidden).

    With `after`, layer n is what the n-th decoder layer makes, as Mamba counts them, and not what it gets.

    `body` is a causal LM's, whose decoder layers get their input first (or as `hidden_states`), and which tells probes
    in one row apart by their `position_ids`. That is transformers' convention; the engine checks it on each base.
    """
    inputs = dict(input_ids=pack.ids.expand(copies, -1), use_cache=False)
    if len(pack.grid) > 1:  # a text alone is called as any text is: not every architecture takes positions
        inputs |= dict(position_ids=pack.positions.expand(copies, -1), attention_mask=None)
    with (
        by_probe(body, pack),
        _last_tokens_read(body, pack, layers, after) as states,
        contextlib.suppress(_LayersRead),
    ):
        out = body(**inputs)
        states[max(layers)] = fine(out.last_hidden_state[:, pack.read])
    return torch.stack([states[layer] for layer in layers], dim=2)


@torch.inference_mode()
def packed_states(
    body: nn.Module, pack: Pack, copies: int, layers: list[int], after: bool = False
) -> torch.Tensor:  # fmt: skip
    """`live_states` without gradients."""
    return live_states(body, pack, copies, layers, after)


@contextlib.contextmanager
def _last_tokens_read(
    body: nn.Module, pack: Pack, layers: list[int], after: bool
) -> Iterator[dict[int, torch.Tensor]]:  # fmt: skip
    """While open, passes of `body` leave {layer: float32 (copies, probes, hidden)} here, and end at the deepest layer.

    Of the last layer only the input is left, and its MLP computes the last tokens alone.
    """
    blocks, found, deepest = blocks_of(body), {}, max(layers)

    def read(layer: int, hidden: torch.Tensor) -> None:
        if layer in layers:
            found[layer] = fine(hidden[:, pack.read])
        if layer == deepest:
            raise _LayersRead

    def read_input(layer: int, block: nn.Module, args: tuple, kwargs: dict) -> None:
        read(layer, args[0] if args else kwargs["hidden_states"])

    def read_output(layer: int, block: nn.Module, args: tuple, y) -> None:
        read(layer, y[0] if isinstance(y, tuple) else y)

    def keep_last(mlp: nn.Module, args: tuple) -> tuple:
        return tuple(each[:, pack.read] for each in args)  # of Bloom's, the residual is another

    def spread(mlp: nn.Module, args: tuple, y):
        if isinstance(y, tuple):
            return spread(mlp, args, y[0]), *y[1:]
        out = y.new_zeros(y.shape[0], pack.tokens, y.shape[-1])  # the other tokens are read no more
        out[:, pack.read] = y
        return out

    with contextlib.ExitStack() as hooks:
        for layer, block in enumerate(blocks[: deepest + 1]):
            if after:
                hooks.enter_context(block.register_forward_hook(partial(read_output, layer)))
            else:
                hooks.enter_context(block.register_forward_pre_hook(partial(read_input, layer), with_kwargs=True))
        if deepest == len(blocks) and _is_rowwise(mlp := getattr(blocks[-1], "mlp", None)):
            hooks.enter_context(mlp.register_forward_pre_hook(keep_last))
            hooks.enter_context(mlp.register_forward_hook(spread))
        yield found


def _is_rowwise(mlp: nn.Module | None) -> bool:
    """Whether `mlp` is linear layers, norms, activations and dropout alone, so that it maps each row by itself."""
    words = ("linear", "conv1d", "norm", "activation", "dropout", "silu", "gelu", "relu", "tanh", "identity")
    leaves = [] if mlp is None else [m for m in mlp.modules() if not any(True for _ in m.children())]
    return bool(leaves) and all(any(word in type(m).__name__.lower() for word in words) for m in leaves)


@contextlib.contextmanager
def by_probe(body: nn.Module, pack: Pack) -> Iterator[None]:
    """While open, `body` attends within each probe, where that is less work than one masked square over all of them.

    It is for models on sdpa without a sliding window shorter than a probe; others keep their own masked attention.
    """
    config, (texts, longest) = body.config, pack.grid.shape
    window = getattr(config.get_text_config(), "sliding_window", None)
    pays = texts * longest**2 < pack.tokens**2 and not (window and window < longest)
    if config._attn_implementation != "sdpa" or not pays:
        yield
        return
    name = f"by_probe_{id(pack)}"
    ALL_ATTENTION_FUNCTIONS[name] = partial(_attention_within_probes, pack)
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
        del ALL_ATTENTION_FUNCTIONS[name]


def _attention_within_probes(pack: Pack, module, query, key, value, attention_mask, **kwargs):
    """transformers' own causal attention on each probe: q, k, v come as (copies, heads, tokens, width)."""
    copies, (texts, longest) = query.shape[0], pack.grid.shape

    def apart(t: torch.Tensor) -> torch.Tensor:  # (copies * texts, heads, longest, width)
        return t[:, :, pack.grid].transpose(1, 2).flatten(0, 1)

    kwargs["is_causal"] = True
    # What stands behind a probe's end is never seen from before it, so no mask is needed.
    out, weights = sdpa_attention_forward(module, apart(query), apart(key), apart(value), None, **kwargs)
    out = out.reshape(copies, texts * longest, *out.shape[2:])
    return out[:, pack.back], weights
