"""What the cache costs: `python benchmarks/cache.py [entries]` (default 10,000; takes 5 GiB of the temporary folder).

Adapters are folders with a few bytes in them, so that what is measured is the cache: saving, a run in which all are
cached, reading one layer. States have the demo base's shape: 5 probes, 31 layers, hidden size 576.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llgbm_nb import deltas
from llgbm_nb.cache.delta_cache import open_cache
from llgbm_nb.collection.find import find_adapters
from llgbm_nb.delta_set import mean_over_probes
from llgbm_nb.deltas import compute_deltas
from llgbm_nb.forward.demo_base import DEMO_BASE
from llgbm_nb.settings import Settings

SHAPE, PROBES = (5, 31, 576), ["a", "b", "c", "d", "e"]
WINDOW = 100  # saves whose mean time is shown


def make_adapters(zoo: Path, count: int) -> None:
    for number in range(count):
        folder = zoo / f"domain{number % 10}" / f"{number:05d}"
        folder.mkdir(parents=True)
        settings = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "base_model_name_or_path": DEMO_BASE}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        (folder / "adapter_model.safetensors").write_bytes(number.to_bytes(8, "little"))


def main(count: int = 10_000) -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        zoo, cache_dir = Path(folder) / "zoo", Path(folder) / "deltas"
        make_adapters(zoo, count)
        cache = deltas._cache_for(PROBES, Settings(DEMO_BASE, cache_dir))[0]
        base = random.normal(size=SHAPE).astype(np.float32)
        cache.save_base_activation(mean_over_probes(base[:, -1]), base)
        time.sleep(2.5)  # files that were just written are always read again
        adapters, seconds = find_adapters(zoo), []
        for adapter in adapters:
            states = random.normal(size=SHAPE).astype(np.float32)
            start = time.perf_counter()
            about = dict(name=adapter.name, domain=adapter.domain, kind=adapter.kind)
            cache.save_delta(adapter.path, mean_over_probes(states[:, -1]), states, **about)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        cache.write_manifest()
        whole = time.perf_counter() - start
        print(f"saving, ms: first {WINDOW} entries {1e3 * np.mean(seconds[10 : WINDOW + 10]):.2f},"
              f" last {WINDOW} {1e3 * np.mean(seconds[-WINDOW:]):.2f}, median {1e3 * np.median(seconds):.2f},"
              f" with the manifest's share {1e3 * (sum(seconds) + whole) / count:.2f}")  # fmt: skip
        for what in ("cached run", "cached run again"):
            start = time.perf_counter()
            run = compute_deltas(find_adapters(zoo), PROBES, base_model=DEMO_BASE, cache_dir=cache_dir)
            assert run.count("cached") == count
            print(f"{what}, ms per adapter: {1e3 * (time.perf_counter() - start) / count:.2f}")
        start = time.perf_counter()
        rows = run.delta_set.deltas(layer=15)
        read, there = rows.nbytes * len(PROBES) / 2**20, count * np.prod(SHAPE) * 4 / 2**20
        print(f"one layer of all: {time.perf_counter() - start:.2f} s, {read:.0f} MiB read of {there:.0f}")
        start = time.perf_counter()
        assert not open_cache(cache_dir, run.cache.config).verify()
        print(f"verify: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
