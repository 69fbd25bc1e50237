"""Nearest adapters and near-duplicates, beside scikit-learn's, and cosines written out."""

import shutil

import numpy as np
import pytest
from conftest import PROBES
from pool import cos, delta_of, with_b_scaled
from sklearn.neighbors import NearestNeighbors

from llgbm_nb import InputError, compute_deltas, uses
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.uses import nearest


@pytest.fixture
def run(pool_run):
    return pool_run


def test_nearest_as_scikit_learn_finds_them(run):
    deltas = run.delta_set.deltas()
    distances, order = NearestNeighbors(metric="cosine").fit(deltas).kneighbors(deltas, 4)
    for i, name in enumerate(run.delta_set.names):
        table = uses.nearest_to(run.delta_set, name, k=3)
        assert list(table["neighbour"]) == [run.delta_set.names[j] for j in order[i] if j != i][:3]
        np.testing.assert_allclose(table["cosine"], 1 - distances[i][order[i] != i][:3], atol=1e-5)
        assert list(table["domain"]) == [run.delta_set.domains[j] for j in order[i] if j != i][:3]


def test_nearest_at_another_layer_and_of_all(run):
    table = uses.nearest_to(run.delta_set, "a", k=99, layer=1)
    a, b = (run.delta_set.deltas(1)[run.delta_set.names.index(name)] for name in "ab")
    assert len(table) == 5 and table.set_index("neighbour").loc["b", "cosine"] == pytest.approx(cos(a, b), abs=1e-5)


def test_nearest_by_hand_at_a_layer(run):
    names, deltas = run.delta_set.names, run.delta_set.differences_at(1).mean(axis=1)
    for i, name in enumerate(names):
        cosines = [cos(deltas[i], other) for other in deltas]
        expected = sorted(set(range(len(names))) - {i}, key=lambda j: -cosines[j])[:3]
        found = uses.nearest_to(run.delta_set, name, k=3, layer=1)
        assert list(found["neighbour"]) == [names[j] for j in expected] and found.index.name == f"nearest to {name}"


def test_neighbours_and_duplicates_of_centered_deltas_at_a_layer(run):
    found, deltas = run.delta_set, run.delta_set.deltas(1).astype(np.float64)
    rest = deltas - deltas.mean(axis=0)
    pairs = {(i, j): cos(rest[i], rest[j]) for i in range(6) for j in range(i + 1, 6)}
    table = uses.near_duplicates(found, threshold=-1.0, layer=1, centered=True)
    ours = {(found.names.index(r.adapter), found.names.index(r.other)): r.cosine for r in table.itertuples()}
    assert ours == pytest.approx(pairs, abs=1e-5)
    row = uses.nearest_to(found, found.names[2], k=1, layer=1, centered=True).iloc[0]
    assert row["cosine"] == pytest.approx(max(c for pair, c in pairs.items() if 2 in pair), abs=1e-5)


def test_of_very_many_near_duplicates_some_are_listed(run, monkeypatch):
    every = uses.near_duplicates(run.delta_set, threshold=-1.0)
    assert len(every) == 15 and not every.attrs["more"]
    monkeypatch.setattr(nearest, "PAIRS", 4)
    some = uses.near_duplicates(run.delta_set, threshold=-1.0)
    assert len(some) == 4 and some.attrs["more"]
    assert len(uses.near_duplicates(run.delta_set, fingerprints=["one"] * 6)) == 4


def test_an_unknown_name_is_reported_with_those_spelt_like_it(run):
    with pytest.raises(InputError, match="called 'dorra'; did you mean dora"):
        uses.nearest_to(run.delta_set, "dorra")


def test_one_adapter_or_none_has_no_neighbours_and_no_pairs(run):
    for few in (run.delta_set.subset([0]), run.delta_set.subset([])):
        assert uses.nearest_to(few).empty and uses.near_duplicates(few).empty


def test_without_a_name_it_is_the_first(run):
    table = uses.nearest_to(run.delta_set, k=2)
    assert table.equals(uses.nearest_to(run.delta_set, "a", k=2)) and table.index.name == "nearest to a"
    assert list(table.index) == [1, 2]


def test_near_duplicates_are_the_copy_and_the_scaled_one_and_nothing_else(pool, base, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(pool, root)
    shutil.copytree(root / "one/b", root / "two/copy")
    small = with_b_scaled(root / "two/c", root / "two/small", 1e-3)  # so small that the change is linear
    with_b_scaled(small, root / "two/half", 0.5)
    found = compute_deltas(root, PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    table = uses.near_duplicates(found.delta_set, fingerprints=uses.fingerprints(found))
    assert [tuple(row) for row in table[["adapter", "other", "why"]].to_numpy()] == [
        ("b", "copy", "same files"),
        ("half", "small", "same direction"),
    ]
    assert table["cosine"].to_numpy() == pytest.approx([1, 1], abs=1e-3)
    assert table["norm ratio"].to_numpy() == pytest.approx([1, 2], rel=1e-2)


@pytest.mark.parametrize("block", [1, 3, 256])
def test_near_duplicates_block_by_block_are_those_of_the_whole_matrix(run, monkeypatch, block):
    monkeypatch.setattr(nearest, "BLOCK", block)
    found, n = run.delta_set, len(run.delta_set)
    table = uses.near_duplicates(found, threshold=0.1, fingerprints=[None] * n)
    expected = [
        (found.names[i], found.names[j])
        for i in range(n)
        for j in range(i + 1, n)
        if cos(delta_of(run, found.names[i]), delta_of(run, found.names[j])) > 0.1
    ]
    assert expected and [tuple(row) for row in table[["adapter", "other"]].to_numpy()] == expected


def test_the_cache_knows_the_fingerprints_of_the_files(run):
    assert uses.fingerprints(run) == [Adapter(path, "").fingerprint for path in run.delta_set.paths]


def test_the_fingerprints_decide_where_they_are_given(run):
    prints = [f"{number}" for number in range(len(run.delta_set))]
    prints[4] = prints[1]
    table = uses.near_duplicates(run.delta_set, fingerprints=prints)
    assert list(table["why"]) == ["same files"] and table["adapter"][0] == run.delta_set.names[1]
