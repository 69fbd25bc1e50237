"""A collection as a text file: one adapter a line, `id[@revision][,domain[,name[,base]]]`, of the hub or in a folder.

    # a comment has a line of its own
    org/name,code
    org/name@abc123,code
    ./folder,math,mine
    "./a name, with a comma",math
    ./other,math,,Qwen/Qwen2.5-1.5B

A text in quotation marks (doubled within) is taken as it stands; else spaces at its ends do not count. Adapters of the
hub lie in the hub's own cache. This module reads no weights, and runs nothing that a repo brings along.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import errors, snapshot_download, utils

from ..errors import InputError, first_sentence
from ..files import shown, write_whole
from ..progress_bar import progress
from .adapters import CONFIG, MODEL_CONFIG, TOKENIZER, TOKENIZER_CONFIG, UNKNOWN, WEIGHTS, Adapter, shard_names

AT_ONCE = 8  # repos that are fetched side by side
ADAPTER = [CONFIG, WEIGHTS[0], *TOKENIZER, TOKENIZER_CONFIG]
PICKLED = [CONFIG, WEIGHTS[1], *TOKENIZER, TOKENIZER_CONFIG]  # only where there are no safetensors
_COLUMN = re.compile(r'[ \t]*(?:"((?:[^"]|"")*)"|([^",\n]*))[ \t\r]*(,|\n|\Z)')
MODEL = [MODEL_CONFIG, "*.safetensors", "model.safetensors.index.json", *TOKENIZER, TOKENIZER_CONFIG]


@dataclass(frozen=True)
class Line:
    """One adapter of a list: a repo of the hub, at a revision ("": its main branch), or the absolute path of a folder.

    `id` is the line's first column as it stands there, `number` the line's; `domain`, `name` and `base`, the base to
    use in place of the one that it names, are "" if not given.
    """

    number: int
    id: str
    domain: str = ""
    name: str = ""
    base: str = ""
    folder: str = ""
    repo: str = ""
    revision: str = ""


def read_list(file: str | Path) -> list[Line]:
    """The lines of a list, in their order; blank ones and comments are left out. Nothing is fetched.

    An id that starts with "/", "./", "../" or "~", or that is a folder beside the list, is a folder; relative ones
    start at the list's own. Any other is a repo of the hub. Raises InputError for a file that is no text or names no
    adapter, and for a line that is malformed or repeated.
    """
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        todo = "set checkpoint_dir to a folder, or to a text file with one adapter a line"
        raise InputError(f"{shown(file)} cannot be read as a list of adapters ({error}); {todo}") from error
    lines: dict[tuple[str, str], Line] = {}
    number, at = 1, 0
    while at < len(text):
        start, row = at, text[at : text.find("\n", at) + 1 or None]
        try:
            if not row.strip() or row.lstrip().startswith("#"):
                at += len(row)
            else:
                columns, at = _columns(text, at)
                line = _line(number, columns, Path(file).absolute().parent)
                first = lines.setdefault((line.folder or line.repo, line.revision), line)
                if first is not line:
                    raise InputError(f"{line.id} is in line {first.number} already; remove one of them")
        except InputError as error:
            raise InputError(f"{shown(file)}, line {number}: {error}") from error
        number += text.count("\n", start, at)
    if not lines:
        raise InputError(f"{shown(file)} names no adapters; write one a line, as in org/name,domain")
    return list(lines.values())


def listed_adapters(file: str | Path) -> list[Adapter]:
    """The adapters of a list, in its order; those of the hub are fetched (see `fetch`), several at once.

    One that is unavailable has the reason as its `problem`, and its id as its path. A domain that is not given is
    "unknown"; a name, the last part of the id, or the whole id where two would be the same.
    Raises InputError as `read_list` does, and if two adapters would have one name.
    """
    lines = read_list(file)
    names, found = _names(file, lines), _fetch_all([line for line in lines if line.repo])
    adapters, taken = [], {}
    for line, name in zip(lines, names, strict=True):
        gone = "" if os.path.isdir(line.folder) else "there is no such folder"
        path, problem = (line.folder, gone) if line.folder else found[line]
        if not problem and taken.setdefault(path, line) is not line:  # a branch and its commit, or a snapshot's folder
            path, problem = line.id, f"it is the same as {taken[path].id}, in line {taken[path].number} of the list"
        adapters.append(Adapter(path, name, line.domain or UNKNOWN, problem, line.base))
    return adapters


def write_list(file: str | Path, adapters: Sequence[Adapter], comment: str) -> None:
    """The list from which `listed_adapters` gives `adapters`; a file that says the same already is left alone."""
    rows = [[adapter.path, adapter.domain, adapter.name] + [adapter.base] * bool(adapter.base) for adapter in adapters]
    text = "".join(",".join(map(_quoted, row)) + "\n" for row in rows)
    text = f"# {' '.join(comment.split())}\n{text}"
    file = Path(file)
    if not file.exists() or file.read_bytes() != text.encode():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)


def fetch(repo: str, revision: str = "") -> Path:
    """The folder of an adapter or full checkpoint of the hub: a snapshot in the hub's own cache.

    Only files that decide a delta are fetched: an adapter's config, its weights (pickled ones only where there are no
    safetensors) and its tokenizer's tokens, or a model's config and safetensors. What the cache has whole is taken
    without asking the hub, wherever a branch points by now: a run can be repeated, and needs no network.
    Raises InputError, in one sentence, if the repo cannot be fetched or is neither.
    """
    try:
        folder = _cached(repo, revision) or _snapshot(repo, revision, ADAPTER)
        if _lacking(folder):
            folder = _snapshot(repo, revision, PICKLED if (folder / CONFIG).is_file() else MODEL)
    except Exception as error:  # the hub's client and the network below it raise many kinds
        raise InputError(_reason(error)) from error
    if lacking := _lacking(folder):
        raise InputError(f"no adapter, and no model in safetensors, could be fetched from it: {lacking}")
    return folder


def _cached(repo: str, revision: str) -> Path | None:
    with contextlib.suppress(Exception):  # it is not there; or what is wrong with the cache shows when the hub is asked
        folder = _snapshot(repo, revision, ADAPTER, local_files_only=True)
        return None if _lacking(folder) else folder


def _snapshot(repo: str, revision: str, files: list[str], **options) -> Path:
    others = ["*/*", "consolidated*"]  # a trainer's checkpoints, and a model's second copy
    options |= dict(allow_patterns=files, ignore_patterns=others, max_workers=2)
    return Path(snapshot_download(repo, revision=revision or None, **options))


def _lacking(folder: Path) -> str:
    """What an adapter's or full checkpoint's folder lacks; "" if it is whole."""
    adapter = Adapter(str(folder), folder.name)
    try:
        files = {file.name: file for file in adapter.files}
    except InputError as error:
        return str(error)
    if adapter.is_checkpoint:
        files |= {name: folder / name for name in shard_names(folder) if name.endswith(".safetensors")}
    return next((f"{name} is missing" for name, file in sorted(files.items()) if not file.is_file()), "")


def _reason(error: Exception) -> str:
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__
    match error:
        case errors.GatedRepoError():
            return "its owner has to let you in: ask on its page at the hub, then log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "the hub has no such repo, or it is private; check the id, or log in with `hf auth login`"
        case errors.RevisionNotFoundError():
            return "the repo has no such revision; check what follows the @"
        case errors.HfHubHTTPError():
            return f"the hub refused it (HTTP {getattr(error.response, 'status_code', 'error')})"
        case errors.LocalEntryNotFoundError() | ConnectionError() | TimeoutError():
            return "it is not whole in the hub's cache, and the hub cannot be reached"
    sentence = re.sub(r"\s*\(?\w+://\S+", "", first_sentence(error))
    return f"fetching it from the hub failed ({type(error).__name__}: {sentence})"


def _fetch_all(lines: list[Line]) -> dict[Line, tuple[str, str]]:
    """{line: (its adapter's folder, "") or (its id, why it is unavailable)}."""
    with _quiet_hub():
        found = {line: (str(folder), "") for line in lines if (folder := _cached(line.repo, line.revision))}
        if missing := [line for line in lines if line not in found]:
            with ThreadPoolExecutor(AT_ONCE, "hub") as pool, progress(len(missing), "hub repos") as done:
                for line, fetched in zip(missing, pool.map(_fetched, missing), strict=True):
                    found[line] = fetched
                    done()
    return found


def _fetched(line: Line) -> tuple[str, str]:
    try:
        return str(fetch(line.repo, line.revision)), ""
    except InputError as error:
        return line.id, str(error)


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's client without its bars and warnings, which would otherwise stand in every executed report."""
    with contextlib.ExitStack() as afterwards:
        afterwards.callback(utils.logging.set_verbosity, utils.logging.get_verbosity())
        if not utils.are_progress_bars_disabled():
            afterwards.callback(utils.enable_progress_bars)
        utils.logging.set_verbosity_error()
        utils.disable_progress_bars()
        yield


def _columns(text: str, at: int) -> tuple[list[str], int]:
    """The columns of the row that begins at `at`, and where the next row begins. Raises InputError."""
    columns, start, end = [], at, ","
    while end == ",":
        if not (found := _COLUMN.match(text, at)):
            row = text[start : text.find("\n", start) + 1 or None]
            raise InputError(f"{row.strip()!r} cannot be read; check its quotation marks")
        quoted, plain, end = found.groups()
        if quoted is None and columns and re.search(r"\s#", plain):
            raise InputError(f"{plain.strip()!r} ends with a comment; give it a line of its own")
        columns.append(plain.strip() if quoted is None else quoted.replace('""', '"'))
        at = found.end()
    return columns, at


def _quoted(text: str) -> str:
    plain = re.fullmatch(r'[^",#\r\n]*', text) and text == text.strip()
    return text if plain else '"' + text.replace('"', '""') + '"'


def _line(number: int, columns: list[str], beside: Path) -> Line:
    if len(columns) > 4:
        raise InputError(f"{','.join(columns)!r} has {len(columns)} columns; write id,domain or id,domain,name,base")
    columns += [""] * (4 - len(columns))
    place = os.path.join(beside, os.path.expanduser(columns[0]))
    if columns[0].startswith(("/", "./", "../", "~")) or (columns[0] and os.path.isdir(place)):
        return Line(number, *columns, folder=os.path.abspath(place))
    repo, at, revision = columns[0].partition("@")
    try:
        utils.validate_repo_id(repo)
    except errors.HFValidationError as error:
        wrong = f"{columns[0]!r} is no id of the hub, such as org/name or org/name@revision, and no folder"
        raise InputError(f"{wrong}; correct it, or begin it with ./ if it is to be a folder") from error
    if at and (not re.fullmatch(r"\w[\w./+-]*", revision) or ".." in revision):
        raise InputError(f"{revision!r} is no revision; write a commit, a branch or a tag after the @")
    return Line(number, *columns, repo=repo, revision=revision)


def _names(file: str | Path, lines: list[Line]) -> list[str]:
    """A name for each line, in as few words as tell them apart."""
    names = [line.name or Path(line.folder or line.repo).name for line in lines]
    for longer in ([line.repo or line.id for line in lines], [line.id for line in lines]):
        times, each = Counter(names), zip(lines, names, longer, strict=True)
        names = [name if line.name or times[name] == 1 else long for line, name, long in each]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(f"{shown(file)} has two adapters called {twice[0]}; name one of them in its third column")
    return names
