"""What a large collection costs: `python benchmarks/scale.py [adapters …] [--keep FOLDER]` (default 1,000 and 10,000).

A tiny random base (Qwen2, 4 layers, hidden size 64, a token for every byte) and real LoRA adapters of it in twenty
planted domains: those of a domain share a low-rank change, and each adds noise of its own. Every stage is a process of
its own, so that its peak memory is its own; times leave out Python's imports. With --keep, a folder that is there
already is taken as it is, and --only STAGE … runs some of the stages.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # nothing large is imported here: a child's peak begins with its parent's
DOMAINS = (
    "arithmetic", "biology", "chemistry", "code", "commonsense", "cooking", "dialogue", "economics", "geography",
    "geometry", "history", "law", "linguistics", "logic", "medicine", "music", "philosophy", "physics", "summaries",
    "translation",
)  # fmt: skip
HIDDEN, LAYERS, RANK = 64, 4, 4
SHARED, OWN = 0.05, 0.025  # standard deviations of A's and B's entries: the domain's, and the adapter's own
STAGES = {
    "deltas": "deltas, one process",
    "workers": "deltas, two workers of one thread each",
    "cached": "all deltas from the cache",
    "similarity": "heatmaps, nearest adapters, near-duplicates",
    "scores": "silhouettes of all layers, chance, reliability, rounding",
    "projection": "projection (t-SNE)",
    "03": "03_teacher_deltas and its page",
    "04": "04_analysis and its page",
    "05": "05_evidence, its page and index.html",
    "06": "06_uses and its page",
}


def make_base(folder: Path) -> None:
    """As a user's base lies on disk: config, safetensors, tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sys.path.append(str(ROOT / "tests"))
    from conftest import byte_tokenizer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=260, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, pad_token_id=257, bos_token_id=258, eos_token_id=257,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def make_adapters(zoo: Path, count: int, base: Path) -> None:
    """Adapters as PEFT saves them, written without PEFT, which takes 20 ms for each."""
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    names = [
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight"
        for layer in range(LAYERS) for module in ("q_proj", "v_proj") for side in "AB"
    ]  # fmt: skip
    shapes = [(RANK, HIDDEN) if name.endswith("A.weight") else (HIDDEN, RANK) for name in names]
    shared = [[SHARED * random.normal(size=shape) for shape in shapes] for _ in DOMAINS]
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "inference_mode": True,
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": str(base),
    }  # fmt: skip
    for number in range(count):
        domain = number % len(DOMAINS)
        folder = zoo / DOMAINS[domain] / f"{DOMAINS[domain]}-{number // len(DOMAINS):04d}"
        folder.mkdir(parents=True)
        tensors = {
            name: (common + OWN * random.normal(size=common.shape)).astype(np.float32)
            for name, common in zip(names, shared[domain], strict=True)
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings))


# -- stages ------------------------------------------------------------------------------------------------------------


def run_of(folder: Path, cache: str = "deltas", **options):
    from llgbm_nb import compute_deltas, create_probes

    options |= dict(base_model=str(folder / "base"), cache_dir=folder / cache)
    return compute_deltas(folder / "zoo", create_probes(), **options)


def deltas(folder: Path) -> dict:
    import torch

    import llgbm_nb  # noqa: F401  (imports are no part of the time)

    start = time.perf_counter()
    run = run_of(folder)
    assert run.count("computed") == len(run.records), run.records[0]
    return {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}


def workers(folder: Path) -> dict:
    """Into a cache of their own; the workers' own memory is not in the peak, which is this process's."""
    import torch

    import llgbm_nb.forward.dask_workers

    torch.set_num_threads(1)
    with (
        llgbm_nb.forward.dask_workers.local_cluster(2) as cluster,
        llgbm_nb.forward.dask_workers.distributed.Client(cluster) as client,
    ):
        client.run(lambda: bool(__import__("llgbm_nb.forward.dask_workers")))  # imports are no part of the time
        start = time.perf_counter()
        run = run_of(folder, "deltas of workers", client=client)
        seconds = time.perf_counter() - start
    assert run.count("computed") == len(run.records), run.records[0]
    return {"seconds": seconds}


def cached(folder: Path) -> dict:
    import llgbm_nb  # noqa: F401

    start = time.perf_counter()
    run = run_of(folder)
    assert run.count("cached") == len(run.records)
    return {"seconds": time.perf_counter() - start}


