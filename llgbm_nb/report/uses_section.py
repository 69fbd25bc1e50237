"""What `06_uses` finds, put into what `05_evidence` left: a section of the page, numbers of the summary, a sentence.

It replaces what it put there before. Nothing is measured here, and of the page only the marks are known, HTML comments
that stand in page.html.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup, escape

from ..files import shown, write_whole
from ..uses.task_query import accuracy_text
from ..uses.task_search import answers_table, answers_text
from ..uses.together import additivity_text, merge_text
from .findings import numbers_of
from .page import data_url, environment, numbers, table
from .verdict import additivity_line

CAPTIONS = {
    "additivity": "Both at once beside the sum of the two, and beside the nearer one of them.",
    "queries": "By how much each adapter lowers the loss of a query's examples; a ring is about the best.",
    "merge": "The merged adapter in the plane of the two deltas that it is made of.",
}
FEW = 3  # queries that are answered in words; of more, the table tells


@dataclass(frozen=True)
class Uses:
    """What `06_uses` finds."""

    duplicates: pd.DataFrame  # `uses.near_duplicates`
    added: pd.DataFrame  # `uses.additivity`
    answers: Mapping[str, pd.DataFrame]  # `uses.search_each`
    accuracy: pd.DataFrame  # `uses.query_accuracy` of their gains
    merge: dict | str  # `uses.merge_or_reason`


def add_uses(found: Uses, folder: Path | None, query: Path | str | None = None) -> str:
    """Put `found` into `<folder>/index.html` and `<folder>/summary.json`, where these are.

    A path `query` joins the command that makes the page again: `05_evidence` does not know it.
    Gives back what it did, and the sentence that it adds to the verdict.
    """
    line, done = additivity_line(found.added), []
    said = f"\n• {line.text}" if line else ""
    if folder is None:
        return f"No output_dir is set, so no page has the uses.{said}"
    page, summary = folder / "index.html", folder / "summary.json"
    if page.exists():
        section = environment().get_template("uses.html").render(_content(found, folder))
        item = Markup('<li><a href="#{}">{}</a></li>').format(line.evidence, line.text) if line else ""
        text = _between(page.read_text(encoding="utf-8"), "uses", section)
        asked = f" QUERY={shlex.quote(shown(query))}" if isinstance(query, Path) else ""
        text = _between(text, "query", str(escape(asked)))
        write_whole(page, _between(text, "verdict of the uses", str(item)))
        done.append(page.name)
    if summary.exists():
        content = json.loads(summary.read_text(encoding="utf-8"))
        before = content.get("uses", {}).get("verdict")
        sentences = [sentence for sentence in content["verdict"] if sentence != before]
        content["verdict"] = sentences + ([line.text] if line else [])
        content["uses"] = _numbers(found) | {"verdict": line.text if line else None}
        write_whole(summary, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        done.append(summary.name)
    if not done:
        return f"There is no index.html yet, which 05_evidence writes: the uses are on no page.{said}"
    return f"The uses are in {' and '.join(done)}.{said}"


def _between(text: str, name: str, content: str) -> str:
    """`text` with `content` between the two marks called `name`; as it is where it has none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, mark, rest = text.partition(begin)
    return before + mark + content + end + rest.partition(end)[2] if mark else text


def _content(found: Uses, folder: Path) -> dict:
    """What uses.html is filled with."""
    best, scored = answers_table(found.answers), found.accuracy["right"].notna().any()
    task = [answers_text(found.answers) if len(best) <= FEW else f"The best adapter for each of {len(best)} queries:"]
    texts = {
        "additivity": additivity_text(found.added),
        "queries": "\n".join([accuracy_text(found.accuracy)] * bool(scored) + task),
        "merge": found.merge if isinstance(found.merge, str) else merge_text(found.merge),
    }
    made = {
        "additivity": found.added["error"].notna().any(),
        "queries": len(best) > 0,
        "merge": isinstance(found.merge, dict),
    }
    files = {name: folder / f"{name}.png" for name, there in made.items() if there}
    pairs, count = found.added.drop(columns="reason"), len(found.duplicates)
    return dict(
        duplicates=f"{count:,} pair{'' if count == 1 else 's'} of adapters do nearly the same" if count else
        "No two adapters do nearly the same",
        additivity=texts["additivity"], task=texts["queries"], merge=texts["merge"],
        pairs=table(numbers(pairs)) if len(pairs) else "",
        queries=table(numbers(best.reset_index())) if len(best) else "",
        pictures={
            name: dict(source=data_url(file), caption=CAPTIONS[name], alt=texts[name])
            for name, file in files.items() if file.exists()
        },
    )  # fmt: skip


def _numbers(found: Uses) -> dict:
    """For summary.json."""
    scored = found.accuracy[found.accuracy["right"].notna()]
    merge, best = found.merge, answers_table(found.answers)
    return {
        "near_duplicates": len(found.duplicates),
        "additivity": [
            {**row[["adapter", "other", "kind", "reason"]], **numbers_of(row[["cosine", "single", "error"]])}
            for _, row in found.added.iterrows()
        ],
        "search": {
            query: {**row[["adapter", "domain"]], **numbers_of(row[["base_loss", "loss", "gain", "low", "high"]])}
            for query, row in best.iterrows()
        },
        "task_queries": numbers_of({
            "queries": len(found.accuracy), "scored": len(scored), "right": scored["right"].astype(float).sum(),
            "right_by_chance": scored["chance"].sum(),
        }),
        "merge": {"note": merge} if isinstance(merge, str) else
        {"adapters": merge["adapters"], **numbers_of({key: merge[key] for key in ("cosine", "error")})},
    }  # fmt: skip
