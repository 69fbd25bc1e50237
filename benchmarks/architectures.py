"""Every decoder architecture of the installed transformers, at a tiny size: route, error and speed of an adapter on it.

`python benchmarks/architectures.py [name ...]` prints the table of docs/architectures.md. Each architecture
has random weights and six LoRA adapters on all linear layers; the reference is a fresh base with PEFT, one probe at a
time. An error is the largest distance of a delta from the reference's, over all layers, in parts of the reference's
norm. Each runs in a process of its own, which is given up after a time.
"""

import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # its byte tokenizer
SECONDS = 90  # for one architecture
ADAPTERS = 6
PROBES = [
    "What is 2 + 2?\nAnswer:",
    "Say so",
    "def f(x):\n",
    "A probe that is much longer than all of the others, on purpose.",
]

# What a tiny model has: by the names that configs use for it.
_SIZES = {
    32: "hidden_size d_model n_embd dim model_dim embedding_size intermediate_size_mlp",
    64: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dim_ff d_ff ffn_hidden_size lru_width",
    260: "vocab_size vocab_size_per_layer_input",
    512: "max_position_embeddings n_positions max_seq_len n_ctx",
    4: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads num_heads "
       "num_experts num_local_experts n_routed_experts moe_num_experts index_n_heads "
       "num_hidden_layers n_layer n_layers decoder_layers encoder_layers num_layers",
    2: "num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_k top_k top_k_experts "
       "n_shared_experts index_topk_freq",
    8: "rotary_dim hidden_size_per_layer_input head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_lora_rank "
       "q_lora_rank linear_key_head_dim linear_value_head_dim",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_ffn_hidden_size",
    1: "n_group topk_group first_k_dense_replace",
    0: "num_kv_shared_layers",
}  # fmt: skip
_TINY = {name: size for size, names in _SIZES.items() for name in names.split()}
_TINY |= dict(pad_token_id=257, bos_token_id=258, eos_token_id=257, is_decoder=True)


def names() -> list[str]:
    """A model type for each class of causal language model that transformers has."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = {}
    for key, value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if value not in found or CONFIG_MAPPING[key].model_type == key:  # gpt2, and not gpt-sw3
            found[value] = key
    return sorted(found.values())


def tiny_config(model_type: str):
    """A config of this type, as small as its own rules allow."""
    import inspect

    from transformers import CONFIG_MAPPING

    own = _OWN.get(model_type, {})
    kind = CONFIG_MAPPING[model_type]
    fields = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__dataclass_fields__", ()))
    if "text_config" in fields and "text_config" not in own:
        text = kind().get_text_config()
        return kind(text_config=tiny_config(text.model_type).to_dict())
    asked = {name: value for name, value in _TINY.items() if name in fields}
    if "kv_lora_rank" in fields:  # latent attention has no groups of heads
        asked["num_key_value_heads"] = 4
    asked |= own
    return kind(**asked)


_MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_d_conv=4, mamba_expand=2)
_OWN: dict[str, dict] = {
    "bamba": _MAMBA | dict(attn_layer_indices=[1, 3]),
    "dots3_note_text": dict(num_key_value_heads=4),
    "falcon_h1": _MAMBA | dict(mamba_d_ssm=64),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "granitemoehybrid": _MAMBA | dict(layer_types=["mamba", "attention"] * 2),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "mamba2": dict(num_heads=4, head_dim=16, state_size=8, n_groups=1),
    "zaya": dict(num_experts_per_tok=1),
}


def measure(model_type: str, work: Path, adapters: int = ADAPTERS) -> dict:
    """{"route", "float32": error, "bfloat16": error, "speed": times PEFT's, "notes"}; "no base" with its reason."""
    import torch
    from conftest import byte_tokenizer
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from llgbm_nb.progress_bar import quiet_transformers

    base = work / "base"
    torch.manual_seed(0)
    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float32)
            if getattr(model.config, "is_encoder_decoder", False):
                return {"no base": "an encoder-decoder"}
            model.eval().save_pretrained(base)
            byte_tokenizer().save_pretrained(base)
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            model(torch.tensor([[1, 2, 3]]))
        except Exception as error:
            return {"no base": f"{type(error).__name__}: {str(error)[:200]}"}
        for left_out in ([], ["out_proj"], ["router"]):  # which PEFT refuses on Mamba's layers, or cannot wrap
            try:
                config = LoraConfig(r=4, target_modules="all-linear", exclude_modules=left_out, init_lora_weights=False)
                wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
                wrapped(torch.tensor([[1, 2, 3]]))
                break
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
        else:
            return {"no adapter": reason}
        before, exact = None, {}
        with contextlib.suppress(RuntimeError):  # its hidden states are not of one shape
            before = states(model)
        for number in range(adapters):
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.data = torch.randn_like(parameter) * (0.01 if "lora_B" in name else 0.2)
            if before is not None:
                exact[f"a{number}"] = states(wrapped) - before
            wrapped.save_pretrained(work / "zoo" / f"a{number}")
    return {"left_out": left_out} | compare(base, work / "zoo", before, exact)


def states(model, probes: list[str] = PROBES):
    """a(M) of a whole model, one probe at a time: float32 (probes, layers + 1, hidden)."""
    import torch
    from conftest import byte_tokenizer

    ids = [torch.tensor([byte_tokenizer()(probe)["input_ids"]]) for probe in probes]
    with torch.no_grad():
        found = [model.eval()(each, output_hidden_states=True).hidden_states for each in ids]
    return torch.stack([torch.cat([layer[:, -1] for layer in each]) for each in found]).numpy()


