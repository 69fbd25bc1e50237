"""a(M): the hidden states at each probe's last token, as transformers computes them, and how far rounding moves them.

    a(M)[p, l] = hidden state of layer l at the last real token of probe p     float32 (probes, layers + 1, hidden)

Layer 0 is the embedding, layer -1 the last one, after the final norm (the indexing of transformers' `hidden_states`).
"""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError, first_sentence
from .base import BaseModel, body_of
from .memory import out_of_memory
from .packing import growing

SAME, SAME_IN_HALF = 3e-5, 0.05  # parts of a hidden state's norm by which rounding moves it between batch shapes
BATCH_PROBES = 16  # texts in one forward pass; more of them go in passes of this size


def tokenize(tokenizer, probes: list[str], max_length: int = 256) -> list[list[int]]:
    """Token ids of every probe, special tokens as the tokenizer adds them.

    Raises InputError for a probe without tokens, and for one longer than `max_length`: the last token is what is
    measured, so cutting it would measure something else.
    """
    ids = [tokenizer(text)["input_ids"] for text in probes]
    for number, (text, tokens) in enumerate(zip(probes, ids, strict=True), start=1):
        if not tokens:
            raise InputError(f"probe {number} ({text!r}) has no tokens; remove it or write something in it")
        if len(tokens) > max_length:
            raise InputError(
                f"probe {number} ({text[:40]!r}…) has {len(tokens)} tokens and max_length is {max_length}: its end, "
                f"where the hidden state is read, would be cut off. Use max_length >= {len(tokens)} or a shorter probe."
            )
    return ids


def last_token_states(model, token_ids: list[list[int]], device) -> np.ndarray:
    """a(M) for tokenized probes: float32 (probes, layers + 1, hidden).

    `model` is a transformers causal LM, adapted in place or not. Its body runs without the LM head, on BATCH_PROBES
    texts at a time (probes that grow are one), padded on the right: under a causal mask, what follows a token cannot
    reach it. Where it can, as the shortest probe shows, or where such a pass fails, probes go one by one. Raises
    InputError naming probe and layer if a state is not finite, and if the model cannot be run.
    """
    together = False
    try:
        result = _padded_states(model, token_ids, device)
        check_finite(result, range(result.shape[1]), str(model.dtype))
        together = _is_alone_too(result, model, token_ids, device)
    except Exception as error:  # an architecture of its own: any kind of error can come out of its forward pass
        if isinstance(error, InputError) or out_of_memory(error):
            raise
    if together:
        return result
    try:
        return one_by_one_states(model, token_ids, device)
    except Exception as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        raise InputError(f"the model cannot be run on the probes: {first_sentence(error)}") from error


@torch.inference_mode()
def _padded_states(model, token_ids: list[list[int]], device) -> np.ndarray:
    """The same, in batches, whether padding is seen or not."""
    body, states, texts = body_of(model), [], growing(token_ids)
    for start in range(0, len(texts), BATCH_PROBES):
        group = texts[start : start + BATCH_PROBES]
        lengths = torch.tensor([len(probes[-1]) for probes in group])
        ids = pad_sequence([torch.tensor(probes[-1]) for probes in group], batch_first=True)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (texts, tokens)
        inputs = dict(input_ids=ids.to(device), attention_mask=mask.long().to(device))
        out = body(**inputs, output_hidden_states=True, use_cache=False)
        check_shapes(out.hidden_states, ids.shape)
        rows = torch.tensor([row for row, probes in enumerate(group) for _ in probes], device=device)
        last = torch.tensor([len(probe) - 1 for probes in group for probe in probes], device=device)
        states.append(torch.stack([h[rows, last] for h in out.hidden_states], dim=1).float().cpu())
    return torch.cat(states).numpy()


def _is_alone_too(states: np.ndarray, model, token_ids: list[list[int]], device) -> bool:
    """Whether the shortest probe, alone, has the states that it has among others, with padding."""
    if len(set(map(len, token_ids))) == 1:
        return True
    shortest = min(range(len(token_ids)), key=[len(tokens) for tokens in token_ids].__getitem__)
    alone = one_by_one_states(model, [token_ids[shortest]], device)[0]  # (layers + 1, hidden)
    with np.errstate(invalid="ignore"):
        off = np.linalg.norm(alone - states[shortest], axis=-1) / np.linalg.norm(alone, axis=-1)
    return bool(np.nanmax(off, initial=0.0) < (SAME if model.dtype == torch.float32 else SAME_IN_HALF))


@torch.inference_mode()
def one_by_one_states(model, token_ids: list[list[int]], device) -> np.ndarray:
    """The same from the whole model (or a `PeftModel`), a probe at a time: slower, and right whatever a layer does."""
    states = []
    for tokens in token_ids:
        out = model(input_ids=torch.tensor([tokens], device=device), output_hidden_states=True, use_cache=False)
        check_shapes(out.hidden_states, (1, len(tokens)))
        states.append(torch.stack([hidden[0, -1] for hidden in out.hidden_states]).float().cpu())
    result = torch.stack(states).numpy()  # (probes, layers + 1, hidden)
    check_finite(result, range(result.shape[1]), str(model.dtype))
    return result


def noise_floor(base: BaseModel, token_ids: list[list[int]]) -> np.ndarray:
    """How far v(B) moves when only the rounding changes, at every layer: float64 (layers + 1,).

    The largest distance between v(B) from all probes in one batch and v(B) from the same probes one by one, two at a
    time, in reverse order, and in a batch with more rows and more padding.
    """
    count, longest = len(token_ids), max(token_ids, key=len)
    every, crowd = list(range(count)), [longest + longest[:7]] * 3

    def center(groups: list[list[int]], others: list[list[int]] = ()) -> np.ndarray:
        states = [None] * count
        for group in groups:
            found = last_token_states(base.model, [token_ids[i] for i in group] + list(others), base.device)
            for i, row in zip(group, found, strict=False):
                states[i] = row
        return np.mean(states, axis=0, dtype=np.float64)  # float64, so that only the model's rounding counts

    usual, pairs = center([every]), [every[i : i + 2] for i in range(0, count, 2)]
    ways = [center([[i] for i in every]), center(pairs), center([every[::-1]]), center([every], crowd)]
    return np.max([np.linalg.norm(way - usual, axis=-1) for way in ways], axis=0)


def check_shapes(hidden_states: tuple, shape: tuple[int, int]) -> None:
    """Raises InputError unless each layer's states are (texts, tokens, hidden) with one number for hidden."""
    for layer, states in enumerate(hidden_states or ()):
        if states.dim() != 3 or states.shape[:2] != shape or states.shape[2] != hidden_states[0].shape[2]:
            what = f"at layer {layer} they are {tuple(states.shape)}, at layer 0 {tuple(hidden_states[0].shape)}"
            raise InputError(f"the base's hidden states are not one for each token, of one size: {what}")
    if not hidden_states:
        raise InputError("the base gives no hidden states")


def check_finite(states: np.ndarray, layers, dtype: str) -> None:
    """Raises InputError naming probe and layer if one of `states` (probes, layers, hidden) is not finite."""
    for probe, column in np.argwhere(~np.isfinite(states).all(axis=-1)):  # the first one
        where = f"probe {probe + 1} at layer {layers[column]} is not finite (dtype {dtype.removeprefix('torch.')})"
        raise InputError(f"the hidden state of {where}")
