"""The result of a run on one page, `index.html`: it opens without a network, asks for nothing, and prints.

The map keeps its layer slider, as Plotly frames that are computed here. Pictures are those that the notebooks left in
the folder. Plotly's program, 5 MB, is packed into the page to less than half of that; the browser unpacks it.
"""

import base64
import gzip
import html
import io
import json
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from .. import analysis
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..evidence.alternatives import methods_table, methods_text
from ..evidence.chance import chance_text, reliability_text
from ..evidence.layer_choice import NOTHING, choice_text
from ..evidence.rounding import trust_text
from ..figures import view as maps
from ..files import shown, write_whole
from .findings import Findings
from .parameters import versions
from .run import NOTEBOOKS

POINTS = 50_000  # on all layers of the map together: with more, the slider has fewer layers


ROWS = 500  # of a table of adapters; above, it has a row per domain, and the rest is left to deltas.csv


PICTURES = {
    "similarity": "Every pair: cosines of the deltas at the last layer, similar adapters side by side.",
    "silhouette": "Each adapter: near 1 it lies with its own domain, below 0 nearer to another one.",
    "silhouette_by_layer": "Each layer. The best one is picked with the labels that it is scored on, and so flatters.",
    "norms": "How far each adapter moves the base's last hidden state on these probes.",
    "trust": "Norms beside what rounding does. What lies in the red part has no direction to be trusted.",
    "chance": "The true labels' silhouette beside those of shuffled ones. Far to their right, it is no accident.",
    "signal": "Each probe set and layer. The brightest one is picked by its labels, and so flatters.",
    "probe_counts": "Fewer probes. Where the curve is still rising at its right end, more probes would help.",
}


HEATMAPS = ("similarity", "signal")


_DIGITS = "".join(chr(c) for c in range(35, 127) if chr(c) not in "&<>\\`'/")[:85]  # digits of base 85, safe in HTML


