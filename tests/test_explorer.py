"""The explorer's numbers, without a browser: what is shown equals `analysis` for the same setting."""

import re
from dataclasses import replace
from itertools import combinations

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from plotly.callbacks import InputDeviceState, Points
from test_geometry import delta_set

from llgbm_nb import InputError, analysis
from llgbm_nb.figures import view
from llgbm_nb.figures.explorer import explore

RNG = np.random.default_rng(0)
DOMAINS = ["law", "code", "math"] * 4


@pytest.fixture
def found():
    centres = {domain: RNG.normal(size=16) for domain in DOMAINS}
    differences = RNG.normal(size=(12, 3, 5, 16)) + np.stack([centres[d] for d in DOMAINS])[:, None, None]
    differences[:, :, 0] = 0
    return delta_set(differences.astype(np.float32), DOMAINS)


@pytest.fixture
def explorer(found):
    return explore(found)


def shown(explorer) -> float:
    return float(re.search(r"silhouette by domain (-?\d\.\d{3})", explorer.headline.value)[1])


def expected(found, layer, probes=None, centered=False) -> float:
    deltas = found.deltas(layer, probes)
    return analysis.silhouette(analysis.centered(deltas) if centered else deltas, found.domains).score


def positions(explorer) -> np.ndarray:
    """The points of the figure, in the order of the adapters."""
    points = np.zeros((12, 2))
    for trace in explorer.figure.data[:3]:
        mine = [i for i, domain in enumerate(DOMAINS) if domain == trace.name]
        points[mine] = np.c_[trace.x, trace.y]
    return points


def keys(explorer):
    """The legend's entries, in its order."""
    return [explorer.traces[f"key {i}"] for i in range(3)]


def test_it_begins_with_the_last_layer_and_all_probes(found, explorer):
    assert shown(explorer) == pytest.approx(expected(found, -1), abs=5e-4)
    assert "12 adapters · layer 4 (last) · 3 of 3 probes · deltas as they are · PCA" in explorer.headline.value
    np.testing.assert_allclose(abs(positions(explorer)), abs(analysis.pca(found.deltas())[0]), atol=1e-9)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("probes", [[0, 1, 2], [0, 2], [1]], ids=str)
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_every_setting_shows_the_numbers_of_analysis(found, explorer, layer, probes, centered):
    explorer.layer.value, explorer.centered.value = layer, centered
    for i, box in enumerate(explorer.probes):
        box.value = i in probes
    assert shown(explorer) == pytest.approx(expected(found, layer, probes, centered), abs=5e-4)
    deltas = found.deltas(layer, probes)
    compared = analysis.centered(deltas) if centered else deltas
    np.testing.assert_allclose(abs(positions(explorer)), abs(analysis.pca(compared)[0]), atol=1e-9)
    order = [i for d in ("code", "law", "math") for i in range(12) if DOMAINS[i] == d]
    cosines = analysis.similarity(compared)[np.ix_(order, order)]
    np.testing.assert_allclose(explorer.figure.data[4].z, cosines, atol=1e-6)
    curve = [expected(found, number, probes, centered) for number in range(1, 5)]
    np.testing.assert_allclose(explorer.figure.data[5].y[1:], curve)
    assert explorer.figure.data[5].y[0] is None and list(explorer.figure.data[6].x) == [layer]


def test_a_click_on_the_curve_sets_the_layer_and_one_on_the_heatmap_selects_a_pair(found, explorer):
    curve, heatmap = (explorer.traces[name] for name in ("curve", "heatmap"))
    curve._dispatch_on_click(Points(point_inds=[2], xs=[2], ys=[0.5]), InputDeviceState())
    assert explorer.layer.value == 2 and shown(explorer) == pytest.approx(
        expected(found, 2, [0, 1, 2], False), abs=5e-4
    )
    names = list(heatmap.y)
    heatmap._dispatch_on_click(Points(point_inds=[(1, 5)], xs=[names[5]], ys=[names[1]]), InputDeviceState())
    order = [i for d in ("code", "law", "math") for i in range(12) if DOMAINS[i] == d]
    one, other = order[1], order[5]
    assert (explorer.selected, explorer.other) == (one, other)
    assert list(explorer.traces["ring"].x) == list(explorer.view.points[[one, other], 0])
    cosine = analysis.similarity(found.deltas(2))[one, other]
    assert f"cosine with <b>{found.names[other]}</b>: {cosine:.3f}<br>" in explorer.nearest.value
    heatmap._dispatch_on_click(Points(point_inds=[(1, 1)], xs=[names[1]], ys=[names[1]]), InputDeviceState())
    assert (explorer.selected, explorer.other) == (one, None) and "cosine with" not in explorer.nearest.value


