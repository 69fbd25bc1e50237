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
from lab import CHROMIUM, SECOND, chromium
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
from llgbm_nb.report.uses_section import Uses, add_uses
from llgbm_nb.report.verdict import Findings, verdict
from llgbm_nb.uses.task_search import COLUMNS

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
    assert columns["name"] == list(found.names)
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
    data = page.data_url(file).split("base64,")[1]
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


def notebook_of(*cells):
    """A notebook of (source, tag, outputs)."""
    import nbformat

    made = [
        nbformat.v4.new_code_cell(text, outputs=out, metadata={"tags": [tag] * bool(tag)}) for text, tag, out in cells
    ]
    return nbformat.v4.new_notebook(cells=made)


def test_a_notebooks_page_folds_its_code_and_links_to_the_others(tmp_path):
    import nbformat

    error = nbformat.v4.new_output("error", ename="InputError", evalue="no", traceback=["InputError: no"])
    output = nbformat.v4.new_output("stream", text="said")
    notebook = notebook_of(("good = 1", "", [output]), ("bad", "", [error]))
    nbformat.write(notebook, tmp_path / "05_evidence.ipynb")
    text = to_html(tmp_path / "05_evidence.ipynb").read_text()
    folded = re.findall(r'<details( open="")?>\s*<summary>(\w+)</summary>(.*?)</details>', text, flags=re.S)
    assert [(opened, what) for opened, what, _ in folded] == [
        ("", "code"),
        (' open=""', "code"),
    ]  # what failed is shown
    assert "good" in folded[0][2] and "said" not in folded[0][2] and "said" in text and "no" in text
    links = text.split('<nav class="pages">')[1].split("</nav>")[0]
    others = [name for name in NOTEBOOKS if name != "05_evidence"]
    assert re.findall('href="(.*?)"', links) == ["index.html", *(f"{name}.html" for name in others)]
    assert "<b>05_evidence</b>" in links
    nbformat.write(notebook, tmp_path / "alone.ipynb")
    assert '<nav class="pages">' not in to_html(tmp_path / "alone.ipynb").read_text()


def test_a_notebooks_page_has_its_parameters_once_as_they_ran_with_their_comments(tmp_path):
    import nbformat

    declared = 'zoo = "data"      # where # they are\nlayer = -1         # at which\nprobe = "é"  # kept\nbare = 0'
    injected = '# Parameters\nzoo = "a # longer name"\nlayer = 14\nbare = 2\nother = 3\n'
    notebook = notebook_of((declared, "parameters", []), (injected, "injected-parameters", []), ("x", "", []))
    nbformat.write(notebook, tmp_path / "n.ipynb")
    text = html.unescape(re.sub("<[^>]*>", "", to_html(tmp_path / "n.ipynb").read_text().split("<body")[1]))
    lines = ['zoo = "a # longer name"  # where # they are', "layer = 14         # at which", 'probe = "é"  # kept',
             "bare = 2", "other = 3"]  # fmt: skip
    assert "\n".join(lines) in text and "# Parameters" not in text and "-1" not in text
    assert text.count("parameters\n") == 1 and len(nbformat.read(tmp_path / "n.ipynb", 4).cells) == 3


