"""The forward-pass engine against other ways to the same deltas: `python benchmarks/engine.py demo` (or `qwen`).

    reload the base    the base loaded anew and wrapped for each adapter, one probe at a time, with LM head
    wrap again         the base loaded once and wrapped again for each adapter, one probe at a time, with LM head
    load_adapter       one PeftModel, adapters loaded and deleted, the probes in one padded batch, without LM head
    mixed batches      PEFT's `adapter_names`: all adapters in a PeftModel, as many a padded batch as the engine takes
    mixed, no loading  the same, with the adapters loaded beforehand
    engine             `llgbm_nb.forward`: float32, and difference propagation in bfloat16 (on a float32 base)
    floor              the products of the body's linear layers alone, at the best speed seen in the run

All measure the same adapters on the same five probes, each method and round in a process of its own, one at a time.
`demo` is the demo base; `qwen` has the shape of Qwen2.5-1.5B and random weights, and takes 11 GiB of the temporary
folder and 16 GiB of memory. Errors are the worst adapter's, relative to its delta in float32 by the first method.
"""

import argparse
import gc
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.profiler import ProfilerActivity
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from llgbm_nb import create_generic_probes
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward.base import body_of, load_base, load_tokenizer
from llgbm_nb.forward.demo_base import DEMO_BASE
from llgbm_nb.forward.engine import Engine
from llgbm_nb.forward.lora import LoraReader
from llgbm_nb.forward.peft_route import read_config
from llgbm_nb.forward.products import product
from llgbm_nb.forward.stacked_route import STACKED, TOKENS_AT_ONCE
from llgbm_nb.forward.states import last_token_states, tokenize
from llgbm_nb.progress_bar import quiet_transformers
from llgbm_nb.settings import Settings

PROBES, MAX_LENGTH, DTYPES = create_generic_probes(), 256, ("float32", "bfloat16")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QWEN = dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
            num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
DELTA, SMALL = 0.18, 0.02  # a delta's norm by the base's, as teachers have it; B of a second set by B, for errors only
SAME = 1e-3  # a float32 method that is further from the reference measures something else
ADAPTERS, DISK = {"demo": 12, "qwen": 6}, {"demo": 2, "qwen": 12}  # DISK in GiB

# -- what is measured: a base in both dtypes, adapters, and some of them with a smaller B ----------------------------


def _ids(args) -> list[list[int]]:
    """Through the tokenizer as it loads beside the base: for qwen, transformers splits words in Qwen's way."""
    return tokenize(load_tokenizer(str(args.work / "float32")), PROBES, MAX_LENGTH)


def prepare(args, _) -> list[float]:
    """Write them into args.work; gives each delta's norm by the base's."""
    torch.manual_seed(0)
    if args.shape == "demo":
        model = load_base(DEMO_BASE, device="cpu").model
    else:
        config = Qwen2Config(**QWEN | ({"num_hidden_layers": args.layers} if args.layers else {}))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(DEMO_BASE)
    for dtype in DTYPES:
        tokenizer.save_pretrained(args.work / dtype)
    model.save_pretrained(args.work / "float32")
    ids = _ids(args)
    base = last_token_states(model, ids, "cpu")[:, -1].mean(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=MODULES, task_type="CAUSAL_LM")
    wrapped, std, relative = get_peft_model(model, config).eval(), 0.02, []

    def draw(seed: int) -> float:
        torch.manual_seed(seed)
        for layer in wrapped.modules():
            if isinstance(layer, LoraLayer):
                layer.reset_lora_parameters("default", True)
                nn.init.normal_(layer.lora_B["default"].weight, std=std)
        return float(np.linalg.norm(last_token_states(model, ids, "cpu")[:, -1].mean(0) - base) / np.linalg.norm(base))

    for _ in range(12):  # B's standard deviation is found on the first adapter
        if abs((found := draw(0)) - DELTA) < 0.02:
            break
        std *= min(max(DELTA / found, 0.2), 5) ** 0.8
    else:
        raise SystemExit(f"no B gives a delta of {DELTA} of the base's norm; the last one gave {found:.2g}")
    for number in range(args.adapters):
        relative.append(draw(number))
        wrapped.save_pretrained(args.work / "full" / f"{number:02d}", save_embedding_layers=False)
    for folder in sorted((args.work / "full").iterdir())[: 2 if args.shape == "qwen" else None]:
        small = shutil.copytree(folder, args.work / "small" / folder.name) / "adapter_model.safetensors"
        tensors = {name: t * SMALL if ".lora_B." in name else t for name, t in load_file(small).items()}
        save_file(tensors, small, metadata={"format": "pt"})
    wrapped.unload().to(torch.bfloat16).save_pretrained(args.work / "bfloat16")
    return relative


