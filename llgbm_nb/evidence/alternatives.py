"""The alternatives to deltas on the same adapters, in one table: from the weights, and from what the models write.

Each method is a matrix of cosines over the adapters, float64 (adapters, adapters), diagonal 1, with NaN in the rows and
columns of adapters that it cannot represent. What is zero is similar to nothing, as in `analysis.similarity`. The
methods are those that the Delta Activations paper compares with (arXiv 2509.04442), and the exact change of weights.
"""

from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, GenerationConfig

from ..analysis.geometry import centered, nearest, similarity
from ..collection.adapters import UNKNOWN, Adapter
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..errors import InputError, first_sentence
from ..files import from_root
from ..forward.base import BaseModel, quiet_transformers
from ..forward.lora import Lora, LoraReader, is_plain
from ..forward.peft_route import applied, base_state, read_config

SHARE = 0.01  # of an adapter's weights that are salient


NEW_TOKENS = 32  # of a continuation


_COLUMNS = 2**16  # of flattened tensors that are multiplied at once, which bounds the memory for it


def compare_methods(
    run: DeltaRun, base: BaseModel, sentence_encoder: str = "", delta_seconds: float = np.nan
) -> pd.DataFrame:
    """How well each method tells the domains apart: a row per method, all of them on the same adapters.

    These are the adapters with a domain that every method can represent; deltas are centred on their mean. Columns:
    dimension (how many numbers describe an adapter, at most), seconds (per adapter, reading included, loading the base
    not; of deltas what the caller measured, `delta_seconds`), silhouette (by domain, cosine distance), nearest
    neighbour (the share of adapters whose nearest other one has their domain) and adapters (how many).
    `attrs["chance"]` is the share that random neighbours would have, `attrs["note"]` says who was left out, and why
    there are no scores where they are NaN.
    Output sentences are compared only with a `sentence_encoder`, a hub id or a folder. Raises InputError if it cannot
    be loaded.
    """
    encoder = _load_encoder(sentence_encoder, base) if sentence_encoder else None
    labelled = run.delta_set.subset(i for i, domain in enumerate(run.delta_set.domains) if domain != UNKNOWN)
    adapters = labelled.adapters
    methods = {
        "flattened weights": _timed(_flattened, adapters),
        "weight change": _timed(_changes, adapters, base.model),
        "salient mask": _timed(_salient, adapters, SHARE),
    }
    if encoder:
        methods["output sentences"] = _timed(_outputs, adapters, run.delta_set.probes, base, encoder)
    there = {name: np.isfinite(np.diag(cosines)) for name, (cosines, _, _) in methods.items()}
    keep = np.flatnonzero(np.all([*there.values()], axis=0))
    compared = labelled.subset(keep)

    rows = {
        name: (cosines[np.ix_(keep, keep)], int(sizes[keep].max(initial=0)), seconds)
        for name, (cosines, sizes, seconds) in methods.items()
    }
    for name, deltas in _deltas(compared).items():
        rows[name] = similarity(deltas), deltas.shape[1], delta_seconds
    domains = np.array(compared.domains, dtype=str)
    counts = np.unique(domains, return_counts=True)[1]
    enough = 2 <= len(counts) < len(keep)
    scores = {name: _scores(row[0], domains) if enough else (np.nan, np.nan) for name, row in rows.items()}
    table = [(*rows[name][1:], *scores[name], len(keep)) for name in rows]
    columns = ["dimension", "seconds", "silhouette", "nearest neighbour", "adapters"]
    frame = pd.DataFrame(table, pd.Index(rows, name="method"), columns)
    pairs = len(keep) * (len(keep) - 1)
    frame.attrs["chance"] = float((counts * (counts - 1)).sum() / pairs) if enough else np.nan
    frame.attrs["note"] = _note(adapters, there, len(run.delta_set) - len(labelled), keep, len(counts), enough)
    return frame


def methods_table(found: pd.DataFrame) -> pd.DataFrame:
    """`compare_methods`' table for people."""

    def shown(values, form) -> list[str]:
        return [form.format(value) if np.isfinite(value) else "–" for value in values]

    return pd.DataFrame(
        {
            "dimension": shown(found["dimension"], "{:,}"),
            "seconds each": shown(found["seconds"], "{:.2f} s"),
            "silhouette": shown(found["silhouette"], "{:.2f}"),
            "nearest is of its domain": shown(100 * found["nearest neighbour"], "{:.0f} %"),
        },
        index=found.index,
    )


