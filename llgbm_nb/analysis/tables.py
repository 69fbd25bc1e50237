"""TODO: header."""

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN
from .geometry import directions, near

FAILURES = 500  # that are listed with their reasons


ROWS = 60  # of a table in a notebook, where pandas begins to leave rows out; above, a row is a domain


def neighbours(deltas: np.ndarray, names, k: int = 3) -> pd.DataFrame:
    """The `k` nearest other adapters of each by cosine: columns adapter, rank, neighbour, cosine."""
    rows = [
        (names[i], rank, names[j], cosine)
        for i, (others, cosines) in enumerate(zip(*near(directions(deltas), k), strict=True))
        for rank, (j, cosine) in enumerate(zip(others, cosines, strict=True), start=1)
    ]
    return pd.DataFrame(rows, columns=["adapter", "rank", "neighbour", "cosine"])


def summary(records: list[dict]) -> dict:
    """Of a run's records: how many of each status, and min, max, mean, std and median of the norms."""
    statuses = [record["status"] for record in records]
    norms = np.array([record["norm"] for record in records if np.isfinite(record["norm"])])
    counts = {"total": len(records)} | {s: statuses.count(s) for s in ("computed", "cached", "failed")}
    if not len(norms):
        return counts
    statistics = {name: float(getattr(np, name)(norms)) for name in ("min", "max", "mean", "std", "median")}
    return counts | {"norm": statistics}


def table(records: list[dict], trust: pd.DataFrame | None = None) -> pd.DataFrame:
    """A run's records for people: name, domain, kind, norm, its share of the base's, route, seconds, status, reason.

    With `precision.trust`'s table, also the norm beside its noise, and the spread over the probes.
    """
    rows = [
        {
            "name": record["name"],
            "domain": record["domain"],
            "kind": record["kind"],
            "norm": f"{record['norm']:.2f}" if np.isfinite(record["norm"]) else "–",
            "of base": f"{100 * record['relative']:.1f} %" if np.isfinite(record["norm"]) else "–",
            "route": "–" if record["status"] == "failed" else record["route"] or "–",
            "seconds": "–" if record["status"] == "failed" else f"{record['seconds']:.1f} s",
            "status": record["status"],
            "reason": record["reason"],
        }
        for record in records
    ]
    frame = pd.DataFrame(rows).set_index("name")
    if trust is not None:
        there = trust.reindex(frame.index)
        flags = there["flagged"].eq(True)  # NaN where there is no delta
        noise = [
            f"{times(ratio)}{' (flagged)' if flag else ''}" for ratio, flag in zip(there["ratio"], flags, strict=True)
        ]
        frame.insert(4, "beside noise", noise)
        frame.insert(5, "spread", [f"{100 * value:.0f} %" if np.isfinite(value) else "–" for value in there["spread"]])
    return frame if frame["reason"].any() else frame.drop(columns="reason")