# -- the methods: each yields once when it is ready to begin, then every adapter's delta -----------------------------


def _load(args) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(args.work / args.dtype, dtype=getattr(torch, args.dtype)).eval()


def _tokenizer(args):
    return AutoTokenizer.from_pretrained(args.work / args.dtype, padding_side="right")


def _one_by_one(model: nn.Module, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        outs = [model(**tokenizer(probe, return_tensors="pt"), output_hidden_states=True) for probe in PROBES]
    return torch.cat([out.hidden_states[-1][:, -1] for out in outs]).double().mean(0)


def reload_base(args, adapters: list[str]):
    tokenizer = _tokenizer(args)
    base = _one_by_one(_load(args), tokenizer)
    yield
    for path in adapters:
        yield _one_by_one(PeftModel.from_pretrained(_load(args), path), tokenizer) - base


def wrap_again(args, adapters: list[str]):
    """As the Delta Activations paper's authors run it. An adapter's LoRA layers stay in the base, and the next one's
    weights go into them: the deltas come out right only because all adapters here have the same target modules."""
    tokenizer, model = _tokenizer(args), _load(args)
    base = _one_by_one(model, tokenizer)
    yield
    for path in adapters:
        yield _one_by_one(PeftModel.from_pretrained(model, path), tokenizer) - base


def load_adapter(args, adapters: list[str]):
    batch, model = _tokenizer(args)(PROBES, return_tensors="pt", padding=True), _load(args)
    rows, last = torch.arange(len(PROBES)), batch["attention_mask"].sum(1) - 1

    def states() -> torch.Tensor:
        with torch.no_grad():
            return body_of(model)(**batch, use_cache=False).last_hidden_state[rows, last].double().mean(0)

    base = states()
    wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name="first")  # PEFT wants one to begin with
    yield
    for path in adapters:
        wrapped.load_adapter(path, adapter_name="this")
        wrapped.set_adapter("this")
        yield states() - base
        wrapped.delete_adapter("this")


def mixed_batches(args, adapters: list[str], load_first: bool = False):
    batch, model = _tokenizer(args)(PROBES, return_tensors="pt", padding=True), _load(args)
    last = batch["attention_mask"].sum(1) - 1
    copies = max(1, TOKENS_AT_ONCE["cpu"] // args.tokens)

    def states(run: nn.Module, names: list[str]) -> torch.Tensor:
        """(len(names), hidden), float64; the bare base looks at no name. PEFT takes `adapter_names` in the whole
        model's pass only, so the LM head runs on one token a row."""
        rows = {key: each.repeat(len(names), 1) for key, each in batch.items()}
        each = {"adapter_names": [name for name in names for _ in PROBES]} if run is not model else {}
        with torch.no_grad():
            out = run(**rows, **each, output_hidden_states=True, logits_to_keep=1, use_cache=False).hidden_states[-1]
        found = out[torch.arange(len(out)), last.repeat(len(names))]
        return found.double().unflatten(0, (len(names), len(PROBES))).mean(1)

    base = states(model, ["none"])
    names = [f"a{number}" for number in range(len(adapters))]
    if not load_first:
        yield
    wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0]).eval()
    for path, name in zip(adapters[1:], names[1:], strict=True):
        wrapped.load_adapter(path, adapter_name=name)
    if load_first:
        yield
    for start in range(0, len(names), copies):
        yield from states(wrapped, names[start : start + copies]) - base