def compare(base: Path, zoo: Path, before, exact: dict) -> dict:
    """The engine's differences beside the `exact` ones, and its time beside that of a fresh base for each adapter."""
    import numpy as np

    from llgbm_nb import compute_deltas
    from llgbm_nb.errors import InputError
    from llgbm_nb.evidence.reference import reference_activations
    from llgbm_nb.progress_bar import quiet_transformers

    start, reloaded = time.perf_counter(), 0.0
    with quiet_transformers():
        for name in exact:
            its = reference_activations(str(base), PROBES, str(zoo / name)) - before
            reloaded = max(reloaded, float(np.linalg.norm(its - exact[name]) / np.linalg.norm(exact[name])))
    found, seconds = {"reloaded": reloaded}, time.perf_counter() - start
    for dtype in ("float32", "bfloat16"):
        try:
            settings = dict(base_model=str(base), cache_dir=zoo.parent / f"deltas-{dtype}", dtype=dtype)
            start = time.perf_counter()
            run = compute_deltas(zoo, PROBES, **settings)
        except InputError as error:
            found |= {"route": "-", "refused": str(error)[:300]}
            continue
        except Exception as error:
            found |= {"route": "-", "crashed": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        if dtype == "float32":
            found["speed"] = round(seconds / (time.perf_counter() - start), 1)
            found["route"] = "+".join(sorted({record["route"] or record["reason"][:200] for record in run.records}))
            found["notes"] = " | ".join(run.notes)
        else:
            found["notes in bfloat16"] = " | ".join(run.notes)
        if not exact:
            continue
        far, rounding = [], 1e-6 * np.linalg.norm(before.mean(0, dtype=np.float64), axis=-1)  # of the base, by layer
        for name, own in zip(run.delta_set.names, run.delta_set.differences, strict=True):
            own = np.asarray(own)
            gap, size = (np.linalg.norm(x.mean(0, dtype=np.float64), axis=-1) for x in (own - exact[name], exact[name]))
            far.append(np.max(gap[size > 0] / size[size > 0], initial=0.0))
            found["wrong"] = found.get("wrong", False) or (
                dtype == "float32" and bool((gap > 1e-5 * size + rounding).any())
            )
        found[dtype] = float(max(far, default=np.nan))
        found["changed"] = float(np.linalg.norm(exact["a0"][:, -1]) / np.linalg.norm(before[:, -1]))
    return found


def main(parts: list[str]) -> None:
    processes = multiprocessing.get_context("forkserver")  # what all of them import is imported once
    processes.set_forkserver_preload(["torch", "transformers", "peft", "conftest", "llgbm_nb.forward.engine"])
    chosen = [name for name in names() if not parts or name in parts]

    def in_a_process(name: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            process = processes.Process(target=_measured, args=(name, folder))
            process.start()
            process.join(SECONDS)
            if process.is_alive():
                process.kill()
                return {"no base": f"not done in {SECONDS} s"}
            file = Path(folder) / "found.json"
            return json.loads(file.read_text()) if file.exists() else {"no base": "its process died"}

    with ThreadPoolExecutor(2) as pool:
        print(table(dict(zip(chosen, pool.map(in_a_process, chosen), strict=True))))


def table(results: dict[str, dict]) -> str:
    """docs/architectures.md."""
    measured = {name: found for name, found in results.items() if "float32" in found}
    stacked = [name for name, found in measured.items() if found["route"] == "stacked"]
    wrong = [name for name, found in measured.items() if found["wrong"]]
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in ("torch", "transformers", "peft"))
    lines = [
        "# Architectures\n",
        f"Printed by `python benchmarks/architectures.py` on {time.strftime('%Y-%m-%d')} ({versions}): every class of "
        f"causal language model that transformers has, at a tiny size with random weights, {ADAPTERS} LoRA adapters on "
        "all linear layers, experts among them. An error is the largest distance of a delta, at any layer, from that "
        "of PEFT on a fresh base, one probe at a time, in parts of its norm; both round, by some 1e-7 of the base's "
        "norm, which is more of a delta that is small beside it. Wrong is more than 1e-5 of the delta's norm plus 1e-6 "
        "of the base's. Speed is the time of a fresh base for each adapter over the engine's; models as "
        "tiny as these show what a pass costs beside its arithmetic (two processes side by side on two cores, so "
        "roughly).\n",
        f"**{len(stacked)} of {len(measured)} on the stacked route, {len(wrong)} wrong.**\n",
        "| architecture | route | error, float32 | bfloat16 | speed | |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in measured.items():
        notes = found["notes"] + found.get("notes in bfloat16", "")
        words = {
            "each probe has a pass of its own": "a row for each probe",
            "one adapter a pass": "one adapter a pass",
            "sends each token to a few experts": "experts: bfloat16 runs in float32",
            "moves a delta by": "the run says what bfloat16 does to it",
        }
        said = [text for words_in_note, text in words.items() if words_in_note in notes]
        said += ["PEFT's own loading loses a part"] * (found["reloaded"] > 1e-3)
        said += [f"without {each}, which PEFT refuses or cannot wrap" for each in found["left_out"]]
        errors = f"{found['float32']:.0e} | {found['bfloat16']:.1%}"
        lines.append(f"| {name} | {found['route']} | {errors} | {found['speed']} | {'; '.join(said)} |")
    lines.append("\nNot measured:\n")
    for name, found in results.items():
        if name not in measured:
            reasons = [found[key] for key in ("refused", "no base", "no adapter", "crashed") if key in found]
            lines.append(f"* {name}: {' '.join(reasons[0].split())[:150] if reasons else 'nothing came back'}")
    return "\n".join(lines)


def _measured(name: str, folder: str) -> None:
    result = measure(name, Path(folder))
    (Path(folder) / "found.json").write_text(json.dumps(result))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    main(sys.argv[1:])