def test_it_begins_where_it_is_told(found):
    explorer = explore(found, 2, centered=True)
    assert explorer.layer.value == 2 and explorer.centered.value and "centered" in explorer.headline.value
    assert shown(explorer) == pytest.approx(expected(found, 2, [0, 1, 2], True), abs=5e-4)


def test_of_many_probes_a_range_is_chosen(found):
    probes = tuple(f"probe {i}" for i in range(101))
    base, random = np.zeros((101, 2, 3), np.float32), np.random.default_rng(0)
    differences = tuple(random.normal(size=(101, 2, 3)).astype(np.float32) for _ in range(12))
    explorer = explore(replace(found, probes=probes, base=base, differences=differences, layer_numbers=(0, 1)))
    assert "101 of 101 probes" in explorer.headline.value
    [control] = explorer.probes
    control.value = (3, 40)
    assert "38 of 101 probes" in explorer.headline.value
    expected = np.stack([each[2:40, 1].mean(axis=0) for each in differences])
    np.testing.assert_allclose(explorer.view.norms, np.linalg.norm(expected, axis=1), rtol=1e-5)


def test_no_probe_and_no_change_are_sentences(explorer):
    explorer.layer.value = 0
    assert explorer.headline.value.startswith(
        "All deltas are zero: no adapter changes anything at this layer. · 12 adapters · layer 0 (embeddings)"
    )
    explorer.layer.value = 2
    for box in explorer.probes[:-1]:
        box.value = False
    before = positions(explorer)
    explorer.select(0)
    explorer.probes[-1].value = False
    explorer.color.value, explorer.layer.value = "norm", 3
    assert explorer.headline.value.startswith("<b>No probe is ticked.")
    assert not any(len(trace.x) for trace in explorer.figure.data[:4]) and not explorer.figure.data[4].visible
    assert not explorer.figure.layout.shapes[0].visible and explorer.nearest.value == ""
    explorer.color.value, explorer.layer.value = "domain", 2
    explorer.probes[-1].value = True
    np.testing.assert_array_equal(positions(explorer), before)
    assert explorer.figure.data[4].visible and explorer.figure.layout.shapes[0].visible


def test_tsne_says_that_it_is_working_and_is_kept(found, explorer, monkeypatch):
    said = []
    explorer.headline.observe(lambda change: said.append(change["new"]), "value")
    explorer.projection.value = "t-SNE"
    assert "computing t-SNE of 12 adapters" in said[0] and said[-1].endswith("t-SNE")
    distances = np.linalg.norm(positions(explorer)[:, None] - positions(explorer), axis=-1)
    ours = analysis.tsne(found.deltas())
    np.testing.assert_allclose(distances, np.linalg.norm(ours[:, None] - ours, axis=-1), atol=1e-3)
    explorer.projection.value = "PCA"
    monkeypatch.setattr("llgbm_nb.figures.view.tsne", None)
    explorer.projection.value = "t-SNE"  # as it was
    assert explorer.figure.layout.xaxis.title.text.startswith("t-SNE 1")


def test_a_click_marks_an_adapter_and_lists_the_nearest(found, explorer):
    trace = explorer.figure.data[1]  # law: adapters 0, 3, 6, 9
    assert trace.name == "law"
    trace._dispatch_on_click(_points([2]), None)
    assert explorer.selected == 6
    cosines = analysis.similarity(found.deltas())
    nearest = sorted(set(range(12)) - {6}, key=lambda other: -cosines[6, other])[:10]
    listed = re.findall(r"<td>(n\d+)</td>.*?<td class=n>(-?\d\.\d{3})</td></tr>", explorer.nearest.value)
    assert [name for name, _ in listed] == [f"n{i}" for i in nearest]
    assert [float(cosine) for _, cosine in listed] == pytest.approx([cosines[6, i] for i in nearest], abs=5e-4)
    frame, row = explorer.figure.layout.shapes[0], list(explorer.figure.data[4].y).index("n6")
    assert frame.visible and (frame.y0, frame.y1) == (row - 0.5, row + 0.5)
    np.testing.assert_array_equal([explorer.figure.data[3].x, explorer.figure.data[3].y], positions(explorer)[[6]].T)
    explorer.layer.value = 1  # the mark goes with it
    np.testing.assert_array_equal([explorer.figure.data[3].x, explorer.figure.data[3].y], positions(explorer)[[6]].T)
    for wrong in (-1, 12):
        with pytest.raises(InputError, match="counted from 0 to 11"):
            explorer.select(wrong)
    assert explorer.selected == 6
    explorer.select(None)
    assert not explorer.figure.layout.shapes[0].visible and "Click on a point" in explorer.nearest.value


