import numpy as np
import pytest
import torch
from conftest import PROBES, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from llgbm_nb import InputError, compute_base_activation, get_average_activation
from llgbm_nb.evidence.reference import reference_activations
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.base_files import base_fingerprint
from llgbm_nb.forward.states import last_token_states, tokenize


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_last_token_states_equal_one_probe_at_a_time(tmp_path, architecture, padding_side):
    folder = save_base(tmp_path / "base", architecture, padding_side=padding_side)
    base = load_base(str(folder))
    states = last_token_states(base.model, tokenize(base.tokenizer, PROBES), base.device)
    expected = reference_activations(folder, PROBES)
    assert states.shape == expected.shape == (4, 4, 32) and states.dtype == np.float32
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_after_the_final_norm_so_the_head_gives_the_logits(base):
    loaded = load_base(str(base))
    ids = tokenize(loaded.tokenizer, PROBES[:1])
    states = last_token_states(loaded.model, ids, loaded.device)
    with torch.no_grad():
        logits = loaded.model(torch.tensor(ids)).logits[0, -1]
        head = loaded.model.lm_head(torch.from_numpy(states[0, -1]))
    torch.testing.assert_close(head, logits, rtol=1e-4, atol=1e-5)


def test_more_probes_than_fit_in_a_batch_give_the_same(base, monkeypatch):
    loaded = load_base(str(base))
    ids = tokenize(loaded.tokenizer, PROBES)
    whole = last_token_states(loaded.model, ids, loaded.device)
    monkeypatch.setattr("llgbm_nb.forward.states.BATCH_PROBES", 3)
    np.testing.assert_allclose(last_token_states(loaded.model, ids, loaded.device), whole, rtol=1e-4, atol=1e-5)


def test_phase_1_names(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for layer in (0, 2, -1):
        average = get_average_activation(model, PROBES, tokenizer, "cpu", layer_idx=layer)
        assert average.shape == (32,)
        np.testing.assert_allclose(average, reference_activations(base, PROBES)[:, layer].mean(0), rtol=1e-4, atol=1e-5)
    activation, tokenizer = compute_base_activation(str(base), PROBES, "cpu", dtype=torch.float32)
    np.testing.assert_array_equal(activation, get_average_activation(model, PROBES, tokenizer, "cpu"))


def test_a_probe_that_max_length_would_cut_is_an_error(base):
    tokenizer = load_base(str(base)).tokenizer
    assert len(tokenize(tokenizer, ["abcd"], max_length=4)[0]) == 4
    with pytest.raises(InputError, match="probe 2 .*5 tokens and max_length is 4"):
        tokenize(tokenizer, ["abcd", "abcde"], max_length=4)


def test_a_probe_without_tokens_is_an_error(base):
    with pytest.raises(InputError, match="probe 1 .*no tokens"):
        tokenize(load_base(str(base)).tokenizer, [""])


def test_a_state_that_is_not_finite_names_probe_and_layer(base):
    loaded = load_base(str(base))
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0] = float("inf")
    with pytest.raises(InputError, match="probe 1 at layer 2"):
        last_token_states(loaded.model, tokenize(loaded.tokenizer, PROBES), loaded.device)


def test_half_precision_is_returned_as_float32(base):
    loaded = load_base(str(base), "bfloat16-plain")
    states = last_token_states(loaded.model, tokenize(loaded.tokenizer, PROBES), loaded.device)
    assert loaded.model.dtype == torch.bfloat16 and states.dtype == np.float32


@pytest.mark.parametrize("name", ["no/such-model", "not a name", "/nowhere/at/all"])
def test_a_base_that_is_not_there_is_one_sentence(name):
    with pytest.raises(InputError, match="cannot find the base model") as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot load") as caught:
        load_base(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_code_in_a_models_folder_does_not_run(base, tmp_path):
    """A config that points to code of its own is refused unless trust_remote_code."""
    import json
    import shutil

    folder = tmp_path / "evil"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="evil"):
        load_base(str(folder))
    assert not (tmp_path / "ran").exists()


def test_pickled_base_weights_are_refused(base, tmp_path):
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(base, folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        load_base(str(folder))


def test_a_damaged_base_is_one_sentence(base, tmp_path):
    import shutil

    folder = tmp_path / "cut"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot load the base") as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


def test_the_bases_fingerprint_follows_its_weights_not_its_name(base, tmp_path):
    import shutil

    same = tmp_path / "another-name"
    shutil.copytree(base, same)
    other = save_base(tmp_path / "other", seed=5)
    assert base_fingerprint(str(same)) == base_fingerprint(str(base)) != base_fingerprint(str(other))


def test_a_hub_id_is_read_from_the_hubs_cache(base, tmp_path, monkeypatch):
    """The hub's path, offline, against a cache folder laid out as huggingface_hub does."""
    import shutil

    commit = "a" * 40
    repo = tmp_path / "models--org--tiny"
    shutil.copytree(base, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("llgbm_nb.forward.base_files.HUB_CACHE", str(tmp_path))
    assert base_fingerprint("org/tiny") == base_fingerprint(str(base))
    assert load_base("org/tiny").model.config.model_type == "qwen2"
