"""What parts the adapters: their domains, how they were configured, or any other label that is known of them."""

import numpy as np
import pandas as pd

from ..analysis.geometry import spread_sample
from ..analysis.groups import Groups, agreement
from ..collection.adapters import UNKNOWN
from .chance import permutation_test

MOST = 500  # adapters that are compared; of more, so many of all domains alike
COLUMNS = ("values", "silhouette", "low", "high", "p", "groups", "domains")


def by_label(deltas: np.ndarray, domains, labels: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """A row for the domain and for each column of `labels` (`collection.label_table`).

    Columns: `values` (how many there are), `silhouette` by this label with its 95 % interval `low` to `high` and `p`
    (`permutation_test`), and the adjusted Rand index with `groups` and with `domains`. NaN where a label has too few
    values to part anything.
    """
    picked, rows = spread_sample(domains, MOST, unknown=True), {}
    every = {"domain": np.asarray(domains, dtype=object)} | {name: column.to_numpy() for name, column in labels.items()}
    for name, values in every.items():
        found = permutation_test(deltas[picked], values[picked])
        with_groups = agreement(groups.labels, values) if groups.count > 1 else np.nan
        indices = with_groups, agreement(domains, values)
        rows[name] = (len({*values} - {UNKNOWN}), found.score, *found.interval, found.p, *indices)
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*COLUMNS]).rename_axis("label")
