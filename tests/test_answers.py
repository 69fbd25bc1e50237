"""Probes that the base writes itself."""

import pytest
import torch
from conftest import save_base

from llgbm_nb import create_probes
from llgbm_nb.forward import DEMO_BASE, load_base, load_tokenizer, tokenize
from llgbm_nb.forward.packing import pack_probes
from llgbm_nb.uses import answers

QUESTIONS = ["What is a probe? ", "And a base?"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"


@pytest.fixture
def loaded(base):
    return load_base(str(base))


def test_probes_are_an_answer_as_it_grows(loaded, monkeypatch):
    written = loaded.tokenizer("Ça va, très bien")["input_ids"]  # bytes; two of them are a letter
    monkeypatch.setattr(answers, "_sample", lambda base, ids, tokens: ids + written[:tokens])
    probes = answers.write_answers(loaded, QUESTIONS, answers=1, tokens=11, every=1)
    whole = [f"{question.strip()}\n{'Ça va, trè'[:end]}" for question in QUESTIONS for end in range(11)]
    assert probes == [text for text in whole if len(text.split("\n")[1].encode()) <= 11]
    [pack] = pack_probes(tokenize(loaded.tokenizer, probes))
    heads = [len(f"{question.strip()}\n".encode()) for question in QUESTIONS]
    assert [len(text) for text in pack.texts] == [head + 10 for head in heads]  # the eleventh byte is half a letter


def test_answers_are_sampled_again_alike_and_touch_no_other_random_number(loaded):
    ids, before = loaded.tokenizer("Why?")["input_ids"], torch.random.get_rng_state()
    first, again, other = (answers.write_answers(loaded, QUESTIONS, 2, 40, 1, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == again != other and len(set(first)) == len(first)
    whole = answers._sample(loaded, ids, 5)
    assert whole[:4] == ids and 4 <= len(whole) <= 9 and loaded.tokenizer.eos_token_id not in whole


def test_a_chat_template_may_write_the_first_token_itself(tmp_path):
    loaded = load_base(str(save_base(tmp_path / "base", bos=True)))
    loaded.tokenizer.chat_template = TEMPLATE
    first, *_ = answers.write_answers(loaded, QUESTIONS, tokens=1)
    assert first == "<user>What is a probe?<answer>"
    assert loaded.tokenizer(first)["input_ids"].count(loaded.tokenizer.bos_token_id) == 1


def test_the_shipped_answers_share_the_passes_of_their_questions():
    ids = tokenize(load_tokenizer(DEMO_BASE), create_probes("answers"))
    packs = pack_probes(ids)
    assert sum(len(pack.texts) for pack in packs) <= 40
    assert 4 * sum(pack.tokens for pack in packs) < sum(map(len, ids))