def methods_text(found: pd.DataFrame) -> str:
    """How to read `compare_methods`' table."""
    lines = []
    if len(found) and found["silhouette"].notna().any():
        lines.append(
            f"All on the same {found['adapters'].iloc[0]} adapters. Silhouette: near 1, domains lie apart; by chance "
            f"the nearest other adapter is of its domain for {100 * found.attrs['chance']:.0f} %."
        )
        if (found["nearest neighbour"] < found.attrs["chance"] / 2).any():
            lines.append(
                "Where it is far less, what adapters of different domains have in common, such as a seed, a rank or "
                "modules, weighs more than what they learned."
            )
    return "\n".join(filter(None, [*lines, found.attrs["note"]]))


def flattened_cosines(adapters: Sequence[Adapter]) -> np.ndarray:
    """Cosines of the adapters' weights as they are saved, all tensors end to end.

    Tensors are the same if name and shape are; one that the other adapter lacks is orthogonal to all of its. An
    embedding's base weights, which PEFT saves along with its factors, are not the adapter's and do not count. Full
    checkpoints, and adapters that cannot be read, are NaN.
    """
    return _flattened(adapters)[0]


def change_cosines(adapters: Sequence[Adapter], model: torch.nn.Module) -> np.ndarray:
    """Cosines of the weight changes scale * B A over all modules of `model`, a causal LM, exact and from the factors:

        <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T)            the traces of both sides are equal

    What differs only in how a change is factored is the same here. A module that an adapter lacks does not change. The
    LM head is left out: it lies outside of the body, and moves no hidden state. DoRA is read as LoRA, without its
    magnitudes. Whatever else is not plain LoRA (see `lora.is_plain`), or cannot be read, is NaN.
    """
    return _changes(adapters, model)[0]


def salient_cosines(adapters: Sequence[Adapter], share: float = SHARE) -> np.ndarray:
    """Cosines of the adapters' salient masks: the `share` of an adapter's saved weights that are largest by magnitude.

    After Localize-and-Stitch (He et al. 2024, arXiv 2408.13656), whose masks, as the paper's, are of all the model's
    weights; here they are of the adapter's own. The cosine is |both| / sqrt(|one| |other|); weights are the same if
    tensor name, shape and position are. All weights as large as the smallest salient one are salient, too, and zeros
    never are. What is NaN, and which tensors do not count, is as in `flattened_cosines`.
    Raises InputError for a share outside of (0, 1].
    """
    return _salient(adapters, share)[0]


def output_cosines(run: DeltaRun, base: BaseModel, sentence_encoder: str) -> np.ndarray:
    """Cosines of what the adapters write: each one's mean sentence embedding of its continuations of the run's probes.

    A continuation is greedy, of 32 tokens or until the model ends it. Embeddings are the encoder's last hidden states,
    averaged over the tokens and scaled to length 1. `sentence_encoder` is a hub id or a folder. Full checkpoints, and
    adapters that PEFT cannot put on the base, are NaN. Raises InputError if the encoder cannot be loaded.
    """
    return _outputs(run.delta_set.adapters, run.delta_set.probes, base, _load_encoder(sentence_encoder, base))[0]


def _flattened(adapters: Sequence[Adapter]) -> tuple[np.ndarray, np.ndarray]:
    products, sizes, alike = *_nothing(adapters), defaultdict(list)
    for row, adapter in enumerate(adapters):
        weights = _weights(adapter)
        if weights is None:
            products[row, row] = np.nan
            continue
        sizes[row] = sum(tensor.numel() for tensor in weights.values())
        for name, tensor in weights.items():
            alike[name, tensor.shape].append((row, tensor.flatten()))
    for group in alike.values():
        rows = [row for row, _ in group]
        for columns in zip(*(tensor.split(_COLUMNS) for _, tensor in group), strict=True):
            block = torch.stack([column.float() for column in columns])  # (adapters that have it, columns)
            products[np.ix_(rows, rows)] += (block @ block.T).numpy()
    return _cosines(products), sizes


