"""The time left: shown from the first minute as it turns out to be, whatever was in the cache."""

import re

import pytest
import tqdm

from llgbm_nb import progress_bar
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.time_left import SLOWER, adapter_progress


class Kind(Adapter):
    """An adapter of a kind, without files."""

    @property
    def kind(self):
        return "DoRA r8 q" if self.name.startswith("dora") else "LoRA r8 q"


class Clock:
    now = 1e6

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """tqdm's clock, set by hand."""
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


@pytest.fixture
def bars(monkeypatch) -> list:
    """The tqdm bars that are made; as a text, a bar is what it shows."""
    made = []

    class Kept(tqdm.tqdm):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr(progress_bar, "tqdm", Kept)
    return made


def shown(bar) -> int | None:
    """The seconds that a bar says are left; None if it does not say."""
    if not (left := re.search(r"so far, ([\d:]+) to go", str(bar))):
        return None
    seconds = 0
    for part in left[1].split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


@pytest.fixture
def play(clock, bars):
    def play(plain: int, dora: int, cached: int, start: float, each: float, slow: float, group: int, spread: float = 0):
        """[(seconds since the start, what is said to be left, what is)] of a run: `cached` adapters at once, `start`
        seconds of loading, groups of `group` that take `each` seconds an adapter, then DoRA, `slow` seconds each. A
        group's adapters arrive within `spread` seconds."""
        adapters = [Kind(f"/{n}", f"lora{n}") for n in range(plain)] + [Kind(f"/d{n}", f"dora{n}") for n in range(dora)]
        now, events = 0.0, []
        for number in range(cached):
            events.append((1e-3 * number, adapters[number], "cached", 1e-3))
        now = 1e-3 * cached + start
        rest = adapters[cached:plain]
        for first in range(0, len(rest), group):
            together = rest[first : first + group]
            now += each * len(together)
            for place, adapter in enumerate(together):
                events.append((now + spread * place / group, adapter, "computed", each))
        for adapter in adapters[plain:]:
            now += slow
            events.append((now, adapter, "computed", slow))
        start, said, end = clock.now, [], events[-1][0]
        with adapter_progress(adapters) as on_adapter:
            for when, adapter, status, seconds in events:
                clock.now = start + when
                on_adapter({"kind": adapter.kind, "status": status, "seconds": seconds})
                said.append((when, shown(bars[-1]), end - when))
        assert f"{len(adapters)}/{len(adapters)} adapters" in str(bars[-1])  # adapters are counted, not their weights
        return said

    return play


@pytest.mark.parametrize("spread", [0, 1.5])
@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("cached", [0, 700])
@pytest.mark.parametrize("dora", [0, 200])
def test_an_overnight_runs_estimate_holds_from_the_first_minute_on(play, group, cached, dora, spread):
    said = play(plain=1300, dora=dora, cached=cached, start=45, each=4.0, slow=14.0, group=group, spread=spread)
    assert all(seconds is None for _, seconds, _ in said[:cached])
    assert said[cached][0] <= 60 or group > 3  # it is there within the first minute
    for _, seconds, truth in said[cached:]:
        assert seconds == pytest.approx(truth, rel=0.2, abs=group * 4.0)


def test_without_plain_lora_the_slower_kind_counts_for_itself(play):
    said = play(plain=0, dora=10, cached=0, start=5, each=1.0, slow=3.0, group=1)
    expected = [3 * left for left in range(9, -1, -1)]
    assert [seconds for _, seconds, _ in said] == pytest.approx(expected, abs=1)  # shown in whole seconds


def test_what_peft_loads_is_guessed_until_it_is_measured(play):
    first, *_ = play(plain=1, dora=2, cached=0, start=0, each=1.0, slow=10.0, group=1)
    assert first[1] == pytest.approx(2 * SLOWER * 1.0)


def test_nothing_is_said_of_adapters_from_the_cache_and_failures(bars):
    with adapter_progress([Kind("/a", "a"), Kind("/b", "b")]) as on_adapter:
        on_adapter({"kind": "LoRA r8 q", "status": "failed", "seconds": 0.0})
        assert shown(bars[0]) is None
        on_adapter({"kind": "LoRA r8 q", "status": "cached", "seconds": 0.0})
        assert shown(bars[0]) is None


def test_the_bar_shows_the_time_left(clock, capsys):
    with adapter_progress([Kind(f"/{n}", f"{n}") for n in range(3)]) as on_adapter:
        for _ in range(2):
            clock.now += 90
            on_adapter({"kind": "LoRA r8 q", "status": "computed", "seconds": 90.0})
    assert re.search("2/3 adapters .* 03:00 so far, 01:30 to go", capsys.readouterr().err)
