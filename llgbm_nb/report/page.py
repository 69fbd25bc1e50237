"""The result of a run on one page, index.html: it opens without a network, asks for nothing, and prints.

page.html beside this module is its template, page.js and page.css are what it does and looks like; their numbers are
page_data's. Plotly's and DataTables' programs lie in the page compressed, and the browser unpacks them. Pictures are
those that the notebooks left in the folder; none is made here.
"""

import base64
import contextlib
import datetime
import gzip
import io
import json
import subprocess
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from ..analysis import sentences, tables
from ..deltas import DeltaRun
from ..evidence.alternatives import methods_table, methods_text
from ..evidence.chance import chance_text, reliability_text
from ..evidence.layer_choice import NOTHING, choice_text
from ..evidence.rounding import trust_text
from ..files import ROOT, shown, write_whole
from .dark import ON_A_PAGE
from .notebook_page import NOTEBOOKS
from .page_data import page_data
from .parameters import versions
from .verdict import Findings, verdict

HERE = Path(__file__).parent
ROWS = 500  # of a table of failures or duplicates; the rest is left to summary.json
BARE = 200  # adapters that are listed where the page's program does not run, as on paper
PROBES = 100  # whose texts are on the page
PICTURES = {
    "similarity_by_domain": "Mean cosines of all adapters, by domain.",
    "silhouette": "Each adapter: near 1 it lies with its own domain, below 0 nearer to another one.",
    "norms": "How far each adapter moves the base's hidden state on these probes.",
    "trust": "Norms beside what rounding does. What lies in the red part has no direction to be trusted.",
    "chance": "The true labels' silhouette beside those of shuffled ones. Far to their right, it is no accident.",
    "signal": "Each probe set and layer. The brightest one is picked by its labels, and so flatters.",
    "probe_counts": "Fewer probes. Where the curve is still rising at its right end, more probes would help.",
}
HEATMAPS = ("similarity_by_domain", "signal")
WORDS = {
    "delta": "what an adapter changes in the base's hidden state at the probes' last tokens, the mean over the probes",
    "probe": "one of the fixed prompts that every adapter is measured on",
    "silhouette": "near 1, adapters lie nearest to their own domain; near 0, domains overlap; below 0, to others",
    "group": "adapters that lie together, found without labels",
    "norm": "how far an adapter moves the base; the direction is what adapters are compared by",
    "beside noise": "how many times the norm is what rounding alone does; under 10, the direction means nothing",
    "spread": "how far single probes' differences lie from their mean, in shares of its norm",
    "route": "how a delta was measured: stacked (several in one pass), PEFT (one at a time) or full model",
    "centered": "minus the pool's mean delta, what all adapters do alike",
}


def write_page(
    run: DeltaRun, findings: Findings, folder: Path | None, checkpoint_dir: Path | None = None, command: str = ""
) -> str:
    """`<folder>/index.html`: the verdict, map, heatmap and table at work, evidence, failures, soundness, links.

    `checkpoint_dir` and `command` say what it was made of, and by which command it is made again.
    """
    if folder is None:
        return "No output_dir is set, so no index.html was written."
    found, config = run.delta_set, run.cache.config
    failed = [record for record in run.records if record["status"] == "failed"]
    texts, shown_tables = _texts(run, findings), _tables(run, findings)
    sections = {
        "look": "The adapters, layer by layer" if len(found) > 1 else "", "all": "All adapters",
        "failures": f"Could not be used: {len(failed)}" if failed else "",
    } | ({
        "domains": "Do the domains part?", "groups": "Groups without labels", "labels": "What else parts them?",
        "duplicates": "Near-duplicates", "signal": "Which probes, which layer?" if texts["choice"] else "",
        "tokens": "Tokens" if shown_tables["tokens"] else "",
        "methods": "Against the alternatives" if shown_tables["methods"] else "", "trust": "Is it rounding?",
        "uses": "What are they good for?",
    } if len(found) else {}) | {"soundness": "Is the run sound?", "run": "The run", "words": "The words"}  # fmt: skip
    programs = {"plotly": get_plotlyjs()} | {f"table-{end}": _itables(f"dt_bundle.{end}") for end in ("js", "css")}
    content = dict(
        title=f"{len(found):,} adapter{'' if len(found) == 1 else 's'} of {run.settings.base_model}",
        date=datetime.date.today().isoformat(), verdict=verdict(found.names, findings), count=len(found),
        many=len(found) > 1, sections=[each for each in sections.items() if each[1]], texts=texts,
        facts=_facts(run, checkpoint_dir), command=command,
        tables=shown_tables, failed=_failures(failed), failed_count=f"{len(failed):,}",
        failed_more=f"… and {len(failed) - ROWS:,} more: see summary.json." if len(failed) > ROWS else "",
        bare_table=_bare_table(run, findings), duplicates=f"{len(findings.duplicates):,}",
        pictures=_pictures(run, findings, folder), probes=config["probes"][:PROBES],
        more_probes=f"{config['num_probes'] - PROBES:,}" if config["num_probes"] > PROBES else "", words=WORDS,
        links=_links(folder), style=_own("page.css") + Markup(ON_A_PAGE), script=_own("page.js"),
        packed={name: _packed(text) for name, text in (programs if len(found) > 1 else {}).items()}
        | {"data": _packed(_data(run, findings))},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "index.html", environment().get_template("page.html").render(content))
    return "The result on one page is in index.html."


def environment() -> Environment:
    """Of the templates beside this module."""
    return Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)


