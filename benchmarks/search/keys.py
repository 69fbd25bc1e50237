"""What finds an adapter for some examples: scores (queries, adapters), larger is better, by a dozen ways.

Scores of one way are an array in keys/{way}.npz, with the seconds that it took: per query, and once per adapter. What
is there is kept.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from losses import by_query
from recipe import MAX_TOKENS

from llgbm_nb import DeltaRun, analysis, create_probes, uses
from llgbm_nb.forward.base import BaseModel
from llgbm_nb.forward.first_order import LossGradient, change_norm
from llgbm_nb.forward.lora import Lora, LoraReader
from llgbm_nb.forward.peft_route import read_config
from llgbm_nb.forward.sketches import SIDE, Sketcher, input_directions
from llgbm_nb.forward.states import last_token_states, tokenize
from llgbm_nb.uses.finetune import encode

FEW = 2  # examples


def save(folder: Path, way: str, scores: np.ndarray, per_query: float, per_adapter: float = 0.0) -> None:
    (folder / "keys").mkdir(exist_ok=True)
    np.savez(folder / "keys" / f"{way}.npz", scores=scores, per_query=per_query, per_adapter=per_adapter)


def loras_of(adapters, base: BaseModel) -> list[Lora]:
    read = LoraReader(base.model)
    return [read(read_config(adapter), adapter.read_tensors()) for adapter in adapters]


def sketchers(base: BaseModel) -> dict[str, Sketcher]:
    """The search's own, and one whose directions of the inputs are drawn by chance, too."""
    ids, random = (
        tokenize(base.tokenizer, create_probes("mixed") + create_probes("commonsense")),
        torch.Generator().manual_seed(0),
    )
    own = input_directions(base, ids)
    chance = {name: torch.randn(each.shape, generator=random) / SIDE**0.5 for name, each in own.items()}
    return {"sketches": Sketcher(own), "sketches by chance": Sketcher(chance)}


def first_order(folder: Path, base: BaseModel, adapters, queries: dict[str, list[dict]]) -> Iterator:
    """Gains to first order: raw, by the size of the change, module by module, on few examples, and from sketches.

    A query's scores are kept in first-order/{query}.npz, (adapters,) for each way, and its seconds.
    """
    files = {query: folder / "first-order" / f"{query.replace('/', '-')}.npz" for query in queries}
    if not all(file.exists() for file in files.values()):
        yield from _first_order(files, base, adapters, queries)
    rows = [np.load(file) for file in files.values()]
    for way in [name for name in rows[0].files if not name.startswith("s: ")]:
        seconds, once = np.mean([row[f"s: {way}"] for row in rows], axis=0)
        save(folder, way, np.stack([row[way] for row in rows]), seconds, once)


