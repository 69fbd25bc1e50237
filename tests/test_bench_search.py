"""The benchmark of adapter embeddings: its tasks, its scores, and its smallest form from end to end."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from llgbm_nb.files import ROOT

sys.path.append(str(ROOT / "benchmarks/search"))
import embeddings
import recipe
import robustness
import scores
import tasks


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_has_pairs_the_same_every_time_and_holds_some_out(name):
    mine, again = tasks.pairs(name, 40, 1), tasks.pairs(name, 40, 1)
    held_out = tasks.pairs(name, 30, "held out", held_out=True)
    assert mine == again != tasks.pairs(name, 40, 2)
    assert len(mine) == 40 and len(held_out) >= 20
    prompts = [pair["prompt"] for pair in mine + held_out]
    assert len({*prompts}) == len(prompts) and all(pair["response"].strip() for pair in mine + held_out)
    assert all("{" not in pair["prompt"] or name == "from_json" for pair in mine)  # every field was filled in


def test_there_are_enough_tasks_and_families():
    families = pd.Series({name: task.family for name, task in tasks.TASKS.items()})
    assert len(families) >= 24 and families.nunique() >= 6 and families.value_counts().min() >= 4


def test_some_answers_are_right():
    for pair in tasks.pairs("roman", 30, 0):
        number = int("".join(c for c in pair["prompt"] if c.isdigit()))
        values = [dict(I=1, V=5, X=10, L=50, C=100)[c] for c in pair["response"]]
        after = [*values[1:], 0]
        assert number == sum(-v if v < n else v for v, n in zip(values, after, strict=True))
    for pair in tasks.pairs("binary", 30, 0):
        assert int(pair["response"], 2) == int([w for w in pair["prompt"].rstrip("?.").split() if w.isdigit()][0])
    for pair in tasks.pairs("write_python", 20, 0):
        exec(pair["response"], found := {})
        assert callable(next(value for key, value in found.items() if key != "__builtins__"))


def test_adapters_of_a_task_are_trained_otherwise_and_the_same_every_time():
    size = recipe.Size()
    every = [recipe.configuration(f"roman-{n}", size) for n in range(40)]
    assert every[0] == recipe.configuration("roman-0", size)
    for key in ("rank", "modules", "lr", "steps", "seed", "data"):
        assert len({each[key] for each in every}) > 2


def test_scores_of_queries():
    asked, names = ["a", "b"], ["a", "a", "b", "c"]
    gains = np.array([[0.5, 1.0, 0.1, 0.0], [0.0, 0.0, 0.8, 1.0]])
    found = scores.of_queries(np.array([[4.0, 3, 2, 1], [1.0, 4, 3, 2]]), gains, asked, names)
    assert found["hit@1"].tolist() == [True, False] and found["MRR"].tolist() == [1.0, 0.5]
    assert found["mAP"].tolist() == [1.0, 0.5] and found["recall@20"].all()
    assert found["regret"].tolist() == [0.5, 1.0] and found["verified regret"].tolist() == [0, 0]
    table = scores.summary(found)
    assert table.loc["MRR", "mean"] == 0.75 and (table["low"] <= table["mean"]).all()
    assert table.loc["hit@1", ["low", "high"]].tolist() == [0, 1]


def test_scores_of_embeddings():
    names, families = ["a", "a", "b", "b"], ["x", "x", "x", "y"]
    near = np.array([[1, 0.9, 0.1, 0], [0.9, 1, 0.2, 0], [0.1, 0.2, 1, 0.15], [0, 0, 0.15, 1]])
    found = scores.of_embedding(near, names, families)
    assert found["hit@1"].tolist() == [True, True, False, True]
    assert found["hit@1, family"].tolist() == [True, True, True, False]
    assert found["MRR"].tolist() == [1, 1, 0.5, 1]
    noise = scores.silhouettes(np.eye(4), names)
    assert noise == [pytest.approx(0.0)] and scores.silhouettes(near, names)[0] > 0.1


def test_what_a_delta_depends_on_shows_in_pairs_that_have_it_in_common():
    """Made-up adapters whose delta is the task, and, in a second set, the rank."""
    random, tasks = np.random.default_rng(0), [f"t{n // 4}" for n in range(40)]
    ranks = [str(n % 2) for n in range(40)]
    settings = pd.DataFrame({"rank": ranks, "seed": random.integers(0, 2, 40).astype(str)})
    for labels, row in ((tasks, ("task", "all")), (ranks, ("rank", "two tasks"))):
        centres = {label: random.normal(size=50) for label in {*labels}}
        deltas = np.stack([centres[label] + 0.1 * random.normal(size=50) for label in labels])
        deltas /= np.linalg.norm(deltas, axis=1, keepdims=True)
        found = robustness.by_setting(deltas @ deltas.T, tasks, settings).set_index(["setting", "pairs of"])
        assert found.loc[row, "low"] > 0.5
        for other in (("seed", "one task"), ("seed", "two tasks")):
            assert abs(found.loc[other, "difference"]) < 0.1


def test_canonical_factors_are_the_same_change_and_the_same_however_it_was_factored():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 24, generator=random), torch.randn(40, 4, generator=random)
    mix = torch.randn(4, 4, generator=random) + 4 * torch.eye(4)
    one = embeddings.canonical({"x.lora_A.weight": a, "x.lora_B.weight": b})
    other = embeddings.canonical({"x.lora_A.weight": mix @ a, "x.lora_B.weight": b @ torch.linalg.inv(mix)})
    torch.testing.assert_close(one["x.lora_B.weight"] @ one["x.lora_A.weight"], b @ a, rtol=1e-4, atol=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)


def test_the_smallest_form_from_end_to_end_and_again_from_what_is_kept(base, tmp_path):
    command = [sys.executable, ROOT / "benchmarks/search", tmp_path, "--base", base, "--only", "roman,to_json,polite"]
    command += ["--adapters", "2", "--queries", "1", "--examples", "3", "--few", "1"]
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=one)
    queries, every = (pd.read_csv(tmp_path / f"{name}.csv", index_col=0) for name in ("queries", "embeddings"))
    assert {"gain by size", "fine-tuned, layer 3", "in context, 3 examples, layer 3, centered"} <= {*queries.index}
    assert {"flattened weights", "canonical factors", "delta, generic, layer 3"} <= {*every.index}
    # Verified by loss, the best of six adapters is found whatever proposes them.
    assert set(queries["verified regret"]) == {"0.00 (0.00 to 0.00)"}
    assert queries.loc["loss on all examples", "regret"] == "0.00 (0.00 to 0.00)"
    tables = {name: pd.read_csv(tmp_path / f"robustness-{name}.csv") for name in ("settings", "mixed", "full")}
    assert len(tables["settings"]) == 2 * 6 + 1 and len(tables["mixed"]) == len(tables["full"]) == 1
    assert 1 <= tables["mixed"]["rank of the sum"].item() <= tables["mixed"]["of"].item() == 3
    assert 1 <= tables["full"]["rank of the first"].item() <= 5
    again = subprocess.run(command, check=True, capture_output=True, text=True, env=one).stdout
    assert "trained" not in again and "losses of" not in again and "gains for" not in again
    assert pd.read_csv(tmp_path / "queries.csv", index_col=0).equals(queries)
