"""The time left: told from the first minute as it turns out to be, whatever was in the cache."""

import time

import pytest

from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.progress_bar import progress
from llgbm_nb.time_left import SLOWER, TimeLeft, adapter_progress


class Kind(Adapter):
    """An adapter of a kind, without files."""

    @property
    def kind(self):
        return "DoRA r8 q" if self.name.startswith("dora") else "LoRA r8 q"


def play(plain: int, dora: int, cached: int, start: float, each: float, slow: float, group: int):
    """[(seconds since the start, what is said to be left, what is)] of a run: `cached` adapters at once, `start`
    seconds of loading, groups of `group` that take `each` seconds an adapter, then DoRA, `slow` seconds each."""
    adapters = [Kind(f"/{n}", f"lora{n}") for n in range(plain)] + [Kind(f"/d{n}", f"dora{n}") for n in range(dora)]
    now, events = 0.0, []
    for number in range(cached):
        events.append((1e-3 * number, adapters[number], "cached", 1e-3))
    now = 1e-3 * cached + start
    rest = adapters[cached:plain]
    for first in range(0, len(rest), group):
        now += each * len(rest[first : first + group])
        events += [(now, adapter, "computed", each) for adapter in rest[first : first + group]]
    for adapter in adapters[plain:]:
        now += slow
        events.append((now, adapter, "computed", slow))
    time_is = [0.0]
    left, said = TimeLeft(adapters, clock=lambda: time_is[0]), []
    for when, adapter, status, seconds in events:
        time_is[0] = when
        said.append((when, left.add({"kind": adapter.kind, "status": status, "seconds": seconds}), now - when))
    return said


@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("cached", [0, 700])
@pytest.mark.parametrize("dora", [0, 200])
def test_an_overnight_runs_estimate_holds_from_the_first_minute_on(group, cached, dora):
    said = play(plain=1300, dora=dora, cached=cached, start=45, each=4.0, slow=14.0, group=group)
    assert all(seconds is None for _, seconds, _ in said[:cached])
    assert said[cached][0] <= 60 or group > 3  # it is there within the first minute
    for _, seconds, truth in said[cached:]:
        assert seconds == pytest.approx(truth, rel=0.2, abs=group * 4.0)


def test_without_plain_lora_the_slower_kind_counts_for_itself():
    said = play(plain=0, dora=10, cached=0, start=5, each=1.0, slow=3.0, group=1)
    assert [seconds for _, seconds, _ in said] == pytest.approx([3.0 * left for left in range(9, -1, -1)])


def test_what_peft_loads_is_guessed_until_it_is_measured():
    first, *_ = play(plain=1, dora=2, cached=0, start=0, each=1.0, slow=10.0, group=1)
    assert first[1] == pytest.approx(2 * SLOWER * 1.0)


def test_nothing_is_said_of_adapters_from_the_cache_and_failures():
    left = TimeLeft([Kind("/a", "a"), Kind("/b", "b")])
    assert left.add({"kind": "LoRA r8 q", "status": "failed", "seconds": 0.0}) is None
    assert left.add({"kind": "LoRA r8 q", "status": "cached", "seconds": 0.0}) is None


def test_the_bar_shows_the_time_left(capsys):
    with adapter_progress([Kind(f"/{n}", f"{n}") for n in range(3)]) as on_adapter:
        on_adapter({"kind": "LoRA r8 q", "status": "computed", "seconds": 90.0})
        time.sleep(0.6)  # the bar is drawn twice a second
        on_adapter({"kind": "LoRA r8 q", "status": "computed", "seconds": 90.0})
    assert "so far, 01:30 to go" in capsys.readouterr().err


def test_a_bar_without_an_estimate(capsys):
    with progress(2, "queries") as bar:
        bar.update()
    assert "1/2 queries" in capsys.readouterr().err
