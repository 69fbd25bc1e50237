"""What a delta depends on, on the pool: the paper's questions, asked of adapters in which everything varies at once.

    same, other       mean cosine of two adapters that have a setting in common, and of two that have not, among those
                      of one task and among those of two: a setting that matters shows in the difference
    mixed data        the delta of an adapter trained on the text of two tasks, beside the sum of the two tasks' deltas
    full fine-tunes   whether a fully fine-tuned model has LoRA adapters of its own task nearest

Deltas are of one probe set at the last layer, centered. Means have 95 % intervals over tasks (bootstrap).
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import recipe
import torch

from llgbm_nb import analysis, compute_deltas
from llgbm_nb.collection import find_adapters
from llgbm_nb.collection.adapters import CONFIG
from llgbm_nb.forward import load_base
from llgbm_nb.forward.base import BaseModel
from llgbm_nb.uses.finetune import encode

SETTINGS = ("rank", "modules", "lr", "steps", "data", "phrasing")
DRAWS = 1000
FULL_STEPS, FULL_LR = 25, 2e-5


def settings_of(adapters, size: recipe.Size) -> pd.DataFrame:
    """What each adapter was trained with; numbers that are drawn from a range are "high" or "low" by their median."""
    rows = [recipe.configuration(a.name, size) | {"phrasing": str(recipe.phrasing_of(a.name))} for a in adapters]
    table = pd.DataFrame(rows)
    for name in ("lr", "steps"):
        table[name] = np.where(table[name] > table[name].median(), "high", "low")
    return table[[*SETTINGS]].astype(str)


def by_setting(cosines: np.ndarray, tasks: list[str], settings: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row per setting and one of the task itself: mean cosines of pairs, and the difference with its interval."""
    tasks, upper = np.asarray(tasks), np.triu(np.ones_like(cosines, dtype=bool), k=1)
    one_task, rows = tasks[:, None] == tasks[None], []
    for name in settings:
        values = settings[name].to_numpy()
        alike = values[:, None] == values[None]
        for where, pairs in (("one task", upper & one_task), ("two tasks", upper & ~one_task)):
            rows.append((name, where, *_difference(cosines, pairs & alike, pairs & ~alike, tasks, seed)))
    rows.append(("task", "all", *_difference(cosines, upper & one_task, upper & ~one_task, tasks, seed)))
    return pd.DataFrame(rows, columns=["setting", "pairs of", "same", "other", "difference", "low", "high"])


def _difference(cosines, same: np.ndarray, other: np.ndarray, tasks: np.ndarray, seed: int) -> tuple[float, ...]:
    """Means over the pairs, each weighed by how often its tasks are drawn for the interval."""
    rng, (names, of) = np.random.default_rng(seed), np.unique(tasks, return_inverse=True)

    def means(weights: np.ndarray) -> tuple[float, float]:
        each = weights[of][:, None] * weights[of][None]
        return tuple(np.average(cosines[p], weights=each[p]) if each[p].any() else np.nan for p in (same, other))

    drawn = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(DRAWS)]
    differences = [one - two for one, two in map(means, drawn)]
    one, two = means(np.ones(len(names)))
    return one, two, one - two, *np.nanpercentile(differences, [2.5, 97.5])


