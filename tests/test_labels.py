"""What is known of adapters beside their deltas, and which of it parts them."""

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from llgbm_nb import InputError, analysis, evidence
from llgbm_nb.collection import find_adapters, label_table, stem


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("code-4", "code"), ("gsm8k_001", "gsm8k"), ("boolq_seed3", "boolq"), ("x/y-v2", "x/y"), ("run", "run"),
        ("math_step-500", "math"), ("007", "007"), ("llama3", "llama"), ("sql checkpoint 12", "sql"),
    ],
)  # fmt: skip
def test_a_stem_is_the_name_without_the_number_at_its_end(name, expected):
    assert stem(name) == expected


def test_labels_are_stem_configuration_and_columns_of_the_file(zoo, tmp_path):
    root = shutil.copytree(zoo, tmp_path / "zoo")
    table = label_table(find_adapters(root), root)
    assert list(table) == ["stem", "kind", "rank", "modules"] and len(table) == 5
    assert set(table["rank"]) == {"4", "16", "8"} and "DoRA r8 all linear" in set(table["kind"])
    rows = [f"{a.path},{a.domain},{i % 2},the same" for i, a in enumerate(find_adapters(root)[:4])]
    (root / "labels.csv").write_text("\n".join(["path,domain,owner,rank", *rows]))
    table = label_table(find_adapters(root), root)
    assert [*table["owner"]] == ["0", "1", "0", "1", "unknown"]  # a column of equal values is left out
    assert list(table) == ["stem", "kind", "rank", "modules", "owner"]
    (root / "labels.csv").write_text("where,owner\na,b\n")
    with pytest.raises(InputError, match="labels.csv"):
        label_table([], root)


def test_every_label_has_its_silhouette_and_its_agreement():
    random = np.random.default_rng(0)
    domains, ranks = ["a"] * 6 + ["b"] * 6, ["4", "8", "16"] * 4
    deltas = random.normal(size=(3, 16))[[int(r) // 8 for r in ranks]] + 0.2 * random.normal(size=(12, 16))
    groups = analysis.find_groups(deltas)
    table = evidence.by_label(deltas, domains, pd.DataFrame({"rank": ranks, "one": ["x"] * 11 + ["unknown"]}), groups)
    for name, labels in {"domain": domains, "rank": ranks}.items():
        row = table.loc[name]
        assert row["silhouette"] == pytest.approx(silhouette_score(deltas, labels, metric="cosine"))
        assert row["groups"] == adjusted_rand_score(labels, groups.labels) and row["values"] == len(set(labels))
        assert row["domains"] == adjusted_rand_score(labels, domains)
        assert row["low"] <= row["silhouette"] <= row["high"]
    assert table.loc["rank", "p"] == 0.001 and table.loc["domain", "p"] > 0.5 and table.loc["rank", "groups"] == 1
    assert np.isnan(table.loc["one", "silhouette"])