def _points(indices):
    from plotly.callbacks import Points

    return Points(point_inds=indices, xs=[0], ys=[0], trace_name="law", trace_index=1)


def test_hover_says_who_it_is(found, explorer):
    texts = [text for trace in explorer.figure.data[:3] for text in trace.hovertext]
    assert len(texts) == 12
    cosines = analysis.similarity(found.deltas())
    np.fill_diagonal(cosines, -1)
    [text] = [text for text in texts if text.startswith("<b>n5</b>")]
    assert f"math · LoRA · norm {np.linalg.norm(found.deltas()[5]):.2f}" in text
    assert f"n{cosines[5].argmax()} ({cosines[5].max():.2f})" in text


def test_colour_by_norm(found, explorer):
    explorer.color.value = "norm"
    sizes = np.linalg.norm(found.deltas(), axis=1)
    np.testing.assert_allclose(explorer.figure.data[1].marker.color, sizes[[0, 3, 6, 9]], rtol=1e-6)
    assert explorer.figure.layout.coloraxis2.showscale
    assert len({key.marker.color for key in keys(explorer)}) == 1  # the legend is of markers alone
    explorer.color.value = "domain"
    assert [key.marker.color for key in keys(explorer)] == [trace.marker.color for trace in explorer.figure.data[:3]]
    assert len({trace.marker.color for trace in explorer.figure.data[:3]}) == 3
    assert len({trace.marker.symbol for trace in explorer.figure.data[:3]}) == 3


