import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.transforms import Bbox
from scipy.cluster.hierarchy import leaves_list

from llgbm_nb import analysis, figures
from llgbm_nb.analysis import geometry, projection
from llgbm_nb.figures import collection as pictures
from llgbm_nb.figures.styles import domain_styles

RNG = np.random.default_rng(0)


def collection(count, domains):
    return RNG.normal(size=(count, 8)).astype(np.float32), [f"adapter-{i}" for i in range(count)], domains


def draw_all(deltas, names, domains):
    score = analysis.silhouette(deltas, domains)
    empty, pairs = pd.Series([np.nan], index=[0]), analysis.pairs(deltas, domains)
    return {
        "map": figures.projection_map(analysis.tsne(deltas), names, domains, score),
        "heatmap": figures.every_pair(pairs, names, domains),
        "means": figures.domain_means(pairs, domains),
        "bars": figures.silhouette_bars(score, names, domains),
        "layers": figures.silhouette_layers(empty, empty),
        "norms": figures.norms(analysis.norms(deltas), domains, 50.0),
    }


def texts(figure):
    titles = [axis.get_title(loc="left") for axis in figure.axes] + [figure.get_suptitle()]
    return " ".join([*titles, *(text.get_text() for axis in figure.axes for text in axis.texts)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 80])
