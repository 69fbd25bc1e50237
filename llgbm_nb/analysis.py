"""Numbers from a DeltaSet: numpy and pandas out. No files, no torch, no pictures.

Adapters are compared by the cosine of their deltas, as in the Delta Activations paper (arXiv 2509.04442): what is
similar there is the direction in which behaviour moved. Adapters of the domain "unknown" are left out of every score.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics.pairwise import cosine_similarity

from .adapters import UNKNOWN

ALL_ZERO = "All deltas are zero: no adapter changes anything at this layer."
ALL_ALIKE = "All deltas are the same: without their mean nothing is left."
ROUNDING = 1e-5  # of a delta's norm; float32's own error (README, "Rounding relative to the delta")
MANY = 1000  # adapters; of more, the cosines of all pairs are never there at once, and pictures show some of them
BLOCK = 500  # rows of cosines that are there at once: 40 MB of them with 10,000 adapters
SHOWN = 300  # of more than MANY adapters, so many rows of the heatmap
COMPONENTS = 50  # of more than MANY adapters, principal ones that t-SNE sees
FAILURES = 500  # that are listed with their reasons
ROWS = 60  # of a table in a notebook, where pandas begins to leave rows out; above, a row is a domain


@dataclass(frozen=True)
class Silhouette:
    """`score` is the mean of `samples` (one per adapter, NaN for those left out); NaN with the reason in `note`."""

    score: float
    samples: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Pairs:
    """The cosines between n adapters, as far as a picture can show them.

    `shown` (m,) are the adapters whose `cosines` (m, m) these are: all, or of more than MANY some of every domain.
    `order` and `tree` are `cluster_order`'s of these. Of more than MANY, `means`, `within` and `across` are what
    `domain_means` says of all of them; else None, as `cosines` has it.
    """

    shown: np.ndarray
    cosines: np.ndarray
    order: np.ndarray
    tree: np.ndarray | None
    means: pd.DataFrame | None = None
    within: float | None = None
    across: float | None = None


def similarity(deltas: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows: (adapters, adapters), diagonal exactly 1. A zero delta is similar to nothing.

    All pairs at once, float64: for thousands of adapters see `near` and `pairs`.
    """
    if not len(deltas):
        return np.zeros((0, 0))
    cosines = cosine_similarity(deltas.astype(np.float64))
    np.fill_diagonal(cosines, 1.0)
    return cosines


