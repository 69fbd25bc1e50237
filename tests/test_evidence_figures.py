"""The pictures of evidence: they are drawn, say what their numbers say, and are a sentence where there is nothing."""

import numpy as np
import pandas as pd
import pytest
from test_analysis import planted
from test_tuning import found

from llgbm_nb import evidence
from llgbm_nb.evidence import figures, layer_choice


def title(figure) -> str:
    figure.canvas.draw()
    return figure._suptitle.get_text() if figure._suptitle else figure.axes[0].get_title(loc="left")


def trusted(*ratios) -> pd.DataFrame:
    return pd.DataFrame({"ratio": ratios, "flagged": [ratio < 10 for ratio in ratios]})


def test_the_flagged_ones_are_counted_and_lie_in_the_red_part():
    figure = figures.trust(trusted(88_123.0, 0.0, 9.0, np.inf))
    assert "2 of 4 deltas are too near to rounding" in title(figure)
    [axis] = figure.axes
    points, [red] = axis.lines[0].get_xdata(), axis.patches
    assert sum(points < red.get_x() + red.get_width()) == 2
    assert "All 2 deltas are at least 30 times" in title(figures.trust(trusted(33.0, 88_123.0)))


def test_the_axis_of_trust_has_plain_numbers():
    figure = figures.trust(trusted(33.0, 88_123.0))
    figure.canvas.draw()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "1,000" in ticks and not any("$" in tick for tick in ticks)


@pytest.mark.parametrize(("noise", "words"), [(0.1, "hardly by chance"), (1e9, "")])
def test_chance_shows_the_true_labels_among_the_shuffled_ones(noise, words):
    chance = evidence.permutation_test(*planted(per_domain=4, noise=noise), permutations=99)
    figure = figures.chance(chance)
    assert f"Silhouette {chance.score:.2f}, p = {chance.p:.3f}" in title(figure) and words in title(figure)
    [axis] = figure.axes
    assert sum(bar.get_height() for bar in axis.containers[0]) == 99
    assert axis.lines[0].get_xdata()[0] == chance.score


def test_the_grid_has_both_halves_and_frames_what_was_picked():
    sets = {"one": found((0, 0.3, 1, 2)), "other": found((2, 1, 0.3, 0), seed=1)}
    choice, grid = layer_choice.choose(sets, splits=10), layer_choice.silhouette_grid(sets)
    figure = figures.silhouette_grid(grid, choice)
    assert f"scores {choice.held_out:.2f} on the other" in title(figure)
    name, layer, center = choice.setting
    axis = figure.axes[int(center)]
    assert axis.lines[0].get_xydata()[0].tolist() == [layer, list(sets).index(name)]
    assert not figure.axes[1 - center].lines
    for axis, center in zip(figure.axes, (False, True), strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), grid[center])


def test_fewer_probes():
    counts = layer_choice.by_probe_count(found((1, 1)))
    figure = figures.probe_counts(counts)
    assert title(figure) == f"Silhouette {counts['mean'][1]:.2f} with one probe, {counts['mean'][3]:.2f} with all 3"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), counts["mean"])


def test_nothing_to_show_is_a_sentence():
    alone = found((1, 1)).subset([0, 3])  # of one domain
    sets = {"one": alone}
    for figure in (
        figures.trust(trusted()),
        figures.chance(evidence.permutation_test(alone.deltas(), alone.domains)),
        figures.silhouette_grid(layer_choice.silhouette_grid(sets), layer_choice.choose(sets)),
        figures.probe_counts(layer_choice.by_probe_count(alone)),
    ):
        assert len(figure.axes[0].texts) == 1 and not figure.axes[0].axison


def test_shuffled_labellings_that_are_all_alike_have_a_bar_that_can_be_seen():
    shuffled = -0.02 + 1e-6 * np.arange(99)
    figure = figures.chance(evidence.Chance(0.5, 0.01, (0.49, 0.51), shuffled, 1.0, 0.1, 0.01))
    figure.canvas.draw()
    [axis] = figure.axes
    assert min(bar.get_width() for bar in axis.containers[0]) * 200 > np.ptp(axis.get_xlim())
