"""What a search costs, on the demo base: `python benchmarks/search_speed.py [query file]`.

The losses of a query's examples under the shipped plain LoRA teachers, by PEFT one adapter and one example at a time,
by PEFT in padded batches, and by the engine; the ranking of each. Then the first order: the base's pass back, and
10,000 adapters by made-up sketches, read from disk. The second of two runs each.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from llgbm_nb.collection import find_adapters
from llgbm_nb.files import ROOT
from llgbm_nb.forward import DEMO_BASE, load_base
from llgbm_nb.forward.first_order import LossGradient
from llgbm_nb.forward.lora import is_plain
from llgbm_nb.forward.losses import AdapterLosses
from llgbm_nb.forward.peft_route import applied, base_state, read_config
from llgbm_nb.forward.sketches import SIDE
from llgbm_nb.uses.finetune import encode, read_pairs
from llgbm_nb.uses.task_search import _lead

BATCH, MANY = 10, 10_000


def main(query: Path) -> None:
    base = load_base(DEMO_BASE)
    pairs = [encode(base.tokenizer, pair, 512) for pair in read_pairs(query)]
    adapters = [a for a in find_adapters(ROOT / "data/teacher_checkpoints") if is_plain(read_config(a))]
    tokens = sum(len(ids) for ids, _ in pairs)
    print(f"{len(adapters)} adapters, {len(pairs)} examples of {tokens:,} tokens, {torch.get_num_threads()} threads")
    before = base_state(base.model)
    fine, low = AdapterLosses(base, pairs), AdapterLosses(base, pairs, "bfloat16")
    ways = {
        "PEFT, one example at a time": lambda: np.array([by_peft(base, a, before, pairs, 1) for a in adapters]),
        "PEFT, padded batches": lambda: np.array([by_peft(base, a, before, pairs, BATCH) for a in adapters]),
        "llgbm_nb, float32": lambda: fine(adapters),
        "llgbm_nb, differences in bfloat16": lambda: low(adapters),
    }
    exact, slowest = None, 0.0
    for name, way in ways.items():
        seconds, losses = timed(way, len(adapters))
        exact, slowest = losses if exact is None else exact, max(slowest, seconds)
        off, same = np.abs(losses - exact).max(), (losses.mean(1).argsort() == exact.mean(1).argsort()).all()
        print(f"{name}: {seconds:.2f} s per adapter, {slowest / seconds:.1f} x, "
              f"at most {off:.1g} nats off, ranking {'the same' if same else 'another'}", flush=True)  # fmt: skip
    print(f"the base's pass back: {timed(lambda: LossGradient(base, pairs), 1)[0]:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        size, random = SIDE**2 * 210, np.random.default_rng(0)
        for number in range(MANY):
            np.save(f"{folder}/{number}.npy", random.standard_normal(size, np.float32).astype(np.float16))
        down = random.standard_normal(size, np.float32)
        files = sorted(Path(folder).iterdir())
        seconds, _ = timed(lambda: np.array([_lead(np.load(file), down) for file in files]), 1)
        print(f"{MANY:,} sketches: {seconds:.1f} s")


def by_peft(base, adapter, before, pairs, batch: int) -> list[float]:
    found = []
    with applied(base.model, adapter, before) as wrapped, torch.no_grad():
        for start in range(0, len(pairs), batch):
            columns = zip(*pairs[start : start + batch], strict=True)
            ids, labels = ([torch.tensor(row) for row in column] for column in columns)
            mask = pad_sequence([torch.ones_like(row) for row in ids], True)
            logits = wrapped(input_ids=pad_sequence(ids, True), attention_mask=mask, use_cache=False).logits
            for row, each in zip(logits, labels, strict=True):
                found.append(cross_entropy(row[: len(each) - 1], each[1:]).item())
    return found


def timed(way, count: int) -> tuple[float, np.ndarray]:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        found = way()
        times.append((time.perf_counter() - start) / count)
    return times[1], found


main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data/queries/math-counting.json")
