"""What a student's step costs: `python benchmarks/students.py [demo|qwen]` (`make bench-students`).

    PEFT, probe by probe    one student at a time, whole model with LM head, autograd
    PEFT, probes together   the same, in one padded batch
    PEFT, body              the same without LM head
    PEFT, texts             the same by hand: of probes that grow, the longest alone, read at all their ends
    llgbm_nb                eight students in a pass, float32 or products in bfloat16, with and without checkpointing

A step is forward, loss at every layer of a batch of the recommended target (the probe set `answers`), backward and
AdamW, of LoRA r16 on q, v. Each way in a process of its own, the best of three steps after a first; peak memory is the
process's. `qwen` is one student's step, with checkpointing, on the shape of Qwen2.5-1.5B with random weights.
"""

import resource
import subprocess
import sys
import time

import torch
from torch.nn.utils.rnn import pad_sequence

from llgbm_nb import create_probes
from llgbm_nb.forward import DEMO_BASE, BaseModel, LiveDeltas, load_base, load_tokenizer, tokenize
from llgbm_nb.forward.packing import pack_probes
from llgbm_nb.uses.students import BATCH, new_student

STUDENTS, STEPS, RANK, MODULES = 8, 4, 16, ["q_proj", "v_proj"]
WAYS = {
    "PEFT, probe by probe": ("peft", dict(way="alone", head=True)),
    "PEFT, probes together": ("peft", dict(way="together", head=True)),
    "PEFT, body": ("peft", dict(way="together", head=False)),
    "PEFT, texts": ("peft", dict(way="texts", head=False)),
    "llgbm_nb, float32": ("ours", dict(dtype="float32")),
    "llgbm_nb, float32, checkpointing": ("ours", dict(dtype="float32", checkpointing=True)),
    "llgbm_nb, bfloat16": ("ours", dict(dtype="bfloat16")),
    "llgbm_nb, bfloat16, checkpointing": ("ours", dict(dtype="bfloat16", checkpointing=True)),
}
QWEN = {
    "Qwen shape, one student, float32, checkpointing": dict(dtype="float32", checkpointing=True),
    "Qwen shape, one student, bfloat16, checkpointing": dict(dtype="bfloat16", checkpointing=True),
}


def probes_of(tokenizer) -> list[list[int]]:
    """The first batch of the recommended target: token ids."""
    pack, *_ = pack_probes(tokenize(tokenizer, create_probes("answers")), limit=BATCH)
    return [probe.tolist() for probe in pack.probes]


def peft(way: str, head: bool) -> float:
    """Seconds of one student's step."""
    from peft import LoraConfig, get_peft_model

    base = load_base(DEMO_BASE)
    probes = probes_of(base.tokenizer)
    [pack] = pack_probes(probes)
    model = get_peft_model(base.model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MODULES)).eval()
    called = model if head else model.base_model.model.model
    texts = pack.texts if way == "texts" else pack.probes
    starts = (pack.last - pack.positions[pack.last]).unique().tolist()
    ends = [[len(text) - 1] for text in texts]
    if way == "texts":
        ends = [[last - start for last in pack.last.tolist() if start <= last < start + len(text)]
                for start, text in zip(starts, texts, strict=True)]  # fmt: skip
    every = [*zip(texts, ends, strict=True)]
    batches = [[each] for each in every] if way == "alone" else [every]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            ids = [text for text, _ in batch]
            mask = pad_sequence([torch.ones_like(each) for each in ids], True)
            states = called(
                input_ids=pad_sequence(ids, True), attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
            rows = torch.tensor([row for row, (_, ends) in enumerate(batch) for _ in ends])
            columns = torch.tensor([end for _, ends in batch for end in ends])
            found = torch.stack([each[rows, columns] for each in states], 1)
            found.square().sum(-1).mean().mul(len(rows) / len(probes)).backward()
        optimizer.step()

    return timed(step)


def ours(base: BaseModel | None = None, students: int = STUDENTS, **how) -> float:
    """Seconds of a step, of one student's share."""
    base = base or load_base(DEMO_BASE)
    layers = list(range(base.model.config.num_hidden_layers + 1))
    live = LiveDeltas(base, probes_of(base.tokenizer), layers, **how)
    every = [new_student(base, RANK, MODULES, seed) for seed in range(students)]
    optimizer = torch.optim.AdamW([tensor for student in every for tensor in student.values()], 1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (live([live.lora(student, 2.0) for student in every]) - 1).square().sum(-1).mean().backward()
        optimizer.step()

    return timed(step) / students


def qwen(**how) -> float:
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    return ours(BaseModel(model, load_tokenizer(DEMO_BASE), torch.device("cpu")), students=1, **how)


def timed(step) -> float:
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    if sys.argv[1] == "one":
        name = sys.argv[2]
        seconds = qwen(**QWEN[name]) if name in QWEN else {"peft": peft, "ours": ours}[WAYS[name][0]](**WAYS[name][1])
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    first = None
    print("| way | s per student and step | × faster | peak GiB |\n|---|---:|---:|---:|")
    for name in QWEN if sys.argv[1] == "qwen" else WAYS:
        done = subprocess.run([sys.executable, __file__, "one", name], capture_output=True, text=True)
        if done.returncode:
            print(
                f"| {name} | (ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}) | | |", flush=True
            )
            continue
        seconds, peak = map(float, done.stdout.split()[-2:])
        first = first or seconds
        print(f"| {name} | {seconds:.2f} | {first / seconds:.2f} | {peak:.1f} |", flush=True)


if __name__ == "__main__":
    main()
