"""One run on the workers of a Dask cluster: the same bytes as in this process, whoever dies on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter

from llgbm_nb import compute_deltas
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.deltas import DeltaRun
from llgbm_nb.errors import InputError
from llgbm_nb.forward.dask_workers import local_cluster
from llgbm_nb.forward.engine import Measured
from llgbm_nb.settings import Settings

ADAPTERS = 40


def behaviour():
    """A plugin for workers of these tests: reading an adapter takes a while (its folder holds `slow`), or ends the
    process (`poison`, which then counts the times)."""

    class Behaviour(distributed.WorkerPlugin):  # nested, so that it travels by value
        def setup(self, worker):
            import os
            import time
            from pathlib import Path

            from llgbm_nb.collection.adapters import Adapter

            real = Adapter.read_tensors

            def read(adapter):
                if (Path(adapter.path) / "slow").exists():
                    time.sleep(0.1)
                if (Path(adapter.path) / "poison").exists():
                    with open(Path(adapter.path) / "poison", "a") as file:
                        file.write("x")
                    os._exit(1)
                return real(adapter)

            Adapter.read_tensors = read

    return Behaviour()


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        client.register_plugin(behaviour(), name="behaviour")
        yield client


@pytest.fixture(scope="module")
def forty(tmp_path_factory, base) -> Path:
    """Forty adapters of two ranks, slow to read in a worker."""
    root = tmp_path_factory.mktemp("forty")
    for seed in range(4):
        save_adapter(root / "made" / str(seed), base, seed=seed, r=4 + 4 * (seed % 2))
    random = np.random.default_rng(0)
    for number in range(ADAPTERS):
        from safetensors.torch import load_file, save_file

        source, target = root / "made" / str(number % 4), root / "zoo" / "ab"[number % 2] / f"{number:02d}"
        shutil.copytree(source, target)
        tensors = load_file(source / "adapter_model.safetensors")
        noise = lambda t: torch.from_numpy(random.normal(scale=0.05, size=t.shape).astype(np.float32))  # noqa: E731
        save_file({name: t + noise(t) for name, t in tensors.items()}, target / "adapter_model.safetensors")
        (target / "slow").touch()
    return root / "zoo"


@pytest.fixture(scope="module")
def serial(forty, tmp_path_factory) -> DeltaRun:
    return compute_deltas(forty, PROBES, cache_dir=tmp_path_factory.mktemp("serial"))


def same_bytes(run: DeltaRun, other: DeltaRun) -> bool:
    files = [{f.relative_to(r.cache.cache_dir): f.read_bytes() for f in r.cache.cache_dir.rglob("*.npy")}
             for r in (run, other)]  # fmt: skip
    return len(files[0]) > 2 and files[0] == files[1]


@pytest.mark.slow
def test_many_kinds_and_a_broken_one_give_the_same_bytes_and_records(client, zoo, tmp_path):
    shutil.copytree(zoo, tmp_path / "zoo")
    (tmp_path / "zoo" / "one" / "cut").mkdir()
    shutil.copy(zoo / "two" / "all" / "adapter_config.json", tmp_path / "zoo" / "one" / "cut")
    (tmp_path / "zoo" / "one" / "cut" / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    here = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "here")
    there = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "there", cluster=client)
    assert same_bytes(there, here)
    without = lambda run: [{k: v for k, v in r.items() if k != "seconds"} for r in run.records]  # noqa: E731
    np.testing.assert_equal(without(there), without(here))
    assert there.count("computed") == 5 and there.count("failed") == 1


@pytest.mark.slow
def test_a_cached_run_asks_no_worker(client, serial, forty, monkeypatch):
    monkeypatch.setattr(client, "submit", None)
    run = compute_deltas(forty, PROBES, cache_dir=serial.cache.cache_dir.parent, cluster=client)
    assert run.count("cached") == ADAPTERS


@pytest.mark.slow
def test_a_worker_killed_in_the_middle(cluster, client, serial, forty, tmp_path):
    records = []

    def kill_one(record):
        records.append(record)
        if len(records) == 1:
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    run = compute_deltas(forty, PROBES, cache_dir=tmp_path, cluster=client, on_adapter=kill_one)
    assert run.count("computed") == len(records) == ADAPTERS
    assert same_bytes(run, serial)


@pytest.mark.slow
def test_an_adapter_that_kills_workers_is_given_up_after_three_and_the_rest_finish(client, serial, forty, tmp_path):
    poison = sorted(forty.glob("*/*"))[7]
    (poison / "poison").touch()
    try:
        run = compute_deltas(forty, PROBES, cache_dir=tmp_path, cluster=client)
        assert (poison / "poison").read_text() == "xxx"
    finally:
        (poison / "poison").unlink()
    (failed,) = [record for record in run.records if record["status"] == "failed"]
    assert failed["path"] == str(poison)
    assert failed["reason"] == "the worker that measured it died, 3 times (out of memory?)"
    assert run.count("computed") == ADAPTERS - 1
    keep = [i for i, path in enumerate(serial.delta_set.paths) if path != str(poison)]
    assert run.delta_set.paths == serial.delta_set.subset(keep).paths
    for ours, theirs in zip(run.delta_set.differences, serial.delta_set.subset(keep).differences, strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.slow
def test_a_run_whose_process_is_killed_goes_on_where_it_was(cluster, client, serial, forty, tmp_path):
    program = f"""
