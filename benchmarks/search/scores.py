"""How well a way finds adapters, with 95 % intervals over tasks (bootstrap: tasks are drawn, not queries).

hit@1            the best scored is of the query's task
MRR, mAP         mean reciprocal rank of the first of the task, mean average precision of all of them
regret           (gain of the best adapter - gain of the picked one) / gain of the best one, mean over queries
verified regret  the same, where the pick is the best by loss of the twenty best scored
recall@20        the adapter that is best by loss is among the twenty best scored
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, silhouette_score

DRAWS, VERIFIED = 1000, 20


def of_queries(scores: np.ndarray, gains: np.ndarray, asked: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """A row per query. `scores` and `gains` (loss of the base less that under the adapter) are (queries, adapters);
    `asked` are the queries' tasks, `tasks` the adapters'.
    """
    tasks, rows = np.asarray(tasks), []
    for mine, gained, task in zip(scores, gains, asked, strict=True):
        order = np.argsort(-mine, kind="stable")
        right, best, top = tasks[order] == task, gained.max(), order[:VERIFIED]
        rows.append({
            "task": task, "hit@1": right[0], "MRR": 1 / (1 + right.argmax()),
            "mAP": average_precision_score(tasks == task, mine), "recall@20": gained.argmax() in top,
            "regret": (best - gained[order[0]]) / best if best > 0 else np.nan,
            "verified regret": (best - gained[top].max()) / best if best > 0 else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def of_embedding(cosines: np.ndarray, tasks: Sequence[str], families: Sequence[str]) -> pd.DataFrame:
    """A row per adapter, whose neighbours are ranked by `cosines` (adapters, adapters): of its task, and its family."""
    tasks, families, rows = np.asarray(tasks), np.asarray(families), []
    for number, mine in enumerate(cosines):
        others = np.arange(len(mine)) != number
        order = np.argsort(-mine[others], kind="stable")
        right = (tasks[others] == tasks[number])[order]
        rows.append({
            "task": tasks[number], "hit@1": right[0], "MRR": 1 / (1 + right.argmax()),
            "mAP": average_precision_score(tasks[others] == tasks[number], mine[others]),
            "hit@1, family": (families[others] == families[number])[order][0],
        })  # fmt: skip
    return pd.DataFrame(rows)


def silhouettes(cosines: np.ndarray, *labels: Sequence[str]) -> list[float]:
    """By each of the labels, with the distance 1 - cosine."""
    distances = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(distances, 0)
    return [float(silhouette_score(distances, np.asarray(each), metric="precomputed")) for each in labels]


def summary(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean over tasks of each column, and the ends of its interval: a row per column; mean, low, high."""
    by_task, rng = rows.groupby("task").mean(numeric_only=False).astype(float), np.random.default_rng(seed)
    drawn = by_task.to_numpy()[rng.integers(len(by_task), size=(DRAWS, len(by_task)))]  # (draws, tasks, columns)
    low, high = np.nanpercentile(np.nanmean(drawn, axis=1), [2.5, 97.5], axis=0)
    return pd.DataFrame({"mean": by_task.mean(), "low": low, "high": high})