def write_page(run: DeltaRun, findings: Findings, folder: Path | None) -> str:
    """`<folder>/index.html`: what was run, the map, pictures, evidence, adapters, failures, acceptance list, links."""
    if folder is None:
        return "No output_dir is set, so no index.html was written."
    found, score = run.delta_set, findings.score
    finding = f"silhouette by domain {score.score:.2f}" if not score.note else score.note
    finding = finding if len(found) else "No adapter could be used."
    failed = [record for record in run.records if record["status"] == "failed"]
    title = f"{len(found):,} adapter{'' if len(found) == 1 else 's'} of {run.base_model}"
    parts = [
        f"<h1>{html.escape(title)}</h1><p class=finding>{html.escape(finding)}</p>",
        _facts(run),
        "<h2>The map, layer by layer</h2>" + _map(found, findings.by_layer),
        *(_pictures(folder, "similarity", "silhouette", "silhouette_by_layer", "norms") if len(found) else ()),
        *(_evidence(run, findings, folder) if len(found) else ()),
        f"<h2>Adapters that could not be used: {len(failed)}</h2>{_failures(failed)}" if failed else "",
        "<h2>Is the run sound?</h2>" + _table(findings.acceptance.reset_index()),
        "<h2>All adapters</h2>" + _adapters([r for r in run.records if r["status"] != "failed"], findings.trust),
        _links(folder),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    page = _PAGE.substitute(title=html.escape(title), body="\n".join(filter(None, parts)))
    write_whole(folder / "index.html", lambda file: file.write(page.encode()))
    return "The result on one page is in index.html."


def layer_map(found: DeltaSet, by_layer: pd.Series) -> go.Figure:
    """The map with hover, a frame per layer and a slider; above it the silhouette by layer, `by_layer`."""
    every = max(1, -(-len(found) * found.layers // POINTS))
    columns = list(range(found.layers - 1, -1, -every))  # from the last layer back
    numbers = found.layer_numbers or tuple(range(found.layers))
    views, like = {}, None
    for column in columns:
        views[column] = like = maps.view_of(found.deltas(numbers[column]), found.domains, False, "PCA", like)
    frames = [_frame(found, views[column], numbers[column]) for column in reversed(columns)]
    last = frames[-1]
    curve = [None if np.isnan(value) else float(value) for value in by_layer]
    figure = go.Figure(
        [
            *last.data,
            go.Scatter(
                x=list(numbers), y=curve, mode="lines", line_color="#808080", xaxis="x2", yaxis="y2", showlegend=False,
                hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
            ),
        ],
        frames=frames,
    )  # fmt: skip
    grid = dict(gridcolor="#e5e5e5", zeroline=False)
    steps = [
        dict(label=frame.name, method="animate", args=[[frame.name], dict(
            mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))])
        for frame in frames
    ]  # fmt: skip
    figure.update_layout(last.layout)
    figure.update_layout(
        template="none", height=640, autosize=True, hovermode="closest", margin=dict(l=60, r=20, t=40, b=20),
        title=dict(x=0, xref="paper", font_size=14), legend=dict(
            x=1.01, y=0.75, yanchor="top", itemclick=False, itemdoubleclick=False,
            itemsizing="constant" if len(found) >= maps.WEBGL else "trace",
        ),
        xaxis=dict(showticklabels=False, showline=True, **grid),
        yaxis=dict(showticklabels=False, showline=True, domain=[0, 0.78], **grid),
        xaxis2=dict(
            anchor="y2", range=[min(numbers), max(numbers)], title_text="layer", title_standoff=2,
            dtick=1 if max(numbers) - min(numbers) < 10 else None, **grid,
        ),  # fmt: skip
        yaxis2=dict(anchor="x2", domain=[0.9, 1], title_text="silhouette", nticks=4, **grid),
        sliders=[dict(active=len(steps) - 1, steps=steps, currentvalue=dict(prefix="layer "), pad=dict(t=40),
                      transition=dict(duration=0))],
    )  # fmt: skip
    return figure


def _frame(found: DeltaSet, seen: maps.View, number: int) -> go.Frame:
    """One layer's points, and the mark on the silhouette's line."""
    texts, ranges = maps.hover_texts(found.names, found.domains, found.kinds, seen), maps.limits(seen.points)
    traces = maps.map_traces(np.round(seen.points, 4), found.domains, texts)
    value = seen.score.score
    mark = go.Scatter(
        x=[number], y=[None if np.isnan(value) else value], xaxis="x2", yaxis="y2", mode="markers", cliponaxis=False,
        marker=dict(color="#d00000", size=9), showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    finding = maps.plain(seen.score.note) if seen.score.note else f"silhouette by domain {value:.3f}"
    layout = dict(
        title_text=f"Layer {number}: {finding}",
        xaxis=dict(title_text=seen.axes[0], range=ranges[0]),
        yaxis=dict(title_text=seen.axes[1], range=ranges[1]),
    )
    return go.Frame(name=str(number), data=[*traces, mark], layout=layout)


def _map(found: DeltaSet, by_layer: pd.Series) -> str:
    if len(found) < 2:
        return "<p>A map needs at least two adapters.</p>"
    return (
        "<p class=screen>Point at an adapter to see its name, its norm and what is nearest to it; move the slider to "
        "see the domains come together or fall apart.</p><p>Principal components of the deltas' directions.</p>"
        "<div id=map></div>"
        + _packed("figure", layer_map(found, by_layer).to_json())
        + _packed("plotly", get_plotlyjs())
        + f"<script>{_SHOW.replace('DIGITS', json.dumps(_DIGITS))}</script>"
    )


def _packed(name: str, text: str) -> str:
    """A text in the page, compressed, five digits for four bytes, of an alphabet that HTML leaves alone."""
    content = gzip.compress(text.encode(), 9, mtime=0)
    usual = base64.b85encode(content, pad=True).decode()
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    text = usual.translate(str.maketrans(digits, _DIGITS))
    return f"<script type=text/plain id={name} data-bytes={len(content)}>{text}</script>"


def _facts(run: DeltaRun) -> str:
    config, counts = run.cache.config, analysis.summary(run.records)
    facts = {
        "base": run.base_model,
        "adapters": f"{len(run.delta_set)} with a delta, {counts['failed']} that could not be used",
        "domains": analysis.label_text(run.delta_set.domains).removeprefix("Domains: "),
        "probes": f"{config['num_probes']}, {config['probe_type']}; at most {config['max_length']} tokens",
        "dtype": config["dtype"],
        "versions": versions(),
        "cache": shown(run.cache.cache_dir),
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
    probes = "".join(f"<li><pre>{html.escape(probe)}</pre></li>" for probe in config["probes"])
    return f"<table class=facts>{rows}</table><details><summary>the probes' texts</summary><ol>{probes}</ol></details>"


def _evidence(run: DeltaRun, findings: Findings, folder: Path) -> list[str]:
    """How far the pictures are to be trusted, where the signal is, and what else it could be had from."""
    probes = run.cache.config["num_probes"]
    parts = [
        "<h2>Is it rounding?</h2>" + _text(trust_text(findings.trust)),
        *_pictures(folder, "trust"),
        "<h2>Is it chance?</h2>" + _text(chance_text(findings.chance)),
        *_pictures(folder, "chance"),
        _text(reliability_text(findings.reliability, probes)),
    ]
    if findings.choice is not None and findings.choice.note != NOTHING:
        parts += ["<h2>Where the signal is</h2>", *_pictures(folder, "signal"), _text(choice_text(findings.choice))]
        parts += _pictures(folder, "probe_counts")
    if findings.tokens is not None and len(findings.tokens):
        parts.append(
            "<h2>What the domains make likelier, and less likely</h2>"
            + _table(findings.tokens.reset_index(), "list tokens")
        )
        parts.append(_text("Of the mean delta of each domain's adapters. " + findings.tokens.attrs["note"]))
    if findings.methods is not None and findings.methods["adapters"].any():
        parts.append("<h2>Against the alternatives</h2>" + _table(methods_table(findings.methods).reset_index()))
        parts.append(_text(methods_text(findings.methods)))
    return parts


def _text(text: str) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines())


def _pictures(folder: Path, *names: str) -> list[str]:
    """Pictures of the folder in few colours, and what to see in each; without those that it lacks."""
    return [_picture(file, PICTURES[name]) for name in names if (file := folder / f"{name}.png").exists()]


def _picture(file: Path, text: str) -> str:
    packed, heatmap = io.BytesIO(), file.stem in HEATMAPS
    with Image.open(file) as picture:
        # The usual way to pick colours gives a heatmap all of them, and none to the bar of domains at its edge.
        way = Image.Quantize.MAXCOVERAGE if heatmap else Image.Quantize.MEDIANCUT
        few = picture.convert("RGB").quantize(256 if heatmap else 32, method=way)
        few.convert("RGB").save(packed, "WEBP", lossless=True, method=4)
    data = base64.b64encode(packed.getvalue()).decode()
    return (
        f'<figure><img alt="{file.stem}" src="data:image/webp;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def _failures(failed: list[dict]) -> str:
    more = f"<p>… and {len(failed) - ROWS:,} more: see summary.json.</p>" if len(failed) > ROWS else ""
    rows = [{"adapter": r["name"], "folder": shown(r["path"]), "reason": r["reason"]} for r in failed[:ROWS]]
    return _table(pd.DataFrame(rows)) + more


def _adapters(records: list[dict], trust: pd.DataFrame) -> str:
    if not records:
        return "<p>0 adapters.</p>"
    if len(records) > ROWS:
        by_domain = analysis.overview(records, trust).reset_index().drop(columns="failed")
        return f"<p>{len(records):,} adapters, by domain; deltas.csv has each of them.</p>{_table(by_domain)}"
    columns = ["name", "domain", "kind", "norm", "of base", "beside noise", "spread", "route"]
    return _table(analysis.table(records, trust).reset_index()[columns])


def _table(frame: pd.DataFrame, classes: str = "list") -> str:
    with pd.option_context("display.max_colwidth", None):
        return frame.to_html(index=False, border=0, classes=classes)


def _links(folder: Path) -> str:
    """To what else there is in the folder. Where pages of the notebooks are, that of the one running is about to be."""
    pages = {file.stem for file in folder.glob("0?_*.html")}
    targets = [
        f"{page}.html" for page in sorted(pages | {*NOTEBOOKS[NOTEBOOKS.index("04_analysis") :]} if pages else pages)
    ]
    targets += [name for name in ("deltas.csv", "summary.json") if (folder / name).exists()]
    links = " · ".join(f'<a href="{target}">{target.removesuffix(".html")}</a>' for target in targets)
    return f"<h2>More</h2><p>{links}</p>" if links else ""


_SHOW = """
(async () => {
const value = new Uint8Array(128);
[...DIGITS].forEach((digit, i) => value[digit.charCodeAt(0)] = i);
async function unpack(name) {
  const packed = document.getElementById(name), text = packed.textContent;
  const bytes = new DataView(new ArrayBuffer(text.length / 5 * 4));
  for (let i = 0, at = 0; i < text.length; at += 4) {
    let word = 0;
    for (let k = 0; k < 5; k++) word = word * 85 + value[text.charCodeAt(i++)];
    bytes.setUint32(at, word);
  }
  const content = new Blob([bytes.buffer.slice(0, +packed.dataset.bytes)]);
  const stream = content.stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).text();
}
const program = document.createElement("script");
program.textContent = await unpack("plotly");
document.head.append(program);
const figure = JSON.parse(await unpack("figure"));
const map = document.getElementById("map"), options = {responsive: true, displayModeBar: false};
await Plotly.newPlot(map, figure.data, figure.layout, options);
await Plotly.addFrames(map, figure.frames);
window.addEventListener("beforeprint", () =>
  Plotly.relayout(map, {width: 680, height: 480, "sliders[0].visible": false}));
window.addEventListener("afterprint", () =>
  Plotly.relayout(map, {width: null, height: 640, autosize: true, "sliders[0].visible": true}));
map.dataset.ready = "yes";
})();
"""


_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width"><style>
body {font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1000px; margin: 2em auto;
  padding: 0 1em}
h1 {font-size: 1.6em; margin: 0; overflow-wrap: anywhere} h2 {font-size: 1.15em; margin: 2em 0 .3em; break-after: avoid}
.finding {font-size: 1.15em; margin: .2em 0 1em}
table {border-collapse: collapse} th, td {text-align: left; vertical-align: top; padding: .15em 1.2em .15em 0}
td {overflow-wrap: anywhere} .facts th {font-weight: 600; white-space: nowrap} .list {font-size: .9em}
.list tr {border-bottom: 1px solid #e5e5e5} .tokens td {overflow-wrap: normal}
figure {margin: 2em 0} img {max-width: min(100%, 760px)} figcaption {color: #555}
pre {white-space: pre-wrap; margin: 0} summary {cursor: pointer; color: #555}
@media print {body {margin: 0; max-width: none} figure, tr, #map {break-inside: avoid} a {color: inherit}
  img {max-height: 400px} .screen, .modebar, details {display: none}}
</style></head><body>
$body
</body></html>
""")
