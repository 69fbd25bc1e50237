"""Collections as a text file, against a hub's cache that is filled here; nothing reaches for a hub."""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import KINDS, PROBES, save_adapter, save_base
from huggingface_hub import constants, errors
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llgbm_nb import InputError, compute_deltas, find_adapters
from llgbm_nb.collection import hub_lists
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.collection.bases import base_of
from llgbm_nb.collection.hub_lists import fetch, read_list, write_list
from llgbm_nb.files import ROOT
from llgbm_nb.report.parameters import check


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def keep(hub: Path, repo: str, folder: Path, commit: str, revision: str = "main", files: str = "*") -> Path:
    """The files of `folder` as a snapshot in the cache, laid out as huggingface_hub does."""
    place = hub / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for directory in (place / "blobs", place / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    for file in sorted(folder.glob(files)):
        blob = place / "blobs" / f"{commit[:4]}-{file.name}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def listing(folder: Path, *lines: str) -> Path:
    file = folder / "list.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def asked(monkeypatch) -> list:
    """The repos that the hub, and not only its cache, is asked for."""
    real, found = hub_lists.snapshot_download, []

    def snapshot_download(repo, **options):
        if not options.get("local_files_only"):
            found.append(repo)
        return real(repo, **options)

    monkeypatch.setattr(hub_lists, "snapshot_download", snapshot_download)
    return found


def online(monkeypatch, hub: Path, repos: dict) -> list:
    """A hub that holds `repos` (id: a folder, or an error) and fills the cache; the files that it was asked for."""
    real, asked = hub_lists.snapshot_download, []

    def snapshot_download(repo, *, allow_patterns, ignore_patterns, local_files_only=False, **options):
        if local_files_only:
            return real(repo, local_files_only=True, **options)
        if isinstance(repos[repo], Exception):
            raise repos[repo]
        for pattern in allow_patterns:
            for file in fnmatch.filter([file.name for file in repos[repo].iterdir()], pattern):
                if not any(fnmatch.fnmatch(file, other) for other in ignore_patterns):
                    asked.append(file)
        commit = "f" * 40
        for file in asked:
            if not (hub / f"models--{repo.replace('/', '--')}/snapshots/{commit}/{file}").exists():
                keep(hub, repo, repos[repo], commit, files=file)
        return str(hub / f"models--{repo.replace('/', '--')}/snapshots/{commit}")

    monkeypatch.setattr(hub_lists, "snapshot_download", snapshot_download)
    return asked


def test_a_list_gives_the_same_bits_as_the_same_adapters_in_a_folder(hub, base, tmp_path, asked):
    """One of the main branch, one at a revision, one of another layout, a full checkpoint, one in a folder."""
    for name, lora in KINDS.items():
        save_adapter(tmp_path / "zoo" / "x" / name, base, seed=len(name), **lora)
    zoo = tmp_path / "zoo" / "x"
    (zoo / "qv" / "adapter_model.bin").write_bytes(b"")
    torch.save(load_file(zoo / "qv" / "adapter_model.safetensors"), zoo / "qv" / "adapter_model.bin")
    (zoo / "qv" / "adapter_model.safetensors").unlink()
    save_base(zoo / "full", seed=9)
    keep(hub, "org/all", zoo / "all", "a" * 40)
    keep(hub, "org/dora", zoo / "all", "b" * 40)  # the branch holds something else
    keep(hub, "org/dora", zoo / "dora", "c" * 40, revision="v2")
    keep(hub, "org/qv", zoo / "qv", "d" * 40)
    keep(hub, "org/full", zoo / "full", "e" * 40)
    file = listing(
        tmp_path, "# mine", "", "org/all,code", "org/dora@v2, law", "  org/qv", "org/missing,code", "org/full,code",
        f"{zoo}/pattern,code", "zoo/x/attention-rslora,law,mine",
    )  # fmt: skip
    run = compute_deltas(file, PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    assert asked == ["org/missing"]
    found = run.delta_set
    assert found.names == ("all", "dora", "qv", "full", "pattern", "mine")
    assert found.domains == ("code", "law", "unknown", "code", "code", "law")
    assert run.count("failed") == 1 and run.records[3]["name"] == "missing" and run.records[3]["domain"] == "code"
    assert run.records[3]["reason"] == "it is not whole in the hub's cache, and the hub cannot be reached"
    alone = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "others").delta_set
    theirs = dict(zip(alone.names, alone.differences, strict=True))
    for name, path, ours in zip(found.names, found.paths, found.differences, strict=True):
        np.testing.assert_array_equal(ours, theirs["attention-rslora" if name == "mine" else name], err_msg=path)
    again = compute_deltas(file, PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    assert again.count("cached") == 6


def test_the_base_is_what_the_fetched_ones_name(hub, base, tmp_path):
    keep(hub, "org/a", save_adapter(tmp_path / "a", base), "a" * 40)
    adapters = find_adapters(listing(tmp_path, "org/missing", "org/a"))
    assert base_of(adapters) == str(base)
    with pytest.raises(InputError, match="1 of 1 adapters are unavailable, such as org/missing: .*reached"):
        base_of(adapters[:1])


def test_the_notebooks_parameter_may_be_a_list(tmp_path):
    assert check({"checkpoint_dir": str(listing(tmp_path, "org/a"))}).checkpoint_dir == tmp_path / "list.txt"


@pytest.mark.parametrize("lost", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_repo_that_the_cache_has_not_whole_is_asked_for_and_then_listed(hub, base, tmp_path, asked, lost):
    snapshot = keep(hub, "org/a", save_adapter(tmp_path / "a", base), "a" * 40)
    (snapshot / lost).unlink()
    (adapter,) = find_adapters(listing(tmp_path, "org/a"))
    assert set(asked) == {"org/a"} and adapter.path == "org/a"
    assert adapter.problem.startswith("no adapter, and no model in safetensors, could be fetched from it: ")
    assert adapter.problem.endswith(f"{lost} is missing")
    run = compute_deltas([adapter], PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    assert run.records[0]["reason"] == adapter.problem and run.records[0]["status"] == "failed"


def test_a_blob_that_is_gone_counts_as_missing(hub, base, tmp_path, asked):
    snapshot = keep(hub, "org/a", save_adapter(tmp_path / "a", base), "a" * 40)
    (snapshot / "adapter_model.safetensors").resolve().unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors is missing"):
        fetch("org/a")
    assert asked


def test_a_model_in_parts_is_whole_with_all_of_them(hub, base, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "full", max_shard_size="40KB")
    snapshot = keep(hub, "org/full", tmp_path / "full", "a" * 40)
    shards = sorted(snapshot.glob("*-of-*.safetensors"))
    assert len(shards) > 1 and fetch("org/full") == snapshot.resolve()
    shards[-1].unlink()
    with pytest.raises(InputError, match=f"{shards[-1].name} is missing"):
        fetch("org/full")


def test_only_what_decides_a_delta_is_fetched(hub, base, tmp_path, monkeypatch):
    folders = {f"org/{name}": save_adapter(tmp_path / name, base) for name in ("a", "pickled", "both")}
    folders["org/full"] = save_base(tmp_path / "full")
    for name in ("org/pickled", "org/both"):
        torch.save(load_file(folders[name] / "adapter_model.safetensors"), folders[name] / "adapter_model.bin")
    (folders["org/pickled"] / "adapter_model.safetensors").unlink()
    for folder in folders.values():
        for name in ("modeling.py", "optimizer.pt", "training_args.bin", "README.md", "consolidated.safetensors"):
            (folder / name).write_text("x")
        (folder / "added_tokens.json").write_text("{}")
    asked = online(monkeypatch, hub, folders)
    files = {}
    for repo in folders:
        asked.clear()
        files[repo] = {file.name for file in fetch(repo).iterdir()}
        assert files[repo] == set(asked)
        asked.clear()
        assert fetch(repo) and not asked  # from the cache
    usual = {"adapter_config.json", "added_tokens.json"}
    assert files["org/a"] == files["org/both"] == usual | {"adapter_model.safetensors"}
    assert files["org/pickled"] == usual | {"adapter_model.bin"}
    assert files["org/full"] == {
        "added_tokens.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_repo_without_an_adapter_is_listed(hub, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("x")
    online(monkeypatch, hub, {"org/data": tmp_path / "data"})
    (adapter,) = find_adapters(listing(tmp_path, "org/data"))
    assert adapter.problem.endswith("adapter_config.json is missing")


def refusal(kind, status: int):
    message = f"{status} Client Error. (Request ID: Root=1-6)\n\nNot for url: https://huggingface.co/api/models/org/a."
    return kind(message, response=SimpleNamespace(status_code=status, headers={}, request=None))


FAILURES = {
    "missing": (refusal(errors.RepositoryNotFoundError, 404), "the hub has no such repo, or it is private"),
    "gated": (refusal(errors.GatedRepoError, 403), "its owner has to let you in"),
    "revision": (refusal(errors.RevisionNotFoundError, 404), "the repo has no such revision"),
    "server": (refusal(errors.HfHubHTTPError, 500), r"the hub refused it \(HTTP 500\)"),
    "offline": (errors.OfflineModeIsEnabled("Cannot reach https://x"), "the hub cannot be reached"),
    "network": (ConnectionError("[Errno -2] Name or service not known"), "the hub cannot be reached"),
    "disk": (OSError(28, "No space left on device"), r"\(OSError: \[Errno 28\] No space left on device.\)"),
    "other": (RuntimeError("odd (https://x/y?z)\nTraceback"), r"failed \(RuntimeError: odd.*\)$"),
}


@pytest.mark.parametrize("always", [False, True], ids=["online", "always"])
def test_what_the_hub_refuses_is_listed_in_a_sentence_and_the_rest_go_on(hub, base, tmp_path, monkeypatch, always):
    keep(hub, "org/a", save_adapter(tmp_path / "a", base), "a" * 40)
    repos = {f"org/{name}": error for name, (error, _) in FAILURES.items()}
    online(monkeypatch, hub, repos)
    if always:  # also when only the cache is looked at
        fill = hub_lists.snapshot_download

        def snapshot_download(repo, **options):
            if repo in repos:
                raise repos[repo]
            return fill(repo, **options)

        monkeypatch.setattr(hub_lists, "snapshot_download", snapshot_download)
    run = compute_deltas(
        listing(tmp_path, *repos, "org/a"), PROBES, base_model=str(base), cache_dir=tmp_path / "deltas"
    )
    assert run.delta_set.names == ("a",)
    for record, (_, sentence) in zip(run.records, FAILURES.values(), strict=False):
        assert record["status"] == "failed" and record["path"] == f"org/{record['name']}"
        assert re.search(sentence, record["reason"]), record["reason"]
        assert not re.search(r"\n|://|Traceback|Request ID", record["reason"])


def test_names_are_short_where_they_tell_apart(hub, tmp_path):
    file = listing(
        tmp_path, "org/a", "org/b", "other/b", "org/c", "org/c@v2", "./x/a-1", "./x/a-2", "./y/a-2", "org/d,,a-3",
        "org/a-3", "gpt2", "other/gpt2",
    )  # fmt: skip
    assert [adapter.name for adapter in find_adapters(file)] == [
        "a", "org/b", "other/b", "org/c", "org/c@v2", "a-1", "./x/a-2", "./y/a-2", "a-3", "org/a-3", "gpt2",
        "other/gpt2",
    ]  # fmt: skip
    with pytest.raises(InputError, match="list.txt has two adapters called mine; name one of them in its third column"):
        find_adapters(listing(tmp_path, "org/a,,mine", "org/b,,mine"))


def test_a_branch_and_its_commit_are_one_adapter(hub, base, tmp_path):
    keep(hub, "org/a", save_adapter(tmp_path / "a", base), "a" * 40)
    first, second = find_adapters(listing(tmp_path, "org/a", f"org/a@{'a' * 40}"))
    assert not first.problem and second.problem == "it is the same as org/a, in line 1 of the list"
    run = compute_deltas([first, second], PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    assert [record["status"] for record in run.records] == ["computed", "failed"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("org/a,b,c,d,e", "has 5 columns; write id,domain or id,domain,name,base"),
        ("org/a code", "'org/a code' is no id of the hub"),
        ("https://huggingface.co/org/a", "is no id of the hub"),
        (",code", "'' is no id of the hub"),
        ("org/a/b", "begin it with ./ if it is to be a folder"),
        ("org/b@", "'' is no revision"),
        ("org/b@../../x", "is no revision; write a commit, a branch or a tag"),
        ("org/b,code  # mine", "ends with a comment; give it a line of its own"),
        ('org/b,"code', "check its quotation marks"),
        ("org/a,law", "org/a is in line 2 already; remove one of them"),
        ("./x", r"\./x is in line 3 already"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, sentence):
    file = listing(tmp_path, "# comment", "org/a", f"{tmp_path}/x/", "", line)
    with pytest.raises(InputError, match=f"list.txt, line 5: .*{sentence}") as caught:
        read_list(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"\xff\xfe\x00", "cannot be read as a list"), (b"# nothing\n\n", "names no adapters; write one a line")],
)
def test_a_file_that_is_no_list_is_told(tmp_path, content, sentence):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match=f"x.bin {sentence}"):
        find_adapters(tmp_path / "x.bin")


def test_folders_start_at_the_lists_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "lists" / "beside").mkdir(parents=True)
    lines = read_list(listing(tmp_path / "lists", "./a", "../b", "~/c", "/d", "beside", '"./e, f",law', "./g@1"))
    assert [line.folder for line in lines] == [
        *map(str, (tmp_path / "lists/a", tmp_path / "b", tmp_path / "home/c")), "/d", str(tmp_path / "lists/beside"),
        str(tmp_path / "lists/e, f"), str(tmp_path / "lists/g@1"),
    ]  # fmt: skip


def test_a_folder_that_is_not_there_is_listed(tmp_path):
    (adapter,) = find_adapters(listing(tmp_path, "./nowhere,law"))
    assert (adapter.path, adapter.domain) == (str(tmp_path / "nowhere"), "law")
    assert adapter.problem == "there is no such folder"
    with pytest.raises(InputError, match="there is no such folder"):
        _ = adapter.fingerprint


def test_a_written_list_gives_the_same_adapters_and_is_written_once(hub, zoo, tmp_path):
    adapters = [*find_adapters(zoo), Adapter("org/lost@v1", "lost", "a, b", "gone")]
    write_list(tmp_path / "mine.txt", adapters, "made here")
    again = find_adapters(tmp_path / "mine.txt")
    assert again[:-1] == adapters[:-1] and again[-1].path == "org/lost@v1" and again[-1].domain == "a, b"
    before = (tmp_path / "mine.txt").stat()
    write_list(tmp_path / "mine.txt", adapters, "made here")
    assert (tmp_path / "mine.txt").stat() == before
    write_list(tmp_path / "mine.txt", adapters[1:], "made here")
    assert len(read_list(tmp_path / "mine.txt")) == len(adapters) - 1


names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(names.filter(lambda name: name not in (".", "..")), names, names), min_size=1,
                unique_by=(lambda row: row[0], lambda row: row[2])), names)  # fmt: skip
@example([("#a", " b ", "c\nd"), ("~\r", 'say "x", y', " # no comment"), (" ", "_", "a,b"), ("-", "=1", "./e")], "\n#")
def test_whatever_folders_and_domains_are_called_a_written_list_is_read_back(tmp_path_factory, rows, comment):
    file = tmp_path_factory.getbasetemp() / "written.txt"
    adapters = [Adapter(f"/nowhere/{path}", name, domain, "there is no such folder") for path, domain, name in rows]
    write_list(file, adapters, comment)
    assert find_adapters(file) == adapters


@pytest.mark.parametrize("base", ["llama-3.1-8b", "qwen-2.5-7b", "gemma-2-9b"])
def test_the_papers_pools(base):
    lines = read_list(ROOT / "data" / "pools" / f"{base}.txt")
    domains = Counter(line.domain for line in lines)
    assert domains == dict.fromkeys(("legal", "math", "medical", "commonsense", "code"), 3)
    assert len(lines) == 15 and all(line.repo.startswith(f"ASethi04/{base}-") for line in lines)


def test_no_code_of_a_repo_is_run(hub, tmp_path, base):
    """A model that wants code of its own is refused with its reason."""
    save_base(tmp_path / "full")
    config = json.loads((tmp_path / "full/config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "full/config.json").write_text(json.dumps(config))
    (tmp_path / "full/own.py").write_text(f"open({str(tmp_path / 'evil')!r}, 'w')")
    keep(hub, "org/full", tmp_path / "full", "a" * 40)
    run = compute_deltas(listing(tmp_path, "org/full"), PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    assert run.count("failed") == 1 and not (tmp_path / "evil").exists()


COMMIT = "f" * 40


class Answer(BaseHTTPRequestHandler):
    """What the hub's client asks while it fetches a repo, answered from the folder `repos` of the server."""

    def do_GET(self):
        kind, *parts = self.path.split("?")[0].strip("/").removeprefix("api/").split("/")
        repo = self.server.repos / "/".join(parts[:2] if kind == "models" else [kind, *parts[:1]])
        files = sorted(repo.iterdir()) if repo.is_dir() else []
        if kind != "models":
            file = repo / parts[-1]
            if repo.name == "gated":
                self.answer(403, X_Error_Code="GatedRepo")
            elif file in files:
                self.answer(200, file.read_bytes(), ETag=f'"{digest(file)}"', X_Repo_Commit=COMMIT)
            else:
                self.answer(404)
        elif not files:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif parts[2] == "revision" and parts[3] not in ("main", "v2"):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif parts[2] == "revision":
            about = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            self.answer(200, json.dumps(about).encode())
        else:
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": digest(f)} for f in files]
            self.answer(200, json.dumps(tree).encode())

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes = b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_hubs_own_client_against_a_server_of_ours(base, tmp_path):
    """In a process of its own, as the client reads its settings when it is imported."""
    repos = tmp_path / "repos" / "org"
    for name in ("a", "gated", "pickled"):
        save_adapter(repos / name, base)
    torch.save(load_file(repos / "pickled" / "adapter_model.safetensors"), repos / "pickled" / "adapter_model.bin")
    (repos / "pickled" / "adapter_model.safetensors").unlink()
    save_base(repos / "full")
    (repos / "data").mkdir()
    (repos / "data" / "README.md").write_text("x")
    file = listing(
        tmp_path, *(f"org/{name}" for name in ("a@v2", "pickled", "full", "gated", "data", "missing", "a@v3"))
    )
    program = "import sys; from llgbm_nb import find_adapters; print(*map(find_adapters, sys.argv[1:]))"

    def found(port: int) -> str:
        settings = dict(HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | settings
        environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", program, file]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.repos = tmp_path / "repos"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        online = found(server.server_port)
        server.shutdown()
    problems = re.findall(r"""problem=['"](.*?)['"], base=""", online)
    assert problems[:3] == ["", "", ""] and len(problems) == 7
    sentences = ("let you in", "adapter_config.json is missing", "no such repo", "no such revision")
    assert all(sentence in problem for sentence, problem in zip(sentences, problems[3:], strict=True))
    kept = {file.name for file in (tmp_path / "home").glob("hub/models--*/snapshots/*/*")}
    assert kept == {
        "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    offline = found(server.server_port)  # nobody is there any more
    assert re.findall(r"path='(/.*?)'", offline) == re.findall(r"path='(/.*?)'", online)
    assert offline.count("the hub cannot be reached") == 4
