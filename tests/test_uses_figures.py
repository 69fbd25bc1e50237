"""The pictures of `uses`: they say what is in their tables."""

import dataclasses

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from pool import folder_of

from llgbm_nb import uses
from llgbm_nb.forward.base import load_base
from llgbm_nb.uses import figures


@pytest.fixture
def run(pool_run):
    return pool_run


@pytest.fixture
def loaded(base):
    return load_base(str(base))


def title(figure) -> str:
    return figure.axes[0].get_title(loc="left")


def points_of(figure) -> np.ndarray:
    return np.concatenate([c.get_offsets() for c in figure.axes[0].collections if isinstance(c, PathCollection)])


def asked(run, queries, truths):
    cosines, domains = uses.query_cosines(run, queries), run.delta_set.domains
    return uses.query_figure(cosines, domains, uses.query_accuracy(cosines, domains, truths))


def test_the_pictures_say_what_is_in_the_tables(run, loaded):
    table = uses.additivity(run, loaded)
    nearer = int((table["cosine"] > table["single"]).sum())
    assert f"nearer than either in {nearer} of 6 pairs" in title(uses.additivity_figure(table))
    queries = {"one-a": folder_of(run, "a"), "two-b": folder_of(run, "b")}
    assert "query's domain in 1 of 2 queries" in title(asked(run, queries, {"one-a": "one", "two-b": "two"}))
    merge = uses.merge_or_reason(run, loaded, ["a", "c"])
    assert f"cosine {merge['cosine']:.3f} to the sum" in title(uses.merge_figure(merge))


def test_a_search_shows_every_gain_and_of_many_adapters_each_domains_best(run, loaded, monkeypatch):
    examples = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(4)]
    answers = {"one-task": uses.search(run, examples, 99, base=loaded), "two-task": uses.search(run, examples, 1)}
    better = sum(table["low"].iloc[0] > 0 for table in answers.values())
    figure = uses.search_figure(answers)
    assert f"For {better} of 2 queries an adapter is better" in title(figure)
    points = points_of(figure)
    for row, table in enumerate(answers.values()):
        gains = sorted([*table["gain"], table["gain"].iloc[0]])  # the best one has a ring, too
        np.testing.assert_allclose(sorted(points[points[:, 1] == row, 0]), gains)
    monkeypatch.setattr(figures, "MANY", 3)
    points = points_of(uses.search_figure(answers))
    best = answers["one-task"].groupby("domain")["gain"].max()
    assert {*best.round(9)} == {*points[points[:, 1] == 0, 0].round(9)}


def test_nothing_to_show_is_a_sentence(run, loaded):
    alone = dataclasses.replace(run, delta_set=run.delta_set.subset([0]))
    for figure in (
        uses.additivity_figure(uses.additivity(alone, loaded)),
        asked(run, {}, {}),
        uses.search_figure({}),
        uses.merge_figure(uses.merge_or_reason(alone, loaded, ["a"])),
    ):
        assert len(figure.axes[0].texts) == 1 and not figure.axes[0].axison


def test_of_many_adapters_each_domain_has_one_point_for_a_query(run, monkeypatch):
    queries, domains = {"one-a": folder_of(run, "a")}, run.delta_set.domains
    monkeypatch.setattr(figures, "MANY", 3)
    cosines = uses.query_cosines(run, queries)
    figure = asked(run, queries, {"one-a": "one"})
    points = [offsets[:, 0] for offsets in (c.get_offsets() for c in figure.axes[0].collections[:-1])]
    expected = [[cosines.iloc[0, [i for i, d in enumerate(domains) if d == domain]].max()] for domain in ("one", "two")]
    np.testing.assert_allclose(points, expected)
