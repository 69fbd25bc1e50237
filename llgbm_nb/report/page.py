"""The result of a run on one page, index.html: it opens without a network, asks for nothing, and prints.

page.html beside this module is its frame. The map keeps its layer slider, as Plotly frames that are computed here.
Plotly's program, 5 MB, lies in the page compressed, and the browser unpacks it. Pictures are those that the notebooks
left in the folder; none is made here.
"""

import base64
import gzip
import html
import io
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from ..analysis import tables
from ..analysis.sentences import about_groups
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..evidence.alternatives import methods_table, methods_text
from ..evidence.chance import chance_text, reliability_text
from ..evidence.layer_choice import NOTHING, choice_text
from ..evidence.rounding import trust_text
from ..figures import view
from ..files import shown, write_whole
from .parameters import versions
from .run import NOTEBOOKS
from .verdict import Findings, verdict

POINTS = 50_000  # on all layers of the map together: with more, the slider has fewer layers
ROWS = 500  # of a table of adapters; above, it has a row per domain, and the rest is left to deltas.csv
PROBES = 100  # whose texts are on the page
PICTURES = {
    "similarity": "Every pair: cosines of the deltas, similar adapters side by side.",
    "similarity_by_domain": "The same by domain: mean cosines of all adapters.",
    "silhouette": "Each adapter: near 1 it lies with its own domain, below 0 nearer to another one.",
    "silhouette_by_layer": "Each layer. The best one is picked with the labels that it is scored on, and so flatters.",
    "norms": "How far each adapter moves the base's last hidden state on these probes.",
    "trust": "Norms beside what rounding does. What lies in the red part has no direction to be trusted.",
    "chance": "The true labels' silhouette beside those of shuffled ones. Far to their right, it is no accident.",
    "signal": "Each probe set and layer. The brightest one is picked by its labels, and so flatters.",
    "probe_counts": "Fewer probes. Where the curve is still rising at its right end, more probes would help.",
}
HEATMAPS = ("similarity", "similarity_by_domain", "signal")


