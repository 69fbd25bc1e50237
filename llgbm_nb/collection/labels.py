"""What is known of adapters beside their deltas: `labels.csv`, their names' stems and how they were configured.

A label is somebody's word, or a setting of the adapter's; whether the deltas agree with it is not asked here.
"""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..files import shown
from .adapters import UNKNOWN, Adapter, targets_in_short

LABELS = "labels.csv"  # in the collection's folder
CONFIGURATION = ("kind", "rank", "modules")  # labels that say how an adapter was made, and not what it is for


def label_table(adapters: Sequence[Adapter], checkpoint_dir: str | Path = "") -> pd.DataFrame:
    """The labels of each adapter, a row for each and a column for each label that is not the same for all.

    `stem` is the name without the number at its end ("code" of "code-4"); `kind`, `rank` and `modules` are its
    configuration's. Further columns of `labels.csv` follow, if `checkpoint_dir` has such a file. What has no value is
    "unknown". Raises InputError for a file that cannot be used.
    """
    columns = {"stem": [stem(adapter.name) for adapter in adapters], "kind": [adapter.kind for adapter in adapters]}
    columns["rank"] = [str(adapter.config.get("r", UNKNOWN)) for adapter in adapters]
    columns["modules"] = [targets_in_short(adapter.config.get("target_modules")) for adapter in adapters]
    for name, values in _further_labels(Path(checkpoint_dir)).items():
        paths = (os.path.abspath(adapter.path) for adapter in adapters)
        columns[name if name not in columns else f"{name} (labels.csv)"] = [values.get(p) or UNKNOWN for p in paths]
    frame = pd.DataFrame(columns, dtype=object)
    known = {name: set(values) - {UNKNOWN} for name, values in frame.items()}
    return frame[[name for name, values in known.items() if len(values) > 1]]


def stem(name: str) -> str:
    """A name without the number, seed or step at its end: "code" of "code-4", "gsm8k" of "gsm8k_seed001"."""
    return re.sub(r"(?i)[\W_]*(?:v|s|seed|step|run|epoch|ckpt|checkpoint)?[\W_]*\d+$", "", name) or name


def read_labels(root: Path) -> dict[str, str] | None:
    """{absolute path: domain} of `labels.csv` (columns path,domain); None if there is none."""
    file, labels = root / LABELS, {}
    if (rows := read_table(file, "path", "domain")) is None:
        return None
    for path, domain in rows:
        if labels.setdefault(os.path.abspath(root / path), domain or UNKNOWN) != (domain or UNKNOWN):
            raise InputError(f"{shown(file)} gives {path} two domains; keep one of the rows")
    return labels


def _further_labels(root: Path) -> dict[str, dict[str, str]]:
    """{column: {absolute path: value}} of the columns of `labels.csv` beside path and domain."""
    file = root / LABELS
    if not root.is_dir() or not file.exists():
        return {}
    with open(file, newline="", encoding="utf-8-sig") as stream:
        names = [name for name in next(csv.reader(stream, skipinitialspace=True), []) if name]
    more = [name for name in names if name not in ("path", "domain")]
    rows = read_table(file, "path", *more) or ()
    return {name: {os.path.abspath(root / row[0]): row[i] for row in rows} for i, name in enumerate(more, start=1)}


def read_table(file: Path, *columns: str) -> list[tuple[str, ...]] | None:
    """The rows of a CSV file with these columns; None if there is no such file. Raises InputError if it is none."""
    if not file.exists():
        return None
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            rows = [tuple((row[column] or "").strip() for column in columns) for row in reader]
            if not set(columns) <= set(reader.fieldnames or ()):
                raise KeyError(", ".join(columns))
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise InputError(
            f"{shown(file)} must be a CSV file with the columns {','.join(columns)} ({error!r})"
        ) from error
    return rows
