"""Resident memory over many adapters: `python benchmarks/memory.py [adapters]`.

The shipped teachers of the demo base are linked into a temporary folder until there are enough of them, and go through
`compute_deltas` in one run with an empty cache.
"""

import os
import sys
import tempfile
from pathlib import Path

import psutil

from llgbm_nb import compute_deltas, create_generic_probes, find_adapter_paths
from llgbm_nb.paths import ROOT

EARLY = 20


def main(count: int = 200) -> None:
    teachers = find_adapter_paths(ROOT / "data" / "teacher_checkpoints")
    process, seen = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            teacher = Path(teachers[number % len(teachers)])
            copy = Path(folder) / "zoo" / teacher.parent.name / f"{number:04d}"
            copy.mkdir(parents=True)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                os.link(teacher / file, copy / file)
        run = compute_deltas(
            Path(folder) / "zoo", create_generic_probes(), cache_dir=Path(folder) / "deltas",
            on_adapter=lambda record: seen.append(process.memory_info().rss),
        )  # fmt: skip
    assert run.count("computed") == count, run.records
    early, late = seen[EARLY - 1], seen[-1]
    print(
        f"after {EARLY} adapters {early / 2**20:.0f} MiB, after {count} {late / 2**20:.0f} MiB: {late / early - 1:+.1%}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