import distributed
from llgbm_nb import compute_deltas

with distributed.Client({cluster.scheduler_address!r}) as client:
    compute_deltas({str(forty)!r}, {PROBES!r}, cache_dir={str(tmp_path)!r}, cluster=client,
                   on_adapter=lambda record: print(record["name"], flush=True))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(5):
            assert process.stdout.readline()
        process.kill()
    run = compute_deltas(forty, PROBES, cache_dir=tmp_path, cluster=client)
    assert 5 <= run.count("cached") < ADAPTERS
    assert run.count("cached") + run.count("computed") == ADAPTERS
    assert same_bytes(run, serial)


@pytest.mark.slow
def test_an_interrupt_leaves_what_was_measured_and_nothing_on_the_workers(client, serial, forty, tmp_path):
    def interrupt(record):
        if record["status"] == "computed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_deltas(forty, PROBES, cache_dir=tmp_path, cluster=client, on_adapter=interrupt)
    deadline = time.monotonic() + 30
    held = lambda: __import__("llgbm_nb.forward.dask_workers", fromlist=["_held"])._held is None  # noqa: E731
    while not (all(client.run(held).values()) and not any(client.processing().values())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run = compute_deltas(forty, PROBES, cache_dir=tmp_path, cluster=client)
    assert run.count("cached") == 1 and run.count("computed") == ADAPTERS - 1
    assert same_bytes(run, serial)


@pytest.mark.slow
def test_a_worker_with_other_files_of_the_base_is_refused(client, base, forty):
    from llgbm_nb.forward.dask_workers import Workers

    settings = Settings(str(base), device="cpu", max_length=64)
    with pytest.raises(InputError, match="no worker of tcp://.* can have the base: its files of the base .* are other"):
        Workers(client, settings, "of other files", PROBES, [3])


@pytest.mark.slow
def test_a_cluster_by_name_starts_and_shows_its_dashboard(forty, serial, tmp_path, capsys):
    run = compute_deltas(forty, PROBES, cache_dir=tmp_path, cluster="local:1")
    assert same_bytes(run, serial)
    assert capsys.readouterr().out.startswith("1 workers; dashboard: http://127.0.0.1:")


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_one_sentence(zoo, tmp_path, monkeypatch):
    from llgbm_nb.forward import dask_workers as scaleout

    monkeypatch.setattr(scaleout, "ANSWER", 1)
    with pytest.raises(InputError, match="no scheduler answers at tcp://127.0.0.1:9 .*; see cluster"):
        compute_deltas(zoo, PROBES, cache_dir=tmp_path, cluster="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_a_scheduler_without_workers_ends_the_run(zoo, tmp_path, monkeypatch):
    from llgbm_nb.forward import dask_workers as scaleout

    monkeypatch.setattr(scaleout, "PATIENCE", 1)
    with (
        local_cluster(0) as empty,
        distributed.Client(empty, set_as_default=False) as client,
        pytest.raises(InputError, match="has had no workers.* start some and run again"),
    ):
        compute_deltas(zoo, PROBES, cache_dir=tmp_path, cluster=client)


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "llgbm_nb.forward.dask_workers", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[cluster\]'"):
        __import__("llgbm_nb.forward.dask_workers")


def test_groups_are_of_one_kind_and_peft_comes_last(zoo):
    from llgbm_nb.collection.find import find_adapters
    from llgbm_nb.forward.dask_workers import GROUP, _groups

    order = [adapter.kind.split()[0] for group in _groups(find_adapters(zoo), 2) for adapter in group]
    assert order[-1] == "DoRA" and len(order) == 5
    many = [Adapter(f"/none/{number}", str(number)) for number in range(1000)]
    groups = _groups(many, 2)
    assert {len(group) for group in groups[:-1]} == {GROUP} and sum(map(len, groups)) == 1000
    assert len(_groups(many[:3], 8)) == 3  # every worker has something to do


def test_a_suspect_has_its_worker_to_itself():
    from collections import Counter

    from llgbm_nb.forward.dask_workers import AHEAD, _has_room

    one, other = [Adapter("/one", "one")], [Adapter("/other", "other")]
    assert _has_room("w", one, [], Counter()) and _has_room("w", one, [("w", other)], Counter())
    assert not _has_room("w", one, [("w", other)] * AHEAD, Counter())
    for suspect in ("/one", "/other"):
        assert not _has_room("w", one, [("w", other)], Counter({suspect: 1}))
    assert _has_room("w", one, [("v", other)], Counter({"/one": 2}))


def test_what_was_lost_is_tried_alone_and_given_up_in_the_end():
    from collections import Counter, deque

    from llgbm_nb.forward.dask_workers import DEATHS, _once_more

    group, deaths, waiting = [Adapter("/one", "one"), Adapter("/other", "other")], Counter(), deque()
    assert [*_once_more(group, "it died", deaths, waiting)] == []
    assert [*waiting] == [[group[0]], [group[1]]]
    deaths["/one"] = DEATHS - 1
    (given_up,) = _once_more([group[0]], "it died", deaths, deque())
    assert isinstance(given_up, Measured) and given_up.differences is None
    assert given_up.reason == "it died, 3 times (out of memory?)"
