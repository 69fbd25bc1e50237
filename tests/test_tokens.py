import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, PROBES, byte_tokenizer, save_adapter, save_base
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import kl_div
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    GPTNeoXConfig,
    GraniteConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from llgbm_nb.delta_set import DeltaSet
from llgbm_nb.deltas import compute_deltas
from llgbm_nb.errors import InputError
from llgbm_nb.evidence import tokens
from llgbm_nb.forward.base import BaseModel, load_base

TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=260)
CASES = ["qwen2", "gemma2", "gpt2", "softcap"]


def base_of(config, seed=0) -> BaseModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return BaseModel(model, byte_tokenizer(), torch.device("cpu"))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A tiny base, three adapters of it (one without a domain), their deltas, and the logits of the real models."""
    root = tmp_path_factory.mktemp(request.param)
    base = save_base(root / "base", "gemma2" if request.param == "softcap" else request.param)
    if request.param == "softcap":  # one that a tiny model's small logits feel
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 0.1}))
    for seed, name in enumerate(["one/a", "two/b", "c"], start=1):
        save_adapter(root / "zoo" / name, base, seed=seed, target_modules="all-linear")
    found = compute_deltas(root / "zoo", PROBES, cache_dir=root / "cache", device="cpu").delta_set
    assert len(found) == 3
    logits, states = zip(*(reference(base, path) for path in (None, *found.paths)), strict=True)
    return SimpleNamespace(
        name=request.param, base=base, head=tokens.read_head(load_base(str(base), device="cpu")), delta_set=found,
        before=logits[0], after=torch.stack(logits[1:]), states_before=states[0], states_after=torch.stack(states[1:]),
    )  # fmt: skip


@torch.no_grad()
def reference(base, adapter):
    """Logits (probes, vocabulary) and hidden states (probes, layers + 1, hidden) of a fresh base, or PEFT's model."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    outs = [model(**tokenizer(probe, return_tensors="pt"), output_hidden_states=True) for probe in PROBES]
    logits = torch.stack([out.logits[0, -1] for out in outs])
    return logits, torch.stack([torch.stack([h[0, -1] for h in out.hidden_states]) for out in outs])


def raw(case, logits):
    """Logits before the softcap that the config names (of which the model's are after)."""
    cap = {"gemma2": 30.0, "softcap": 0.1}.get(case.name)
    return logits.double() if cap is None else cap * torch.atanh(logits.double() / cap)


def logit_changes(head, delta_set, layer=-1, centered=False):
    """The change of every raw logit, mean over the probes: float32 (adapters, vocabulary)."""
    return np.stack([each.up for each in tokens.token_scores(head, delta_set, layer, "logit", centered)])


def assert_near(ours, theirs, error=1e-4):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= error * np.linalg.norm(theirs)


