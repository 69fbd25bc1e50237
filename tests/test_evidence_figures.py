"""The pictures of evidence: they are drawn, say what their numbers say, and are a sentence where there is nothing."""

import numpy as np
import pandas as pd
import pytest
from test_geometry import planted
from test_layer_choice import found

from llgbm_nb import evidence
from llgbm_nb.evidence import layer_choice


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch):
    """What is planted does not depend on the tests that ran before: one in twenty draws of noise has p below 0.05."""
    monkeypatch.setattr("test_geometry.RNG", np.random.default_rng(0))


def title(figure) -> str:
    figure.canvas.draw()
    return figure._suptitle.get_text() if figure._suptitle else figure.axes[0].get_title(loc="left")


def trusted(*ratios) -> pd.DataFrame:
    return pd.DataFrame({"ratio": ratios, "flagged": [ratio < 10 for ratio in ratios]})


def test_the_flagged_ones_are_counted_and_lie_in_the_red_part():
    figure = evidence.trust_figure(trusted(88_123.0, 0.0, 9.0, np.inf))
    assert "2 of 4 deltas are too near to rounding" in title(figure)
    [axis] = figure.axes
    points, [red] = axis.lines[0].get_xdata(), axis.patches
    assert sum(points < red.get_x() + red.get_width()) == 2
    assert "All 2 deltas are 33 × or more what rounding does" in title(evidence.trust_figure(trusted(33.0, 88_123.0)))


def test_the_axis_of_trust_has_plain_numbers():
    figure = evidence.trust_figure(trusted(33.0, 88_123.0))
    figure.canvas.draw()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "1,000" in ticks and not any("$" in tick for tick in ticks)


@pytest.mark.parametrize(("noise", "words"), [(0.1, ": hardly by chance"), (1e9, ": possibly by chance")])
def test_chance_shows_the_true_labels_among_the_shuffled_ones(noise, words):
    chance = evidence.permutation_test(*planted(per_domain=4, noise=noise), permutations=99)
    figure = evidence.chance_figure(chance)
    assert f"Silhouette {chance.score:.2f}, p = {chance.p:.3f}" in title(figure) and words in title(figure)
    [axis] = figure.axes
    assert sum(bar.get_height() for bar in axis.containers[0]) == 99
    assert axis.lines[0].get_xdata()[0] == chance.score


def test_no_title_says_hardly_by_chance_beside_an_interval_with_0_in_it():
    drawn = title(evidence.chance_figure(evidence.Chance(0.24, 0.002, (-0.02, 0.4), np.zeros(99), 0.6, 0.3, 0.01)))
    assert drawn == "Silhouette 0.24, p = 0.002: not by chance alone, but its interval begins at -0.02"


def test_the_grid_has_both_halves_and_frames_what_was_picked():
    sets = {"one": found((0, 0.3, 1, 2)), "other": found((2, 1, 0.3, 0), seed=1)}
    choice, grid = layer_choice.choose(sets), layer_choice.silhouette_grid(sets)
    figure = evidence.grid_figure(grid, choice)
    assert f"scores {choice.held_out:.2f} on adapters left out, the run's own setting {choice.own:.2f}" in title(figure)
    name, layer, centered = choice.setting
    axis = figure.axes[int(centered)]
    assert axis.lines[0].get_xydata()[0].tolist() == [layer, list(sets).index(name)]
    assert not figure.axes[1 - centered].lines
    for axis, centered in zip(figure.axes, (False, True), strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), grid[centered])


def test_fewer_probes():
    counts = layer_choice.by_probe_count(found((1, 1)))
    figure = evidence.count_figure(counts)
    assert title(figure) == f"Silhouette {counts['mean'][1]:.2f} with one probe, {counts['mean'][3]:.2f} with all 3"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), counts["mean"])


def test_nothing_to_show_is_a_sentence():
    alone = found((1, 1)).subset([0, 3])  # of one domain
    sets = {"one": alone}
    for figure in (
        evidence.trust_figure(trusted()),
        evidence.chance_figure(evidence.permutation_test(alone.deltas(), alone.domains)),
        evidence.grid_figure(layer_choice.silhouette_grid(sets), layer_choice.choose(sets)),
        evidence.count_figure(layer_choice.by_probe_count(alone)),
    ):
        assert len(figure.axes[0].texts) == 1 and not figure.axes[0].axison


def test_shuffled_labellings_that_are_all_alike_have_a_bar_that_can_be_seen():
    shuffled = -0.02 + 1e-6 * np.arange(99)
    figure = evidence.chance_figure(evidence.Chance(0.5, 0.01, (0.49, 0.51), shuffled, 1.0, 0.1, 0.01))
    figure.canvas.draw()
    [axis] = figure.axes
    assert min(bar.get_width() for bar in axis.containers[0]) * 200 > np.ptp(axis.get_xlim())
