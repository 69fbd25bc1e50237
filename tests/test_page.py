"""The page of a report: what stands in it. What it looks like and does is in test_browser."""

import base64
import gzip
import html
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import PROBES, save_adapter
from PIL import Image

from llgbm_nb import analysis, compute_deltas, evidence, figures, uses
from llgbm_nb.analysis import tables
from llgbm_nb.collection import label_table
from llgbm_nb.evidence import alternatives, layer_choice, rounding, tokens
from llgbm_nb.evidence.layer_choice import Choice
from llgbm_nb.forward.base import load_base
from llgbm_nb.report import page
from llgbm_nb.report.findings import write_summary
from llgbm_nb.report.run import NOTEBOOKS, strip_widgets, to_html
from llgbm_nb.report.verdict import Findings, verdict

SOUNDNESS = pd.DataFrame([("correct", "pass", "it is")], columns=["point", "result", "evidence"])


@pytest.fixture(scope="module")
def run(zoo, base, tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(zoo, root / "zoo")
    (save_adapter(root / "zoo/one/<b>broken", base) / "adapter_model.safetensors").write_bytes(b"cut")
    return compute_deltas(root / "zoo", PROBES, cache_dir=root / "deltas")


def findings_of(run, **more) -> Findings:
    found, groups = run.delta_set, analysis.find_groups(run.delta_set.deltas())
    return Findings(
        analysis.silhouette(found.deltas(), found.domains), analysis.silhouette_by_layer(found),
        SOUNDNESS.set_index("point"), rounding.trust(run), evidence.reliability(found.differences_at(-1)),
        evidence.permutation_test(found.deltas(), found.domains), groups,
        evidence.by_label(found.deltas(), found.domains, label_table(found.adapters), groups),
        uses.near_duplicates(found), **more,
    )  # fmt: skip


def write(run, folder) -> str:
    page.write_page(run, findings_of(run), folder)
    return (folder / "index.html").read_text()


def unpacked(text: str, name: str) -> str:
    """Decoded here as the page's own program does it."""
    return gzip.decompress(base64.b64decode(re.search(rf"id={name}>([^<]*)<", text)[1])).decode()


def test_what_stands_on_the_page(run, tmp_path):
    figures.show(figures.norms([1.0, 2.0], ["a", "b"], 5.0), tmp_path, "norms")
    (tmp_path / "deltas.csv").write_text("")
    (tmp_path / "01_probes.html").write_text("")
    text = write(run, tmp_path)
    score = analysis.silhouette(run.delta_set.deltas(), run.delta_set.domains).score
    assert f"<h1>5 adapters of {run.settings.base_model}</h1>" in text
    lines = verdict(run.delta_set.names, findings_of(run))
    assert f"silhouette {score:.2f}".replace("-", "−") in lines[0].text and len(lines) > 1
    for line in lines:
        assert f'<a href="#{line.evidence}">{html.escape(line.text)}</a>' in text and f" id={line.evidence}>" in text
    assert "5 with a delta, 1 that could not be used" in text and "float32" in text and "torch 2.13.0" in text
    assert "&lt;b&gt;broken" in text and "<b>broken" not in text and "is damaged or cut off" in text
    assert "<td>correct</td>" in text and "<td>pass</td>" in text and "<td>it is</td>" in text
    assert all(name in text for name in run.delta_set.names)
    assert re.findall(r'href="([^d"#][^"]*)"', text) == [f"{name}.html" for name in NOTEBOOKS]
    assert 'href="deltas.csv"' in text and "summary.json</a>" not in text  # what there is, and what there is not
    assert text.count('src="data:image/webp') == 1
    assert "http" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_what_the_evidence_section_says(run, base, tmp_path):
    """Each number is the one that its own function gives; what was not looked at is not there."""
    loaded, sets = load_base(str(base)), {"mine": run.delta_set}
    by_domain = tokens.beside_the_mean(tokens.domain_tokens, loaded, run.delta_set)
    methods = alternatives.compare_methods(run, loaded)
    findings = findings_of(run, choice=layer_choice.choose(sets), tokens=by_domain, methods=methods)
    page.write_page(run, findings, tmp_path)
    text = html.unescape(re.sub(r"<[^>]*>", " ", (tmp_path / "index.html").read_text())).replace("\xa0", " ")
    for words in (
        rounding.trust_text(findings.trust), evidence.chance_text(findings.chance),
        evidence.reliability_text(findings.reliability, len(PROBES)), layer_choice.choice_text(findings.choice),
        alternatives.methods_text(methods),
    ):  # fmt: skip
        assert all(line in text for line in words.splitlines())
    assert all(" ".join(up.split()) in " ".join(text.split()) for up in by_domain["up"])
    assert all(f"{score:.2f}" in text for score in methods["silhouette"])
    assert all(f"{analysis.times(ratio)}" in text for ratio in findings.trust["ratio"])
    bare = write(run, tmp_path)
    assert "Against the alternatives" in text and "Against the alternatives" not in bare
    assert "Where the signal is" in text and "Where the signal is" not in bare


def test_the_evidence_in_numbers(run, base, tmp_path):
    loaded = load_base(str(base))
    findings = findings_of(run, choice=Choice(("math", 2, True), 0.5, 0.9, 0.6, 0.7, 5, (-0.3, 0.1)))
    findings = replace(findings, methods=alternatives.compare_methods(run, loaded))
    write_summary(run, findings, tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["trust"]["least"] == pytest.approx(rounding.trust(run)["ratio"].min())
    assert content["trust"]["flagged"] == [] and content["trust"]["reliability"] == findings.reliability.full
    assert content["chance"]["p"] == findings.chance.p and content["chance"]["interval"] == [*findings.chance.interval]
    assert content["choice"] == dict(
        probes="math", layer=2, centered=True, share=0.5, picked=0.9, held_out=0.6, usual=0.7, gain=[-0.3, 0.1]
    )
    assert content["soundness"] == {"correct": {"result": "pass", "evidence": "it is"}}
    assert content["verdict"] == [line.text for line in verdict(run.delta_set.names, findings)]
    assert content["labels"]["domain"]["silhouette"] == pytest.approx(findings.score.score)
    assert content["silhouette"]["layer"] == 3 and content["silhouette"]["score"] == findings.score.score
    weight_change = content["methods"]["weight change"]
    assert weight_change["silhouette"] == findings.methods.loc["weight change", "silhouette"]
    assert weight_change["seconds"] > 0 and content["methods"]["delta, layer 3"]["seconds"] is None


def test_a_page_alone_links_to_nothing(run, tmp_path):
    assert re.findall(r'href="([^d#][^"]*)"', write(run, tmp_path)) == []


def test_the_map_has_a_frame_for_every_layer(run, tmp_path):
    found = run.delta_set
    figure = json.loads(unpacked(write(run, tmp_path), "figure"), parse_constant=pytest.fail)  # no NaN in JSON
    assert [frame["name"] for frame in figure["frames"]] == ["0", "1", "2", "3"]
    assert "Plotly" in unpacked((tmp_path / "index.html").read_text(), "plotly")
    domains = sorted(set(found.domains))
    for layer, frame in enumerate(figure["frames"][1:], start=1):
        points = np.zeros((5, 2))
        for domain, trace in zip(domains, frame["data"][:-1], strict=True):
            assert trace["name"] == domain
            mine = [i for i in range(5) if found.domains[i] == domain]
            points[mine] = np.c_[numbers(trace["x"]), numbers(trace["y"])]
            assert [text.split("</b>")[0] for text in trace["text"]] == [f"<b>{found.names[i]}" for i in mine]
        expected, _ = analysis.pca(found.deltas(layer))
        np.testing.assert_allclose(abs(points), abs(expected), atol=1e-4)
        score = analysis.silhouette(found.deltas(layer), found.domains).score
        assert frame["layout"]["title"]["text"] == f"Layer {layer}: silhouette by domain {score:.3f}"


def numbers(array) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]) if isinstance(array, dict) else array