def _own(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _itables(name: str) -> str:
    """A file of DataTables, as the package itables brings it."""
    return (files("itables") / "html" / name).read_text(encoding="utf-8")


def _data(run: DeltaRun, findings: Findings) -> str:
    return json.dumps(page_data(run, findings), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _packed(text: str) -> Markup:
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())


def _facts(run: DeltaRun, checkpoint_dir: Path | None) -> dict[str, str]:
    config, commit = run.cache.config, ""
    with contextlib.suppress(OSError):  # there is no git
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "collection": shown(checkpoint_dir) if checkpoint_dir else "",
        "base": run.settings.base_model,
        "adapters": f"{len(run.delta_set)} with a delta, {run.count('failed')} that could not be used",
        "domains": tables.label_text(run.delta_set.domains).removeprefix("Domains: "),
        "probes": f"{config['num_probes']}, {config['probe_type']}; at most {config['max_length']} tokens",
        "dtype": config["dtype"], "versions": versions(), "cache": shown(run.cache.cache_dir),
        "commit": commit,
    }  # fmt: skip


def _texts(run: DeltaRun, findings: Findings) -> dict[str, str]:
    """The evidence in sentences."""
    choice, tokens, methods = findings.choice, findings.tokens, findings.methods
    there = tokens is not None and len(tokens)
    return {
        "chance": chance_text(findings.chance), "trust": trust_text(findings.trust),
        "reliability": reliability_text(findings.reliability, run.cache.config["num_probes"]),
        "groups": _about_groups(run, findings),
        "choice": choice_text(choice) if choice is not None and choice.note != NOTHING else "",
        "tokens": f"Of the mean delta of each domain's adapters. {tokens.attrs['note']}" if there else "",
        "methods": methods_text(methods) if methods is not None and methods["adapters"].any() else "",
    }  # fmt: skip


def _about_groups(run: DeltaRun, findings: Findings) -> str:
    """In lines, without those of the groups where these have a table."""
    first, *lines = sentences.about_groups(findings.groups, run.delta_set.names).splitlines()
    if findings.named_groups is None or not len(findings.named_groups):
        return "\n".join([first, *lines])
    alone = [line.replace("  in none", "In none") for line in lines if line.startswith("  in none")]
    return "\n".join([f"{first.removesuffix(':')}.", *alone])


def _tables(run: DeltaRun, findings: Findings) -> dict[str, str]:
    tokens, methods, twice, groups = findings.tokens, findings.methods, findings.duplicates, findings.named_groups
    return {
        "groups": table(groups.reset_index(), "list tokens") if groups is not None and len(groups) else "",
        "labels": table(numbers(findings.labels).reset_index()),
        "duplicates": table(numbers(twice[:ROWS])) if len(twice) else "",
        "tokens": table(tokens.reset_index(), "list tokens") if tokens is not None and len(tokens) else "",
        "methods": table(methods_table(methods).reset_index())
        if methods is not None and methods["adapters"].any() else "",
        "soundness": table(findings.soundness.reset_index(), "list reasons"),
    }  # fmt: skip


def _bare_table(run: DeltaRun, findings: Findings) -> Markup:
    """The adapters' table as it stands where the page's program does not run, as on paper."""
    records = [record for record in run.records if record["status"] != "failed"]
    if not records:
        return Markup("")
    frame = tables.table(records, findings.trust).reset_index() if len(records) <= BARE else (
        tables.overview(records, findings.trust).reset_index().drop(columns="failed"))  # fmt: skip
    columns = ["name", "domain", "kind", "norm", "of base", "beside noise", "spread", "route"]
    html = table(frame[[name for name in columns if name in frame]])
    return Markup(html[html.index("<thead") : html.rindex("</table>")])


def _failures(failed: list[dict]) -> str:
    rows = [{"adapter": r["name"], "folder": shown(r["path"]), "reason": r["reason"]} for r in failed[:ROWS]]
    return table(pd.DataFrame(rows), "list reasons") if rows else ""


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's numbers for people, to three digits after the point."""
    texts = frame.select_dtypes("float").map("{:.3f}".format)
    return frame.assign(**texts.where(texts != "nan", "–"))


def table(frame: pd.DataFrame, classes: str = "list") -> Markup:
    with pd.option_context("display.max_colwidth", None):
        return Markup(frame.to_html(index=False, border=0, classes=classes))


def _pictures(run: DeltaRun, findings: Findings, folder: Path) -> dict[str, dict]:
    """Those of the folder's pictures that there are: source, caption, and what there is to see in it."""
    there = {name: file for name in PICTURES if (file := folder / f"{name}.png").exists()}
    if not there:
        return {}
    found = run.delta_set
    alts = PICTURES | {
        "silhouette": sentences.about_silhouettes(findings.score, found.names),
        "norms": sentences.about_norms(findings.trust["norm"].to_numpy(), found.names),
        "trust": trust_text(findings.trust), "chance": chance_text(findings.chance),
        "signal": choice_text(findings.choice) if findings.choice else PICTURES["signal"],
    }  # fmt: skip
    return {name: dict(source=data_url(file), caption=PICTURES[name], alt=alts[name]) for name, file in there.items()}


def data_url(file: Path) -> str:
    """A picture in few colours."""
    packed, heatmap = io.BytesIO(), file.stem in HEATMAPS
    with Image.open(file) as picture:
        # The usual way to pick colours gives a heatmap all of them, and none to the bar of domains at its edge.
        how = (256, Image.Quantize.MAXCOVERAGE) if heatmap else (32, Image.Quantize.MEDIANCUT)
        picture.convert("RGB").quantize(*how).convert("RGB").save(packed, "WEBP", lossless=True, method=4)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"


def _links(folder: Path) -> list[str]:
    """To what else there is in the folder: where it has the page of a notebook, the others are about to be made."""
    targets = [f"{name}.html" for name in NOTEBOOKS] if [*folder.glob("0?_*.html")] else []
    return targets + [name for name in ("deltas.csv", "labels.csv", "summary.json") if (folder / name).exists()]