def train_mixed(folder: Path, source, size: recipe.Size, base: BaseModel, base_name: str, count: int) -> Iterator:
    """Adapters on half the text of two tasks each, in `folder`/mixed/{one}+{other}; after each, its name."""
    for one, other in mixed_pairs(source.names, count):
        where, how = folder / "mixed" / f"{one}+{other}", recipe.configuration(f"{one}-0", size)
        if not (where / CONFIG).exists():
            rng = Random(where.name)
            pairs = [pair for task in (one, other) for pair in source.train(task, how["data"] // 2, rng)]
            recipe.train_one(where, base, base_name, how, pairs, where.name)
            yield where.name


def mixed_pairs(names: list[str], count: int) -> list[tuple[str, str]]:
    order = Random("mixed").sample(names, len(names))
    return [*zip(order[0::2], order[1::2], strict=False)][:count]


def mixed(folder: Path, run, probes, base_name: str, kind: str) -> pd.DataFrame:
    """A row per mixed adapter: the cosine of its delta with the sum of its tasks' mean deltas, with the nearer one of
    the two, and how many sums of two tasks are as near or nearer.
    """
    tasks = np.array([recipe.task_of(name) for name in run.delta_set.names])
    deltas, centre = run.delta_set.deltas(), run.delta_set.deltas().mean(axis=0)
    names = [*dict.fromkeys(tasks)]
    means = analysis.directions(np.stack([(deltas[tasks == task] - centre).mean(axis=0) for task in names]))
    both = compute_deltas(folder / "mixed", probes, cache_dir=folder / "deltas", base_model=base_name, probe_type=kind)
    every, rows = range(len(names)), []
    sums = np.stack([analysis.directions(means + mean) for mean in means])  # (tasks, tasks, hidden)
    for name, delta in zip(both.delta_set.names, analysis.directions(both.delta_set.deltas() - centre), strict=True):
        one, other = (names.index(part) for part in name.split("+"))
        near = np.array([[sums[i, j] @ delta if i < j else -np.inf for j in every] for i in every])
        mine = near[min(one, other), max(one, other)]
        single = float(max(means[one] @ delta, means[other] @ delta))
        rows.append((name, float(mine), single, int((near > mine).sum()) + 1, len(names) * (len(names) - 1) // 2))
    return pd.DataFrame(rows, columns=["adapter", "sum", "nearer one", "rank of the sum", "of"])


def train_full(folder: Path, source, base_name: str, count: int) -> Iterator:
    """Full fine-tunes of the base by AdamW, one task each, in `folder`/full/{task}-full; after each, its name."""
    for task in Random("full").sample(source.names, min(count, len(source.names))):
        where = folder / "full" / f"{task}-full"
        if (where / "config.json").exists():
            continue
        base, rng = load_base(base_name), Random(f"full {task}")
        encoded = [encode(base.tokenizer, pair, recipe.MAX_TOKENS) for pair in source.train(task, 48, rng)]
        model = base.model.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=FULL_LR, weight_decay=0.0)
        for step in range(FULL_STEPS):
            optimizer.param_groups[0]["lr"] = FULL_LR * (1 - step / FULL_STEPS)
            for ids, labels in rng.sample(encoded, 4):
                (model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss / 4).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.eval().to(torch.bfloat16).save_pretrained(where)
        base.tokenizer.save_pretrained(where)
        yield where.name


def full(folder: Path, run, probes, base_name: str, kind: str) -> pd.DataFrame:
    """A row per full fine-tune: the nearest LoRA, and whether it is of its task."""
    theirs = compute_deltas(folder / "full", probes, cache_dir=folder / "deltas", base_model=base_name, probe_type=kind)
    deltas = run.delta_set.deltas()
    centre, rows = deltas.mean(axis=0), []
    cosines = analysis.directions(theirs.delta_set.deltas() - centre) @ analysis.directions(deltas - centre).T
    for name, mine in zip(theirs.delta_set.names, cosines, strict=True):
        order = np.argsort(-mine)
        right = [recipe.task_of(run.delta_set.names[i]) == name.removesuffix("-full") for i in order]
        rows.append((name, run.delta_set.names[order[0]], right[0], 1 + right.index(True) if any(right) else None))
    return pd.DataFrame(rows, columns=["model", "nearest", "right", "rank of the first"])


def tell(folder: Path, source, size: recipe.Size, base: BaseModel, base_name: str, probes, kind: str, few: int) -> dict:
    """Train what is missing, and the three tables, also in robustness-*.csv."""
    run = compute_deltas(folder / "zoo", probes, cache_dir=folder / "deltas", base_model=base_name, probe_type=kind)
    adapters = find_adapters(folder / "zoo")
    by_name = {adapter.name: adapter for adapter in adapters}
    ordered = [by_name[name] for name in run.delta_set.names]
    cosines = analysis.similarity(analysis.centered(run.delta_set.deltas()))
    tasks = [recipe.task_of(adapter.name) for adapter in ordered]
    tables = {"settings": by_setting(cosines, tasks, settings_of(ordered, size))}
    for name in train_mixed(folder, source, size, base, base_name, few):
        print(f"trained {name}", flush=True)
    tables["mixed"] = mixed(folder, run, probes, base_name, kind)
    for name in train_full(folder, source, base_name, few):
        print(f"trained {name}", flush=True)
    tables["full"] = full(folder, run, probes, base_name, kind)
    for name, table in tables.items():
        table.to_csv(folder / f"robustness-{name}.csv", index=False)
    return tables
