"""Embeddings of the pool's adapters, each as cosines (adapters, adapters), with the seconds per adapter."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from llgbm_nb import analysis, compute_deltas, create_probes
from llgbm_nb.evidence import alternatives
from llgbm_nb.forward.base import BaseModel

PROBES = ("generic", "math", "code", "commonsense", "mixed")
RANK = 32  # that canonical factors are padded to


def canonical(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's factors as the singular value decomposition of B A has them: B = U sqrt(S), A = sqrt(S) V^T.

    The sign of a column is that by which the largest entry of U is positive.
    """
    found = {}
    for name, a in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        other = name.replace("lora_A", "lora_B")
        left, core = torch.linalg.qr(tensors[other].float())
        right, side = torch.linalg.qr(a.float().T)
        u, s, vt = torch.linalg.svd(core @ side.T, full_matrices=False)
        u, vt = left @ u, vt @ right.T
        signs = u.gather(0, u.abs().argmax(dim=0, keepdim=True)).sign()
        root, rank = s.sqrt(), len(s)
        b, a = u * signs * root, vt * signs.T * root[:, None]
        found[name] = torch.nn.functional.pad(a, (0, 0, 0, RANK - rank))
        found[other] = torch.nn.functional.pad(b, (0, RANK - rank))
    return found


def every(adapters, base: BaseModel, base_name: str, cache_dir, encoder: str = "") -> Iterator:
    """(name, cosines, seconds per adapter) of each embedding."""
    ways = {
        "flattened weights": lambda: alternatives.flattened_weights(adapters)[0],
        "canonical factors": lambda: alternatives.flattened_weights(adapters, canonical)[0],
        "weight change": lambda: alternatives.weight_changes(adapters, base.model)[0],
        "salient mask": lambda: alternatives.salient_masks(adapters)[0],
    }
    if encoder:
        model = alternatives.load_encoder(encoder, base)
        ways["output sentences"] = lambda: alternatives.output_sentences(adapters, create_probes("mixed"), base, model)[
            0
        ]
    for name, way in ways.items():
        start = time.perf_counter()
        cosines = way()
        yield name, cosines, (time.perf_counter() - start) / len(adapters)
    for probes in PROBES:
        run = compute_deltas(adapters, create_probes(probes), cache_dir=cache_dir, base_model=base_name)
        seconds, joined = float(np.mean([record["seconds"] for record in run.records])), []
        for layer in run.delta_set.layer_numbers[1:]:
            deltas = run.delta_set.deltas(layer)
            for how, each in (("", deltas), (", centered", analysis.centered(deltas))):
                cosines = analysis.similarity(each)
                yield f"delta, {probes}, layer {layer}{how}", cosines, seconds
            joined.append(cosines)
        yield f"delta, {probes}, all layers, centered", np.mean(joined, axis=0), seconds