def _changes(adapters: Sequence[Adapter], model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    products, sizes, modules = *_nothing(adapters), defaultdict(list)
    read_lora = LoraReader(model)
    for row, adapter in enumerate(adapters):
        lora = _lora(adapter, read_lora)
        if lora is None:
            products[row, row] = np.nan
            continue
        sizes[row] = sum(a.shape[1] * b.shape[0] for a, b, _ in lora.factors.values())
        for name, factors in lora.factors.items():
            modules[name].append((row, *factors))
    for group in modules.values():
        rows = [row for row, *_ in group]
        all_a = torch.cat([a.float() for _, a, _, _ in group])  # (sum of ranks, in)
        all_b = torch.cat([b.float() * scale for _, _, b, scale in group], dim=1)  # (out, sum of ranks)
        pairs = (all_a @ all_a.T).mul_(all_b.T @ all_b).numpy()
        starts = np.cumsum([0, *(len(a) for _, a, _, _ in group[:-1])])  # of each adapter's block
        sums = np.add.reduceat(pairs, starts, axis=0, dtype=np.float64)
        products[np.ix_(rows, rows)] += np.add.reduceat(sums, starts, axis=1)
    return _cosines(products), sizes


def _salient(adapters: Sequence[Adapter], share: float) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < share <= 1:
        raise InputError(f"share is {share!r}; it must be above 0 and at most 1")
    _, sizes = _nothing(adapters)
    there, masks, starts, width = [], [], {}, 0  # each tensor has columns of its own, the same for all who have it
    for row, adapter in enumerate(adapters):
        weights = _weights(adapter)
        if weights is None:
            continue
        columns = []
        for name, tensor in weights.items():
            start = starts.setdefault((name, tensor.shape), width)
            width = max(width, start + tensor.numel())
            columns.append(np.arange(start, start + tensor.numel()))
        magnitudes = torch.cat([tensor.flatten().float().abs() for tensor in weights.values()]).numpy()
        sizes[row] = len(magnitudes)
        count = max(1, round(share * len(magnitudes)))
        least = np.partition(magnitudes, -count)[-count]
        masks.append(np.concatenate(columns)[(magnitudes >= least) & (magnitudes > 0)])
        there.append(row)
    if not there:
        return _spread(np.zeros((0, 0)), there, len(adapters)), sizes
    ones, ends = np.ones(sum(map(len, masks))), np.cumsum([0, *map(len, masks)])
    matrix = csr_matrix((ones, np.concatenate(masks), ends), shape=(len(there), width))
    return _spread(cosine_similarity(matrix), there, len(adapters)), sizes


def _outputs(adapters: Sequence[Adapter], probes: Sequence[str], base: BaseModel, encoder) -> tuple:
    _, sizes = _nothing(adapters)
    there, embeddings, before = [], [], base_state(base.model)
    for row, adapter in enumerate(adapters):
        try:
            with applied(base.model, adapter, before) as adapted:
                texts = _continuations(adapted, base, probes)
        except InputError:
            continue
        embeddings.append(_sentence_embeddings(texts, *encoder).mean(axis=0))
        sizes[row] = len(embeddings[-1])
        there.append(row)
    return _spread(similarity(np.array(embeddings)), there, len(adapters)), sizes


def _deltas(delta_set: DeltaSet) -> dict[str, np.ndarray]:
    """The deltas (adapters, hidden) at the deepest layer and at the one in the middle, as they are and centred."""
    numbers = delta_set.layer_numbers or range(delta_set.layers)
    found = {}
    for layer in dict.fromkeys((numbers[-1], numbers[len(numbers) // 2])):
        found[f"delta, layer {layer}"] = delta_set.deltas(layer)
        found[f"delta, layer {layer}, centred"] = centered(delta_set.deltas(layer))
    return found


def _weights(adapter: Adapter) -> dict[str, torch.Tensor] | None:
    """An adapter's own tensors in their stored dtype; None if they cannot be read, as those of a full checkpoint."""
    try:
        tensors = adapter.read_tensors()
    except InputError:
        return None
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".base_layer.weight")}


def _lora(adapter: Adapter, read_lora: LoraReader) -> Lora | None:
    """An adapter as plain LoRA, in the dtype that it is stored in; None if it is anything else, or cannot be read."""
    try:
        tensors, config = adapter.read_tensors(), read_config(adapter)
        if getattr(config, "use_dora", False):
            config.use_dora = False
            tensors = {name: t for name, t in tensors.items() if "lora_magnitude_vector" not in name}
        lora = read_lora(config, tensors) if is_plain(config) else None
    except Exception:  # an InputError, or a config that PEFT's own functions stumble over
        return None
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if lora is None or len(dtypes) > 1:
        return lora
    [dtype] = dtypes  # half the memory, if it is bfloat16, and nothing is lost
    return Lora({name: (a.to(dtype), b.to(dtype), scale) for name, (a, b, scale) in lora.factors.items()})


def _continuations(model: torch.nn.Module, base: BaseModel, probes: Sequence[str]) -> list[str]:
    """What `model` goes on to write after each probe, greedily; all at once, padded on the left."""
    tokens = [torch.tensor(base.tokenizer(probe)["input_ids"]) for probe in probes]
    ids = pad_sequence(tokens, batch_first=True, padding_side="left").to(base.device)
    mask = pad_sequence([torch.ones_like(each) for each in tokens], batch_first=True, padding_side="left")
    # What is not set here comes from the base's own generation_config.json, and it may set what is not greedy.
    greedy = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, repetition_penalty=1.0)
    with quiet_transformers():
        written = model.generate(input_ids=ids, attention_mask=mask.to(base.device), generation_config=greedy)
    return base.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)