def synthetic(head, differences, domains=None, base=None, layer_numbers=()):
    """A DeltaSet of `differences` (adapters, probes, layers, hidden)."""
    count, probes, layers, hidden = differences.shape
    names = tuple(f"n{i}" for i in range(count))
    base = np.random.default_rng(5).normal(size=(probes, layers, hidden)) if base is None else base
    return DeltaSet(
        names, names, tuple(domains or ["a"] * count), ("LoRA",) * count, ("p",) * probes, base.astype(np.float32),
        differences.astype(np.float32), layer_numbers,
    )  # fmt: skip


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return tokens.read_head(load_base(str(save_base(tmp_path_factory.mktemp("head") / "base")), device="cpu"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# -- what the numbers are ----------------------------------------------------------------------------------------------


def test_the_last_layers_change_is_the_difference_of_the_real_models_logits(case):
    ours = logit_changes(case.head, case.delta_set)
    assert ours.dtype == np.float32
    assert_near(ours, (raw(case, case.after) - raw(case, case.before)).mean(dim=1))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_below_is_read_through_the_models_own_norm_and_head(case, layer):
    model = AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float32).eval()
    norm = model.transformer.ln_f if case.name == "gpt2" else model.model.norm
    with torch.no_grad():
        seen = model.lm_head(norm(case.states_after[:, :, layer])) - model.lm_head(norm(case.states_before[:, layer]))
    ours = logit_changes(case.head, case.delta_set, layer)
    assert_near(ours, seen.mean(dim=1), 1e-3)  # the reference subtracts large logits in float32


def test_shares_add_up_to_the_divergence_of_the_real_models(case):
    before, after = case.before.double().log_softmax(-1), case.after.double().log_softmax(-1)
    for own, scores in zip(after, tokens.token_scores(case.head, case.delta_set), strict=True):
        forth = float(kl_div(before, own, reduction="batchmean", log_target=True))  # KL(own || before)
        back = float(kl_div(own, before, reduction="batchmean", log_target=True))
        assert forth > 1e-5 and abs(forth - back) > 1e-5 * forth
        assert scores.up.sum() == pytest.approx(forth, rel=1e-3) == pytest.approx(scores.kl, rel=1e-3)
        assert -scores.down.sum() == pytest.approx(back, rel=1e-3)
        assert_near(scores.up, (own.exp() * (own - before)).mean(dim=0), 1e-3)
        assert_near(scores.down, (before.exp() * (own - before)).mean(dim=0), 1e-3)


def test_a_softcap_is_in_the_probabilities(case):
    without = tokens.token_scores(replace(case.head, softcap=None), case.delta_set)
    ratio = [b.kl / a.kl for a, b in zip(tokens.token_scores(case.head, case.delta_set), without, strict=True)]
    assert case.head.softcap == {"gemma2": 30.0, "softcap": 0.1}.get(case.name)
    assert min(ratio) > 1.1 if case.name == "softcap" else max(ratio) < 1.01


def test_centered_shares_compare_with_the_average_adapter(case):
    """At the last layer, and without a softcap, that is the adapters' geometric mean."""
    if case.head.softcap:
        return
    after = case.after.double().log_softmax(-1)
    average = after.mean(dim=0).log_softmax(-1)
    for own, scores in zip(after, tokens.token_scores(case.head, case.delta_set, centered=True), strict=True):
        forth = kl_div(average, own, reduction="batchmean", log_target=True)
        assert scores.kl == pytest.approx(float(forth), rel=1e-3)
        assert_near(scores.down, (average.exp() * (own - average)).mean(dim=0), 1e-3)


def test_centered_logits_are_those_of_deltas_minus_their_mean(case):
    deltas = torch.tensor(case.delta_set.deltas())
    expected = torch.nn.functional.linear(deltas - deltas.mean(dim=0), case.head.weight)  # the head's scale is 1 here
    assert_near(logit_changes(case.head, case.delta_set, centered=True), expected, 1e-5)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("ranking", tokens.RANKINGS)
def test_adapters_that_are_all_alike_have_nothing_beyond_their_mean(head, layer, ranking):
    found = synthetic(head, np.repeat(noise(1, 4, 4, 32), 7, axis=0) / 3)
    for scores in tokens.token_scores(head, found, layer, ranking, centered=True):
        assert not scores.up.any() and not scores.down.any() and scores.kl == 0
    assert all(each.kl > 0 for each in tokens.token_scores(head, found, layer, ranking))


def test_small_changes_are_not_lost_in_rounding(head):
    """A divergence is quadratic in a small change: a hundredth of it has a ten-thousandth of the divergence."""
    step = noise(1, 4, 4, 32) * 0.01
    kls = [next(tokens.token_scores(head, synthetic(head, step * f))).kl for f in (1, 1e-2)]
    assert kls[0] / kls[1] == pytest.approx(1e4, rel=1e-2) and kls[1] < 1e-9


def test_the_pass_of_one_adapter_does_not_depend_on_the_others(head):
    found = synthetic(head, noise(5, 4, 4, 32))
    alone = next(tokens.token_scores(head, found.subset([3])))
    among = list(tokens.token_scores(head, found))[3]
    np.testing.assert_array_equal(alone.up, among.up)


# -- which heads can be read -------------------------------------------------------------------------------------------


OTHERS = {
    "phi": lambda: PhiConfig(**TINY),  # a head with a bias
    "neox": lambda: GPTNeoXConfig(**TINY),
    "cohere": lambda: CohereConfig(**TINY, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "granite": lambda: GraniteConfig(**TINY, logits_scaling=8.0),
}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
def test_norm_and_head_are_found(name):
    base = base_of((ARCHITECTURES | OTHERS)[name]())
    if name == "phi":
        torch.nn.init.normal_(base.model.lm_head.bias)
    with torch.no_grad():
        out = base.model(input_ids=torch.arange(7, 19)[None], output_hidden_states=True)
        hooks = [len(module._forward_hooks) for module in base.model.modules()]  # transformers' own
        head = tokens.read_head(base)
        ours = head.capped(head.product(out.hidden_states[-1])).log_softmax(-1)
    torch.testing.assert_close(ours, out.logits.double().log_softmax(-1), rtol=0, atol=1e-5)
    assert head.layers == 3 and type(head.norm) is not torch.nn.Identity
    assert [len(module._forward_hooks) for module in base.model.modules()] == hooks


def test_a_float32_weight_is_not_copied_and_a_half_precision_one_is():
    base = base_of(ARCHITECTURES["qwen2"]())
    assert tokens.read_head(base).weight.data_ptr() == base.model.lm_head.weight.data_ptr()
    head = tokens.read_head(replace(base, model=base.model.to(torch.bfloat16)))
    assert head.weight.dtype == torch.float32 and next(head.norm.parameters()).dtype == torch.float32
    assert base.model.lm_head.weight.dtype == next(base.body.norm.parameters()).dtype == torch.bfloat16


def with_another_head(base):
    base.model.lm_head = torch.nn.Sequential(base.model.lm_head, torch.nn.Tanh())
    return base


def with_other_logits(base):
    base.model.lm_head.register_forward_hook(lambda _, __, y: y + y.roll(1, -1))
    return base


def with_other_states(base):
    base.body.norm.register_forward_pre_hook(lambda _, args: (args[0].flip(-1),))
    return base


def without_layers(base):
    base.body.layers = torch.nn.ModuleList(base.body.layers[:2])
    return base


@pytest.mark.parametrize("spoil", [with_another_head, with_other_logits, with_other_states, without_layers])
def test_a_model_that_does_something_else_is_refused(spoil):
    with pytest.raises(InputError, match="the tokens of this architecture .Qwen2ForCausalLM. cannot be read: "):
        tokens.read_head(spoil(base_of(ARCHITECTURES["qwen2"]())))


def test_an_architecture_with_a_projection_after_its_norm_is_refused():
    config = OPTConfig(
        vocab_size=260, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=16
    )
    with pytest.raises(InputError, match="OPTForCausalLM. cannot be read"):
        tokens.read_head(base_of(config))


def test_deltas_of_another_model_are_refused(head):
    for shape in ((2, 4, 4, 16), (2, 4, 6, 32)):  # three layers may be the first ones of this head's base
        with pytest.raises(InputError, match="not of this head's base"):
            tokens.token_scores(head, synthetic(head, noise(*shape)))


def test_a_ranking_and_a_layer_that_there_are_not_are_refused_at_once(head):
    found = synthetic(head, noise(2, 4, 4, 32))
    with pytest.raises(InputError, match="'glitch'; choose share or logit"):
        tokens.token_scores(head, found, ranking="glitch")
    with pytest.raises(InputError, match="layer 9 was not computed"):
        tokens.top_tokens(head, found, layer=9)


def test_the_deepest_layer_computed_need_not_be_the_models_last(head):
    differences, base = noise(2, 4, 4, 32), noise(4, 4, 32, seed=1)
    whole = synthetic(head, differences, base=base)
    some = synthetic(head, differences[:, :, 1:3], base=base[:, 1:3], layer_numbers=(1, 2))
    last = synthetic(head, differences[:, :, 3:], base=base[:, 3:], layer_numbers=(3,))
    for part, layer in ((some, 2), (last, 3)):
        ours, theirs = tokens.token_scores(head, part), tokens.token_scores(head, whole, layer)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.up, b.up)


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranking", tokens.RANKINGS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_token_comes_first(head, ranking, sign):
    """Each adapter moves the states along another token's row of the head, up or down."""
    planted = [5, 40, 77]
    rows = sign * 40 * head.weight[planted].numpy() / np.linalg.norm(head.weight[planted], axis=1, keepdims=True)
    differences = np.zeros((3, 4, 4, 32))
    differences[:, :, -1] = rows[:, None]
    base = np.zeros((4, 4, 32))  # every token is as likely as any other
    table = tokens.top_tokens(head, synthetic(head, differences, "aab", base), ranking=ranking, k=3)
    column = "up" if sign > 0 else "down"
    assert [cell.split(" ")[0] for cell in table[column]] == [tokens.readable(head.tokenizer, t) for t in planted]
    assert list(table["domain"]) == list("aab") and list(table.index) == ["n0", "n1", "n2"]
    assert list(table) == ["domain", "up", "down", "KL"] and (table["KL"] > 0).all()


def test_cells_hold_the_leading_tokens_of_their_sign_in_order(head):
    found = synthetic(head, noise(3, 4, 4, 32))
    table = tokens.top_tokens(head, found, k=5)
    for (_, row), scores in zip(table.iterrows(), tokens.token_scores(head, found), strict=True):
        up, down = np.argsort(-scores.up)[:5], np.argsort(scores.down)[:5]
        assert row["up"] == " ".join(tokens.readable(head.tokenizer, int(t)) for t in up)
        assert row["down"] == " ".join(tokens.readable(head.tokenizer, int(t)) for t in down)
        assert row["KL"] == pytest.approx(scores.kl)
    every = tokens.top_tokens(head, found, k=1000)  # more than there are
    for cell, scores in zip(every["up"], tokens.token_scores(head, found), strict=True):
        assert len(cell.replace("<id ", "<id").split(" ")) == (scores.up > 0).sum() < len(scores.up)


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("ranking", tokens.RANKINGS)
def test_a_delta_of_zero_has_empty_cells(head, layer, ranking):
    differences = noise(2, 4, 4, 32)
    differences[1] = 0
    table = tokens.top_tokens(head, synthetic(head, differences), layer, ranking)
    assert list(table.iloc[1]) == ["a", "", "", 0.0] and table["up"].iloc[0] and table["down"].iloc[0]


@pytest.mark.parametrize("centered", [False, True])
def test_a_domains_row_is_that_of_its_mean_difference(head, centered):
    differences, base = noise(4, 4, 4, 32), noise(4, 4, 32, seed=1)
    found = synthetic(head, differences, ["b", "a", "unknown", "b"], base)
    table = tokens.domain_tokens(head, found, centered=centered)
    assert list(table.index) == ["a", "b"] and list(table) == ["adapters", "up", "down", "KL"]
    assert list(table["adapters"]) == [1, 2]
    if centered:  # the average adapter, of all four, becomes the base
        base, differences = base + differences.mean(axis=0), differences - differences.mean(axis=0)
    means = np.stack([differences[1], differences[[0, 3]].mean(axis=0)])
    expected = tokens.top_tokens(head, synthetic(head, means, base=base))
    assert list(table["up"]) == list(expected["up"]) and list(table["down"]) == list(expected["down"])
    np.testing.assert_allclose(table["KL"], expected["KL"], rtol=1e-4)


@pytest.mark.parametrize("table", [tokens.top_tokens, tokens.domain_tokens])
def test_both_rankings_side_by_side(tmp_path, table):
    base = load_base(str(save_base(tmp_path / "base")), device="cpu")
    head, found = tokens.read_head(base), synthetic(tokens.read_head(base), noise(4, 4, 4, 32), ["b", "a", "a", "b"])
    both = tokens.beside_the_mean(table, base, found, layer=2, ranking="logit", k=3)
    plain, beyond = (table(head, found, 2, "logit", centered, 3) for centered in (False, True))
    assert list(both["up"]) == list(plain["up"]) and list(both["down"]) == list(plain["down"])
    assert list(both["up, centered"]) == list(beyond["up"]) != list(both["up"])
    assert list(both["down, centered"]) == list(beyond["down"])
    assert list(both["KL"]) == [f"{kl:.2g}" for kl in plain["KL"]]
    assert both.attrs["note"] == tokens.HOW_TO_READ["logit"]


def test_a_base_whose_tokens_cannot_be_read_is_a_sentence(tmp_path):
    base = load_base(str(save_base(tmp_path / "base")), device="cpu")
    found = synthetic(tokens.read_head(base), noise(2, 4, 4, 32))
    base.model.lm_head = torch.nn.Sequential(base.model.lm_head)
    table = tokens.beside_the_mean(tokens.top_tokens, base, found)
    assert len(table) == 0 and "the tokens of this architecture" in table.attrs["note"]


def test_no_adapters_give_an_empty_table(head):
    found = synthetic(head, noise(0, 4, 4, 32))
    for centered in (False, True):
        assert list(tokens.top_tokens(head, found, centered=centered)) == ["domain", "up", "down", "KL"]
        assert len(tokens.domain_tokens(head, found, centered=centered)) == 0
    assert list(tokens.token_scores(head, found)) == []


# -- tokens as text ----------------------------------------------------------------------------------------------------


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(*words):
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word in words:
        vocabulary.setdefault(BYTES.pre_tokenize_str(word)[0][0], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = BYTES, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (" the", "␣the"),
        ("the", "the"),
        ("    ", "␣␣␣␣"),
        ("\n", "↵"),
        ("\r\n\t", "␍↵⇥"),
        (" \n\n", "␣↵↵"),
        ("\N{NO-BREAK SPACE}", "⍽"),
        (" .", "␣."),  # some tokenizers clean this up to "."
        ("é", "é"),
        ("中文", "中文"),
        ("x\N{ZERO WIDTH SPACE}", "x\\u200b"),
        ("\x07", "<id {}>"),
        ("\N{ZERO WIDTH SPACE}", "<id {}>"),
        ("\N{VARIATION SELECTOR-16}", "<id {}>"),
        ("\N{COMBINING ACUTE ACCENT}", "<id {}>"),
    ],
)
def test_white_space_is_shown_and_what_cannot_be_printed_is_a_number(word, shown):
    tokenizer = byte_level(word)
    token = tokenizer.convert_tokens_to_ids(BYTES.pre_tokenize_str(word)[0][0])
    assert tokens.readable(tokenizer, token) == shown.format(token)


