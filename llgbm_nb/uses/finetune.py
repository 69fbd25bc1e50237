"""Fine-tuning LoRA teachers from prompt/response files, with PEFT.

A data file is a JSON list of `{"prompt", "response", "system"?}`. It is cut into disjoint splits, and each split trains
one adapter, `<output>/<domain>/<domain>-<split>/`: bfloat16 safetensors, prompts.json (`{"prompts", "task"}`: what it
was trained on) and training.json (how, and the loss of every step). Deltas are unknown here.
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
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..files import shown, write_whole
from ..forward.base import BaseModel, load_base
from ..progress_bar import quiet_transformers

TARGETS = {"qv": ["q_proj", "v_proj"], "attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "all": "all-linear"}


def read_pairs(path: str | Path) -> list[dict]:
    """The prompt/response pairs of one data file. Raises InputError naming the file and the entry that is wrong."""
    try:
        pairs = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f'{path} is not a JSON list of {{"prompt", "response"}} objects')
    return checked_pairs(pairs, path)


def checked_pairs(pairs: list, where: str | Path) -> list[dict]:
    """The pairs as they are. Raises InputError naming the entry of `where` that is none."""
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict) or not all(isinstance(pair.get(k), str) for k in ("prompt", "response")):
            raise InputError(f'entry {number} of {where} needs the texts "prompt" and "response"')
    return pairs


def find_data_files(data: str | Path) -> list[Path]:
    """The data files in a folder (`{domain}.json`), sorted, or the one file. Raises InputError if there is none."""
    data = Path(data)
    if not (files := sorted(data.glob("*.json")) if data.is_dir() else [data] * data.is_file()):
        raise InputError(f"there is no data file {shown(data)}: give a JSON file of pairs, or a folder of such files")
    return files


def encode(tokenizer, pair: dict, max_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of one pair, cut to `max_tokens`; prompt tokens have the label -100 (no loss)."""
    prompt, adds = prompt_of(tokenizer, pair), not tokenizer.chat_template
    head = tokenizer(prompt, add_special_tokens=adds)["input_ids"][: max_tokens - 1]
    tail = tokenizer(pair["response"] + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
    return (head + tail)[:max_tokens], ([-100] * len(head) + tail)[:max_tokens]


def prompt_of(tokenizer, pair: dict) -> str:
    """The prompt of a pair up to where the response begins, in the chat template if there is one."""
    if not tokenizer.chat_template:
        return "\n".join([*filter(None, [pair.get("system")]), pair["prompt"], ""])
    turns = [{"role": "system", "content": pair["system"]}] if pair.get("system") else []
    turns.append({"role": "user", "content": pair["prompt"]})
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def train_lora(
    model, tokenizer, pairs: list[dict], config: LoraConfig, *, steps: int, lr: float, batch_size: int,
    max_tokens: int, seed: int,
) -> tuple[dict[str, torch.Tensor], LoraConfig, list[float]]:  # fmt: skip
    """Train one LoRA adapter on `pairs` with AdamW and a linearly falling learning rate.

    The base `model` is handed back unwrapped, its weights untouched. Returns the adapter's tensors in bfloat16 (PEFT's
    names), its config, and the loss of every step. Raises InputError if the loss diverges.
    """
    torch.manual_seed(seed)
    shuffler, queue, losses = random.Random(seed), [], []
    encoded, adapted = [encode(tokenizer, pair, max_tokens) for pair in pairs], get_peft_model(model, config)
    try:
        adapted.train()
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        for step in range(steps):
            while len(queue) < batch_size:
                queue += shuffler.sample(encoded, len(encoded))
            batch, queue = _batch(queue[:batch_size], model.device), queue[batch_size:]
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            loss = adapted(**batch).loss
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


def _batch(encoded: list[tuple[list[int], list[int]]], device) -> dict[str, torch.Tensor]:
    """Pairs side by side, padded on the right, where there is neither attention nor loss: int64 (pairs, tokens)."""
    ids, labels = ([torch.tensor(row) for row in column] for column in zip(*encoded, strict=True))
    rows = {"input_ids": ids, "attention_mask": [torch.ones_like(row) for row in ids], "labels": labels}
    return {key: pad_sequence(rows[key], True, -100 if key == "labels" else 0).to(device) for key in rows}


def train_teacher(folder: Path, base: BaseModel, pairs: list[dict], config: LoraConfig, task: str, about: dict, **how):
    """Train one teacher and write its folder, its config last: without one, it is trained again.

    training.json says `about`, with the name of the `base`, and `how`, the options of `train_lora`.
    """
    with quiet_transformers():
        tensors, config, losses = train_lora(base.model, base.tokenizer, pairs, config, **how)
    config.base_model_name_or_path, config.inference_mode = about["base"], True
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    prompts = {"prompts": [pair["prompt"] for pair in pairs], "task": task}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    files = {"prompts": prompts, "training": about | how | {"losses": losses}, "adapter_config": settings}
    for name, content in files.items():
        write_whole(folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def train_teachers(
    base_model: str, data_files: Iterable[Path], teacher_dir: str | Path, *, splits: int, rank, alpha, targets,
    rslora: Iterable[str] = (), dora: Iterable[str] = (), steps: int = 40, lr: float = 3e-4, batch_size: int = 4,
    max_tokens: int = 160, seed: int = 0, on_teacher: Callable[[dict], object] | None = None,
) -> list[dict]:  # fmt: skip
    """Train `splits` teachers for every data file, on disjoint parts of equal size; its name is their domain.

    Teachers that are there are kept. `rank`, `alpha` and `targets` (a key of TARGETS, or module names with commas) are
    one value, or a list of one per split. `rslora` and `dora` name teachers of these variants. After each,
    `on_teacher(record)` is called. Returns the records: a teacher's training.json with `name`, `domain` and `status`
    ("trained" or "kept"). Raises InputError for unusable files or values.
    """
    each, base, records = {"rank": rank, "alpha": alpha, "targets": targets}, None, []
    for name, value in each.items():
        each[name] = values = list(value) if isinstance(value, list | tuple) else [value] * splits
        if len(values) != splits:
            raise InputError(f"{name} has {len(values)} values for {splits} splits; give one value, or one per split")
    for file in data_files:
        pairs = read_pairs(file)
        random.Random(seed).shuffle(pairs)
        if (size := len(pairs) // splits) == 0:
            raise InputError(f"{len(pairs)} pairs are too few for {splits} splits")
        for k in range(splits):
            name, own = f"{file.stem}-{k + 1}", {key: values[k] for key, values in each.items()}
            folder = Path(teacher_dir) / file.stem / name
            if not (kept := (folder / "adapter_config.json").exists()):
                base = base or load_base(base_model, "bfloat16")
                config = LoraConfig(
                    r=own["rank"], lora_alpha=own["alpha"], use_rslora=name in rslora, use_dora=name in dora,
                    target_modules=TARGETS.get(own["targets"]) or own["targets"].split(","), task_type="CAUSAL_LM",
                )  # fmt: skip
                variant = "rsLoRA" if name in rslora else "DoRA" if name in dora else "LoRA"
                about = {"base": base_model, "variant": variant, **own, "data": file.name}
                about |= {"split": f"{k + 1} of {splits}", "pairs": size}
                train_teacher(
                    folder, base, pairs[k * size : (k + 1) * size], config, file.stem, about,
                    steps=steps, lr=lr, batch_size=batch_size, max_tokens=max_tokens, seed=seed + k,
                )  # fmt: skip
            record = {"name": name, "domain": file.stem, "status": "kept" if kept else "trained"}
            records.append(record | json.loads((folder / "training.json").read_bytes()))
            if on_teacher:
                on_teacher(records[-1])
    return records


def table(records: list[dict]) -> pd.DataFrame:
    """`train_teachers`' records for people; a loss is the mean over the first or the last quarter of the steps."""
    frame = pd.DataFrame(records).set_index("name")
    frame["first loss"] = [round(np.mean(each[: max(1, len(each) // 4)]), 2) for each in frame["losses"]]
    frame["last loss"] = [round(np.mean(each[-max(1, len(each) // 4) :]), 2) for each in frame["losses"]]
    return frame[["domain", "variant", "rank", "alpha", "targets", "split", "pairs", "steps", "lr",
                  "first loss", "last loss", "status"]]  # fmt: skip


def about_losses(records: list[dict]) -> str:
    """How many teachers' loss fell, and whose fell least: what there is to see in `figures.losses`."""
    first, last = (table(records)[column] for column in ("first loss", "last loss"))
    least, fallen = (last / first).idxmax(), f"{(last < first).sum()} of {len(records)} teachers"
    change = f"from {first[least]:.2f} to {last[least]:.2f}, means over the first and the last quarter of the steps"
    return f"The loss fell for {fallen}, least for {least} ({change})."