def write_page(run: DeltaRun, findings: Findings, folder: Path | None) -> str:
    """`<folder>/index.html`: what was run, the map, pictures, evidence, failures, soundness, adapters, links."""
    if folder is None:
        return "No output_dir is set, so no index.html was written."
    found, lines = run.delta_set, verdict(run.delta_set.names, findings)
    answer = "".join(f'<li><a href="#{line.evidence}">{_safe(line.text)}</a></li>' for line in lines)
    failed = [record for record in run.records if record["status"] == "failed"]
    title = _safe(f"{len(found):,} adapter{'' if len(found) == 1 else 's'} of {run.settings.base_model}")
    parts = [
        f"<h1>{title}</h1><ul class=verdict>{answer}</ul>",
        _facts(run),
        "<h2 id=map-of-all>The map, layer by layer</h2>" + _map(found, findings),
        *(_evidence(run, findings, folder) if len(found) else ()),
        f"<h2 id=failures>Adapters that could not be used: {len(failed)}</h2>{_failures(failed)}" if failed else "",
        "<h2>Is the run sound?</h2>" + _table(findings.soundness.reset_index()),
        "<h2>All adapters</h2>" + _adapters([r for r in run.records if r["status"] != "failed"], findings.trust),
        _links(folder),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    frame = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    write_whole(folder / "index.html", frame.substitute(title=title, body="\n".join(filter(None, parts))))
    return "The result on one page is in index.html."


def _safe(text) -> str:
    return html.escape(str(text))


def layer_map(found: DeltaSet, by_layer: pd.Series, layer: int = -1, centered: bool = False) -> go.Figure:
    """The map with hover, a frame per layer and a slider; above it the silhouette by layer, `by_layer`.

    It begins at `layer`, or the nearest one that has a frame; deltas are `centered` or not.
    """
    numbers, frames, like = found.layer_numbers, [], None
    every = max(1, -(-len(found) * len(numbers) // POINTS))
    for number in numbers[::-every]:  # from the last layer back, so that a map lies as the one above it
        like = view.view_of(found.deltas(number), found.domains, centered, "PCA", like)
        frames.insert(0, _frame(found, like, number))
    curve = go.Scatter(
        x=list(by_layer.index), y=by_layer.tolist(), mode="lines", line_color="#808080", xaxis="x2", yaxis="y2",
        showlegend=False, hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
    )  # fmt: skip
    at_once = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    steps = [dict(label=frame.name, method="animate", args=[[frame.name], at_once]) for frame in frames]
    begin = int(np.argmin([abs(int(frame.name) - found.layer_number(layer)) for frame in frames]))
    slider = dict(active=begin, steps=steps, currentvalue_prefix="layer ", pad_t=40, transition_duration=0)
    few, grid = numbers[-1] - numbers[0] < 10, dict(gridcolor="#e5e5e5", zeroline=False)
    return go.Figure([*frames[begin].data, curve], frames[begin].layout, frames).update_layout(
        template="none", height=640, autosize=True, hovermode="closest", margin=dict(l=60, r=20, t=40, b=20),
        title=dict(x=0, xref="paper", font_size=14), sliders=[slider],
        legend=dict(x=1.01, y=0.75, yanchor="top", itemclick=False, itemdoubleclick=False,
                    itemsizing="constant" if len(found) >= view.WEBGL else "trace"),
        xaxis=dict(showticklabels=False, showline=True, **grid),
        yaxis=dict(showticklabels=False, showline=True, domain=[0, 0.78], **grid),
        xaxis2=dict(anchor="y2", range=[numbers[0], numbers[-1]], title_text="layer", title_standoff=2,
                    dtick=1 if few else None, **grid),
        yaxis2=dict(anchor="x2", domain=[0.9, 1], title_text="silhouette", nticks=4, **grid),
    )  # fmt: skip


def _frame(found: DeltaSet, seen: view.View, number: int) -> go.Frame:
    """One layer's points, and the mark on the silhouette's line."""
    texts = view.hover_texts(found.names, found.domains, found.kinds, seen)
    traces = view.map_traces(np.round(seen.points, 4), found.domains, texts)
    mark = go.Scatter(
        x=[number], y=[seen.score.score], xaxis="x2", yaxis="y2", mode="markers", cliponaxis=False,
        marker=dict(color="#d00000", size=9), showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    finding = view.plain(seen.score.note) or f"silhouette by domain {seen.score.score:.3f}"
    layout = dict(title_text=f"Layer {number}: {finding}", **view.map_axes(seen))
    return go.Frame(name=str(number), data=[*traces, mark], layout=layout)


def _map(found: DeltaSet, findings: Findings) -> str:
    if len(found) < 2:
        return "<p>A map needs at least two adapters.</p>"
    figure = layer_map(found, findings.by_layer, findings.layer, findings.centered).to_json()
    return (
        "<p class=screen>Point at an adapter to see its name, its norm and what is nearest to it; move the slider to "
        "see the domains come together or fall apart.</p><p>Principal components of the deltas' directions.</p>"
        "<div id=map></div>" + _packed("figure", figure) + _packed("plotly", get_plotlyjs())
    )


def _packed(name: str, text: str) -> str:
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return f"<script type=text/plain id={name}>{packed}</script>"


def _facts(run: DeltaRun) -> str:
    config = run.cache.config
    facts = {
        "base": run.settings.base_model,
        "adapters": f"{len(run.delta_set)} with a delta, {run.count('failed')} that could not be used",
        "domains": tables.label_text(run.delta_set.domains).removeprefix("Domains: "),
        "probes": f"{config['num_probes']}, {config['probe_type']}; at most {config['max_length']} tokens",
        "dtype": config["dtype"], "versions": versions(), "cache": shown(run.cache.cache_dir),
    }  # fmt: skip
    rows = "".join(f"<tr><th>{name}</th><td>{_safe(value)}</td></tr>" for name, value in facts.items())
    probes = "".join(f"<li><pre>{_safe(probe)}</pre></li>" for probe in config["probes"][:PROBES])
    more = f"<p>… and {config['num_probes'] - PROBES:,} more</p>" if config["num_probes"] > PROBES else ""
    texts = f"<details><summary>the probes' texts</summary><ol>{probes}</ol>{more}</details>"
    return f"<table class=facts>{rows}</table>{texts}"


def _evidence(run: DeltaRun, findings: Findings, folder: Path) -> list[str]:
    """The pictures, how far they are to be trusted, where the signal is, and what else it could be had from."""
    choice, tokens, methods = findings.choice, findings.tokens, findings.methods
    parts = _pictures(folder, "similarity", "similarity_by_domain", "silhouette", "silhouette_by_layer", "norms")
    parts += ["<h2 id=groups>Groups without labels</h2>", _text(about_groups(findings.groups, run.delta_set.names))]
    parts += ["<h2 id=labels>What parts them?</h2>", _table(_numbers(findings.labels).reset_index())]
    parts += [f"<h2 id=duplicates>Near-duplicates: {len(findings.duplicates):,}</h2>"]
    parts += [_table(_numbers(findings.duplicates[:ROWS]))] if len(findings.duplicates) else []
    parts += ["<h2 id=trust>Is it rounding?</h2>", _text(trust_text(findings.trust)), *_pictures(folder, "trust")]
    parts += ["<h2 id=domains>Is it chance?</h2>", _text(chance_text(findings.chance)), *_pictures(folder, "chance")]
    parts.append(_text(reliability_text(findings.reliability, run.cache.config["num_probes"])))
    if choice is not None and choice.note != NOTHING:
        parts += ["<h2 id=signal>Where the signal is</h2>", *_pictures(folder, "signal"), _text(choice_text(choice))]
        parts += _pictures(folder, "probe_counts")
    if tokens is not None and len(tokens):
        parts += ["<h2>What the domains make likelier, and less likely</h2>"]
        parts += [_table(tokens.reset_index(), "list tokens")]
        parts.append(_text("Of the mean delta of each domain's adapters. " + tokens.attrs["note"]))
    if methods is not None and methods["adapters"].any():
        parts += ["<h2>Against the alternatives</h2>", _table(methods_table(methods).reset_index())]
        parts.append(_text(methods_text(methods)))
    return parts


def _text(text: str) -> str:
    return "".join(f"<p>{_safe(line)}</p>" for line in text.splitlines())


def _pictures(folder: Path, *names: str) -> list[str]:
    """Those of the folder's pictures that there are, in few colours, and what to see in each."""
    return [_picture(file, PICTURES[name]) for name in names if (file := folder / f"{name}.png").exists()]


def _picture(file: Path, text: str) -> str:
    packed, heatmap = io.BytesIO(), file.stem in HEATMAPS
    with Image.open(file) as picture:
        # The usual way to pick colours gives a heatmap all of them, and none to the bar of domains at its edge.
        how = (256, Image.Quantize.MAXCOVERAGE) if heatmap else (32, Image.Quantize.MEDIANCUT)
        picture.convert("RGB").quantize(*how).convert("RGB").save(packed, "WEBP", lossless=True, method=4)
    source = f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return f'<figure><img alt="{file.stem}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _failures(failed: list[dict]) -> str:
    more = f"<p>… and {len(failed) - ROWS:,} more: see summary.json.</p>" if len(failed) > ROWS else ""
    rows = [{"adapter": r["name"], "folder": shown(r["path"]), "reason": r["reason"]} for r in failed[:ROWS]]
    return _table(pd.DataFrame(rows)) + more


def _adapters(records: list[dict], trust: pd.DataFrame) -> str:
    if not records:
        return "<p>0 adapters.</p>"
    if len(records) > ROWS:
        by_domain = tables.overview(records, trust).reset_index().drop(columns="failed")
        return f"<p>{len(records):,} adapters, by domain; deltas.csv has each of them.</p>{_table(by_domain)}"
    columns = ["name", "domain", "kind", "norm", "of base", "beside noise", "spread", "route"]
    return _table(tables.table(records, trust).reset_index()[columns])


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's numbers for people, to three digits after the point."""
    texts = frame.select_dtypes("float").map("{:.3f}".format)
    return frame.assign(**texts.where(texts != "nan", "–"))


def _table(frame: pd.DataFrame, classes: str = "list") -> str:
    with pd.option_context("display.max_colwidth", None):
        return frame.to_html(index=False, border=0, classes=classes)


def _links(folder: Path) -> str:
    """To what else there is in the folder: where it has the page of a notebook, the others are about to be made."""
    targets = [f"{name}.html" for name in NOTEBOOKS] if [*folder.glob("0?_*.html")] else []
    targets += [name for name in ("deltas.csv", "summary.json") if (folder / name).exists()]
    links = " · ".join(f'<a href="{target}">{target.removesuffix(".html")}</a>' for target in targets)
    return f"<h2>More</h2><p>{links}</p>" if links else ""