def test_half_a_letter_and_an_id_without_a_token_are_numbers():
    tokenizer = byte_level("é")
    first = tokenizer.convert_tokens_to_ids(BYTES.pre_tokenize_str("é")[0][0][0])
    assert tokens.readable(tokenizer, first) == f"<id {first}>"
    assert tokens.readable(tokenizer, 300) == "<id 300>"  # models have more rows than their tokenizers have tokens


def test_special_tokens_are_shown():
    assert tokens.readable(byte_tokenizer(), 257) == "<end>"


def test_the_space_that_sentencepiece_drops_at_the_start_is_shown():
    vocabulary = {"▁the": 0, "the": 1, "▁": 2, "a": 3, "<0x0A>": 4, "<0xE2>": 5, "<unk>": 6, "▁a": 7}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert tokenizer.decode([0]) == "the"  # as Llama-2's
    assert [tokens.readable(tokenizer, t) for t in range(6)] == ["␣the", "the", "␣", "a", "↵", "<id 5>"]


def test_what_sets_adapters_apart_is_what_their_mean_says_beside_the_others(case):
    found, head = case.delta_set, case.head
    zero = replace(found, differences=tuple(np.zeros_like(found.differences[0]) if i == 1 else d
                                            for i, d in enumerate(found.differences)))  # fmt: skip
    some = zero.subset([0, 1])
    table = tokens.top_tokens(head, some, k=5)
    apart = tokens.tokens_apart(lambda: load_base(str(case.base), device="cpu"), some, k=5)
    assert apart([0]) == (table["up"].iloc[0], table["down"].iloc[0])  # the rest does what the base does
    both = found.subset([0, 2])
    log = [torch.log_softmax(x, -1) for x in (case.after[2], case.after[0])]
    up, down = ((x.exp() * (log[1] - log[0])).mean(0) for x in (log[1], log[0]))
    leading = [tokens.readable(head.tokenizer, int(i)) for i in up.topk(3).indices]
    least = [tokens.readable(head.tokenizer, int(i)) for i in (-down).topk(3).indices]
    said = tokens.tokens_apart(lambda: load_base(str(case.base), device="cpu"), both, k=3)([0])
    assert said == (" ".join(leading), " ".join(least))