@pytest.mark.parametrize("labels", [["a"], ["a", "b"], ["unknown"], [f"domain-{i}" for i in range(12)]], ids=len)
def test_every_figure_is_drawn_or_says_in_a_sentence_why_not(tmp_path, count, labels):
    domains = [labels[i % len(labels)] for i in range(count)]
    for name, figure in draw_all(*collection(count, domains)).items():
        figures.show(figure, tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert not plt.get_fignums()  # nothing is left to be shown twice or to pile up


def test_dollars_in_names_are_dollars(tmp_path):
    deltas, _, _ = collection(6, None)
    names, domains = [f"$\\frac{i}$" for i in range(6)], ["$x$", "$\\y"] * 3
    for name, figure in draw_all(deltas, names, domains).items():
        figures.show(figure, tmp_path, name)


def test_names_that_begin_with_a_bar_are_in_the_legend(tmp_path):
    deltas, names, _ = collection(6, None)
    drawn = draw_all(deltas, [f"_{name}" for name in names], ["_x", "y"] * 3)
    for name in ("map", "heatmap", "bars"):
        found = [text.get_text().strip() for a in drawn[name].axes if a.get_legend() for text in a.get_legend().texts]
        assert found == ["_x", "y"], name


def test_very_long_names_are_cut_and_the_pictures_stay_small(tmp_path):
    deltas, _, _ = collection(6, None)
    long = "/".join("n" * 240 for _ in range(8))
    for name, figure in draw_all(deltas, [f"{i}{long}{i}" for i in range(6)], [f"a{long}", f"b{long}"] * 3).items():
        figures.show(figure, tmp_path, name)
        assert max(plt.imread(tmp_path / f"{name}.png").shape) < 3000, name


def test_very_many_probes_are_a_histogram_and_some_of_them(tmp_path):
    states = RNG.normal(size=(1001, 3, 4)).astype(np.float32)
    counts = figures.token_counts([5, 6] * 600, ["a"] * 1200, 256)
    assert len(counts.axes[0].patches) < 60 and not counts.axes[0].texts
    assert texts(counts).startswith("All 1,200 probes fit: at most 6 of 256")
    assert len(figures.base_norms(states).axes[0].lines) < 202
    similar = figures.probe_similarity(analysis.similarity(states[:, 0]))
    assert similar.axes[0].collections[0].get_array().shape == (167, 167) and "one of 6 is shown" in texts(similar)


def test_show_hands_the_figure_back_or_shows_it_with_what_there_is_to_see(tmp_path, capsys, monkeypatch):
    displayed = []
    monkeypatch.setattr(pictures, "display", displayed.append)
    figure = figures.sentence("Nothing to see.")
    assert figures.show(figure, None, "a") is figure and figures.show(figure, tmp_path / "new", "a") is figure
    assert not displayed and (tmp_path / "new" / "a.png").exists()
    assert figures.show(figure, tmp_path, "b", "Two of three are alike.") is None  # a cell would show it twice
    assert displayed == [figure] and capsys.readouterr().out == "Two of three are alike.\n"
    assert (tmp_path / "b.png").exists()


def test_sentences():
    drawn = draw_all(*collection(1, ["a"]))
    assert "at least four" in texts(drawn["map"]) and "at least two adapters" in texts(drawn["heatmap"])
    assert "at least two domains" in texts(drawn["bars"])


@pytest.mark.parametrize("count", [15, 150])
def test_no_two_names_on_the_map_overlap(count):
    deltas, names, domains = collection(count, ["a", "b", "c"] * (count // 3))
    figure = figures.projection_map(analysis.tsne(deltas), names, domains, analysis.silhouette(deltas, domains))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) >= min(count, 15) * 2 // 3
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_names_on_the_axes_are_left_out_where_they_would_overlap():
    for count, there in ((20, True), (100, False)):
        drawn = draw_all(*collection(count, ["a", "b"] * (count // 2)))
        for name in ("heatmap", "bars"):
            ticks = [label.get_text() for axis in drawn[name].axes for label in axis.get_yticklabels()]
            assert ("adapter-3" in ticks) is there


def test_titles_say_the_finding():
    deltas, names, domains = collection(9, ["a", "b", "c"] * 3)
    score = analysis.silhouette(deltas, domains)
    drawn = draw_all(deltas, names, domains)
    assert f"{score.score:.2f}" in texts(drawn["map"]) and f"{score.score:.2f}" in texts(drawn["bars"])
    cosines = analysis.similarity(deltas)
    within = [cosines[i, j] for i in range(9) for j in range(9) if i != j and domains[i] == domains[j]]
    assert f"within a domain {np.mean(within):.2f}" in texts(drawn["heatmap"])
    some = ["a", "b", "c"] * 2 + ["unknown"] * 3  # in no score
    mean = np.mean([cosines[i, j] for i in range(6) for j in range(6) if i != j and some[i] == some[j]])
    assert f"within a domain {mean:.2f}" in texts(draw_all(deltas, names, some)["heatmap"])


@pytest.mark.parametrize("count", [15, 60, 600])
def test_bars_and_points_have_their_domains_colour_however_many_there_are(count):
    centres = np.eye(3, 8)[np.arange(count) % 3]
    deltas, names, domains = collection(count, ["a", "b", "c"] * (count // 3))
    drawn = draw_all((0.1 * deltas + centres).astype(np.float32), names, domains)
    for name in ("bars", "map", "norms", "heatmap"):
        for legend in filter(None, (*(axis.get_legend() for axis in drawn[name].axes), *drawn[name].legends)):
            legend.remove()
        drawn[name].canvas.draw()
        pixels = np.asarray(drawn[name].canvas.buffer_rgba())[..., :3]
        for colour, _ in domain_styles(domains).values():
            wanted = np.array(plt.matplotlib.colors.to_rgb(colour)) * 255
            share = (abs(pixels - wanted).max(axis=-1) < 40).mean()
            assert share > 1e-4 * (20 if name == "bars" else 1), (name, colour, share)


# -- large collections -------------------------------------------------------------------------------------------------


@pytest.fixture
def many(monkeypatch):
    """A collection of thirty domains that counts as very large."""
    for module in (geometry, projection, pictures):
        monkeypatch.setattr(module, "MANY", 100)
    monkeypatch.setattr(pictures, "MAP_LABELS", 100)
    monkeypatch.setattr(geometry, "SHOWN", 70)
    domains = [f"domain-{i % 30:02d}" if i % 50 else "unknown" for i in range(240)]
    centres = np.eye(32)[np.arange(240) % 30]
    return (centres + 0.3 * RNG.normal(size=(240, 32))).astype(np.float32), [f"a{i}" for i in range(240)], domains


def test_every_pair_of_many_is_some_of_them_and_the_means_are_of_all(many, tmp_path):
    deltas, names, domains = many
    pairs, (all_means, within, across) = analysis.pairs(deltas, domains), analysis.domain_means(deltas, domains)
    figure = figures.show(figures.every_pair(pairs, names, domains), tmp_path, "similarity")
    title, shown = figure.get_suptitle().splitlines()
    assert title == f"Cosine within a domain {within:.2f}, across domains {across:.2f}"
    assert shown == "Shown: 70 of the 240 adapters, of every domain alike"
    np.testing.assert_array_equal(np.sort(drawn_in(figure)), np.sort(geometry.similarity(deltas[pairs.shown]), None))

    figure = figures.show(figures.domain_means(pairs, domains), tmp_path, "means")
    assert figure.get_suptitle() == "Mean cosine by domain, of all 240 adapters"
    labels = [label.get_text() for label in heatmap_of(figure).get_yticklabels()]
    assert sorted(labels) == sorted(set(domains) - {"unknown"})
    np.testing.assert_allclose(drawn_in(figure), all_means.loc[labels, labels].to_numpy().ravel())


def heatmap_of(figure):
    return max(figure.axes, key=lambda axis: axis.bbox.width * axis.bbox.height)


def drawn_in(figure):
    """The heatmap's cosines, row by row."""
    return np.asarray(heatmap_of(figure).collections[0].get_array()).ravel()


def test_of_few_every_pair_is_all_of_them_in_the_order_of_the_tree():
    deltas, names, domains = collection(9, ["a", "b", "c"] * 3)
    pairs = analysis.pairs(deltas, domains)
    axis = heatmap_of(figure := figures.every_pair(pairs, names, domains))
    order = leaves_list(pairs.tree)
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == [names[i] for i in order]
    np.testing.assert_array_equal(drawn_in(figure), analysis.similarity(deltas)[np.ix_(order, order)].ravel())
    assert axis.collections[0].get_cmap().name == "RdBu_r" and axis.collections[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("deltas", [np.zeros((1000, 4)), np.ones((1000, 4))], ids=["zero", "equal"])
def test_a_tree_that_is_a_chain_is_drawn(deltas):
    domains = ["a", "b"] * 500
    assert drawn_in(figures.every_pair(analysis.pairs(deltas, domains), domains, domains)).shape == (10**6,)


@pytest.mark.parametrize("kinds", [2, 30])
@pytest.mark.parametrize("count", [5, 20, 60, 80])
def test_nothing_overlaps_on_the_heatmap(count, kinds):
    domains = [f"a-domain-with-a-name-{i % kinds}" for i in range(count)]
    deltas, names, _ = collection(count, domains)
    names = [f"{name}-r16-all-linear-{i}" for i, name in enumerate(names)]
    figure = figures.every_pair(analysis.pairs(deltas, domains), names, domains)
    figure.draw_without_rendering()
    axis = heatmap_of(figure)
    legend = axis.get_legend().get_window_extent()
    title = figure._suptitle.get_window_extent()
    for other in figure.axes:  # the ticks' labels, too
        box = Bbox.union([other.patch.get_window_extent(), *(t.get_window_extent() for t in other.get_yticklabels())])
        assert not legend.overlaps(box) and not title.overlaps(box)
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) == (count if count <= pictures.LABELS else 0)
        assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[1:], strict=False))
    assert {text.get_text() for text in axis.get_legend().get_texts()} == set(domains)


def test_a_map_of_many_has_the_domains_names_and_all_of_them_in_its_legend(many):
    deltas, names, domains = many
    figure = figures.projection_map(analysis.tsne(deltas), names, domains, analysis.silhouette(deltas, domains))
    figure.draw_without_rendering()
    [axis] = figure.axes
    assert 10 < len(axis.texts) <= 30 and {text.get_text() for text in axis.texts} <= set(domains) - {"unknown"}
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert {text.get_text() for text in axis.get_legend().get_texts()} == set(domains)
    assert axis.get_legend().get_window_extent().height < figure.bbox.height


def test_of_very_many_domains_the_legend_has_the_largest(many):
    deltas, names, _ = many
    domains = [f"d{i % 80}" if i % 3 else "large" for i in range(240)]
    figure = figures.projection_map(deltas[:, :2], names, domains, analysis.silhouette(deltas, domains), ("x", "y"))
    legend = figure.axes[0].get_legend()
    assert len(legend.get_texts()) == pictures.KEYS and "large" in {text.get_text() for text in legend.get_texts()}
    assert legend.get_title().get_text() == f"the 40 largest of {len(set(domains))} domains"


def test_silhouettes_of_many_are_one_outline_per_domain(many):
    deltas, names, domains = many
    score = analysis.silhouette(deltas, domains)
    figure = figures.silhouette_bars(score, names, domains)
    figure.canvas.draw()
    [axis] = figure.axes
    assert len(axis.patches) == 0 and len(axis.collections) == 30
    reach = max(path.vertices[:, 0].max() for area in axis.collections for path in area.get_paths())
    assert reach == pytest.approx(np.nanmax(score.samples))
