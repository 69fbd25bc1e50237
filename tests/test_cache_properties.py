"""Whatever happens to adapters, base, settings and the cache's files between runs: what is served is right."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import PROBES, save_adapter, save_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llgbm_nb import InputError, compute_deltas
from llgbm_nb import files as paths
from llgbm_nb.forward import base as loading

pytestmark = pytest.mark.slow
SETS = (PROBES[:2], PROBES[1:3], PROBES[:3])
DTYPES = ("float32", "bfloat16")
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Two bases, and four adapters whose files have all the same size."""
    root = tmp_path_factory.mktemp("stock")
    bases = [save_base(root / f"base{n}", seed=n) for n in range(2)]
    adapters = [save_adapter(root / f"{n}", bases[0], seed=n, base_name="base") for n in range(4)]
    assert len({(f / "adapter_model.safetensors").stat().st_size for f in adapters}) == 1
    return bases, adapters


class World:
    """A folder of adapters and a cache, and what they should give."""

    fresh: dict = {}  # deltas at every layer from an empty cache, by what decides them

    def __init__(self, root: Path, stock):
        self.root, (self.bases, self.adapters) = root, stock
        self.base, self.probes, self.dtype = 0, 0, 0
        self.content: dict[str, int] = {}  # adapter by name of folder
        self.use_base(0)
        for number, name in enumerate(NAMES[:2]):
            self.put(name, number)

    def put(self, name: str, number: int) -> None:
        folder = self.root / "zoo" / "x" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.adapters[number].glob("adapter_*"):
            (folder / file.name).write_bytes(file.read_bytes())  # in place, of the same size
        self.content[name] = number

    def use_base(self, number: int) -> None:
        shutil.rmtree(self.root / "base", ignore_errors=True)
        shutil.copytree(self.bases[number], self.root / "base")
        self.base = number

    def move(self, one: str, other: str) -> None:
        """Rename, or exchange two."""
        if one == other or one not in self.content:
            return
        folders = [self.root / "zoo" / "x" / name for name in (one, other, "aside")]
        folders[0].rename(folders[2])
        if other in self.content:
            folders[1].rename(folders[0])
        folders[2].rename(folders[1])
        mine, theirs = self.content.pop(one), self.content.pop(other, None)
        self.content[other] = mine
        if theirs is not None:
            self.content[one] = theirs

    def remove(self, name: str) -> None:
        if len(self.content) > 1 and self.content.pop(name, None) is not None:
            shutil.rmtree(self.root / "zoo" / "x" / name)

    def spoil(self, how: str, which: int, where: int) -> None:
        files = sorted(f for f in (self.root / "deltas").rglob("*") if f.is_file())
        if not files:
            return
        file = files[which % len(files)]
        content = bytearray(file.read_bytes())
        if how == "remove":
            file.unlink()
        elif how == "cut":
            file.write_bytes(content[: where % (len(content) + 1)])
        elif content:
            content[where % len(content)] ^= 1 << where % 8
            file.write_bytes(content)

    def run(self):
        return self.compute(self.root / "zoo", self.root / "deltas")

    def compute(self, zoo, cache_dir):
        return compute_deltas(
            zoo, SETS[self.probes], base_model=str(self.root / "base"), cache_dir=cache_dir,
            dtype=DTYPES[self.dtype],
        )  # fmt: skip

    def expected(self, number: int) -> np.ndarray:
        """From an empty cache: float32 (probes, layers, hidden)."""
        key = number, self.base, self.probes, self.dtype
        if key not in self.fresh:
            with tempfile.TemporaryDirectory() as folder:
                shutil.copytree(self.adapters[number], Path(folder) / "zoo" / "x" / "a")
                found = self.compute(Path(folder) / "zoo", Path(folder) / "deltas")
                self.fresh[key] = np.array(found.delta_set.differences[0])
        return self.fresh[key]

    def check(self) -> None:
        run = self.run()
        assert sorted(run.delta_set.names) == sorted(self.content) and not run.count("failed"), run.records
        for layer in run.delta_set.layer_numbers:
            try:
                found = run.delta_set.deltas(layer)
            except InputError as error:  # damage in the middle of a file, found when it is looked at
                assert "is damaged; it has been removed" in str(error)
                return self.check()
            for name, delta in zip(run.delta_set.names, found, strict=True):
                expected = self.expected(self.content[name])[:, layer].mean(axis=0, dtype=np.float32)
                assert delta.tobytes() == expected.tobytes(), (name, layer)
        for path, name, delta in zip(run.delta_set.paths, run.delta_set.names, run.delta_set.deltas(), strict=True):
            assert run.cache.get_delta(path).tobytes() == delta.tobytes(), name
        assert not [wrong for wrong in run.cache.verify() if wrong["path"] in run.delta_set.paths]


step = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("move"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    st.tuples(st.just("spoil"), st.sampled_from(["cut", "flip", "remove"]), st.integers(0, 99), st.integers(0, 10**6)),
    st.tuples(st.just("probes"), st.integers(0, len(SETS) - 1)),
    st.tuples(st.just("dtype"), st.integers(0, len(DTYPES) - 1)),
    st.tuples(st.just("use_base"), st.integers(0, 1)),
    st.just(("again",)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(step, min_size=2, max_size=6), old_files=st.booleans())
def test_every_served_delta_is_that_of_a_fresh_computation(stock, loaded_once, steps, old_files):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if old_files:  # files count as settled at once, so that their looks are trusted
            patch.setattr(paths, "SETTLED_NS", 0)
        world = World(Path(folder), stock)
        world.check()
        for name, *arguments in steps:
            if name in ("probes", "dtype"):
                setattr(world, name, *arguments)
            elif name != "again":
                getattr(world, name)(*arguments)
            world.check()


@pytest.fixture
def loaded_once(monkeypatch):
    """The bases' models by their weights: nothing changes them (tested elsewhere), and loading is what takes time."""
    real, known = loading.load_base, {}

    def load(name, *options):
        key = (Path(name) / "model.safetensors").read_bytes(), *options
        if key not in known:
            known[key] = real(name, *options)
        return known[key]

    monkeypatch.setattr(loading, "load_base", load)