def _engine(args) -> Engine:
    """The engine with its twin made, so that `measure` has only the adapters' work left."""
    base, settings = str(args.work / "float32"), Settings(max_length=MAX_LENGTH, dtype=args.dtype)
    layers = [AutoConfig.from_pretrained(base).num_hidden_layers]
    engine = Engine(lambda: load_base(base, device="cpu"), PROBES, layers, settings)
    if not engine._stacked.is_usable():
        raise SystemExit(f"the engine cannot stack adapters on this base: {engine.notes}")
    return engine


def engine(args, adapters: list[str]):
    engine = _engine(args)
    yield
    for path, each in zip(adapters, engine.measure(Adapter(path, path) for path in adapters), strict=True):
        if (each.adapter.path, each.route) != (path, STACKED) or each.differences is None:
            raise SystemExit(f"the engine measured {path} by {each.route}: {each.reason} {engine.notes}")
        yield torch.from_numpy(each.differences[:, 0]).double().mean(0)


METHODS = {
    "reload the base": reload_base,
    "wrap again": wrap_again,
    "load_adapter": load_adapter,
    "mixed batches": mixed_batches,
    "mixed, no loading": partial(mixed_batches, load_first=True),
    "engine": engine,
}


def timed(args, adapters: list[str]) -> dict:
    start, method, deltas, seconds = time.perf_counter(), METHODS[args.child](args, adapters), [], 0.0
    next(method)
    once = time.perf_counter() - start
    for _ in adapters:
        if args.child == "reload the base":
            gc.collect()  # off the clock; without it, the model before may still take its memory
        start = time.perf_counter()
        deltas.append(next(method).tolist())
        seconds += time.perf_counter() - start
    # In MiB. Linux counts in what the parent took at its fork, so the parent loads no model.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return dict(once=once, seconds=seconds / len(adapters), deltas=deltas, peak=peak)


def reading(args, adapters: list[str]) -> float:
    """Seconds that the engine takes, in and beside its passes, to read and prepare one adapter."""
    engine = _engine(args)
    read_lora, start = LoraReader(engine._base.model), time.perf_counter()  # no file's digest is known yet
    for adapter in (Adapter(path, path) for path in adapters):
        _ = adapter.fingerprint
        lora = read_lora(read_config(adapter), adapter.read_tensors())
        engine._stacked.twin.put_on([lora], 1)
    return (time.perf_counter() - start) / len(adapters)


def profile(args, adapters: list[str]) -> None:
    engine = _engine(args)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        shapes = [
            each.shape for each in engine.measure(Adapter(path, path) for path in adapters[: engine._stacked.copies])
        ]
    print(f"\n## One pass of the engine, {args.dtype}, {shapes[0]}\n")
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=45))


# -- the floor -------------------------------------------------------------------------------------------------------


def _linear_shapes(args) -> list[tuple[int, int]]:
    with torch.device("meta"):
        body = body_of(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.work / "float32")))
    return [tuple(m.weight.shape) for m in body.modules() if isinstance(m, nn.Linear)]