def similarity(folder: Path) -> dict:
    """What 04 and 05 do with every pair."""
    from llgbm_nb import analysis, figures, uses

    run = run_of(folder)
    found, start = run.delta_set, time.perf_counter()
    rows = found.deltas()
    pairs = analysis.pairs(rows, found.domains)
    figures.every_pair(pairs, found.names, found.domains)
    figures.domain_means(pairs, found.domains)
    analysis.neighbour_overview(rows, found.names, found.domains)
    near = time.perf_counter()
    uses.nearest_to(found, found.names[-1])
    near = time.perf_counter() - near
    uses.near_duplicates(found, fingerprints=uses.fingerprints(run))
    return {"seconds": time.perf_counter() - start, "nearest to one": near}


def scores(folder: Path) -> dict:
    from llgbm_nb import analysis, evidence
    from llgbm_nb.evidence import rounding

    run = run_of(folder)
    found, start = run.delta_set, time.perf_counter()
    score = analysis.silhouette(found.deltas(), found.domains)
    for centered in (False, True):
        analysis.silhouette_by_layer(found, centered)
        evidence.reliability(found.differences_at(-1), centered)
    evidence.permutation_test(found.deltas(), found.domains)
    rounding.trust(run)
    return {"seconds": time.perf_counter() - start, "silhouette": score.score}


def projection(folder: Path) -> dict:
    from llgbm_nb import analysis

    found = run_of(folder).delta_set
    start = time.perf_counter()
    analysis.tsne(found.deltas())
    return {"seconds": time.perf_counter() - start}


def notebook(name: str, folder: Path) -> dict:
    """A notebook as `make report` runs it, and the sizes of what it leaves."""
    import papermill

    from llgbm_nb.report import run

    [file] = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    out = folder / "report"
    values = {
        "base_model": str(folder / "base"), "checkpoint_dir": str(folder / "zoo"), "cache_dir": str(folder / "deltas"),
        "output_dir": str(out), "query_dir": str(folder / "queries"),
    }  # fmt: skip
    known = papermill.inspect_notebook(str(file))
    out.mkdir(exist_ok=True)
    start = time.perf_counter()
    papermill.execute_notebook(
        str(file), str(out / file.name), {key: value for key, value in values.items() if key in known},
        kernel_name="python3", cwd=str(file.parent), progress_bar=False,
    )  # fmt: skip
    run.strip_widgets(out / file.name)
    run.to_html(out / file.name)
    seconds = time.perf_counter() - start
    sizes = {page.stem: page.stat().st_size / 2**20 for page in sorted(out.glob("*.html"))}
    return {"seconds": seconds, "MiB": {key: size for key, size in sizes.items() if key in (file.stem, "index")}}


def stage(name: str, folder: Path) -> None:
    """Run one stage in this process, and print what it cost as JSON."""
    found = notebook(name, folder) if name.isdigit() else globals()[name](folder)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps(found | {"peak": peak / 2**20}))  # KiB to GiB


# -- all of them -------------------------------------------------------------------------------------------------------


def measured(folder: Path, count: int, stages) -> dict[str, dict]:
    """Every stage's costs with `count` adapters, which are made in `folder` if it lacks them."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "LLGBM_NB_DOMAINS": str(folder / "domains.json"),
    }  # fmt: skip
    command = [sys.executable, __file__, "--folder", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "zoo").exists():
        subprocess.run([*command, "--make", str(count)], env=environment, check=True)
    found = {}
    for name in stages:
        done = subprocess.run([*command, "--stage", name], env=environment, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        print(count, STAGES[name], found[name] or "FAILED", file=sys.stderr, flush=True)
    return found


def table(results: dict[int, dict[str, dict]]) -> str:
    """A row per stage; per adapter in milliseconds, and how many times as much with most adapters as with fewest."""
    counts = [*results]
    head = [f"{count:,}: s | ms each | GiB" for count in counts]
    lines = [f"| | {' | '.join(head)} | each, × |", "|---|" + "---:|" * (3 * len(counts) + 1)]
    for name, title in STAGES.items():
        costs = [results[count].get(name) or {} for count in counts]
        if not any(costs):
            continue
        each = [
            1000 * cost["seconds"] / count if cost else float("nan") for cost, count in zip(costs, counts, strict=True)
        ]
        cells = [
            f"{cost['seconds']:.1f} | {one:.2f} | {cost['peak']:.2f}" if cost else "– | – | –"
            for cost, one in zip(costs, each, strict=True)
        ]
        lines.append(f"| {title} | {' | '.join(cells)} | {each[-1] / each[0]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("counts", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--keep", type=Path, help="a folder for the collections; else a temporary one")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=[*STAGES])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_base(options.folder / "base")
        make_adapters(options.folder / "zoo", options.make, options.folder / "base")
    elif options.stage:
        stage(options.stage, options.folder)
    else:
        with contextlib.ExitStack() as stack:
            place = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            results = {n: measured(place.resolve() / str(n), n, options.only) for n in sorted(options.counts)}
        print(table(results))


if __name__ == "__main__":
    main()
