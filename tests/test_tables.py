import numpy as np
import pandas as pd
import pytest
from test_geometry import planted

from llgbm_nb import analysis
from llgbm_nb.analysis import tables

NO_TRUST = pd.DataFrame({"ratio": [], "spread": [], "flagged": []})


def test_neighbours_are_the_most_similar_others():
    deltas, _ = planted()
    names = [f"n{i}" for i in range(18)]
    table = analysis.neighbour_table(deltas, names, ["d"] * 18, k=4)
    assert list(table) == ["domain", "nearest", "nearest 2", "nearest 3", "nearest 4"] and list(table.index) == names
    unit = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
    for i, name in enumerate(names):
        order = [j for j in np.argsort(-(unit @ unit[i])) if j != i][:4]
        assert list(table.loc[name])[1:] == [f"{names[j]} ({unit[i] @ unit[j]:.2f})" for j in order] and i not in order
    assert list(analysis.neighbour_table(deltas[:2], names[:2], "dd", k=5)) == ["domain", "nearest"]
    for few in (0, 1):
        assert analysis.neighbour_table(deltas[:few], names[:few], "d" * few).shape == (few, 0)


def record(status, norm=np.nan, reason=""):
    return dict(
        name=f"{status}{norm}", domain="d", kind="LoRA", norm=norm, relative=norm / 50, seconds=1.0, status=status,
        route="PEFT", reason=reason, path="p",
    )  # fmt: skip


def test_summary_counts_and_statistics():
    records = [record("computed", 3.0), record("cached", 5.0), record("cached", 10.0), record("failed", reason="x")]
    assert analysis.summary(records) == {
        "total": 4, "computed": 1, "cached": 2, "failed": 1,
        "norm": dict(min=3.0, max=10.0, mean=6.0, std=pytest.approx(np.std([3, 5, 10])), median=5.0),
    }  # fmt: skip
    assert "norm" not in analysis.summary(records[-1:])
    assert analysis.summary_text(records).startswith(
        "4 adapters: 3 with a delta, 1 failed (1 computed now, 2 from the cache)\nnorm: min 3.00"
    )


def test_the_table_has_a_reason_only_where_something_failed():
    assert "reason" not in analysis.table([record("cached", 5.0)], NO_TRUST)
    table = analysis.table([record("cached", 5.0), record("failed", reason="it is broken")], NO_TRUST)
    assert list(table["norm"]) == ["5.00", "–"] and list(table["reason"]) == ["", "it is broken"]


def test_the_table_has_trust_beside_the_norm():
    records = [record("cached", 5.0) | {"name": "a"}, record("failed", reason="broken") | {"name": "b"}]
    records.append(record("cached", 0.1) | {"name": "c"})
    trust = pd.DataFrame({"ratio": [4.0, 88_123.0], "spread": [np.inf, 0.325], "flagged": [True, False]}, ["c", "a"])
    table = analysis.table(records, trust)
    assert list(table["beside noise"]) == ["88,000 ×", "–", "4 × (flagged)"]
    assert list(table["spread"]) == ["32 %", "–", "–"]
    assert list(table) == [
        "domain", "kind", "norm", "of base", "beside noise", "spread", "route", "seconds", "status", "reason"
    ]  # fmt: skip
    assert list(table.loc["a"])[:4] == ["d", "LoRA", "5.00", "10.0 %"] and table.loc["b", "of base"] == "–"
    assert list(table["route"]) == ["PEFT", "–", "PEFT"] and list(table["seconds"]) == ["1.0 s", "–", "1.0 s"]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (np.nan, "–"),
        (np.inf, "∞ ×"),
        (0.0, "0 ×"),
        (0.1234, "0.12 ×"),
        (9.96, "10 ×"),
        (2.345, "2.3 ×"),
        (9e4, "90,000 ×"),
    ],
)
def test_ratios_have_two_digits(ratio, text):
    assert analysis.times(ratio) == text


def test_label_text():
    assert analysis.label_text(["b", "a", "b"]) == "Domains: a 1, b 2"
    assert "2 without a label" in analysis.label_text(["unknown", "a", "unknown"])


def test_of_many_adapters_a_row_is_a_domain(monkeypatch):
    records = [record("cached", norm) | {"name": f"n{norm}", "domain": "a"} for norm in (1.0, 2.0, 6.0)]
    records += [record("failed", reason="cut off") | {"name": "x", "domain": "b", "kind": "DoRA"}]
    names = ["n1.0", "n2.0", "n6.0"]
    trust = pd.DataFrame({"ratio": [5.0, 50.0, 500.0], "spread": 0.1, "flagged": [True, False, False]}, names)
    pd.testing.assert_frame_equal(analysis.overview(records, trust), analysis.table(records, trust))
    monkeypatch.setattr(tables, "ROWS", 3)
    rows = analysis.overview(records, trust)
    assert list(rows.index) == ["a", "b"] and list(rows["adapters"]) == [3, 1] and list(rows["failed"]) == [0, 1]
    assert rows.loc["a", "norm"] == "1.00 – 2.00 – 6.00" and rows.loc["b", "norm"] == "–"
    assert rows.loc["a", "flagged"] == 1 and rows.loc["a", "beside noise, least"] == "5 ×"
    assert list(rows["kinds"]) == ["LoRA", "DoRA"]


def test_of_many_adapters_neighbours_are_counted_by_domain(monkeypatch):
    deltas, domains = planted(noise=0.1)
    names = [f"n{i}" for i in range(18)]
    domains[0] = "b"  # it lies with a
    pd.testing.assert_frame_equal(
        analysis.neighbour_overview(deltas, names, domains), analysis.neighbour_table(deltas, names, domains)
    )
    monkeypatch.setattr(tables, "ROWS", 17)
    rows = analysis.neighbour_overview(deltas, names, domains)
    nearest = (analysis.similarity(deltas) - 2 * np.eye(18)).argmax(axis=1)
    for domain in "abc":
        mine = [i for i in range(18) if domains[i] == domain]
        share = np.mean([domains[nearest[i]] == domain for i in mine])
        assert rows.loc[domain, "nearest is of the domain"] == f"{100 * share:.0f} %"
        assert rows.loc[domain, "by chance"] == f"{100 * (len(mine) - 1) / 17:.0f} %"
    assert rows.loc["b", "else most often of"] == "a (1)" and rows.loc["c", "else most often of"] == "–"


def test_of_very_many_failures_the_first_are_listed(monkeypatch):
    monkeypatch.setattr(tables, "FAILURES", 2)
    lines = analysis.failure_text([record("failed", reason="cut off")] * 5).splitlines()
    assert len(lines) == 3 and lines[0].endswith("cut off") and lines[-1].startswith("… and 3 more")