def _first_order(files: dict[str, Path], base: BaseModel, adapters, queries: dict[str, list[dict]]) -> Iterator:
    loras = loras_of(adapters, base)
    norms, sketched = np.array([change_norm(lora) for lora in loras]), {}
    ways = sketchers(base)
    for way, sketcher in ways.items():
        start = time.perf_counter()
        sketched[way] = torch.stack([sketcher.of_lora(lora) for lora in loras])
        sketched[way], once = sketched[way].numpy() / norms[:, None], (time.perf_counter() - start) / len(loras)
        ways[way] = sketcher, once
    for query in [query for query, file in files.items() if not file.exists()]:
        encoded, found = [encode(base.tokenizer, pair, MAX_TOKENS) for pair in queries[query]], {}
        start = time.perf_counter()
        gradient = LossGradient(base, encoded)
        backward, start = time.perf_counter() - start, time.perf_counter()
        parts = [gains_by_module(gradient, lora) for lora in loras]
        seconds = backward + time.perf_counter() - start
        gains = np.array([sum(gain for gain, _ in part.values()) for part in parts])
        cosines = [sorted(gain / max(size, 1e-12) for gain, size in part.values()) for part in parts]
        found |= {
            "gain": (gains, seconds), "gain by size": (gains / norms, seconds),
            "gain by module": (np.array([np.mean(each) for each in cosines]), seconds),
            "gain of the best modules":
            (np.array([np.mean(each[-max(1, len(each) // 4) :]) for each in cosines]), seconds),
        }  # fmt: skip
        start = time.perf_counter()
        few = LossGradient(base, encoded[:FEW])
        gains = np.array([few.gain(lora) for lora in loras])
        found[f"gain by size, {FEW} examples"] = gains / norms, time.perf_counter() - start
        for way, (sketcher, _) in ways.items():
            start = time.perf_counter()
            down = -sketcher.of_matrices(gradient.gradients.items())[0].numpy()
            found[f"gain by size, {way}"] = sketched[way] @ down, backward + time.perf_counter() - start
        kept = {way: scores for way, (scores, _) in found.items()}
        once = {f"gain by size, {way}": each for way, (_, each) in ways.items()}
        kept |= {f"s: {way}": np.array([took, once.get(way, 0.0)]) for way, (_, took) in found.items()}
        files[query].parent.mkdir(exist_ok=True)
        np.savez(files[query], **kept)
        yield query


def gains_by_module(gradient: LossGradient, lora: Lora) -> dict[str, tuple[float, float]]:
    """{module: (first-order gain, norm of the change)}."""
    return {
        name: (gradient.gain(part), change_norm(part))
        for name, factors in lora.factors.items()
        for part in [Lora({name: factors})]
    }


def few_losses(folder: Path, names: list[str], queries: dict[str, list[dict]], seconds: float) -> None:
    """The gain in loss on one or two of the examples, and on all; `seconds` are those of a pass of an adapter."""
    for count in (1, FEW):
        kept = {query: pairs[:count] for query, pairs in queries.items()}
        starts = np.cumsum([0, *map(len, queries.values())])[:-1]
        rows = [start + i for start in starts for i in range(count)]
        base = np.load(folder / "losses/base.npy")[rows]
        every = np.stack([np.load(folder / "losses" / f"{name}.npy")[rows] for name in names], axis=1)
        gains = (base[:, None] - every).reshape(len(kept), count, -1).mean(axis=1)
        save(folder, f"loss on {count} of the examples", gains, seconds * count * len(names))
    base, every = by_query(folder, queries, names)
    save(
        folder, "loss on all examples", base[:, None] - every, seconds * len(names) * len(next(iter(queries.values())))
    )


def in_context(folder: Path, base: BaseModel, run: DeltaRun, queries: dict[str, list[dict]], count: int) -> Iterator:
    """Deltas of the base with some examples before the probe, against the adapters' deltas, at each of some layers."""
    probes, every = list(run.delta_set.probes), {layer: [] for layer in layers_of(run)}
    if all((folder / "keys" / f"in context, {count} examples, layer {layer}.npz").exists() for layer in every):
        return
    plain, total = last_token_states(base.model, tokenize(base.tokenizer, probes), base.device).mean(axis=0), 0.0
    for query, pairs in queries.items():
        start = time.perf_counter()
        before = "\n\n".join(f"{pair['prompt']}\n{pair['response']}" for pair in pairs[:count])
        ids = tokenize(base.tokenizer, [f"{before}\n\n{probe}" for probe in probes], 4096)
        moved = last_token_states(base.model, ids, base.device).mean(axis=0) - plain
        total += time.perf_counter() - start
        for layer, found in every.items():
            found.append(moved[layer])
        yield query
    compare(folder, f"in context, {count} examples", run, every, total / len(queries))


def fine_tuned(folder: Path, base: BaseModel, run: DeltaRun, queries: dict[str, list[dict]]) -> Iterator:
    """The paper's task query: deltas of small adapters trained on the examples, at each of some layers."""
    every, adapters = {layer: [] for layer in layers_of(run)}, {}
    if all((folder / "keys" / f"fine-tuned, layer {layer}.npz").exists() for layer in every):
        return
    start = time.perf_counter()
    for query, pairs in queries.items():
        file = folder / "queries" / f"{query.replace('/', '-')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(pairs))
        adapters[query] = uses.task_adapter(file, run.settings.base_model, folder / "tuned", base=base)
        yield query
    for layer in every:
        every[layer] = uses.query_deltas(run, adapters, layer)
    compare(folder, "fine-tuned", run, every, (time.perf_counter() - start) / len(queries))


def layers_of(run: DeltaRun) -> list[int]:
    """Some layers, evenly spread, the last one among them."""
    numbers = run.delta_set.layer_numbers
    return sorted({numbers[-1 - i * (len(numbers) - 1) // 6] for i in range(6)} | {numbers[-1]})


def compare(folder: Path, way: str, run: DeltaRun, asked: dict[int, np.ndarray], seconds: float) -> None:
    """Cosines of the queries' vectors with the adapters' deltas, as they are and both centered."""
    for layer, vectors in asked.items():
        vectors, deltas = np.array(vectors), run.delta_set.deltas(layer)
        for name, mine, theirs in (
            ("", vectors, deltas), (", centered", vectors - vectors.mean(axis=0), analysis.centered(deltas)),
        ):  # fmt: skip
            cosines = analysis.directions(mine) @ analysis.directions(theirs).T
            save(folder, f"{way}, layer {layer}{name}", cosines, seconds)
