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
from llgbm_nb.collection import find_adapters, label_table
from llgbm_nb.evidence import alternatives, layer_choice, rounding, tokens
from llgbm_nb.evidence.layer_choice import Choice
from llgbm_nb.forward.base import load_base
from llgbm_nb.report import page, page_data
from llgbm_nb.report.findings import write_groups, write_summary
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
    assert "http" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)


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
    assert "Which probes, which layer?" in text and "Which probes, which layer?" not in bare


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
        probes="math", layer=2, centered=True, share=0.5, picked=0.9, held_out=0.6, own=0.7, gain=[-0.3, 0.1]
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


def test_every_layers_view_is_what_analysis_gives(run, tmp_path):
    found = run.delta_set
    data = json.loads(unpacked(write(run, tmp_path), "data"), parse_constant=pytest.fail)  # no NaN in JSON
    assert data["layers"] == data["numbers"] == [0, 1, 2, 3] and len(data["frames"]) == 8 and data["layer"] == 3
    order = [i for row in data["rows"] for i in row]
    for layer in (1, 2, 3):
        for centered in (False, True):
            deltas, frame = analysis.compared(found, layer, centered), data["frames"][f"{layer} {int(centered)}"]
            points = np.c_[frame["x"], frame["y"]]
            np.testing.assert_allclose(abs(points), abs(analysis.pca(deltas)[0]), atol=1e-4)
            assert frame["score"] == pytest.approx(analysis.silhouette(deltas, found.domains).score, abs=6e-4)
            assert frame["score"] == data["curves"][centered][layer]
            cosines = analysis.similarity(deltas)
            np.testing.assert_allclose(frame["heat"], cosines[np.ix_(order, order)], atol=6e-3)
            for i, (others, values) in enumerate(zip(frame["nearest"], frame["cosines"], strict=True)):
                assert sorted([*others, i]) == [0, 1, 2, 3, 4] and values == sorted(values, reverse=True)
                np.testing.assert_allclose(values, cosines[i, others], atol=6e-4)
    assert data["frames"]["0 0"]["score"] is None and "All deltas are zero" in data["frames"]["0 0"]["note"]


def test_the_adapters_columns_are_those_of_the_runs_setting(run):
    found = run.delta_set
    findings = replace(findings_of(run), layer=1, centered=True)
    columns = page_data.page_data(run, findings)["adapters"]
    deltas = analysis.compared(found, 1, True)
    others, cosines = analysis.nearest(analysis.directions(deltas), 1)
    assert columns["nearest"] == [found.names[i] for i in others[:, 0]]
    assert columns["cosine"] == pytest.approx(cosines[:, 0], abs=6e-4)
    assert columns["norm"] == pytest.approx(np.linalg.norm(found.deltas(1), axis=1), abs=6e-3)
    assert columns["silhouette"] == pytest.approx(findings.score.samples, abs=6e-4)
    assert columns["name"] == list(found.names) and columns["group"] == findings.groups.labels
    pair = (found.names[0], found.names[2], 1.0, 1.0, "same files")
    twice = pd.DataFrame([pair], columns=findings.duplicates.columns)
    trust = findings.trust.assign(flagged=[name == found.names[2] for name in found.names])
    flags = page_data.page_data(run, replace(findings, duplicates=twice, trust=trust))["adapters"]["flags"]
    assert flags == ["near-duplicate", "", "too near to rounding · near-duplicate", "", ""]


def test_with_very_many_numbers_there_are_fewer_layers_and_still_the_last_and_the_chosen_one(run, monkeypatch):
    monkeypatch.setattr(page_data, "NUMBERS", 10)
    assert page_data.page_data(run, findings_of(run))["layers"] == [1, 3]
    assert page_data.page_data(run, replace(findings_of(run), layer=2))["layers"] == [1, 2, 3]


def test_of_many_adapters_the_page_has_a_row_per_domain_and_some_failures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROWS", 4)
    monkeypatch.setattr(page, "BARE", 4)
    monkeypatch.setattr(tables, "ROWS", 4)
    records = run.records + [run.records[-1] | {"name": f"x{i}", "status": "failed", "reason": "no"} for i in range(6)]
    text = write(replace(run, records=records), tmp_path)
    assert "… and 3 more: see summary.json." in text
    after = text.split("<h2 id=all>All adapters</h2>")[1].split("</table>")[0]
    assert all(f"<td>{domain}</td>" in after for domain in set(run.delta_set.domains))
    assert not any(f"<td>{name}</td>" in after for name in run.delta_set.names)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_collections_have_a_page(run, tmp_path, count):
    text = write(replace(run, delta_set=run.delta_set.subset(range(count))), tmp_path)
    assert f"{count} adapter{'' if count == 1 else 's'} of" in text and ("<div id=map>" in text) == (count > 1)


def test_pictures_are_small_and_keep_their_colours(tmp_path):
    file = tmp_path / "norms.png"
    figures.show(figures.norms(np.arange(1, 9.0), ["math", "code"] * 4, 50.0), tmp_path, "norms")
    data = page._picture(file).split("base64,")[1]
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


def test_groups_are_written_as_labels_that_the_collection_takes(zoo, base, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(zoo, root)
    save_adapter(root / "=1+1" / "a", base)  # a spreadsheet's formula
    run = compute_deltas(root, PROBES, cache_dir=tmp_path / "deltas")
    groups = analysis.Groups(np.array([0, 0, 1, -1, 1, 0]), 0.5, 0.01)
    write_groups(run, groups, tmp_path, root)
    text = (tmp_path / "labels.csv").read_text()
    assert not re.search(r"(^|,)[=+@-]", text, flags=re.M) and ",'=1+1" in text
    shutil.copy(tmp_path / "labels.csv", root)
    domains = {adapter.path: adapter.domain for adapter in find_adapters(root)}
    names = ["group 1", "group 1", "group 2", "unknown", "group 2", "group 1"]
    assert [domains[path] for path in run.delta_set.paths] == names


def test_a_page_without_git_and_of_a_collection(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    page.write_page(run, findings_of(run), tmp_path, tmp_path / "my zoo")
    text = (tmp_path / "index.html").read_text()
    assert "my zoo</p>" in text and "commit" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)
