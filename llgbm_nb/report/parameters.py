"""The notebooks' parameters: what each may be, checked in one place, and said in one line if it is wrong.

papermill enforces nothing: `-p max_length abc` arrives as a text, and a misspelt name only warns. Nothing heavy is
imported here, so that a notebook's first cells take no time; whether there are such adapters and bases is unknown.
"""

import ast
import dataclasses
import math
import platform
import re
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

from ..errors import InputError, first_sentence
from ..files import from_root
from ..probes import PROBE_TYPES, create_probes
from ..settings import DTYPES, RANKINGS, Settings
from .dark import IN_JUPYTERLAB

LONGEST_TEXT = 4096  # letters; a path has fewer


def set_up(namespace: dict) -> SimpleNamespace:
    """What a notebook begins with: `check`, the versions in a line, and tables that pandas shows whole.

    In a dark JupyterLab, pictures are dark, too.
    """
    import pandas as pd
    from IPython import get_ipython
    from IPython.display import HTML, display

    values = check(namespace)
    print(versions())
    if get_ipython():
        display(HTML(IN_JUPYTERLAB))
    pd.set_option("display.max_colwidth", None, "display.expand_frame_repr", False, "display.precision", 3)
    return values


def check(namespace: dict) -> SimpleNamespace:
    """The parameters found in a notebook's `globals()`, checked, with absolute paths (relative ones start at ROOT).

    `settings`, a `Settings` of those that it has, is added, and `probes` where there is a `probe_type`. Raises one
    InputError that lists everything that is wrong, unknown names that papermill injected among it.
    """
    values, wrong = SimpleNamespace(), []
    for name in sorted(RULES.keys() & namespace.keys()):
        try:
            setattr(values, name, RULES[name](namespace[name]))
        except InputError as error:
            value = repr(namespace[name])
            wrong.append(f"{name} is {value if len(value) < 200 else value[:99] + '…'}; {error}")
    for name in sorted(_unknown(namespace)):
        near = get_close_matches(name, RULES.keys() & namespace.keys(), n=1)
        wrong.append(f"there is no parameter {name}" + (f"; did you mean {near[0]}?" if near else ""))
    if wrong:
        raise InputError(" · ".join(wrong))
    if hasattr(values, "probe_type"):
        values.probes = create_probes(values.probe_type, values.probe_file)
        if values.probe_file:
            values.probe_type = values.probe_file.stem
    known = {field.name for field in dataclasses.fields(Settings)}
    values.settings = Settings(**{name: value for name, value in vars(values).items() if name in known})
    return values


def versions() -> str:
    """The versions that a result depends on, in one line."""
    packages = ("torch", "transformers", "peft", "numpy", "scikit-learn")
    return " · ".join([f"Python {platform.python_version()}", *(f"{p} {version(p).split('+')[0]}" for p in packages)])


def _unknown(namespace: dict) -> set[str]:
    """Names that papermill's injected cell assigns and no cell before it does (`In` holds the cells run so far)."""
    own, injected = set(), set()
    for source in namespace.get("In", []):
        is_injected = source.startswith("# Parameters\n")
        if is_injected or not injected:
            targets = [t for s in ast.parse(source).body if isinstance(s, ast.Assign) for t in s.targets]
            (injected if is_injected else own).update(t.id for t in targets if isinstance(t, ast.Name))
    return injected - own


# -- rules: each gives a value back, converted, or raises an InputError that says what it must be ----------------------


def _of(kind, what: str, value, above: float | None = None):
    """A value of the type `kind`; a number is above `above`, finite, and neither True nor False."""
    fits = isinstance(value, kind)
    if not fits or above is not None and (isinstance(value, bool) or not above < value < math.inf):
        raise InputError(f"it must be {what}")
    return value


def _text(value):
    _of(str, "a text", value)
    if len(value) > LONGEST_TEXT or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"it must be a text in UTF-8 of at most {LONGEST_TEXT:,} letters")
    return value


_positive = partial(_of, int | float, "a number above 0", above=0)


def _whole(low: int):
    return partial(_of, int, f"a whole number, {low} or more", above=low - 1)


def _choice(choices, value):
    if value not in choices:
        raise InputError(f"choose one of {', '.join(choices)}")
    return value


def _device(value):
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise InputError("choose one of auto, cuda, mps, cpu")
    if value not in ("auto", "cpu"):
        import torch

        if not (torch.backends.mps if value == "mps" else torch.cuda).is_available():
            raise InputError(f"this machine has no {value} that torch {torch.__version__} can use; take auto or cpu")
    return value


def _cluster(value):
    if _text(value) and not re.fullmatch(r"local:[1-9]\d*|(?!local:)(\w+://)?[^\s:/]+:\d+", value):
        raise InputError("it must be empty, local:N for N workers here, or a scheduler's address (tcp://host:8786)")
    return value


def _path(needed: bool, value):
    if _text(value).strip():
        try:
            from_root(value).exists()
        except (OSError, ValueError) as error:  # too long a name, or with a zero in it
            raise InputError(f"it is no path ({first_sentence(error)[:60]})") from error
        return from_root(value)
    if needed:
        raise InputError("it must name a folder")


def _shape(value):
    if _text(value):
        from .export import Only

        Only.of_text(value)
    return value


def _query(value):
    return value if value == "auto" else _path(False, value)


def _each(rule, value):
    """One value, or a list of them; papermill's `-p` gives a list as a text with commas."""
    if isinstance(value, str) and "," in value and rule is not _text:
        parts = [part.strip() for part in value.split(",")]
        value = [int(part) if part.lstrip("-").isdigit() else part for part in parts]
    return [rule(part) for part in value] if isinstance(value, list) else rule(value)


def _names(value):
    value = value.split(",") if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError("it must be a list of names")
    return [name.strip() for name in value if name.strip()]


def _names_or_count(value):
    return _whole(1)(value) if isinstance(value, int) else _text(value)


def _kinds(value):
    from ..uses.students import kind_of

    names = _names(value) or [""]
    for name in names:
        kind_of(name)
    return names


_GROUPS = {
    "base_model adapter sentence_encoder": _text,
    "teachers": _names_or_count,
    "checkpoint_dir cache_dir query_dir data teacher_dir": partial(_path, True),
    "probe_file output_dir export_dir": partial(_path, False),
    "query": _query,
    "export_only": _shape,
    "probe_type": partial(_choice, PROBE_TYPES),
    "dtype": partial(_choice, DTYPES),
    "token_ranking": partial(_choice, RANKINGS),
    "device": _device,
    "layer": partial(_of, int, "a layer's number: 0 for the embeddings, or -1 for the last", above=-math.inf),
    "cluster": _cluster,
    "centered fine_tune force_recompute trust_remote_code": partial(_of, bool, "True or False"),
    "adapters_per_pass soundness_sample precision_sample evidence_sample seed": _whole(0),
    "max_length splits steps batch_size held_out verify": _whole(1),
    "target_kinds": _kinds,
    "max_tokens": _whole(2),
    "lr": _positive,
    "rank": partial(_each, _whole(1)),
    "alpha": partial(_each, _positive),
    "targets": partial(_each, _text),
    "rslora dora": _names,
}
RULES = {name: rule for names, rule in _GROUPS.items() for name in names.split()}