def test_a_map_does_not_turn_over_between_layers(found):
    found.differences[:, :, 1:] = found.differences[:, :, 1:2]
    explorer = explore(found)
    before = positions(explorer)
    for layer in (3, 2, 1):
        explorer.layer.value = layer
        np.testing.assert_allclose(positions(explorer), before, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_collections(found, count):
    explorer = explore(found.subset(range(count)))
    explorer.projection.value = "t-SNE"
    explorer.layer.value = 1
    if count:
        explorer.select(0)
    assert f"{count} adapter{'' if count == 1 else 's'}" in explorer.headline.value
    assert explorer.headline.value.endswith("PCA (t-SNE needs four adapters)")
    assert explorer._repr_mimebundle_()["image/png"]


def test_some_layers_only(found):
    from dataclasses import replace

    some = replace(found, base=found.base[:, [1, 4]], differences=found.differences[:, :, [1, 4]], layer_numbers=(1, 4))
    explorer = explore(some)
    assert [label for label, _ in explorer.layer.options] == ["1", "4 (last)"]
    explorer.layer.value = 1
    assert shown(explorer) == pytest.approx(expected(found, 1), abs=5e-4)


def test_without_a_kernel_there_is_a_picture_and_a_line(explorer):
    bundle = explorer._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
    assert bundle["text/plain"].startswith("explorer: silhouette by domain")


def test_names_are_not_taken_for_markup(found):
    from dataclasses import replace

    names = tuple(f"<i>$x_{i}$ & co</i>" for i in range(12))
    explorer = explore(replace(found, names=names))
    explorer.select(0)
    assert "<i>" not in explorer.nearest.value and "&lt;i&gt;" in explorer.nearest.value
    assert not any("<i>" in text or "$" in text for trace in explorer.figure.data[:3] for text in trace.hovertext)


def test_nothing_in_it_can_hang_a_headless_run(explorer):
    def all_of(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from all_of(child)

    assert not any(isinstance(widget, widgets.Output) for widget in all_of(explorer))


def test_a_heatmap_of_many_is_of_means_within_a_domain(found, monkeypatch):
    monkeypatch.setattr("llgbm_nb.figures.view.CELLS", 6)
    explorer = explore(found)
    cosines = analysis.similarity(found.deltas())
    rows = [(1, 4), (7, 10), (0, 3), (6, 9), (2, 5), (8, 11)]  # code, law, math
    expected = [[np.mean([cosines[i, j] for i in one for j in other]) for other in rows] for one in rows]
    np.testing.assert_allclose(explorer.figure.data[4].z, expected, atol=1e-6)
    assert explorer.figure.data[4].y[1] == "n7 … n10 (2)"
    explorer.select(9)
    assert explorer.figure.layout.shapes[0].y0 == 2.5
    assert [(shape.y0, shape.y1) for shape in explorer.figure.layout.shapes[1:]] == [
        (-0.5, 1.5),
        (1.5, 3.5),
        (3.5, 5.5),
    ]


def test_an_error_of_a_callback_is_said(found, explorer):
    def gone(layer):
        raise InputError("the cache's file <b>.npy is gone; run 03_teacher_deltas again")

    explorer._states = gone
    explorer.layer.value = 2
    assert explorer.headline.value.endswith("the cache&#x27;s file &lt;b&gt;.npy is gone; run 03_teacher_deltas again")
    assert explorer.view is None and not any(len(trace.x) for trace in explorer.figure.data[:4])
    explorer.color.value = "norm"
    explorer.select(1)
    assert "cannot be shown" in explorer._repr_mimebundle_()["text/plain"]  # displayed again
    explorer._states = found.differences_at
    explorer.layer.value = 3
    assert shown(explorer) == pytest.approx(expected(found, 3), abs=5e-4)


def test_adapters_that_are_all_alike_have_nothing_without_their_mean(found):
    from dataclasses import replace

    one = np.repeat(found.differences[:1], 12, axis=0)
    one *= 1 + 1e-7 * RNG.normal(size=one.shape).astype(np.float32)  # as float32 rounds
    explorer = explore(replace(found, differences=one))
    explorer.centered.value = True
    assert explorer.headline.value.startswith("All deltas are the same: centered, nothing is left of them.")
    assert not positions(explorer).any()


def test_the_axis_of_the_silhouette_stays_where_it_is(found, explorer):
    def axis():
        return explorer.figure.layout.yaxis3.range

    before = axis()
    explorer.layer.value = 2
    assert axis() == before and before[1] == 1.05
    explorer.centered.value, explorer.probes[0].value = True, False
    assert axis()[0] <= before[0] and axis()[1] == 1.05
    lowest = min(value for value in explorer.figure.data[5].y if value is not None)
    assert axis()[0] <= lowest


def test_long_names_are_cut_at_the_edge_and_whole_under_the_pointer(found):
    from dataclasses import replace

    names = tuple(f"a-rather-long-name-of-an-adapter-number-{i}" for i in range(12))
    explorer = explore(replace(found, names=names))
    ticks = explorer.figure.layout.yaxis2
    shown = [text.rstrip("\u2002") for text in ticks.ticktext]
    assert all(len(text) == 24 and text.startswith("a-rather") for text in shown)
    assert list(ticks.tickvals) == list(explorer.figure.data[4].y) and set(ticks.tickvals) == set(names)
    assert {text[-8:] for text in shown} == {name[-8:] for name in names}


def test_of_very_many_adapters_only_a_click_says_which_are_near(found, monkeypatch):
    monkeypatch.setattr("llgbm_nb.figures.view.WEBGL", 12)
    explorer = explore(found)
    texts = [text for trace in explorer.figure.data[:3] for text in trace.hovertext]
    assert len(texts) == 12 and not any("nearest" in text for text in texts)
    assert {trace.type for trace in explorer.figure.data[:4]} == {"scattergl"}
    explorer.select(6)
    cosines = analysis.similarity(found.deltas())
    nearest = sorted(set(range(12)) - {6}, key=lambda other: -cosines[6, other])[:10]
    assert re.findall(r"<td>(n\d+)</td>", explorer.nearest.value) == [f"n{i}" for i in nearest]


def test_a_zero_delta_is_similar_to_itself_alone_on_the_heatmap(found):
    from dataclasses import replace

    differences = found.differences.copy()
    differences[4] = 0
    explorer = explore(replace(found, differences=differences))
    row = list(explorer.figure.data[4].y).index("n4")
    np.testing.assert_array_equal(explorer.figure.data[4].z[row], np.arange(12) == row)


def names_on(explorer, kind="map") -> dict[str, str]:
    """{name on the map: where it stands}"""
    traces = [trace for name, trace in explorer.traces.items() if name.startswith(f"{kind} ")]
    pairs = [pair for trace in traces for pair in zip(trace.text, trace.textposition, strict=True)]
    return {name: place for name, place in pairs if name}


def test_up_to_forty_points_have_their_names_beside_them_and_none_covers_another(found):
    assert set(names_on(explore(found))) <= set(found.names) and len(names_on(explore(found))) > 6
    random = np.random.default_rng(1)
    for points in (random.normal(size=(40, 2)), np.zeros((5, 2)), np.c_[np.arange(40), np.zeros(40)]):
        names = [f"adapter number {i}" for i in range(len(points))]
        texts, places = view.names_beside(points, names, 460, 440)
        size = np.maximum(np.ptp(points, axis=0), 1e-9)
        boxes = []
        for (x, y), text, place in zip((points - points.min(axis=0)) / size * (396, 378), texts, places, strict=True):
            right, up = view.PLACES[place]
            if text:
                left, foot = (
                    x + 8 * right + (right - 1) / 2 * 6 * len(text),
                    y + up * (6 if right else 8) + (up - 1) * 6,
                )
                boxes.append((left, foot, left + 6 * len(text), foot + 12))
        for one, other in combinations(boxes, 2):
            assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
        assert boxes
    assert not any(view.names_beside(random.normal(size=(41, 2)), ["n"] * 41)[0])


def lasso(explorer, adapters, kind="map"):
    """What the browser says of a lasso around adapters; and who is in it."""
    points = (explorer.view if kind == "map" else explorer._kept.view).points
    low, high = points[adapters].min(axis=0) - 1e-6, points[adapters].max(axis=0) + 1e-6
    x, y = [low[0], high[0], high[0], low[0]], [low[1], low[1], high[1], high[1]]
    explorer._around.lasso = {"kept": kind == "kept", "x": x, "y": y}
    return [i for i in range(12) if (points[i] >= low).all() and (points[i] <= high).all()]


def test_a_lasso_gives_its_adapters_back_and_says_what_sets_them_apart(found):
    asked = []
    explorer = explore(found, tokens=lambda chosen: asked.append(chosen) or ("␣cat <b>", "␣dog"))
    explorer.lasso.value = True
    assert explorer.figure.layout.dragmode == "lasso" and len(explorer.selection) == 0
    inside = lasso(explorer, [0, 3, 6, 9])  # law
    assert explorer.selection.names == tuple(f"n{i}" for i in inside) and asked == [inside]
    chosen = np.isin(np.arange(12), inside)
    cosines, apart = analysis.similarity(found.deltas()), explorer.chosen_text.value
    across = cosines[np.ix_(chosen, ~chosen)].mean()
    within = cosines[np.ix_(chosen, chosen)][~np.eye(len(inside), dtype=bool)].mean()
    assert f"<b>{len(inside)} of 12 adapters chosen</b>: n{inside[0]}" in apart
    assert f"mean cosine among them {within:.2f}, with the rest {across:.2f}" in apart
    best = max(range(1, 5), key=lambda layer: analysis.separation(found.deltas(layer), chosen))
    assert f"part most at layer {best}: {analysis.separation(found.deltas(best), chosen):.2f} times" in apart
    assert "likelier than with the rest: <code>␣cat &lt;b&gt;</code>" in apart
    for domain, mine in {d: [i for i in range(12) if DOMAINS[i] == d] for d in ("code", "law", "math")}.items():
        picked = explorer.traces[f"map {domain}"].selectedpoints
        assert [mine[i] for i in picked] == [i for i in inside if DOMAINS[i] == domain]
    explorer.layer.value = 2  # it stays
    assert explorer.selection.names == tuple(f"n{i}" for i in inside)
    explorer._around.lasso = {}
    assert len(explorer.selection) == 0 and explorer.chosen_text.value == ""
    assert explorer.traces["map law"].selectedpoints is None
    explorer.choose([1, 2])
    explorer.lasso.value = False
    assert len(explorer.selection) == 0 and explorer.figure.layout.dragmode == "zoom"
    with pytest.raises(InputError, match="no adapter 12"):
        explorer.choose([12])


def test_tokens_that_cannot_be_had_are_a_sentence(found):
    def none(chosen):
        raise InputError("the base has no <head>")

    explorer = explore(found, tokens=none)
    explorer.choose([0, 1])
    assert explorer.chosen_text.value.endswith("no tokens: the base has no &lt;head&gt;") and explorer.view is not None


def test_two_settings_lie_side_by_side(found, explorer):
    before = positions(explorer)
    explorer.keep.value = True
    explorer.layer.value, explorer.probes[1].value, explorer.centered.value = 2, False, True
    kept = np.zeros((12, 2))
    for domain in ("code", "law", "math"):
        trace = explorer.traces[f"kept {domain}"]
        kept[[i for i in range(12) if DOMAINS[i] == domain]] = np.c_[trace.x, trace.y]
        assert trace.visible and trace.marker.color == explorer.traces[f"map {domain}"].marker.color
    np.testing.assert_array_equal(kept, before)
    assert not explorer.traces["heatmap"].visible and set(names_on(explorer, "kept")) <= set(found.names)
    ours = [found.deltas(), analysis.centered(found.deltas(2, [0, 2]))]
    off = ~np.eye(12, dtype=bool)
    pairs = [analysis.similarity(each)[off] for each in ours]
    said = explorer.beside_text.value
    assert "layer 4 (last) · 3 of 3 probes · deltas as they are" in said
    assert f"correlate with r = {np.corrcoef(*pairs)[0, 1]:.2f}" in said
    own = [np.corrcoef(*(np.delete(analysis.similarity(each)[i], i) for each in ours))[0, 1] for i in range(12)]
    assert re.findall(r"(n\d+) \((-?\d\.\d\d)\)", said)[0] == (f"n{np.argmin(own)}", f"{min(own):.2f}")
    inside = lasso(explorer, [2, 5], "kept")  # on either map
    assert explorer.selection.names == tuple(f"n{i}" for i in inside)
    explorer.select(3)
    np.testing.assert_array_equal([explorer.traces["ring kept"].x, explorer.traces["ring kept"].y], before[[3]].T)
    assert not explorer.figure.layout.shapes[0].visible
    explorer.color.value = "norm"  # each map by its own norms
    for kind, deltas in (("kept", found.deltas()), ("map", found.deltas(2, [0, 2]))):
        norms = np.linalg.norm(deltas, axis=1)[[0, 3, 6, 9]]
        np.testing.assert_allclose(explorer.traces[f"{kind} law"].marker.color, norms, rtol=1e-6)
    explorer.keep.value = False
    assert explorer.traces["heatmap"].visible and not explorer.traces["kept law"].visible
    assert explorer.beside_text.value == "" and explorer.figure.layout.shapes[0].visible


def test_points_are_coloured_by_other_labels(found):
    ranks = ["16"] * 7 + ["8"] * 4 + ["unknown"]
    explorer = explore(found, labels=pd.DataFrame({"rank": ranks}))
    assert explorer.color.options == ("domain", "norm", "rank")
    explorer.color.value = "rank"
    colours = np.empty(12, object)
    for domain in ("code", "law", "math"):
        mine = [i for i in range(12) if DOMAINS[i] == domain]
        own = explorer.traces[f"map {domain}"].marker.color
        colours[mine] = [own] * len(mine) if isinstance(own, str) else own
    assert len(set(colours)) == 3 and all(
        len({c for c, r in zip(colours, ranks, strict=True) if r == rank}) == 1 for rank in ranks
    )
    legend = {key.name: key.marker.color for key in keys(explorer) if key.showlegend}
    assert legend == {"16": colours[0], "8": colours[7], "other": colours[11]}
    explorer.color.value = "domain"
    assert [key.name for key in keys(explorer)] == ["code", "law", "math"]


def test_of_a_narrow_window_the_heatmap_lies_below_the_map(explorer):
    explorer._around.narrow = True
    layout = explorer.figure.layout
    assert layout.yaxis2.domain[1] < layout.yaxis.domain[0] and layout.xaxis.domain == (0, 1)
    explorer._around.narrow = False
    assert layout.yaxis2.domain == layout.yaxis.domain and layout.xaxis.domain[1] < layout.xaxis2.domain[0]
