"""The notebooks run headless, and what a run leaves in its report folder: `python -m llgbm_nb.report --help`.

reports/<run>/   index.html (the result on one page) · 01_probes.ipynb … 06_uses.ipynb, executed, and .html of
                 each · figures as .png · deltas.csv (a row per adapter, its delta at the last layer) · summary.json

A collection with adapters of several bases has one report for each, reports/<run>-<base>/. The parameters and their
defaults are the notebooks' own; what the notebooks do is unknown here.
"""

import argparse
import ast
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from ..collection.bases import base_of, by_base
from ..collection.find import find_adapters
from ..collection.hub_lists import write_list
from ..errors import InputError
from ..files import ROOT, files_fingerprint, from_root, shown
from ..progress_bar import live_line, progress
from .live import explore
from .notebook_page import NOTEBOOKS, strip_widgets, to_html
from .parameters import check, versions

HOW = ("force_recompute", "cluster")  # parameters that say how a report is made, and change nothing in it
VARIABLES = {
    "checkpoint_dir": "ZOO", "base_model": "BASE", "probe_type": "PROBE", "layer": "LAYER", "centered": "CENTERED",
    "query": "QUERY", "device": "DEVICE",
}  # the Makefile's  # fmt: skip
CELL_TIMEOUT = 2 * 3600  # seconds; a cell that runs longer hangs
DELTAS_TIMEOUT = 24 * 3600  # the same for the notebook that computes the deltas


def run_report(name: str = "", **parameters) -> Path:
    """Run the notebooks with `parameters` (else their own) into `reports/<name>/`, unless that report is up to date.

    Raises InputError for wrong parameters, and if a notebook fails (its message is the notebook's own last line).
    """
    parameters = defaults() | parameters
    values = check(parameters)
    adapters = find_adapters(values.checkpoint_dir)
    folder = ROOT / "reports" / _name(name, parameters, values)
    state = _state(parameters, adapters, values.base_model or base_of(adapters), values.probe_file)
    marker = folder / ".inputs"
    products = [folder / f"{n}{kind}" for n in NOTEBOOKS for kind in (".ipynb", ".html")]
    products += [folder / "deltas.csv", folder / "summary.json", folder / "index.html"]
    made = marker.exists() and marker.read_text() == state and all(file.exists() for file in products)
    if made and not values.force_recompute:
        print(f"{shown(folder)} is up to date: nothing it depends on has changed")
        return folder
    previous, stopped = (folder.with_name(f"{folder.name}.{what}") for what in ("previous", "stopped"))
    try:
        if previous.exists():  # of a run that was killed
            _bring_back(previous, folder, stopped)
        if marker.exists():  # a finished report is set aside until there is a new one
            folder.rename(previous)
        folder.mkdir(parents=True, exist_ok=True)
        for notebook, known in _declared().items():
            mine = {key: value for key, value in (parameters | {"output_dir": shown(folder)}).items() if key in known}
            with live_line(notebook):
                _execute(notebook, folder / f"{notebook}.ipynb", mine)
            if notebook == "05_evidence":
                print(f"the page is there: {shown(folder)}/index.html")
        marker.write_text(state)
        for old in (previous, stopped):
            shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if previous.exists():
            _bring_back(previous, folder, stopped)
        if isinstance(error, OSError):
            file = shown(error.filename or folder)
            raise InputError(f"cannot write {file} ({error.strerror}); mend that: what was measured is kept") from error
        raise
    return folder


def search_only(name: str = "", **parameters) -> Path:
    """The answers to the queries of `parameters`, printed, and as `reports/<name>/search.csv`, without a report.

    Deltas are measured where the cache lacks them. Raises InputError as `run_report` does, and if there is no query.
    """
    from .. import uses
    from ..deltas import compute_deltas
    from .findings import write_search

    parameters = defaults() | parameters
    values = check(parameters)
    if not (files := uses.find_queries(values.query, values.checkpoint_dir)):
        raise InputError('there is no query; set QUERY to a JSON file of {"prompt", "response"} pairs, or a folder')
    folder = ROOT / "reports" / _name(name, parameters, values)
    run = compute_deltas(values.checkpoint_dir, values.probes, values.settings)
    lost = (f"left out: {shown(r['path'])}: {r['reason']}" for r in run.records if r["status"] == "failed")
    print(f"{len(run.delta_set)} adapters", *lost, sep="\n")
    with progress(len(files), "queries") as done:
        answers = uses.search_each(run, files, verify=values.verify, on_query=done)
    for query, table in answers.items():
        print(f"\n{query}\n{uses.search_text(table)}\n{table[:5].round(3).to_string()}")
    write_search(answers, folder)
    print(f"\nall that were measured: {shown(folder)}/search.csv")
    return folder