def test_with_very_many_points_the_slider_has_fewer_layers_and_still_the_last(run, monkeypatch):
    monkeypatch.setattr(page, "POINTS", 10)
    figure = page.layer_map(run.delta_set, analysis.silhouette_by_layer(run.delta_set))
    assert [frame.name for frame in figure.frames] == ["1", "3"]
    assert figure.layout.title.text.startswith("Layer 3")


def test_of_many_adapters_the_page_has_a_row_per_domain_and_some_failures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROWS", 4)
    monkeypatch.setattr(tables, "ROWS", 4)
    records = run.records + [run.records[-1] | {"name": f"x{i}", "status": "failed", "reason": "no"} for i in range(6)]
    text = write(replace(run, records=records), tmp_path)
    assert "5 adapters, by domain; deltas.csv has each of them." in text and "… and 3 more: see summary.json." in text
    after = text.split("<h2>All adapters</h2>")[1]
    assert all(f"<td>{domain}</td>" in after for domain in set(run.delta_set.domains))
    assert not any(f"<td>{name}</td>" in after for name in run.delta_set.names)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_collections_have_a_page(run, tmp_path, count):
    text = write(replace(run, delta_set=run.delta_set.subset(range(count))), tmp_path)
    assert f"{count} adapter{'' if count == 1 else 's'} of" in text and (
        "A map needs at least two adapters" in text
    ) == (count < 2)


def test_pictures_are_small_and_keep_their_colours(tmp_path):
    file = tmp_path / "norms.png"
    figures.show(figures.norms(np.arange(1, 9.0), ["math", "code"] * 4, 50.0), tmp_path, "norms")
    data = re.search(r"base64,([^\"]*)", page._picture(file, ""))[1]
    (tmp_path / "packed.png").write_bytes(base64.b64decode(data))
    assert len(data) < file.stat().st_size
    one, other = (np.array(Image.open(f).convert("RGB"), int) for f in (file, tmp_path / "packed.png"))
    assert one.shape == other.shape and abs(one - other).mean() < 1


def test_live_widgets_are_taken_out_of_an_executed_notebook_and_its_page(tmp_path):
    import nbformat

    view, picture = {"model_id": "abc", "version_major": 2, "version_minor": 0}, "iVBORw0KGgo="
    data = {"application/vnd.jupyter.widget-view+json": view, "text/plain": "explorer: 0.750", "image/png": picture}
    output = nbformat.v4.new_output("execute_result", data, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("e", outputs=[output], execution_count=1)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"abc": {}}}}
    nbformat.write(notebook, tmp_path / "n.ipynb")
    strip_widgets(tmp_path / "n.ipynb")
    [cell] = nbformat.read(tmp_path / "n.ipynb", 4).cells
    assert set(cell.outputs[0].data) == {"text/plain", "image/png"}
    text = to_html(tmp_path / "n.ipynb").read_text()
    assert picture in text and "widget-state" not in text and "html-manager" not in text
