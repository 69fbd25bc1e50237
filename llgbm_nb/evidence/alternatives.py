"""The alternatives to deltas on the same adapters, in one table: from the weights, and from what the models write.

Each method gives two arrays over n adapters: cosines, float64 (n, n), NaN in the rows and columns of those that it
cannot represent, and sizes, int64 (n,), how many numbers describe each. What is zero is similar to nothing. They are
those that the Delta Activations paper compares with (arXiv 2509.04442), and the exact change of the weights. How deltas
are measured is unknown here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import silhouette_score
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, GenerationConfig

from ..analysis.geometry import centered, similarity
from ..collection.adapters import UNKNOWN, Adapter
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..errors import InputError, first_sentence
from ..files import from_root
from ..forward.base import BaseModel
from ..forward.lora import Lora, LoraReader, is_plain
from ..forward.peft_route import applied, base_state, read_config
from ..progress_bar import quiet_transformers

NEW_TOKENS = 32  # of a continuation
_COLUMNS = 2**16  # of flattened tensors that are multiplied at once, which bounds the memory


def compare_methods(run: DeltaRun, base: BaseModel, sentence_encoder="", delta_seconds=np.nan) -> pd.DataFrame:
    """How well each method tells the domains apart, a row per method, on the adapters that all methods can represent.

    Columns: dimension (the largest size), seconds (per adapter, reading included, loading the base not; of deltas what
    the caller measured, `delta_seconds`), silhouette and nearest neighbour (see `_scores`) and adapters (how many).
    `attrs["chance"]` is the share that random neighbours would have, `attrs["note"]` says who was left out, and why
    scores are NaN where they are. Output sentences need a `sentence_encoder`; errors are those of `load_encoder`.
    """
    labelled = run.delta_set.subset(i for i, domain in enumerate(run.delta_set.domains) if domain != UNKNOWN)
    adapters, found, seconds, rows = labelled.adapters, {}, {}, {}
    methods = {"flattened weights": (flattened_weights,), "weight change": (weight_changes, base.model),
               "salient mask": (salient_masks,)}  # fmt: skip
    if sentence_encoder:
        methods["output sentences"] = output_sentences, labelled.probes, base, load_encoder(sentence_encoder, base)
    for name, (method, *arguments) in methods.items():
        start = perf_counter()
        found[name] = method(adapters, *arguments)
        seconds[name] = (perf_counter() - start) / max(1, len(adapters))
    there = {name: np.isfinite(np.diag(cosines)) for name, (cosines, _) in found.items()}
    keep = np.flatnonzero(np.all([*there.values()], axis=0))
    compared = labelled.subset(keep)
    domains = np.array(compared.domains, dtype=str)
    for name, (cosines, sizes) in found.items():
        rows[name] = int(sizes[keep].max(initial=0)), seconds[name], *_scores(cosines[np.ix_(keep, keep)], domains)
    numbers = compared.layer_numbers
    for layer in dict.fromkeys((numbers[-1], numbers[len(numbers) // 2])):  # the deepest one, and half-way
        plain = compared.deltas(layer)
        for deltas, how in ((plain, ""), (centered(plain), ", centered")):
            rows[f"delta, layer {layer}{how}"] = deltas.shape[1], delta_seconds, *_scores(similarity(deltas), domains)
    columns = ["dimension", "seconds", "silhouette", "nearest neighbour"]
    frame = pd.DataFrame(rows.values(), pd.Index(rows, name="method"), columns)
    frame["adapters"] = len(keep)
    scored, counts = bool(frame["silhouette"].notna().all()), np.unique(domains, return_counts=True)[1]
    chance = float((counts * (counts - 1)).sum() / (len(keep) * (len(keep) - 1))) if scored else np.nan
    unlabelled = len(run.delta_set) - len(labelled)
    frame.attrs |= {"chance": chance, "note": _note(adapters, there, unlabelled, compared, scored)}
    return frame


def methods_table(found: pd.DataFrame) -> pd.DataFrame:
    """`compare_methods`' table for people."""
    found = found.assign(**{"nearest neighbour": 100 * found["nearest neighbour"]})
    forms = {"dimension": "{:,}", "seconds": "{:.2f} s", "silhouette": "{:.2f}", "nearest neighbour": "{:.0f} %"}
    shown = {name: found[name].map(form.format).where(found[name].notna(), "–") for name, form in forms.items()}
    people = {"seconds": "seconds each", "nearest neighbour": "nearest is of its domain"}
    return pd.DataFrame(shown).rename(columns=people)