def test_groups_are_written_as_labels_that_the_collection_takes(zoo, base, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(zoo, root)
    save_adapter(root / "=1+1" / "=2", base)  # a spreadsheet's formula
    run = compute_deltas(root, PROBES, cache_dir=tmp_path / "deltas")
    groups = analysis.Groups(np.array([0, 0, 1, -1, 1, 0]), 0.5, 0.01)
    write_groups(run, groups, tmp_path, root)
    text = (tmp_path / "labels.csv").read_text()
    assert not re.search(r"(^|,)[=+@-]", text, flags=re.M) and ",'=1+1" in text
    shutil.copy(tmp_path / "labels.csv", root)
    domains = {adapter.path: adapter.domain for adapter in find_adapters(root)}
    names = [domains[path] for path in run.delta_set.paths]
    assert names == [
        "'=2 + dora",
        "'=2 + dora",
        "qv + attention-rslora",
        "unknown",
        "qv + attention-rslora",
        "'=2 + dora",
    ]


def test_a_page_without_git_and_of_a_collection(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    page.write_page(run, findings_of(run), tmp_path, tmp_path / "my zoo", "make report ZOO='my zoo' ARGS='<b>'")
    text = (tmp_path / "index.html").read_text()
    assert "make report ZOO=" in text and "ARGS='<b>'" not in text
    add_uses(used(), tmp_path, tmp_path / "my <i>")
    asked = html.unescape(re.sub(r"<[^>]*>", "", (tmp_path / "index.html").read_text().split("<code>")[1]))
    assert asked.startswith(f"make report ZOO='my zoo' ARGS='<b>' QUERY='{tmp_path}/my <i>'\n")
    assert "my zoo<br>" in text and "commit" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)


GROUPS = analysis.Groups(np.array([0, 0, 1, -1, 1]), 0.5, 0.01)


def test_groups_have_their_names_everywhere(run, tmp_path):
    found = run.delta_set
    named = analysis.group_table(GROUPS, found).assign(up="<likely>")
    findings = replace(findings_of(run, named_groups=named), groups=GROUPS)
    names = analysis.as_domains(GROUPS, found).domains
    one, other = names[0], names[2]
    columns = page_data.page_data(run, findings)["adapters"]["group"]
    assert columns == [f"1 · {one}", f"1 · {one}", f"2 · {other}", "alone 3", f"2 · {other}"]
    write_summary(run, findings, tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())["groups"]
    assert content["names"] == {"1": one, "2": other} and [*content["of"].values()] == GROUPS.labels
    page.write_page(run, findings, tmp_path)
    text = (tmp_path / "index.html").read_text().split("<h2 id=groups>")[1].split("<h2 ")[0]
    assert all(f"<td>{html.escape(part)}</td>" in text for part in (one, other, "<likely>", *named["members"]))
    assert "2 groups (silhouette 0.50, p 0.01)." in text and f"In none: {found.names[3]}" in text
    assert f"1: {found.names[0]}" not in text  # they are in the table


def test_what_the_map_may_be_coloured_by(run):
    table = pd.DataFrame({"rank": ["16", "8", "unknown", "8", "100"], "group": [*"abcab"], "same": ["x"] * 5})
    labels = page_data.page_data(run, findings_of(run, label_table=table))["labels"]
    assert [*labels] == ["domain", "rank", "group (labels.csv)"]  # one cloud, and a label of one value: nothing to show
    assert [value for value, *_ in labels["rank"]["values"]] == ["8", "16", "100"]  # by size
    assert labels["rank"]["of"] == [1, 0, -1, 0, 2] and labels["rank"]["rest"] == "unknown"
    assert len({colour for _, colour, _ in labels["rank"]["values"]}) == 3
    domains, styles = labels["domain"], figures.domain_styles(run.delta_set.domains)
    assert [domains["values"][place][0] for place in domains["of"]] == list(run.delta_set.domains)
    assert all(colour == styles[name][0] for name, colour, _ in domains["values"])
    grouped = page_data.page_data(run, replace(findings_of(run), groups=GROUPS))["labels"]["group"]
    assert grouped["of"] == [0, 0, 1, -1, 1] and grouped["rest"] == "in no group"


def test_of_very_many_values_the_most_frequent_have_colours():
    values = [f"v{i}" for i in range(40) for _ in range(1 + (i >= 10))]
    label = page_data._label(values, "owner")
    assert [value for value, *_ in label["values"]] == [f"v{i}" for i in range(10, 40)]
    assert label["of"][:10] == [-1] * 10 and label["rest"] == "10 others" and label["of"][10:12] == [0, 0]


PAIRS = ["adapter", "other", "kind", "cosine", "single", "error", "reason"]
QUERIES = ["query", "domain", "best", "its domain", "right", "own", "other", "chance"]


def used(right=True, error=0.08, name="<b>x", merge="Nothing was merged: no.") -> Uses:
    """Of two pairs, one of which could not be measured, and one query."""
    pairs = [(name, "y", "within", 0.99, 0.9, error, ""), ("p", "q", "across", np.nan, np.nan, np.nan, "it is torn")]
    query = ("one-task", "one", "found-it", "one" if right else "two", right, 0.7, 0.5, 0.5)
    twice = pd.DataFrame([("a", "b", 0.9999)], columns=["adapter", "other", "cosine"])
    accuracy = pd.DataFrame([query], columns=QUERIES).set_index("query")
    ranked = pd.DataFrame([("found-it", "one", 0.1, 1.2, 0.3, 0.2, 0.4)], columns=COLUMNS, index=[1])
    ranked.attrs = dict(base_loss=1.5, examples=20, measured=3)
    return Uses(twice, pd.DataFrame(pairs, columns=PAIRS), {"one-task": ranked}, accuracy, merge)


@pytest.fixture
def written(run, tmp_path):
    """The folder that 05_evidence leaves, with pictures of 06_uses."""
    for name in ("additivity", "queries", "merge"):
        figures.show(figures.norms([1.0, 2.0], ["a", "b"], 5.0), tmp_path, name)
    write_summary(run, findings_of(run), tmp_path)
    write(run, tmp_path)
    return tmp_path


def uses_of(folder) -> str:
    """The section, as people read it."""
    text = (folder / "index.html").read_text().split("<h2 id=uses>")[1].split("<h2 ")[0]
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def files_of(folder) -> tuple[str, dict]:
    return (folder / "index.html").read_text(), json.loads((folder / "summary.json").read_text())


def test_the_uses_join_page_and_summary(written):
    before, summary = files_of(written)
    assert "06_uses has not been run yet." in uses_of(written) and '<a href="#uses">' in before
    assert before.count("data:image/webp") == 0
    merge = dict(adapters=["m", "n"], singles=np.eye(2), predicted=np.ones(2), measured=np.ones(2), cosine=1, error=0.0)
    sentence = "Two adapters at once are nearly the sum here (8 % off)."
    said = add_uses(used(merge=merge), written)
    assert said == f"The uses are in index.html and summary.json.\n• {sentence}"
    text, seen = files_of(written)[0], uses_of(written)
    assert f'<li><a href="#uses">{sentence}</a></li>' in text and "not been run" not in text
    assert text.count("data:image/webp") == 3 and "<b>x" not in text and "&lt;b&gt;x" in text
    for part in ("1 pair of adapters do nearly the same", "0.990", "0.080", "p + q: it is torn", "found-it", "1 of 1",
                 "one-task: The base's loss on the 20 examples is 1.500",
                 "Merged, m and n do what the sum of their deltas says"):  # fmt: skip
        assert part in seen
    after = files_of(written)[1]
    assert after["verdict"] == [*summary["verdict"], sentence]
    assert after.pop("uses") == {
        "near_duplicates": 1, "verdict": sentence, "merge": {"adapters": ["m", "n"], "cosine": 1.0, "error": 0.0},
        "additivity": [
            dict(adapter="<b>x", other="y", kind="within", reason="", cosine=0.99, single=0.9, error=0.08),
            dict(adapter="p", other="q", kind="across", reason="it is torn", cosine=None, single=None, error=None),
        ],
        "task_queries": {"queries": 1, "scored": 1, "right": 1, "right_by_chance": 0.5},
        "search": {
            "one-task": dict(adapter="found-it", domain="one", base_loss=1.5, loss=1.2, gain=0.3, low=0.2, high=0.4)
        },
    }  # fmt: skip
    assert after | {"verdict": summary["verdict"]} == summary


def test_the_uses_twice_are_the_uses_once_and_new_ones_take_their_place(written):
    before, summary = files_of(written)
    add_uses(used(name="<!-- uses -->"), written)
    once = files_of(written)
    add_uses(used(name="<!-- uses -->"), written)
    assert files_of(written) == once
    add_uses(used(error=0.6), written)
    text, content = files_of(written)
    assert "not the sum here (60 % off)" in text and "nearly the sum" not in text
    assert len(content["verdict"]) == len(summary["verdict"]) + 1 and text.count("<h2 id=uses>") == 1
    ends = before.split("<!-- uses -->")[0][-200:], before.split("<!-- end of uses -->")[1]
    assert text.split("<!-- uses -->")[0][-200:] == ends[0] and text.split("<!-- end of uses -->")[1] == ends[1]


def test_queries_without_a_domain_of_their_own_are_answered_all_the_same(written):
    found = used()
    found.accuracy["right"] = None
    add_uses(found, written)
    text = uses_of(written)
    assert "found-it lowers it most, by 0.300" in text and "scored" not in text and "Nothing was merged: no." in text
    assert files_of(written)[0].count("data:image/webp") == 2  # of the pairs and of the query


def test_uses_without_a_page_a_summary_or_a_folder(run, tmp_path):
    assert add_uses(used(), None).startswith("No output_dir is set")
    assert add_uses(used(), tmp_path / "nowhere").startswith("There is no index.html yet")
    nothing = Uses(used().duplicates[:0], used().added[:0], {}, used().accuracy[:0], "Nothing was merged.")
    write(run, tmp_path)
    assert add_uses(nothing, tmp_path) == "The uses are in index.html."
    assert "There is no query." in uses_of(tmp_path) and "No two adapters do nearly the same" in uses_of(tmp_path)
    write_summary(run, findings_of(run), tmp_path)
    before = files_of(tmp_path)[1]["verdict"]
    assert add_uses(nothing, tmp_path) == "The uses are in index.html and summary.json."
    content = files_of(tmp_path)[1]
    assert content["verdict"] == before and content["uses"]["verdict"] is None and content["uses"]["additivity"] == []
    (tmp_path / "summary.json").unlink()
    write(replace(run, delta_set=run.delta_set.subset([])), tmp_path)  # a page without the section
    assert add_uses(nothing, tmp_path) == "The uses are in index.html."


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser):
    """A page opened without a network, as soon as it is ready; what goes wrong in it is an error."""
    contexts, complaints = [], []

    def open_page(file, address="", width=1100, scheme="light", ready="body[data-ready]"):
        contexts.append(browser.new_context(offline=True, viewport=dict(width=width, height=900), color_scheme=scheme))
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto(file.as_uri() + address)
        shown.wait_for_selector(ready, timeout=60 * SECOND)
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