def speeds(args, _) -> dict[str, float]:
    """Operations per second on large squares, and on the model's largest layers laid out for oneDNN."""
    dtype, found, shapes = getattr(torch, args.dtype), {}, _linear_shapes(args)
    for n in (1024, 2048, 4096):
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        found[f"torch.mm {n}"] = 2 * n**3 / (seconds := _best(torch.mm, a, b))
        if seconds > 1:  # a processor without bfloat16; the next one would take eight times as long
            break
    for out, inputs in sorted({shape for shape in shapes if np.prod(shape) == max(map(np.prod, shapes))}):
        layer = product(torch.randn(out, inputs).to(dtype))
        for rows in {
            args.tokens,
            max(1, TOKENS_AT_ONCE["cpu"] // args.tokens) * args.tokens,
            1024,
        }:  # the probes', a pass's, many
            x = torch.randn(rows, inputs).to(dtype)
            found[f"oneDNN {rows} x {inputs} x {out}"] = 2 * rows * inputs * out / _best(layer, x)
    return found


def _best(call, *args) -> float:
    took, end = [], time.perf_counter() + 2
    while len(took) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        call(*args)
        took.append(time.perf_counter() - start)
    return min(took)


# -- running them, and the table -------------------------------------------------------------------------------------

JOBS = {"prepare": prepare, "reading": reading, "profile": profile, "speeds": speeds} | dict.fromkeys(METHODS, timed)


def job(args, name: str, dtype: str = "float32", which: str = "full"):
    """Run one of JOBS in a process of its own, and give its result."""
    print(f"{time.strftime('%H:%M:%S')} {name} {dtype} {which}", file=sys.stderr, flush=True)
    options = vars(args) | {"child": name, "dtype": dtype, "which": which}
    words = [f"--{key}={options[key]}" for key in ("child", "dtype", "which", "work", "tokens", "adapters", "layers")]
    subprocess.run([sys.executable, __file__, args.shape, *words], check=True)
    return json.loads((args.work / "result.json").read_text())


def _error(result: dict, reference: dict) -> float:
    ours, theirs = np.array(result["deltas"]), np.array(reference["deltas"])
    return float((np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)).max())


def run(args) -> None:
    relative, args.tokens = job(args, "prepare"), sum(map(len, _ids(args)))
    rates = {dtype: job(args, "speeds", dtype) for dtype in DTYPES}
    results: dict[tuple, list[dict]] = {(method, dtype): [] for dtype in DTYPES for method in METHODS}
    for number in range(args.rounds or {"demo": 3, "qwen": 2}[args.shape]):
        for (method, dtype), rounds in results.items():
            if number and not args.rounds and args.shape == "qwen" and method in ("reload the base", "wrap again"):
                continue
            rounds.append(job(args, method, dtype))
            error = rounds[-1]["error"] = _error(rounds[-1], results["reload the base", "float32"][0])
            if dtype == "float32" and not error < SAME:
                raise SystemExit(f"{method} in float32 is {error:.1g} of the delta off, so nothing is reported")
    exact = job(args, "reload the base", "float32", "small")
    keys = [("engine", "float32"), ("reload the base", "bfloat16"), ("engine", "bfloat16")]
    small = {key: _error(job(args, *key, "small"), exact) for key in keys}
    prepared = job(args, "reading")
    for dtype in DTYPES:
        rates[dtype] = {name: max(rate, rates[dtype][name]) for name, rate in job(args, "speeds", dtype).items()}

    _report(args, relative, rates, results, small, prepared)
    for dtype in DTYPES if args.profile else ():
        job(args, "profile", dtype)


def _report(args, relative: list, rates: dict, results: dict, small: dict, prepared: float) -> None:
    parameters = sum(map(np.prod, _linear_shapes(args)))
    floor = {dtype: 2 * parameters * args.tokens / max(rates[dtype].values()) for dtype in DTYPES}
    best = {key: min(each["seconds"] for each in rounds) for key, rounds in results.items()}
    errors = {key: max(each["error"] for each in rounds) for key, rounds in results.items()}

    def row(*cells) -> None:
        widths = (17, 14, 13, 7, 20, 7, 15, 8, 6)
        print("|", " | ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)), "|")

    row("method", "dtype", "s per adapter", "x floor", "x faster than reload", "error", f"error, B x {SMALL}",
        "peak MiB", "once s")  # fmt: skip
    row("---", "---", *["---:"] * 7)
    for (method, dtype), rounds in results.items():
        seconds, less = best[method, dtype], small.get((method, dtype))
        peak, once = max(each["peak"] for each in rounds), min(each["once"] for each in rounds)
        row(method, dtype, f"{seconds:.3f}", f"{seconds / floor[dtype]:.2f}",
            f"{best['reload the base', dtype] / seconds:.2f}", f"{errors[method, dtype]:.1e}",
            f"{less:.1e}" if less else "", f"{peak:.0f}", f"{once:.1f}")  # fmt: skip
    for dtype, seconds in floor.items():
        row("floor", dtype, f"{seconds:.3f}", "1.00", f"{best['reload the base', dtype] / seconds:.2f}", *[""] * 4)

    info = Path("/proc/cpuinfo")
    cpu = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "") or [platform.processor()]
    print(f"\n{cpu[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.shape}: {args.adapters} adapters, deltas {min(relative):.2f} to {max(relative):.2f} of the base's,"
          f" {args.tokens} tokens, {parameters / 1e6:.1f} M parameters in the body's linear layers")  # fmt: skip
    for dtype in DTYPES:
        print(f"{dtype}, GFLOP/s: " + ", ".join(f"{name}: {rate / 1e9:.0f}" for name, rate in rates[dtype].items()))
        slower = max(rate for name, rate in rates[dtype].items() if "torch.mm" in name)
        share = best["engine", dtype] * slower / (2 * parameters * args.tokens)
        print(f"{dtype}, the engine's time over a floor at torch.mm's speed: {share:.2f}")
    shares = ", ".join(f"{prepared / best['engine', dtype]:.1%} of the engine's time in {dtype}" for dtype in DTYPES)
    print(f"reading and preparing an adapter: {prepared:.3f} s, {shares}\n")
    for text, value, least, most in _targets(args.shape, best, errors, small, floor):
        reached, bound = (value >= least, f">= {least:g}") if least else (value <= most, f"<= {most:g}")
        print(f"{'reached' if reached else 'missed '}  {text}: {value:.2g} {bound}")


