"""When a report is out of date: whatever it was made from has changed."""

import json
import shutil

import pytest

from llgbm_nb import InputError, find_adapters, report


@pytest.fixture
def made_from(zoo, base, tmp_path):
    """What a report of the tiny collection is made from, and its state."""
    shutil.copytree(zoo, tmp_path / "zoo")
    query = tmp_path / "one-task.json"
    query.write_text(json.dumps([{"prompt": "a", "response": "b"}]))
    (tmp_path / "encoder").mkdir()
    parameters = report.DEFAULTS | dict(query=str(query), sentence_encoder=str(tmp_path / "encoder"))

    def state(**more) -> str:
        return report._state(parameters | more, find_adapters(tmp_path / "zoo"), str(base), None)

    return tmp_path, state


def test_the_same_things_give_the_same_state(made_from):
    _, state = made_from
    assert state() == state() == state(force_recompute=True) != state(max_length=9)


@pytest.mark.parametrize("file", ["one-task.json", "encoder/model.safetensors"])
def test_a_query_or_an_encoder_that_changes_is_noticed(made_from, file):
    folder, state = made_from
    before = state()
    (folder / file).write_text(json.dumps([{"prompt": "a", "response": "c"}]))
    assert state() != before


def test_an_adapter_that_is_gone_is_noticed(made_from):
    folder, state = made_from
    before = state()
    shutil.rmtree(next(path.parent for path in folder.glob("zoo/**/adapter_config.json")))
    assert state() != before


def test_queries_that_are_not_there_are_told_before_anything_runs(made_from):
    folder, state = made_from
    with pytest.raises(InputError, match="there is no data file"):
        state(query=str(folder / "nothing"))
    assert state(query="") != state()