LEGEND = """() => document.getElementById("map").data.slice(0, -1).map(
    trace => [trace.name, trace.marker.color, trace.customdata])"""


def test_colours_by_another_label_are_on_the_map_in_the_legend_and_in_the_address(run, opened, tmp_path):
    table = pd.DataFrame({"rank": ["16", "8", "unknown", "8", "100"], "<b>": [f"a&{i}" for i in range(5)]})
    page.write_page(run, replace(findings_of(run, label_table=table), groups=GROUPS), tmp_path)
    labels = json.loads(unpacked((tmp_path / "index.html").read_text(), "data"))["labels"]
    seen = opened(tmp_path / "index.html")
    assert seen.locator("#colour option").all_inner_texts() == ["domain", "group", "rank", "<b>"]
    domains = seen.evaluate(LEGEND)
    assert [name for name, *_ in domains] == sorted(set(run.delta_set.domains)) and "colour=" not in seen.url
    seen.select_option("#colour", "rank")
    tones = [colour for _, colour, _ in labels["rank"]["values"]]
    expected = [["8", tones[0], [1, 3]], ["16", tones[1], [0]], ["100", tones[2], [4]], ["unknown", "#999999", [2]]]
    assert seen.evaluate(LEGEND) == expected and seen.url.endswith("&colour=rank")
    assert seen.locator("#map .legendtext").all_text_contents() == ["8", "16", "100", "unknown"]
    again = opened(tmp_path / "index.html", "#layer=2&colour=group")
    assert again.locator("#colour").input_value() == "group"
    assert [[name, mine] for name, _, mine in again.evaluate(LEGEND)][-1] == ["in no group", [3]]
    assert opened(tmp_path / "index.html", "#layer=2&colour=nothing").evaluate(LEGEND) == domains
    strange = opened(tmp_path / "index.html", "#colour=%3Cb%3E")
    assert strange.locator("#map .legendtext").all_text_contents() == [f"a&{i}" for i in range(5)]


