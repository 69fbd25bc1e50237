"""Resident memory over many adapters of all kinds: `python benchmarks/memory.py [adapters]`.

The shipped teachers of the demo base (LoRA, rsLoRA, DoRA), and one IA3, LoHa, trained bias, `modules_to_save` and full
checkpoint made here, are linked into a temporary folder until there are enough of them, and go through `compute_deltas`
in one run with an empty cache.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llgbm_nb import compute_deltas, create_generic_probes, find_adapter_paths
from llgbm_nb.files import ROOT
from llgbm_nb.forward.base_files import base_folder
from llgbm_nb.forward.demo_base import DEMO_BASE

EARLY = 50
KINDS = {
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "bias": LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
}


def main(count: int = 500) -> None:
    process, seen, routes = psutil.Process(), [], []

    def look(record: dict) -> None:
        seen.append(process.memory_info().rss)
        routes.append(record["route"])

    with tempfile.TemporaryDirectory(dir=ROOT) as folder:  # hard links need one file system
        teachers = shutil.copytree(ROOT / "data" / "teacher_checkpoints", Path(folder) / "teachers")
        kinds = [Path(path) for path in find_adapter_paths(teachers)]  # a link changes the looks of what it links to
        kinds += make_others(Path(folder) / "others")
        for number in range(count):
            source = kinds[number % len(kinds)]
            copy = Path(folder) / "zoo" / source.parent.name / f"{number:04d}"
            copy.mkdir(parents=True)
            for file in source.glob("*.*"):
                os.link(file, copy / file.name)
        run = compute_deltas(
            Path(folder) / "zoo", create_generic_probes(), base_model=DEMO_BASE, cache_dir=Path(folder) / "deltas",
            on_adapter=look,
        )  # fmt: skip
    assert run.count("computed") == count, [r for r in run.records if r["reason"]]
    for route in dict.fromkeys(routes):  # one after the other
        part = [size / 2**20 for size, taken in zip(seen, routes, strict=True) if taken == route]
        first = min(EARLY, len(part) // 3)
        # Medians, as files are read ahead; and what grows in both halves alike: an allocator may take a step once.
        ends = first, (first + len(part)) // 2, len(part)
        early, middle, late = (median(part[end - max(1, first // 2) : end]) for end in ends)
        steady = 2 * min(middle - early, late - middle) / early
        print(f"{len(part)} {route}: {steady:+.1%} steadily; {early:.0f} MiB after {first}, {middle:.0f} in the middle,"
              f" {late:.0f} at the end")  # fmt: skip
    early, late, most = (size / 2**20 for size in (seen[EARLY - 1], seen[-1], max(seen)))
    print(
        f"after {EARLY} adapters {early:.0f} MiB, after {count} {late:.0f}: {late / early - 1:+.1%}; most: {most:.0f}"
    )


def make_others(folder: Path) -> list[Path]:
    """One adapter of each other kind, and a full checkpoint."""
    for name, config in KINDS.items():
        model = AutoModelForCausalLM.from_pretrained(base_folder(DEMO_BASE), dtype=torch.float32)
        adapted = get_peft_model(model, config)
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.data += torch.randn_like(parameter) * 0.01
        adapted.save_pretrained(folder / name)
    model = AutoModelForCausalLM.from_pretrained(base_folder(DEMO_BASE), dtype=torch.float32)
    model.model.norm.weight.data *= 1.01
    model.save_pretrained(folder / "full")
    return sorted(folder.iterdir())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
