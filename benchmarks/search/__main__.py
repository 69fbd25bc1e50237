"""Which embedding of adapters deserves trust, and what finds one for a task: `python benchmarks/search FOLDER`.

A pool of small adapters of the demo base over some fifty tasks, each trained otherwise (recipe.py), and queries of
examples that none of them has seen. In FOLDER: zoo/, queries.json, losses/, keys/, and the tables queries.csv,
embeddings.csv and robustness-*.csv. All of it is kept, so that a run that was stopped goes on. TASKS=folder takes files
of pairs instead.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
import embeddings  # noqa: E402
import keys  # noqa: E402
import losses  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import recipe  # noqa: E402
import robustness  # noqa: E402
import scores  # noqa: E402

from llgbm_nb import compute_deltas, create_probes  # noqa: E402
from llgbm_nb.collection import find_adapters  # noqa: E402
from llgbm_nb.forward import DEMO_BASE, load_base  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default=DEMO_BASE)
    parser.add_argument("--tasks", default=os.environ.get("TASKS", ""), help="a folder of files of pairs")
    parser.add_argument("--only", default="", help="names of tasks, with commas")
    parser.add_argument("--adapters", type=int, default=recipe.Size.adapters, help="of a task")
    parser.add_argument("--queries", type=int, default=recipe.Size.queries, help="of a task")
    parser.add_argument("--examples", type=int, default=recipe.Size.examples, help="of a query")
    parser.add_argument("--few", type=int, default=12, help="adapters on mixed text, and full fine-tunes")
    parser.add_argument("--encoder", default="", help="a sentence encoder, for output sentences")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each, for training and losses")
    parser.add_argument("--part", type=int, default=-1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    source = recipe.Files(Path(args.tasks)) if args.tasks else recipe.Rules()
    if args.only:
        source.names = args.only.split(",")
    size = recipe.Size(args.adapters, args.queries, args.examples)
    args.folder.mkdir(parents=True, exist_ok=True)
    queries = recipe.queries_of(source, size)
    (args.folder / "queries.json").write_text(json.dumps(queries, indent=1, ensure_ascii=False))
    if args.part < 0 and args.workers > 1:
        command, one = [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"}
        parts = [subprocess.Popen([*command, "--part", str(part)], env=one) for part in range(args.workers)]
        codes = [part.wait() for part in parts]
        if any(codes):
            sys.exit("a worker has failed")
    part = max(0, args.part), args.workers if args.part >= 0 else 1
    base = load_base(args.base)
    told("trained", recipe.train(args.folder / "zoo", source, size, base, args.base, *part))
    told("losses of", losses.measure(args.folder, queries, base, *part))
    if args.part < 0:
        retrieve(args.folder, source, queries, base, args.base)
        embed(args.folder, source, base, args.base, args.encoder)
        if not args.tasks:
            probes = create_probes("mixed")
            how = source, size, base, args.base, probes, "mixed", args.few
            for name, table in robustness.tell(args.folder, *how).items():
                print(f"\n{name}\n{table.round(3).to_string(index=False)}")


def told(what: str, names) -> None:
    start = time.perf_counter()
    for number, name in enumerate(names, 1):
        print(f"{what} {name} ({(time.perf_counter() - start) / number:.1f} s each)", flush=True)


def retrieve(folder: Path, source, queries: dict[str, list[dict]], base, base_name: str) -> None:
    adapters = find_adapters(folder / "zoo")
    names = [adapter.name for adapter in adapters]
    tasks, asked = [recipe.task_of(name) for name in names], [recipe.task_of(query) for query in queries]
    run = compute_deltas(adapters, create_probes("mixed"), cache_dir=folder / "deltas", base_model=base_name)
    told("gains for", keys.first_order(folder, base, adapters, queries))
    for count in (3, 10):
        told("in context", keys.in_context(folder, base, run, queries, count))
    told("fine-tuned for", keys.fine_tuned(folder, base, run, queries))
    keys.few_losses(folder, names, queries, np.nan)
    bare, every = losses.by_query(folder, queries, names)
    found = {}
    for file in sorted((folder / "keys").glob("*.npz")):
        with np.load(file) as kept:
            rows = scores.of_queries(kept["scores"], bare[:, None] - every, asked, tasks)
            table = scores.summary(rows)
            found[file.stem] = {name: shown(*row) for name, row in table.iterrows()}
            found[file.stem] |= {"s per query": float(kept["per_query"]), "s per adapter": float(kept["per_adapter"])}
    table = pd.DataFrame(found).T
    table.to_csv(folder / "queries.csv")
    print(table.to_string())


def embed(folder: Path, source, base, base_name: str, encoder: str) -> None:
    adapters, found = find_adapters(folder / "zoo"), {}
    tasks = [recipe.task_of(adapter.name) for adapter in adapters]
    families = [source.family(task) for task in tasks]
    for name, cosines, seconds in embeddings.every(adapters, base, base_name, folder / "deltas", encoder):
        table = scores.summary(scores.of_embedding(cosines, tasks, families))
        by_task, by_family = scores.silhouettes(cosines, tasks, families)
        found[name] = {column: shown(*row) for column, row in table.iterrows()}
        found[name] |= {"silhouette, task": by_task, "silhouette, family": by_family, "s per adapter": seconds}
    table = pd.DataFrame(found).T
    table.to_csv(folder / "embeddings.csv")
    print(table.to_string())


def shown(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


main()