def _load_encoder(name: str, base: BaseModel) -> tuple:
    """A sentence encoder in float32, on the base's device, and its tokenizer. Raises InputError if it cannot be had."""
    folder = from_root(name) if from_root(name).is_dir() else name
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, report = AutoModel.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:
        raise InputError(
            f"cannot load the sentence encoder {name!r}: {first_sentence(error)} Set sentence_encoder to a folder with "
            "config.json, safetensors weights and tokenizer, or to a hub id that this machine can reach or has."
        ) from error
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise InputError(f"the sentence encoder {name!r} lacks weights, such as {missing[0]}; choose another one")
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of the sentence encoder {name!r} has no padding token; choose another one")
    return model.to(base.device).eval(), tokenizer


@torch.inference_mode()
def _sentence_embeddings(texts: list[str], model: torch.nn.Module, tokenizer) -> np.ndarray:
    """The mean of the last hidden states over each text's tokens, scaled to length 1: float32 (texts, hidden)."""
    with quiet_transformers():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
    states = model(**batch).last_hidden_state  # (texts, tokens, hidden)
    real = batch["attention_mask"][..., None]
    return F.normalize((states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1), dim=1).cpu().numpy()


def _nothing(adapters: Sequence[Adapter]) -> tuple[np.ndarray, np.ndarray]:
    """Inner products (adapters, adapters) and sizes (adapters,), all zero."""
    return np.zeros((len(adapters), len(adapters))), np.zeros(len(adapters), np.int64)


def _cosines(products: np.ndarray) -> np.ndarray:
    """Inner products (n, n) to cosines; NaN where the diagonal, the squared length, is not finite."""
    lengths = np.sqrt(np.diag(products))
    there = np.flatnonzero(np.isfinite(lengths))
    inverse = np.divide(1.0, lengths, where=lengths > 0, out=np.zeros(len(lengths)))[there]
    cosines = products[np.ix_(there, there)] * inverse * inverse[:, None]
    return _spread(np.clip(cosines, -1.0, 1.0), there, len(products))


def _spread(cosines: np.ndarray, there: Sequence[int], count: int) -> np.ndarray:
    """The cosines of the adapters at the indices `there`, of `count` in all: NaN for the others, diagonal exactly 1."""
    spread = np.full((count, count), np.nan)
    spread[np.ix_(there, there)] = cosines
    spread[there, there] = 1.0
    return spread


def _timed(method, adapters: Sequence[Adapter], *arguments) -> tuple[np.ndarray, np.ndarray, float]:
    """A method's cosines and sizes, and the seconds that it took per adapter."""
    start = perf_counter()
    return *method(adapters, *arguments), (perf_counter() - start) / max(1, len(adapters))


def _scores(cosines: np.ndarray, domains: np.ndarray) -> tuple[float, float]:
    """Silhouette by domain with cosine distance, and the share of rows whose nearest other one has their domain."""
    distances = np.clip(1.0 - cosines, 0.0, None)
    same = domains[nearest(cosines, 1)[:, 0]] == domains
    return float(silhouette_score(distances, domains, metric="precomputed")), float(same.mean())


def _note(adapters: list[Adapter], there: dict[str, np.ndarray], unlabelled: int, keep, domains: int, enough: bool):
    """Who was left out of the table, how DoRA was read, and why there are no scores where there are none."""
    checkpoint = np.array([adapter.is_checkpoint for adapter in adapters], dtype=bool)
    read = there["flattened weights"] | checkpoint
    left_out = {
        "no plain LoRA": (read & ~there["weight change"]).sum(),
        "files that cannot be read": (~read).sum(),
        "no output": (there["weight change"] & ~there.get("output sentences", there["weight change"])).sum(),
        "no domain": unlabelled,
    }
    dora = sum(bool(adapters[row].config.get("use_dora")) for row in keep)
    sentences = []
    if any(left_out.values()):
        sentences.append("Left out: " + ", ".join(f"{n} ({why})" for why, n in left_out.items() if n) + ".")
    if dora:
        sentences.append(f"DoRA, their weights read as LoRA without the magnitudes: {dora}.")
    if not enough and adapters:
        sentences.append(
            "Scores need at least two domains, one of them with two adapters; "
            f"there are {len(keep)} adapters in {domains} domains here."
        )
    return " ".join(sentences)
