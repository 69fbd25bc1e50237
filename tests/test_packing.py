import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, save_base

from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.packing import blocks_of, pack_probes, packed_states
from llgbm_nb.forward.states import last_token_states, one_by_one_states, tokenize


def test_the_layout_of_a_row():
    [pack] = pack_probes([[5, 6, 7], [8, 9], [1]])
    assert pack.ids.tolist() == [5, 6, 7, 8, 9, 1] and pack.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert pack.last.tolist() == [2, 4, 5]
    assert pack.ids[pack.grid].tolist() == [[5, 6, 7], [8, 9, 8], [1, 1, 1]]
    assert pack.grid.flatten()[pack.back].tolist() == list(range(6))


def test_padding_behind_a_row_belongs_to_no_probe():
    plain, padded = (pack_probes([[5, 6, 7], [8, 9]], multiple=n)[0] for n in (1, 8))
    assert padded.ids.tolist() == [5, 6, 7, 8, 9, 9, 9, 9] and padded.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert padded.last.tolist() == plain.last.tolist() == [2, 4]
    for pack in (plain, padded):
        assert [probe.tolist() for probe in pack.probes] == [[5, 6, 7], [8, 9]]


def test_probes_that_go_on_from_the_one_before_share_its_tokens():
    probes = [[5], [5, 6], [5, 6, 7, 8], [5, 6, 9], [5, 6, 9], [4]]
    [pack] = pack_probes(probes)
    assert pack.ids.tolist() == [5, 6, 7, 8, 5, 6, 9, 5, 6, 9, 4] and pack.last.tolist() == [0, 1, 3, 6, 9, 10]
    assert [probe.tolist() for probe in pack.probes] == probes
    assert [text.tolist() for text in pack.texts] == [[5, 6, 7, 8], [5, 6, 9], [5, 6, 9], [4]]
    assert pack.ids[pack.grid].tolist() == [[5, 6, 7, 8], [5, 6, 9, 5], [5, 6, 9, 5], [4, 4, 4, 4]]
    assert [pack.tokens for pack in pack_probes(probes, limit=7)] == [7, 4]
    for each in (pack_probes(probes, share=False), pack_probes(probes, limit=0)):
        assert sum(pack.tokens for pack in each) == sum(map(len, probes))


def test_rows_are_filled_in_order_and_a_long_probe_has_its_own():
    packs = pack_probes([[n] * n for n in (3, 3, 2, 9, 1, 4)], limit=5)
    assert [pack.tokens for pack in packs] == [3, 5, 9, 5]
    assert sum(len(pack.last) for pack in packs) == 6


@pytest.mark.parametrize("lengths", [(3, 20, 7, 1), (40, 2, 2, 2)], ids=["by probe", "one square"])
@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_of_probes_equals_transformers_own_padded_pass(tmp_path, architecture, lengths, growing):
    base = load_base(str(save_base(tmp_path / "base", architecture)))
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 256, n).tolist() for n in lengths]
    if growing:
        ids = [probe[:end] for probe in ids for end in range(1, len(probe) + 1, 3)]
    expected = last_token_states(base.model, ids, base.device)
    if growing:  # which share a row there, too
        alone = one_by_one_states(base.model, ids, base.device)
        np.testing.assert_allclose(expected, alone, rtol=1e-4, atol=2e-5)
    for layers in ([0, 1, 2, 3], [3], [0, 2]):
        for limit in (512, 21):
            packs = pack_probes(ids, limit=limit, multiple=16 if len(layers) == 1 else 1)
            found = torch.cat([packed_states(base.body, pack, 2, layers) for pack in packs], dim=1)
            for copy in found.numpy():
                np.testing.assert_allclose(copy, expected[:, layers], rtol=1e-4, atol=2e-5)


def test_the_last_layers_mlp_sees_the_last_tokens_alone(base):
    loaded, seen = load_base(str(base)), []
    for block in loaded.body.layers:
        block.mlp.up_proj.register_forward_hook(lambda _, args, y: seen.append(y.shape[1]))
    packed_states(loaded.body, pack_probes(tokenize(loaded.tokenizer, ["one probe", "another"]))[0], 1, [3])
    assert seen == [16, 16, 2]


def test_nothing_stays_on_the_model_behind_a_pass(base):
    loaded = load_base(str(base))
    packed_states(loaded.body, pack_probes([[1, 2], [3] * 3])[0], 1, [1])
    hooks = [m for m in loaded.body.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks and loaded.body.config._attn_implementation == "sdpa"


def test_a_body_without_a_list_of_layers_is_told(base):
    body = load_base(str(base)).body
    body.layers = torch.nn.ModuleList(list(body.layers)[:2])
    with pytest.raises(LookupError, match="3 decoder layers"):
        blocks_of(body)
