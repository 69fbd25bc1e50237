"""Runs that are killed at any moment, and several at once, on one cache."""

import json
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter

from llgbm_nb import DeltaCache, compute_deltas

pytestmark = pytest.mark.slow
KILLS = 50
processes = multiprocessing.get_context("forkserver")  # its children start in a moment, with everything imported
processes.set_forkserver_preload(["llgbm_nb.deltas", "torch", "transformers", "peft", "conftest"])


@pytest.fixture(scope="module")
def many(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    for number in range(10):
        lora = dict(target_modules="all-linear") if number % 2 else dict(use_dora=number == 4)
        save_adapter(root / "x" / f"{number}", base, seed=number, **lora)
    return root


@pytest.fixture(autouse=True)
def one_thread():
    """As in the other processes: bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compute(zoo, cache_dir, probes=PROBES, started=None):
    torch.set_num_threads(1)  # of a process of its own
    if started:
        started.set()
    return compute_deltas(zoo, probes, cache_dir=cache_dir)


def contents(cache_dir: Path) -> dict:
    """Every file's bytes; of JSON files, what does not depend on when the run was."""
    found = {}
    for file in sorted(f for f in cache_dir.rglob("*") if f.is_file() and not f.name.startswith(".")):
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.loads(content)
            for key in ("check", "stamps"):
                content.pop(key, None)
        found[file.relative_to(cache_dir)] = content
    found.pop(Path("files.json"), None)
    return found


def begin(zoo, cache_dir):
    """A process that has just begun to compute."""
    started = processes.Event()
    process = processes.Process(target=compute, args=(zoo, cache_dir, PROBES, started))
    process.start()
    assert started.wait(120)
    return process


@pytest.fixture(scope="module")
def undisturbed(many, tmp_path_factory):
    """What a run leaves, and how long it takes in a process of its own."""
    cache_dir = tmp_path_factory.mktemp("undisturbed")
    process, start = begin(many, cache_dir), time.monotonic()
    process.join()
    assert process.exitcode == 0
    return contents(cache_dir), time.monotonic() - start


def test_a_run_that_is_killed_leaves_whole_entries_and_the_next_one_ends_as_if_nothing_had_been(
    many, undisturbed, tmp_path
):
    expected, seconds = undisturbed
    draw, survived = random.Random(0), []
    for number in range(KILLS):
        cache_dir = tmp_path / str(number)
        process = begin(many, cache_dir)
        time.sleep(draw.uniform(0, seconds * 1.1))
        process.kill()
        process.join()
        whole = {}
        for folder in cache_dir.glob("generic-*"):
            cache = DeltaCache(folder)
            whole = cache.get_all_deltas()
            for path, delta in whole.items():
                key = cache.look_up(path)[0]["file"]
                assert delta.tobytes() == np.load(folder / key).tobytes()
                assert (folder / key).read_bytes() == expected[Path(folder.name) / key]
        survived.append(len(whole))
        assert compute(many, cache_dir).count("cached") == len(whole)
        assert contents(cache_dir) == expected, number
    assert len(set(survived)) > 3, survived  # the kills came at different moments


def watch(cache_dir, expected, stop, problems):
    """Read all the while. Whatever is served must be right, and every manifest whole, with the files that it names."""
    looks = 0
    while not stop.is_set() or not looks:
        for folder in Path(cache_dir).glob("generic-*"):
            for path, delta in DeltaCache(folder).get_all_deltas().items():
                looks += 1
                if delta.tobytes() != expected[folder.name, path]:
                    problems.put(f"{path} in {folder.name}")
            if (folder / "manifest.json").exists():
                for entry in json.loads((folder / "manifest.json").read_text())["adapters"].values():
                    delta = np.load(folder / entry["file"])
                    if delta.tobytes() != expected[folder.name, entry["path"]]:
                        problems.put(f"{entry['path']} in the manifest of {folder.name}")
    problems.put(looks)


def test_four_runs_at_once_and_a_reader(many, tmp_path):
    sets = [PROBES, PROBES, PROBES[:2], PROBES[1:]]
    expected = {}
    for probes in sets[1:]:
        run = compute(many, tmp_path / "alone", probes)
        folder = run.cache.cache_dir.name
        expected |= {(folder, path): delta.tobytes() for path, delta in run.cache.get_all_deltas().items()}
    alone, stop, problems = contents(tmp_path / "alone"), processes.Event(), processes.Queue()
    reader = processes.Process(target=watch, args=(tmp_path / "deltas", expected, stop, problems))
    runs = [processes.Process(target=compute, args=(many, tmp_path / "deltas", probes)) for probes in sets]
    for process in (reader, *runs):
        process.start()
    for process in runs:
        process.join(300)
    stop.set()
    looks = problems.get(timeout=60)
    reader.join(60)
    assert isinstance(looks, int) and looks > 0 and problems.empty(), looks
    assert [process.exitcode for process in (reader, *runs)] == [0] * 5
    assert contents(tmp_path / "deltas") == alone
