"""Fine-tuning LoRA teachers from prompt/response files, with PEFT.

A data file is a JSON list of ``{"prompt", "response", "system"?}``. It is cut into disjoint splits, and each split
trains one adapter: ``<output>/<domain>/<domain>-<split>/`` with the adapter in bfloat16 safetensors, ``prompts.json``
(``{"prompts", "task"}``: what it was trained on) and ``training.json`` (how, and the loss of every step).
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from ..errors import InputError
from ..files import shown, write_whole
from ..forward.base import load_base, quiet_transformers

TARGETS = {
    "qv": ["q_proj", "v_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all": "all-linear",
}


def read_pairs(path: str | Path) -> list[dict]:
    """The prompt/response pairs of one data file. Raises InputError naming the file and the entry that is wrong."""
    try:
        pairs = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f'{path} is not a JSON list of {{"prompt", "response"}} objects')
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict) or not all(isinstance(pair.get(k), str) for k in ("prompt", "response")):
            raise InputError(f'entry {number} of {path} needs the texts "prompt" and "response"')
    return pairs


def find_data_files(data: str | Path) -> list[Path]:
    """The data files in a folder (`{domain}.json`), sorted, or the one file. Raises InputError if there is none."""
    data = Path(data)
    files = sorted(data.glob("*.json")) if data.is_dir() else [data] if data.is_file() else []
    if not files:
        raise InputError(f"there is no data file {shown(data)}: give a JSON file of pairs, or a folder of such files")
    return files


def split_pairs(pairs: list[dict], splits: int, seed: int) -> list[list[dict]]:
    """`splits` disjoint, shuffled parts of equal size (the few left over are not used)."""
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    size = len(pairs) // splits
    if size == 0:
        raise InputError(f"{len(pairs)} pairs are too few for {splits} splits")
    return [[pairs[i] for i in order[k * size : (k + 1) * size]] for k in range(splits)]


def encode(tokenizer, pair: dict, max_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of one pair, cut to `max_tokens`; prompt tokens have the label -100 (no loss)."""
    if tokenizer.chat_template:
        turns = [{"role": "system", "content": pair["system"]}] if pair.get("system") else []
        turns.append({"role": "user", "content": pair["prompt"]})
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    else:
        prompt = "\n".join([*filter(None, [pair.get("system")]), pair["prompt"], ""])
    head = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    tail = tokenizer(pair["response"] + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
    head = head[: max_tokens - 1]
    ids = (head + tail)[:max_tokens]
    return ids, ([-100] * len(head) + tail)[:max_tokens]


def finetune(
    model, tokenizer, pairs: list[dict], config: LoraConfig, *, steps: int, lr: float, batch_size: int,
    max_tokens: int, seed: int,
) -> tuple[dict[str, torch.Tensor], LoraConfig, list[float]]:  # fmt: skip
    """Train one LoRA adapter on `pairs` with AdamW and a linearly falling rate.

    The base `model` is wrapped for the training and handed back unwrapped, its weights untouched.
    Returns the adapter's tensors in bfloat16 (PEFT's names), its config, and the loss of every step.
    """
    torch.manual_seed(seed)
    shuffler = random.Random(seed)
    encoded = [encode(tokenizer, pair, max_tokens) for pair in pairs]
    adapted = get_peft_model(model, config)
    try:
        adapted.train()
        trained = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
        queue, losses = [], []
        for step in range(steps):
            while len(queue) < batch_size:
                queue += shuffler.sample(encoded, len(encoded))
            batch, queue = queue[:batch_size], queue[batch_size:]
            width = max(len(ids) for ids, _ in batch)
            rows = [
                (
                    ids + [0] * (width - len(ids)),
                    labels + [-100] * (width - len(ids)),
                    [1] * len(ids) + [0] * (width - len(ids)),
                )
                for ids, labels in batch
            ]
            ids, labels, mask = (torch.tensor(column, device=model.device) for column in zip(*rows, strict=True))
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            loss = adapted(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(round(loss.item(), 4))
            if not np.isfinite(losses[-1]):
                raise InputError(f"the loss is {losses[-1]} at step {step + 1}; use a smaller lr")
        tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        tensors = {name: t.detach().to(torch.bfloat16).contiguous() for name, t in tensors.items()}
        return tensors, adapted.peft_config["default"], losses
    finally:
        adapted.unload()
        model.eval().requires_grad_(False)


def save_teacher(folder: str | Path, tensors, config: LoraConfig, base_name: str, pairs, task: str, training: dict):
    """Write one teacher's folder, its config last: without one, it is trained again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.base_model_name_or_path, config.inference_mode = base_name, True
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    prompts = {"prompts": [pair["prompt"] for pair in pairs], "task": task}
    _write_json(folder / "prompts.json", prompts)
    _write_json(folder / "training.json", training)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "adapter_config.json", settings)


def train_teachers(
    base_model: str, data_files: Iterable[Path], teacher_dir: str | Path, *, splits: int, rank, alpha, targets,
    rslora: Iterable[str] = (), dora: Iterable[str] = (), steps: int = 40, lr: float = 3e-4, batch_size: int = 4,
    max_tokens: int = 160, seed: int = 0, on_teacher: Callable[[dict], None] = lambda record: None,
) -> list[dict]:  # fmt: skip
    """Train `splits` teachers for every data file; the file's name is their domain. Teachers already there are kept.

    `rank`, `alpha` and `targets` (a key of TARGETS, or module names with commas) are one value or a list with one per
    split. `rslora` and `dora` name the teachers that use these variants. `on_teacher(record)` is called after each.
    Returns one record per teacher: its `training.json` with `name`, `domain` and `status` ("trained" or "kept").
    """
    rank, alpha, targets = (
        per_split(v, splits, n) for v, n in ((rank, "rank"), (alpha, "alpha"), (targets, "targets"))
    )
    base, records = None, []
    for file in data_files:
        for k, pairs in enumerate(split_pairs(read_pairs(file), splits, seed)):
            domain, name = file.stem, f"{file.stem}-{k + 1}"
            folder = Path(teacher_dir) / domain / name
            kept = (folder / "adapter_config.json").exists()
            if not kept:
                base = base or load_base(base_model, "bfloat16")
                config = LoraConfig(
                    r=rank[k], lora_alpha=alpha[k], target_modules=TARGETS.get(targets[k]) or targets[k].split(","),
                    use_rslora=name in rslora, use_dora=name in dora, task_type="CAUSAL_LM",
                )  # fmt: skip
                how = dict(steps=steps, lr=lr, batch_size=batch_size, max_tokens=max_tokens, seed=seed + k)
                with quiet_transformers():
                    tensors, config, losses = finetune(base.model, base.tokenizer, pairs, config, **how)
                training = dict(
                    base=base_model, variant="rsLoRA" if name in rslora else "DoRA" if name in dora else "LoRA",
                    rank=rank[k], alpha=alpha[k], targets=targets[k], data=file.name, split=f"{k + 1} of {splits}",
                    pairs=len(pairs), **how, losses=losses,
                )  # fmt: skip
                save_teacher(folder, tensors, config, base_model, pairs, domain, training)
            how = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            records.append({"name": name, "domain": domain, "status": "kept" if kept else "trained", **how})
            on_teacher(records[-1])
    return records


def table(records: list[dict]) -> pd.DataFrame:
    """`train_teachers`' records for people; the loss is the mean over the first and the last quarter of the steps."""
    columns = ["name", "domain", "variant", "rank", "alpha", "targets", "split", "pairs", "steps", "lr", "status"]
    frame = pd.DataFrame(records)[columns].set_index("name")
    quarters = [max(1, len(r["losses"]) // 4) for r in records]
    frame.insert(9, "first loss", [f"{np.mean(r['losses'][:q]):.2f}" for r, q in zip(records, quarters, strict=True)])
    frame.insert(10, "last loss", [f"{np.mean(r['losses'][-q:]):.2f}" for r, q in zip(records, quarters, strict=True)])
    return frame


def per_split(value, splits: int, name: str) -> list:
    """`value` as a list with one entry per split. Raises InputError if a list has another length."""
    values = list(value) if isinstance(value, list | tuple) else [value] * splits
    if len(values) != splits:
        raise InputError(f"{name} has {len(values)} values for {splits} splits; give one value, or one per split")
    return values


def _write_json(path: Path, value) -> None:
    write_whole(path, lambda file: file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()))