def methods_text(found: pd.DataFrame) -> str:
    """How to read `compare_methods`' table."""
    chance, lines = found.attrs["chance"], []
    if np.isfinite(chance):
        lines.append(
            f"All on the same {found['adapters'].iloc[0]} adapters. Silhouette: near 1, domains lie apart; by chance "
            f"the nearest other adapter is of its domain for {100 * chance:.0f} %."
        )
    if (found["nearest neighbour"] < chance / 2).any():
        lines.append(
            "Where it is far less, what adapters of different domains have in common, such as a seed, a rank or "
            "modules, weighs more than what they learned."
        )
    return "\n".join(filter(None, [*lines, found.attrs["note"]]))


def flattened_weights(adapters: Sequence[Adapter], transform: Callable = dict) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the adapters' weights as they are saved, all tensors end to end.

    Tensors are the same if name and shape are; one that the other adapter lacks is orthogonal to all of its. Base
    weights, which PEFT saves along with an embedding, do not count. NaN: full checkpoints, and what cannot be read.
    `transform` is applied to each adapter's {tensor name: tensor} first.
    """
    products, sizes, alike = *_nothing(adapters), defaultdict(list)
    for row, adapter in enumerate(adapters):
        with suppress(InputError):
            tensors = adapter.read_tensors().items()
            own = transform({name: tensor for name, tensor in tensors if not name.endswith(".base_layer.weight")})
            products[row, row], sizes[row] = 0.0, sum(tensor.numel() for tensor in own.values())
            for name, tensor in own.items():
                alike[name, tensor.shape].append((row, tensor.flatten()))
    for group in alike.values():
        rows = [row for row, _ in group]
        for columns in zip(*(tensor.split(_COLUMNS) for _, tensor in group), strict=True):
            block = torch.stack([column.float() for column in columns])  # (adapters that have it, columns)
            products[np.ix_(rows, rows)] += (block @ block.T).numpy()
    return _cosines(products), sizes


def weight_changes(adapters: Sequence[Adapter], model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the weight changes scale * B A over all modules of `model`, a causal LM, exact and from the factors:

        <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T)            the traces of both sides are equal

    How a change is factored does not matter. The LM head is left out: it moves no hidden state. DoRA is read as LoRA,
    without its magnitudes. NaN: whatever else is not plain LoRA (see `lora.is_plain`), or cannot be read.
    """
    products, sizes, modules = *_nothing(adapters), defaultdict(list)
    for row, lora in _loras(adapters, LoraReader(model)):
        matrices = [(name, a, b, scale) for name, (a, b, scale) in lora.factors.items() if a.dim() == 2]
        for name, (a, b, scale) in lora.factors.items():  # all experts' matrix is one for each
            matrices += [(f"{name}.{n}", a[n], b[n], scale) for n in range(len(a)) if a.dim() == 3]
        products[row, row], sizes[row] = 0.0, sum(a.shape[1] * b.shape[0] for _, a, b, _ in matrices)
        for name, *factors in matrices:
            modules[name].append((row, *factors))
    for group in modules.values():
        rows = [row for row, *_ in group]
        all_a = torch.cat([a for _, a, _, _ in group])  # (sum of ranks, in)
        all_b = torch.cat([b * scale for _, _, b, scale in group], dim=1)  # (out, sum of ranks)
        pairs = (all_a @ all_a.T).mul_(all_b.T @ all_b).numpy()
        starts = np.cumsum([0, *(len(a) for _, a, _, _ in group[:-1])])  # of each adapter's block
        sums = np.add.reduceat(pairs, starts, axis=0, dtype=np.float64)
        products[np.ix_(rows, rows)] += np.add.reduceat(sums, starts, axis=1)
    return _cosines(products), sizes