def _targets(shape: str, best: dict, errors: dict, small: dict, floor: dict) -> list[tuple]:
    """What the engine is to reach: (what, found, at least or None, at most or None)."""
    full, low, demo = ("engine", "float32"), ("engine", "bfloat16"), shape == "demo"
    reloaded, wrapped = ({d: best[method, d] for d in DTYPES} for method in ("reload the base", "wrap again"))
    targets = [
        ("float32, faster than reload", reloaded["float32"] / best[full], 5, None),
        ("float32, faster than wrap again", wrapped["float32"] / best[full], 4 if demo else 3.5, None),
        ("float32, by its floor", best[full] / floor["float32"], None, 1.3 if demo else 1.15),
        ("float32, error", errors[full], None, 1e-5),
        ("bfloat16, error", errors[low], None, 0.006 if demo else 0.01),
        (f"bfloat16, error with B x {SMALL}", small[low], None, 0.006 if demo else 0.01),
    ]
    return targets if demo else targets + [
        ("bfloat16, faster than reload in bfloat16", reloaded["bfloat16"] / best[low], 3.2, None),
        ("bfloat16, faster than wrap again in bfloat16", wrapped["bfloat16"] / best[low], 2.9, None),
        ("bfloat16, faster than reload in float32", reloaded["float32"] / best[low], 12, None),
        ("bfloat16, by its floor", best[low] / floor["bfloat16"], None, 1.4),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=tuple(ADAPTERS))
    parser.add_argument("--adapters", type=int, help="how many (default: 12 for demo, 6 for qwen)")
    parser.add_argument("--layers", type=int, default=0, help="of qwen's shape, fewer for a trial (default: its 28)")
    parser.add_argument("--rounds", type=int, default=0, help="default: 3; for qwen 2, and 1 with the LM head")
    parser.add_argument("--profile", action="store_true", help="also print the operators of one pass for each dtype")
    for name, kind in {"child": str, "dtype": str, "which": str, "work": Path, "tokens": int}.items():  # of `job`
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        warnings.simplefilter("ignore")  # PEFT's, on wrapping a model again
        with quiet_transformers():
            result = JOBS[args.child](args, sorted(map(str, (args.work / args.which).glob("*"))))
        (args.work / "result.json").write_text(json.dumps(result))
        return
    args.adapters = args.adapters or ADAPTERS[args.shape]
    args.tokens = 0  # known once the base is there
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < DISK[args.shape] * 2**30:
            raise SystemExit(f"{folder} needs {DISK[args.shape]} GiB free; set TMPDIR to a folder with more room")
        args.work = Path(folder)
        run(args)


if __name__ == "__main__":
    main()