def _bring_back(previous: Path, folder: Path, stopped: Path) -> None:
    """Put a finished report back in its place; what was made of the next one is beside it, in `stopped`."""
    if folder.exists():
        shutil.rmtree(stopped, ignore_errors=True)
        folder.rename(stopped)
    previous.rename(folder)


def command(values: SimpleNamespace) -> str:
    """The `make report …` that makes a report of a notebook's `values` (`parameters.check`): what is no default.

    What says only how a report is made is left out; what other notebooks alone take is unknown here.
    """
    usual, chosen, more = vars(check(defaults())), [], []
    given = {name: value for name, value in vars(values).items() if name in usual.keys() - {*HOW, "probes", "settings"}}
    if given.get("probe_file"):
        given.pop("probe_type")  # it is the file's name
    for name in sorted(given, key=[*VARIABLES, *sorted(given)].index):
        if (value := given[name]) != usual[name]:
            text = shown(value) if isinstance(value, Path) else {True: "1", None: ""}.get(value, str(value))
            if name in VARIABLES and text:  # make takes an empty one for none
                chosen.append(f"{VARIABLES[name]}={shlex.quote(text)}")
            else:
                more += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    return " ".join(["make report", *chosen, *([f"ARGS={shlex.quote(shlex.join(more))}"] if more else [])])


def defaults() -> dict:
    """{parameter: its default in the notebooks}, without `output_dir`, which is the report's own folder."""
    every = {name: each for known in _declared().values() for name, each in known.items() if name != "output_dir"}
    return {name: ast.literal_eval(each["default"]) for name, each in every.items()}