def salient_masks(adapters: Sequence[Adapter], share: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the adapters' salient masks, |both| / sqrt(|one| |other|).

    A mask is the `share` of an adapter's saved weights that are largest by magnitude, after Localize-and-Stitch (He et
    al. 2024, arXiv 2408.13656), whose masks, as the paper's, are of all the model's weights. Weights are the same if
    tensor name, shape and position are. All as large as the smallest salient one are salient, zeros never. What is NaN
    or does not count: as in `flattened_weights`. Raises InputError for a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share!r}; it must be above 0 and at most 1")

    def mask(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        magnitudes = {name: tensor.float().abs() for name, tensor in weights.items()}
        every = torch.cat([each.flatten() for each in magnitudes.values()])
        least = every.topk(max(1, round(share * len(every)))).values[-1]
        return {name: (each >= least) & (each > 0) for name, each in magnitudes.items()}

    return flattened_weights(adapters, mask)


def output_sentences(adapters: Sequence[Adapter], probes: Sequence[str], base: BaseModel, encoder: tuple) -> tuple:
    """Cosines of what the adapters write: each one's mean sentence embedding of its continuations of `probes`.

    A continuation is greedy, of NEW_TOKENS tokens or until the model ends it. `encoder` is what `load_encoder` gives.
    NaN: full checkpoints, and adapters that PEFT cannot put on the base.
    """
    products, sizes = _nothing(adapters)
    before, found = base_state(base.model), {}
    for row, adapter in enumerate(adapters):
        with suppress(InputError):
            with applied(base.model, adapter, before) as adapted:
                texts = _continuations(adapted, base, probes)
            found[row] = _sentence_embeddings(texts, *encoder).mean(axis=0)
            sizes[row] = len(found[row])
    products[np.ix_([*found], [*found])] = similarity(np.array([*found.values()]))
    return _cosines(products), sizes


def load_encoder(name: str, base: BaseModel) -> tuple:
    """A sentence encoder in float32, on the base's device, and its tokenizer; `name` is a hub id or a folder.

    Raises InputError if it cannot be loaded, or lacks weights or a padding token.
    """
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


def _loras(adapters: Sequence[Adapter], read_lora: LoraReader) -> Iterator[tuple[int, Lora]]:
    """(row, factors) of the adapters that can be read as plain LoRA."""
    for row, adapter in enumerate(adapters):
        with suppress(Exception):  # an InputError, or a config that PEFT's own functions stumble over
            tensors, config = adapter.read_tensors(), read_config(adapter)
            if getattr(config, "use_dora", False):
                config.use_dora = False
                tensors = {name: tensor for name, tensor in tensors.items() if "lora_magnitude_vector" not in name}
            if is_plain(config) and (lora := read_lora(config, tensors)) is not None:
                yield row, lora


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


@torch.inference_mode()
def _sentence_embeddings(texts: list[str], model: torch.nn.Module, tokenizer) -> np.ndarray:
    """The mean of the last hidden states over each text's tokens, scaled to length 1: float32 (texts, hidden)."""
    with quiet_transformers():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
    states = model(**batch).last_hidden_state  # (texts, tokens, hidden)
    real = batch["attention_mask"][..., None]
    return F.normalize((states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1), dim=1).cpu().numpy()


def _nothing(adapters: Sequence[Adapter]) -> tuple[np.ndarray, np.ndarray]:
    """Inner products (n, n), NaN on the diagonal, which says that an adapter is not there yet; and sizes (n,), 0."""
    return np.diag(np.full(len(adapters), np.nan)), np.zeros(len(adapters), np.int64)


def _cosines(products: np.ndarray) -> np.ndarray:
    """Inner products (n, n) to cosines, diagonal 1; NaN where the diagonal, the squared length, is not finite."""
    lengths = np.sqrt(np.where(np.isfinite(np.diag(products)), np.diag(products), np.nan))
    inverse = np.divide(1.0, lengths, out=np.zeros(len(lengths)), where=lengths != 0)
    cosines = np.clip(products * inverse * inverse[:, None], -1.0, 1.0)
    np.fill_diagonal(cosines, lengths * 0 + 1)
    return cosines


def _scores(cosines: np.ndarray, domains: np.ndarray) -> tuple[float, float]:
    """Silhouette by domain (cosine distance), and nearest neighbour: the share whose nearest other has their domain."""
    if not 2 <= len(set(domains)) < len(domains):
        return np.nan, np.nan
    distances, others = np.clip(1.0 - cosines, 0.0, None), cosines - 3 * np.eye(len(cosines))
    same = domains[others.argmax(axis=1)] == domains  # argmax takes the first of equally near ones
    return float(silhouette_score(distances, domains, metric="precomputed")), float(same.mean())


def _note(adapters: list[Adapter], there: dict[str, np.ndarray], unlabelled: int, compared: DeltaSet, scored: bool):
    """Who was left out of the table, how DoRA was read, and why there are no scores where there are none."""
    checkpoint = np.array([adapter.is_checkpoint for adapter in adapters], dtype=bool)
    read, plain = there["flattened weights"] | checkpoint, there["weight change"]
    no_output = plain & ~there.get("output sentences", plain)
    counts = {"no plain LoRA": (read & ~plain).sum(), "files that cannot be read": (~read).sum(),
              "no output": no_output.sum(), "no domain": unlabelled}  # fmt: skip
    left_out = ", ".join(f"{count} ({why})" for why, count in counts.items() if count)
    dora = sum(bool(adapter.config.get("use_dora")) for adapter in compared.adapters)
    there_are = f"there are {len(compared)} adapters in {len(set(compared.domains))} domains here"
    sentences = [
        left_out and f"Left out: {left_out}.",
        dora and f"DoRA, their weights read as LoRA without the magnitudes: {dora}.",
        adapters and not scored and f"Scores need at least two domains, one of them with two adapters; {there_are}.",
    ]
    return " ".join(filter(None, sentences))