def directions(deltas: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zero ones stay zero, and are similar to nothing."""
    rows = deltas.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def centered(deltas: np.ndarray) -> np.ndarray:
    """Deltas minus the pool's mean delta: what an adapter does beyond what all of them do.

    What is left of adapters that are all alike is rounding, which has directions, too: it is taken for exactly zero.
    """
    if not len(deltas):
        return deltas
    rest = deltas - deltas.mean(axis=0, keepdims=True)
    rest[norms(rest) <= ROUNDING * norms(deltas).max()] = 0.0
    return rest


def silhouette(deltas: np.ndarray, domains) -> Silhouette:
    """How well the domains part: the silhouette (Rousseeuw 1987) with cosine distance, -1 to 1.

    Left out are adapters without a label. It needs two domains, and one of them with two adapters. As a mean of cosines
    to a domain is the product with the domain's mean, the pairs are not formed: n adapters take n * domains products.
    """
    domains = np.asarray(domains, dtype=object)
    labelled = domains != UNKNOWN
    samples = np.full(len(domains), np.nan)
    kinds, own = np.unique(domains[labelled].astype(str), return_inverse=True)
    if len(kinds) < 2:
        there = "one domain" if len(kinds) == 1 else "no domain"
        return Silhouette(np.nan, samples, f"A silhouette needs at least two domains; there is {there} here.")
    if labelled.sum() <= len(kinds):
        return Silhouette(np.nan, samples, "A silhouette needs a domain with at least two adapters; each has one here.")
    if not np.any(deltas[labelled]):
        return Silhouette(np.nan, samples, ALL_ZERO)
    rows = directions(deltas[labelled])
    samples[labelled] = silhouette_samples(rows, own, len(kinds))
    return Silhouette(float(np.nanmean(samples)), samples)


def silhouette_samples(rows: np.ndarray, own: np.ndarray, domains: int, copies: np.ndarray | None = None) -> np.ndarray:
    """The silhouette of every row with cosine distance: float64 (n,).

    `rows` (n, hidden) have length 1 (or 0), `own` (n,) is the number of each one's domain, below `domains`. `copies`
    (n,) is how often each row is there, 1 where it is not given; a row is not compared with copies of itself.
    """
    copies = np.ones(len(rows)) if copies is None else copies
    each, member = np.arange(len(rows)), np.zeros((len(rows), domains))
    member[each, own] = copies
    size = member.sum(axis=0)
    distances = size - rows @ (member.T @ rows).T  # of each adapter to all of a domain, itself among them: summed
    within = distances[each, own] - copies * (1.0 - (rows**2).sum(axis=1))  # to itself: 0, for a zero row 1
    others = size[own] - copies
    within /= np.where(others > 0, others, 1.0)
    distances = np.divide(distances, size, out=np.full_like(distances, np.inf), where=size > 0)
    distances[each, own] = np.inf
    between = distances.min(axis=1)
    within[within < 1e-12] = between[between < 1e-12] = 0.0  # rounding
    larger = np.maximum(within, between)
    nothing = (others <= 0) | (larger == 0) | ~np.isfinite(between)
    return np.where(nothing, 0.0, (between - within) / np.where(nothing, 1.0, larger))


def silhouette_by_layer(delta_set, center: bool = False) -> pd.Series:
    """The silhouette at every layer (0 = embeddings), NaN where there is none. `center`: on deltas minus their mean."""
    scores = []
    for layer in range(delta_set.layers):
        deltas = delta_set.deltas(layer)
        if not np.any(deltas):  # adapters leave the embeddings as they are
            scores.append(np.nan)
            continue
        scores.append(silhouette(centered(deltas) if center else deltas, delta_set.domains).score)
    return pd.Series(scores, index=pd.RangeIndex(delta_set.layers, name="layer"), name="silhouette")


def tsne(deltas: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """A t-SNE map, (adapters, 2), by scikit-learn with cosine distance; None for fewer than four adapters.

    The perplexity is 30, or a third of the other adapters where there are fewer than 91. Of more than MANY adapters, as
    advised by Kobak and Berens (2019, doi 10.1038/s41467-019-13056-x), it starts from the first two principal
    components, and takes the distances from the first 50: those of all pairs are never there at once. Between rows of
    length 1, the squared Euclidean distance is twice the cosine distance. With openTSNE installed (the extra `large`),
    that draws these maps: the time per adapter does not grow then.
    """
    count = len(deltas)
    if count < 4:
        return None
    perplexity = min(30.0, (count - 1) / 3)
    if count <= MANY:
        return TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(deltas)
    rows = directions(deltas).astype(np.float32)
    rows = PCA(min(COMPONENTS, *rows.shape), random_state=seed).fit_transform(rows)
    init = "pca" if np.ptp(rows, axis=0).any() else "random"
    with contextlib.suppress(ImportError):
        import openTSNE

        settings = dict(initialization=init, perplexity=perplexity, n_jobs=-1, random_state=seed)
        return np.asarray(openTSNE.TSNE(**settings).fit(rows), np.float32)
    return TSNE(init=init, perplexity=perplexity, random_state=seed).fit_transform(rows)


def pca(deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of the deltas' directions (rows scaled to length 1), by scikit-learn.

    Gives a map (adapters, 2) and the share of the variance (2,) of each axis; what too few adapters lack is zero.
    """
    points, share = np.zeros((len(deltas), 2)), np.zeros(2)
    rows = directions(deltas) if len(deltas) > 1 else np.zeros((1, 1))
    if np.ptp(rows, axis=0).any():
        count = min(2, *rows.shape)
        model = PCA(count, svd_solver="full" if min(rows.shape) < 200 else "arpack", random_state=0)
        points[:, :count], share[:count] = model.fit_transform(rows), model.explained_variance_ratio_
    return points, share


def turned(points: np.ndarray, to: np.ndarray | None, mirror_only: bool = False) -> np.ndarray:
    """A map (adapters, 2) turned and mirrored (`mirror_only`: its axes kept) to lie as the map `to` does, if it can.

    Distances stay as they are: what a map cannot say, which side is up, is taken from the map before it.
    """
    if to is None or to.shape != points.shape:
        return points
    if mirror_only:
        return points * np.where((points * to).sum(axis=0) < 0, -1.0, 1.0)
    return points @ orthogonal_procrustes(points, to)[0]


def nearest(cosines: np.ndarray, k: int) -> np.ndarray:
    """Each row's `k` nearest others, (adapters, k) indices, the nearest first; of equally near ones the first."""
    others = -cosines.copy()
    np.fill_diagonal(others, np.inf)
    return np.argsort(others, axis=1, kind="stable")[:, : max(0, min(k, len(cosines) - 1))]


def near(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same from `directions` (adapters, hidden), and the cosines: two arrays (adapters, k), int64 and float64.

    Exact: BLOCK rows at a time are compared with all, in the dtype of `rows`, and no more is there at once.
    """
    k = max(0, min(k, len(rows) - 1))
    found, values = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for start in range(0, len(rows) if k else 0, BLOCK):
        cosines = rows[start : start + BLOCK] @ rows.T
        each = np.arange(len(cosines))
        cosines[each, start + each] = -np.inf
        for rank in range(k):  # argmax takes the first of equally near ones
            found[start + each, rank] = best = cosines.argmax(axis=1)
            values[start + each, rank] = cosines[each, best]
            cosines[each, best] = -np.inf
    return found, values


def neighbours(deltas: np.ndarray, names, k: int = 3) -> pd.DataFrame:
    """The `k` nearest other adapters of each by cosine: columns adapter, rank, neighbour, cosine."""
    rows = [
        (names[i], rank, names[j], cosine)
        for i, (others, cosines) in enumerate(zip(*near(directions(deltas), k), strict=True))
        for rank, (j, cosine) in enumerate(zip(others, cosines, strict=True), start=1)
    ]
    return pd.DataFrame(rows, columns=["adapter", "rank", "neighbour", "cosine"])


def spread_sample(domains, most: int, seed: int = 0, unknown: bool = False) -> list[int]:
    """Indices of at most `most` adapters, of all domains alike, in order; `unknown`: with those that have none, too."""
    random, groups = np.random.default_rng(seed), []
    domains = np.asarray(domains, dtype=object)
    for domain in sorted(set(domains) - (set() if unknown else {UNKNOWN})):
        mine = np.flatnonzero(domains == domain)
        groups.append(list(random.permutation(mine)))
    rounds = [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]
    return sorted(int(i) for i in rounds[:most])


def pairs(deltas: np.ndarray, domains) -> Pairs:
    """The cosines of every pair for a heatmap; of more than MANY adapters, their means by domain and a sample."""
    if len(deltas) <= MANY:
        cosines = similarity(deltas)
        return Pairs(np.arange(len(deltas)), cosines, *cluster_order(cosines))
    shown = np.array(spread_sample(domains, SHOWN, unknown=True))
    cosines = similarity(deltas[shown])
    return Pairs(shown, cosines, *cluster_order(cosines), *domain_means(deltas, domains))


def domain_means(deltas: np.ndarray, domains) -> tuple[pd.DataFrame, float, float]:
    """The mean cosine of two different adapters: by their domains (domains, domains), within and across domains.

    Adapters of the domain "unknown" are left out; NaN where there are no two. A sum of cosines is the cosine of sums,
    so that no pair is formed.
    """
    domains = np.asarray(domains, dtype=object)
    labelled = domains != UNKNOWN
    kinds, own, sizes = np.unique(domains[labelled].astype(str), return_inverse=True, return_counts=True)
    rows = directions(deltas[labelled])
    totals = np.zeros((len(kinds), rows.shape[1]))
    np.add.at(totals, own, rows)
    sums, counts = totals @ totals.T, np.outer(sizes, sizes).astype(float)
    sums[np.diag_indices(len(kinds))] -= np.bincount(own, (rows**2).sum(axis=1), len(kinds))  # each one with itself
    counts[np.diag_indices(len(kinds))] -= sizes
    same = np.eye(len(kinds), dtype=bool)
    within, across = (sums[m].sum() / counts[m].sum() if counts[m].sum() else np.nan for m in (same, ~same))
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return pd.DataFrame(means, kinds, kinds), float(within), float(across)


def cluster_order(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """An order of the rows that puts similar ones side by side, and the linkage (scipy, average) that it comes from."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(cosines) < 3:
        return np.arange(len(cosines)), None
    distances = squareform(np.clip(1.0 - (cosines + cosines.T) / 2, 0.0, 2.0), checks=False)
    tree = optimal_leaf_ordering(linkage(distances, "average"), distances)
    return leaves_list(tree), tree


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


def norms(deltas: np.ndarray) -> np.ndarray:
    """||Delta|| of every row."""
    return np.linalg.norm(deltas, axis=1)


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
