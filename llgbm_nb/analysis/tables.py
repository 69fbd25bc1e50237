"""A run's records (`DeltaRun.records`) and nearest neighbours as tables and sentences; of many, a row is a domain."""

from collections import Counter

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN
from .geometry import directions, nearest

FAILURES = 500  # that are listed with their reasons
ROWS = 60  # of a table in a notebook, where pandas begins to leave rows out; above, a row is a domain


def summary(records: list[dict]) -> dict:
    """Of a run's records: how many of each status, and min, max, mean, std and median of the norms."""
    statuses = [record["status"] for record in records]
    norms = np.array([record["norm"] for record in records if np.isfinite(record["norm"])])
    counts = {"total": len(records)} | {s: statuses.count(s) for s in ("computed", "cached", "failed")}
    statistics = ("min", "max", "mean", "std", "median") if len(norms) else ()
    return counts | ({"norm": {name: float(getattr(np, name)(norms)) for name in statistics}} if statistics else {})


def table(records: list[dict], trust: pd.DataFrame) -> pd.DataFrame:
    """A run's records for people, beside `evidence.trust`'s table; with reasons, if any adapter failed."""
    frame = pd.DataFrame(records).set_index("name").join(trust[["ratio", "flagged", "spread"]])
    failed, route = frame["status"] == "failed", frame["route"]
    columns = {
        **frame[["domain", "kind"]],
        "norm": _texts(frame["norm"], "{:.2f}"),
        "of base": _texts(100 * frame["relative"], "{:.1f} %"),
        "beside noise": frame["ratio"].map(times) + np.where(frame["flagged"].eq(True), " (flagged)", ""),
        "spread": _texts(100 * frame["spread"], "{:.0f} %"),
        "route": route.where(route.astype(bool) & ~failed, "–"),
        "seconds": _texts(frame["seconds"].mask(failed), "{:.1f} s"),
        "status": frame["status"],
    }
    return pd.DataFrame(columns | ({"reason": frame["reason"]} if frame["reason"].any() else {}), frame.index)


def overview(records: list[dict], trust: pd.DataFrame) -> pd.DataFrame:
    """`table`; of more than ROWS records a row per domain instead: how many, and the range of what the table has."""
    if len(records) <= ROWS:
        return table(records, trust)
    frame = pd.DataFrame(records).set_index("name").join(trust[["ratio", "flagged", "spread"]])
    rows = {}
    for domain, mine in frame.groupby("domain"):
        kinds = mine["kind"].value_counts()
        rows[domain] = {
            "adapters": len(mine),
            "failed": int((mine["status"] == "failed").sum()),
            "kinds": kinds.index[0] + (f" and {len(kinds) - 1} more" if len(kinds) > 1 else ""),
            "norm": _range(mine["norm"], "{:.2f}"),
            "of base": _range(100 * mine["relative"], "{:.1f} %"),
            "beside noise, least": times(mine["ratio"].min()),
            "flagged": int(mine["flagged"].eq(True).sum()),
            "spread": _range(100 * mine["spread"], "{:.0f} %"),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("domain")


def _texts(values, form: str) -> list[str]:
    """Each finite value in the form, "–" for the others."""
    return [form.format(value) if np.isfinite(value) else "–" for value in values]


def _range(values: pd.Series, form: str) -> str:
    """Least, median and largest of the finite ones: "1.20 – 3.50 – 9.00"; "–" if there is none."""
    values = values[np.isfinite(values)]
    return " – ".join(_texts((values.min(), values.median(), values.max()), form)) if len(values) else "–"


def times(ratio: float) -> str:
    """A ratio for people, to two digits: "88,000 ×", "0.12 ×", "∞ ×"; "–" for NaN."""
    if not np.isfinite(ratio):
        return "–" if np.isnan(ratio) else "∞ ×"
    rounded = float(f"{ratio:.2g}")
    return f"{rounded:,.0f} ×" if rounded >= 10 or rounded == 0 else f"{rounded:g} ×"


def summary_text(records: list[dict]) -> str:
    """`summary` in one or two lines."""
    numbers = summary(records)
    deltas = numbers["computed"] + numbers["cached"]
    text = "{total} adapters: {deltas} with a delta, {failed} failed ({computed} computed now, {cached} from the cache)"
    norms = ", ".join(f"{name} {value:.2f}" for name, value in numbers.get("norm", {}).items())
    return text.format(deltas=deltas, **numbers) + (f"\nnorm: {norms}" if norms else "")


def failure_text(records: list[dict]) -> str:
    """A line for every adapter that failed, with its reason; for the first FAILURES of them."""
    lines = [f"✗ {record['name']}: {record['reason']}" for record in records if record["status"] == "failed"]
    if len(lines) > FAILURES:
        lines[FAILURES:] = [f"… and {len(lines) - FAILURES:,} more (summary.json has all)"]
    return "\n".join(lines) or "No adapter failed."


def label_text(domains) -> str:
    """How many adapters each domain has, and how many are left out of the scores for want of a label."""
    counts = Counter(domains)
    text = ", ".join(f"{name} {counts[name]}" for name in sorted(counts) if name != UNKNOWN) or "none"
    mend = "put them in a folder named after their domain, or into labels.csv"
    unknown = f"\n{counts[UNKNOWN]} without a label, left out of the silhouette: {mend}" if UNKNOWN in counts else ""
    return f"Domains: {text}{unknown}"


def neighbour_table(deltas: np.ndarray, names, domains, k: int = 3) -> pd.DataFrame:
    """The `k` nearest other adapters of each by cosine: a row per adapter, a column per rank, "name (cosine)"."""
    others, cosines = nearest(directions(deltas), k)
    columns = {"domain": list(domains)} if others.size else {}
    for rank, (mine, values) in enumerate(zip(others.T, cosines.T, strict=True), start=1):
        texts = [f"{names[j]} ({cosine:.2f})" for j, cosine in zip(mine, values, strict=True)]
        columns[f"nearest {rank}" if rank > 1 else "nearest"] = texts
    return pd.DataFrame(columns, pd.Index(names, name="adapter"))


def neighbour_overview(deltas: np.ndarray, names, domains) -> pd.DataFrame:
    """`neighbour_table`; of more than ROWS adapters a row per domain instead: of what domain their nearest ones are."""
    if len(names) <= ROWS:
        return neighbour_table(deltas, names, domains)
    others, cosines = (found[:, 0] for found in nearest(directions(deltas), 1))
    frame, rows = pd.DataFrame({"other": [domains[i] for i in others], "cosine": cosines}), {}
    for domain, mine in frame.groupby(np.asarray(domains, dtype=object)):
        strange = mine["other"][mine["other"] != domain].value_counts()
        rows[domain] = {
            "adapters": len(mine),
            "nearest is of the domain": f"{100 * (mine['other'] == domain).mean():.0f} %",
            "by chance": f"{100 * (len(mine) - 1) / (len(frame) - 1):.0f} %",
            "else most often of": f"{strange.index[0]} ({strange.iloc[0]})" if len(strange) else "–",
            "cosine of the nearest": _range(mine["cosine"], "{:.2f}"),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("domain")
