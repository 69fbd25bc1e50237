"""A pool of small adapters of one base, several of every task, and the queries that are to find them.

Everything is drawn anew for each adapter: rank, modules, learning rate, steps, seed, amount of data, phrasing of the
prompts. So nothing but the task is a clue. What is there is kept: a run that was stopped goes on.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tasks

from llgbm_nb.collection.adapters import CONFIG
from llgbm_nb.forward.base import BaseModel
from llgbm_nb.uses.finetune import TARGETS, find_data_files, read_pairs, train_teacher

MODULES = {"qv": TARGETS["qv"], "attention": TARGETS["attention"], "mlp": ["gate_proj", "up_proj", "down_proj"],
           "all": "all-linear"}  # fmt: skip
MAX_TOKENS = 256  # of a pair
PHRASINGS = [None, 0, 1, 2]  # None: all three in turn


class Rules:
    """Tasks made by rules (tasks.py)."""

    names = [*tasks.TASKS]

    def family(self, name: str) -> str:
        return tasks.TASKS[name].family

    def train(self, name: str, count: int, rng: Random) -> list[dict]:
        phrasing = rng.choice(PHRASINGS)
        return tasks.pairs(name, count, rng.random(), phrasing)

    def held_out(self, name: str, count: int) -> list[dict]:
        return tasks.pairs(name, count, "held out", held_out=True)


class Files:
    """Tasks in a folder of files of pairs; each is a family of its own, its last third held out."""

    def __init__(self, folder: Path):
        self._pairs = {file.stem: read_pairs(file) for file in find_data_files(folder)}
        for name, pairs in self._pairs.items():
            Random(name).shuffle(pairs)
        self.names = [*self._pairs]

    def family(self, name: str) -> str:
        return name

    def train(self, name: str, count: int, rng: Random) -> list[dict]:
        pairs = self._pairs[name][: 2 * len(self._pairs[name]) // 3]
        return rng.sample(pairs, min(count, len(pairs)))

    def held_out(self, name: str, count: int) -> list[dict]:
        return self._pairs[name][2 * len(self._pairs[name]) // 3 :][:count]


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    adapters: int = 4  # of a task
    queries: int = 3  # of a task
    examples: int = 10  # of a query
    steps: tuple[int, int] = (15, 40)


def adapters_of(source, size: Size) -> list[tuple[str, str]]:
    """(task, name) of all that the pool will have: one of each task after the other."""
    return [(task, f"{task}-{number}") for number in range(size.adapters) for task in source.names]


def configuration(name: str, size: Size) -> dict:
    """How an adapter is trained, drawn by its name."""
    rng = Random(f"adapter {name}")
    rank = rng.choice([2, 4, 8, 16, 32])
    return dict(
        rank=rank, alpha=rank * rng.choice([1, 2]), modules=rng.choice([*MODULES]), data=rng.choice([24, 48, 96]),
        lr=math.exp(rng.uniform(math.log(3e-4), math.log(2e-3))), steps=rng.randint(*size.steps),
        seed=rng.randrange(10**6),
    )  # fmt: skip


def phrasing_of(name: str) -> int | None:
    """Which of a task's phrasings `Rules` gave an adapter's text."""
    return Random(f"data {name}").choice(PHRASINGS)


def train(folder: Path, source, size: Size, base: BaseModel, base_name: str, part: int = 0, parts: int = 1) -> Iterator:
    """Train the adapters that are not there, in `folder`/{family}/{task}-{number}/; after each, its name."""
    for task, name in adapters_of(source, size)[part::parts]:
        where, how = folder / source.family(task) / name, configuration(name, size)
        if not (where / CONFIG).exists():
            train_one(where, base, base_name, how, source.train(task, how["data"], Random(f"data {name}")), task)
            yield name


def train_one(where: Path, base: BaseModel, base_name: str, how: dict, pairs: list[dict], task: str) -> None:
    """An adapter as `how`, its configuration, says."""
    from peft import LoraConfig

    modules = MODULES[how["modules"]]
    config = LoraConfig(r=how["rank"], lora_alpha=how["alpha"], target_modules=modules, task_type="CAUSAL_LM")
    options = dict(steps=how["steps"], lr=how["lr"], batch_size=4, max_tokens=MAX_TOKENS, seed=how["seed"])
    about = {"base": base_name, "rank": how["rank"], "modules": how["modules"], "data": how["data"]}
    train_teacher(where, base, pairs, config, task, about, **options)


def queries_of(source, size: Size) -> dict[str, list[dict]]:
    """{"{task}/{number}": examples}, none of which an adapter was trained on."""
    found = {}
    for task in source.names:
        pairs = source.held_out(task, size.queries * size.examples)
        for number in range(len(pairs) // size.examples):
            found[f"{task}/{number}"] = pairs[number * size.examples :][: size.examples]
    return found


def task_of(adapter_or_query: str) -> str:
    return adapter_or_query.rsplit("/", 1)[0] if "/" in adapter_or_query else adapter_or_query.rsplit("-", 1)[0]


def training_of(folder: Path) -> dict:
    """How an adapter was trained, and the loss of every step."""
    return json.loads((folder / "training.json").read_bytes())