CONTRAST = """selector => {
    const grey = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3;
    const element = document.querySelector(selector);
    let ground = element;
    while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
    return Math.abs(grey(getComputedStyle(element).color) - grey(getComputedStyle(ground).backgroundColor));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_uses_fit_the_screen_and_can_be_read(written, opened, width, scheme):
    add_uses(used(name="a-name-of-an-adapter-that-is-very-long-indeed"), written)
    seen = opened(written / "index.html", width=width, scheme=scheme)
    assert seen.evaluate("() => document.documentElement.scrollWidth") <= width
    for part in ("#uses ~ p", "#uses ~ .wide td", "#adapters td", "#adapters th", "button.dt-button", "#colour"):
        assert seen.evaluate(CONTRAST, part) > 75, part
    if width == 1440:
        seen.locator("nav.contents a", has_text="What are they good for?").click()
        seen.locator(".verdict a", has_text="Two adapters at once").click()
    assert seen.locator("#uses ~ figure img").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_notebooks_page_fits_a_phone_breaks_no_word_and_is_dark(opened, tmp_path, scheme):
    import nbformat

    table = pd.DataFrame({"a long heading": ["commonsense-12"] * 2} | {f"column {i}": [i] * 2 for i in range(9)})
    frame = nbformat.v4.new_output("display_data", {"text/html": table.set_index("a long heading").to_html()})
    words = nbformat.v4.new_output("stream", text="extraordinarily " * 40)
    nbformat.write(notebook_of(("x = 1", "", [words, frame])), tmp_path / "05_evidence.ipynb")
    seen = opened(to_html(tmp_path / "05_evidence.ipynb"), width=390, scheme=scheme, ready="summary")
    assert seen.evaluate("() => document.documentElement.scrollWidth") <= 390
    heights = "cells => cells.map(cell => cell.getClientRects().length && cell.clientHeight)"
    assert max(seen.locator("tbody th").evaluate_all(heights)) < 40  # a line
    lines = """() => {
        const text = document.querySelector("pre").firstChild, range = document.createRange(), broken = [];
        for (const word of text.data.matchAll(/\\S+/g)) {
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            if (range.getClientRects().length > 1) broken.push(word[0]);
        }
        return broken;
    }"""
    assert seen.evaluate(lines.replace('querySelector("pre")', 'querySelector(".jp-OutputArea-output pre")')) == []
    assert not seen.locator(".highlight").is_visible()
    dark = seen.evaluate("() => getComputedStyle(document.documentElement).filter !== 'none'")
    assert dark == (scheme == "dark")