def overview(records: list[dict], trust: pd.DataFrame) -> pd.DataFrame:
    """`table`; of more than ROWS records a row per domain instead: how many, and the range of what the table has."""
    if len(records) <= ROWS:
        return table(records, trust)
    frame = pd.DataFrame(records, columns=["name", "domain", "kind", "norm", "relative", "status"]).set_index("name")
    frame = frame.join(trust[["ratio", "spread", "flagged"]])
    rows = {
        domain: {
            "adapters": len(mine),
            "failed": int((mine["status"] == "failed").sum()),
            "kinds": _first_and_count(mine["kind"]),
            "norm": _range(mine["norm"], "{:.2f}"),
            "of base": _range(100 * mine["relative"], "{:.1f} %"),
            "beside noise, least": times(mine["ratio"].min()),
            "flagged": int(mine["flagged"].eq(True).sum()),
            "spread": _range(100 * mine["spread"], "{:.0f} %"),
        }
        for domain, mine in frame.groupby("domain")
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("domain")


def _range(values: pd.Series, form: str) -> str:
    """Least, median and largest of the finite ones: "1.20 – 3.50 – 9.00"; "–" if there is none."""
    values = values[np.isfinite(values)]
    return " – ".join(form.format(v) for v in (values.min(), values.median(), values.max())) if len(values) else "–"


def _first_and_count(kinds: pd.Series) -> str:
    """The most frequent one, and how many others there are."""
    counts = kinds.value_counts()
    return counts.index[0] + (f" and {len(counts) - 1} more" if len(counts) > 1 else "")


def times(ratio: float) -> str:
    """A ratio for people, to two digits: "88,000 ×", "0.12 ×", "∞ ×"; "–" for NaN."""
    if np.isnan(ratio):
        return "–"
    if not np.isfinite(ratio):
        return "∞ ×"
    rounded = float(f"{ratio:.2g}")
    return f"{rounded:,.0f} ×" if rounded >= 10 or rounded == 0 else f"{rounded:g} ×"


def summary_text(records: list[dict]) -> str:
    """`summary` in two or three lines."""
    numbers = summary(records)
    deltas = numbers["computed"] + numbers["cached"]
    lines = [f"{numbers['total']} adapters: {deltas} with a delta, {numbers['failed']} failed"]
    lines[0] += f" ({numbers['computed']} computed now, {numbers['cached']} from the cache)"
    if "norm" in numbers:
        lines.append("norm: " + ", ".join(f"{name} {value:.2f}" for name, value in numbers["norm"].items()))
    return "\n".join(lines)


def failure_text(records: list[dict]) -> str:
    """A line for every adapter that failed, with its reason; for the first FAILURES of them."""
    lines = [f"✗ {record['name']}: {record['reason']}" for record in records if record["status"] == "failed"]
    if len(lines) > FAILURES:
        lines[FAILURES:] = [f"… and {len(lines) - FAILURES:,} more (summary.json has all)"]
    return "\n".join(lines) or "No adapter failed."


def label_text(domains) -> str:
    """How many adapters each domain has, and what is left out of the scores for want of a label."""
    counts = pd.Series(list(domains), dtype=object).value_counts().sort_index()
    text = "Domains: " + (", ".join(f"{name} {count}" for name, count in counts.items() if name != UNKNOWN) or "none")
    if unknown := counts.get(UNKNOWN, 0):
        text += (
            f"\n{unknown} without a label, left out of the silhouette: put them in a folder named after their domain, "
            "or into labels.csv"
        )
    return text


def neighbour_table(deltas: np.ndarray, names, domains, k: int = 3) -> pd.DataFrame:
    """`neighbours` as a table for people: a row per adapter, a column per rank, "name (cosine)"."""
    if len(names) < 2:
        return pd.DataFrame(index=pd.Index(list(names), name="adapter"))
    long = neighbours(deltas, names, k)
    k = long["rank"].max()
    text = [f"{name} ({cosine:.2f})" for name, cosine in zip(long["neighbour"], long["cosine"], strict=True)]
    columns = [f"nearest {rank}" if rank > 1 else "nearest" for rank in range(1, k + 1)]
    wide = pd.DataFrame(np.reshape(text, (len(names), k)), pd.Index(list(names), name="adapter"), columns)
    wide.insert(0, "domain", list(domains))
    return wide


def neighbour_overview(deltas: np.ndarray, names, domains) -> pd.DataFrame:
    """`neighbour_table`; of more than ROWS adapters a row per domain instead: of what domain their nearest ones are."""
    if len(names) <= ROWS:
        return neighbour_table(deltas, names, domains)
    domains = np.asarray(domains, dtype=object)
    others, cosines = (found[:, 0] for found in near(directions(deltas), 1))
    rows = {}
    for domain in sorted(set(domains)):
        mine = domains == domain
        strange = pd.Series(domains[others[mine & (domains[others] != domain)]], dtype=object).value_counts()
        rows[domain] = {
            "adapters": int(mine.sum()),
            "nearest is of the domain": f"{100 * (domains[others[mine]] == domain).mean():.0f} %",
            "by chance": f"{100 * (mine.sum() - 1) / (len(mine) - 1):.0f} %",
            "else most often of": f"{strange.index[0]} ({strange.iloc[0]})" if len(strange) else "–",
            "cosine of the nearest": _range(pd.Series(cosines[mine]), "{:.2f}"),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("domain")