def _declared() -> dict[str, dict[str, dict]]:
    """{notebook: {parameter: its "default", as Python text, and "help"}}, read from the notebooks."""
    import papermill

    return {name: papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb")) for name in NOTEBOOKS}


def _execute(notebook: str, target: Path, parameters: dict) -> None:
    """Run a notebook into `target`, and make a page of it, also where it stops. Raises InputError if it does."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(source), str(target), parameters, kernel_name="python3", cwd=str(source.parent), progress_bar=False,
            execution_timeout=DELTAS_TIMEOUT if notebook.startswith("03") else CELL_TIMEOUT,
            extra_arguments=["--IPKernelApp.log_level=40"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise InputError(f"{shown(source)} stopped: {error.ename}: {error.evalue}") from error
    except (DeadKernelError, CellTimeoutError) as error:
        reason = "a cell took too long" if isinstance(error, CellTimeoutError) else "its kernel died (out of memory?)"
        raise InputError(f"{shown(source)} stopped: {reason}; what was computed is kept, run again") from error
    finally:
        if target.exists():
            strip_widgets(target)
            to_html(target)


def one_for_each_base(name: str = "", **parameters) -> list[tuple[str, dict]]:
    """(name, parameters) of the reports to be run: this one, or one for each base that the adapters name.

    Where there are several bases and no `base_model`, the adapters of each are written into a list of their own,
    `reports/<name>-<base>.txt`, which is that report's `checkpoint_dir`. Raises InputError as `run_report` does.
    """
    parameters = defaults() | parameters
    values = check(parameters)
    groups = {} if values.base_model else by_base(find_adapters(values.checkpoint_dir))
    if len(groups) < 2:
        return [(name, parameters)]
    usual, reports = _name(name, parameters, values).lstrip(".-"), []
    short = {base: re.sub(r"[^\w.-]+", "_", base.rstrip("/").rsplit("/", 1)[-1])[:60] for base in groups}
    times = Counter(label.lower() for label in short.values())
    owners = {adapter.name: base for base, adapters in groups.items() for adapter in adapters}
    print(f"{len(groups)} bases, a report for each:")
    for base, adapters in groups.items():
        label = short[base]
        if times[label.lower()] > 1:
            label += f"-{hashlib.sha256(base.encode()).hexdigest()[:6]}"
        file = ROOT / "reports" / f"{usual}-{label}.txt"
        write_list(file, adapters, f"The adapters of {base} in {shown(values.checkpoint_dir)}")
        mine = parameters | {"checkpoint_dir": shown(file), "base_model": base}
        if owners.get(mine.get("adapter"), base) != base:
            mine["adapter"] = ""
        if mine.get("export_dir"):
            mine["export_dir"] += f"/{label}"
        reports.append((file.stem, mine))
        print(f"  {short[base]} ({len(adapters)} adapter{'s' * (len(adapters) > 1)}): reports/{file.stem}")
    return reports


def _name(name: str, parameters: dict, values) -> str:
    """The name that is given, checked; or what is run, with a digest of parameters that are no default."""
    if name:
        if not re.fullmatch(r"\w[\w.-]*", name):
            wanted = "it must be one folder name of letters, digits, '.', '_' and '-'"
            raise InputError(f"the report's name is {name!r}; {wanted}")
        return name
    collection, base, usual = values.checkpoint_dir, values.base_model.rstrip("/").rsplit("/", 1)[-1], defaults()
    parts = [collection.stem if collection.is_file() else collection.name, values.probe_type, base]
    chosen = {key: value for key, value in parameters.items() if value != usual.get(key) and key not in HOW}
    if set(chosen) - {"probe_type"}:
        parts.append(hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:6])
    return re.sub(r"[^\w.-]+", "_", "-".join(filter(None, parts)))


def _state(parameters: dict, adapters, base_model: str, probe_file: Path | None) -> str:
    """A fingerprint of all that a report is made from: parameters, notebooks, program, base, adapters and queries.

    Raises InputError if there are no such queries.
    """
    from ..forward.base_files import base_fingerprint  # these take seconds to import
    from ..uses.task_query import find_queries

    kinds = (".py", ".json", ".html", ".css", ".js", ".svg")
    program = [file for file in sorted(Path(__file__).parents[1].rglob("*")) if file.suffix in kinds]
    program += [ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    program += [probe_file] if probe_file else []
    program += find_queries(parameters.get("query", ""), from_root(parameters["checkpoint_dir"])).values()
    if (encoder := parameters.get("sentence_encoder")) and from_root(encoder).is_dir():
        program += [file for file in from_root(encoder).rglob("*") if file.is_file()]
    state = [
        json.dumps({key: value for key, value in parameters.items() if key not in HOW}, sort_keys=True),
        files_fingerprint(program), base_fingerprint(base_model), versions(),
    ]  # fmt: skip
    for adapter in adapters:
        try:
            state.append(f"{adapter.path} {adapter.name} {adapter.domain} {adapter.base} {adapter.fingerprint}")
        except InputError as error:
            state.append(f"{adapter.path} {adapter.name} {error}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """The command line, and what the Makefile's ARGS adds to it.

    Returns 0, 1 if a report could not be made, or 130 if it was stopped.
    """
    parser = argparse.ArgumentParser(
        prog="python -m llgbm_nb.report", allow_abbrev=False,
        description="Run the notebooks into reports/; the options are the notebooks' parameters (docs/parameters.md). "
        "--checkpoint-dir is a folder, or a text file with a hub id or a folder a line. If the adapters name several "
        "bases and --base-model none, there is a report for each.",
    )  # fmt: skip
    parser.add_argument("--explore", action="store_true", help="no report: open the explorer in a browser")
    parser.add_argument("--search", action="store_true", help="no report: only find the adapters for --query")
    parser.add_argument("--run", default="", help="name of the folder below reports/ (default: from the parameters)")
    helps = {name: each["help"].replace("%", "%%") for known in _declared().values() for name, each in known.items()}
    for key, default in defaults().items():
        kind = dict(action="store_true") if default is False else dict(type=type(default), default=default)
        parser.add_argument(f"--{key.replace('_', '-')}", help=helps[key], **kind)
    more = shlex.split(os.environ.get("LLGBM_ARGS", ""))
    given = vars(parser.parse_args([*(sys.argv[1:] if arguments is None else arguments), *more]))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            one = _search if given.pop("search") else _report
            if given.pop("explore"):
                return _explore(given)
            reports = one_for_each_base(given.pop("run"), **given)
            return max([one(name, parameters, len(reports) > 1) for name, parameters in reports])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: what was measured is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _explore(given: dict) -> int:
    check(given)
    return explore({name: value for name, value in given.items() if name in _declared()["04_analysis"]})


def _note(message, *where) -> None:
    """A warning as a line of its own, without the line of the program that gave it."""
    print(f"note: {message}", file=sys.stderr)


def _search(name: str, parameters: dict, one_of_several: bool) -> int:
    """Search one base's adapters. Returns 0, or 1 if that could not be done."""
    print(f"\n{name}\n" * one_of_several, end="")
    try:
        search_only(name, **parameters)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _report(name: str, parameters: dict, one_of_several: bool) -> int:
    """Run one report, and say in a few lines how it came out. Returns 0, or 1 if it could not be made."""
    print(f"\n{name}\n" * one_of_several, end="")
    try:
        folder = run_report(name, **parameters)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    points, refused = summary["soundness"], [f"{shown(path)}: {why}" for path, why in summary["failed"].items()]
    if refused:
        print(f"{len(refused)} of {summary['adapters']['total']} adapters could not be used:", *refused, sep="\n  ")
    failed = [name for name, point in points.items() if point["result"] == "FAIL"]
    print(f"soundness: {len(failed)} of {len(points)} points failed", *failed, sep=" · ")
    print(f"open {shown(folder)}/index.html")
    return 0
