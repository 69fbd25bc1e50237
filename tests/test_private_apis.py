"""Private or undocumented interfaces that the package uses: docs/private_apis.md, a test for each.

A failure names the interface, the installed version that broke it, and the module that uses it.
"""

import ast
import copy
import functools
import inspect
import re
from importlib.metadata import version
from io import StringIO

import pytest
import torch
from conftest import SIZES, save_base
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen2Config

from llgbm_nb import InputError
from llgbm_nb.files import ROOT
from llgbm_nb.forward.packing import blocks_of, pack_probes, packed_states

PAGE = (ROOT / "docs" / "private_apis.md").read_text()
USES: dict[str, str] = {}  # {interface: module that uses it}
LAYER = "model.layers.0.self_attn.q_proj"


def uses(api: str, package: str, module: str):
    """A test of `api`, an interface of `package`, which `module` uses."""
    USES[api] = module

    def decorate(test):
        @functools.wraps(test)
        def run(*arguments, **fixtures):
            try:
                test(*arguments, **fixtures)
            except Exception as error:
                pytest.fail(
                    f"{api} is gone or behaves otherwise in {package} {version(package)}; llgbm_nb/{module} uses it "
                    f"(docs/private_apis.md says what for). {type(error).__name__}: {error}"
                )

        return run

    return decorate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("private") / "tiny")


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_lists_what_is_tested_and_where_it_is_used():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", PAGE, flags=re.MULTILINE)
    assert dict(rows) == USES and len(rows) == len(USES)
    for api, module in rows:
        name = re.findall(r"\w+", api.split("(")[0])[-1]
        assert name in (ROOT / "llgbm_nb" / module).read_text(), f"{api} in {module}"


def test_no_private_name_of_a_library_is_used_that_the_page_does_not_list():
    private = set()
    for file in (ROOT / "llgbm_nb").rglob("*.py"):
        nodes = [*ast.walk(ast.parse(file.read_text()))]
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        own |= {node.id for node in nodes if isinstance(node, ast.Name)}
        used = {alias.name for n in nodes if isinstance(n, ast.ImportFrom) and not n.level for alias in n.names}
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        of_self = [node for node in attributes if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")]
        used |= {node.attr for node in attributes if node not in of_self} - {node.attr for node in of_self}
        private |= {f"{name} in {file.name}" for name in used - own if re.match(r"_(?!_)", name) and name not in PAGE}
    assert not private


# -- torch -------------------------------------------------------------------------------------------------------------


@uses("torch.ops.mkldnn._reorder_linear_weight", "torch", "forward/products.py")
def test_a_weight_can_be_laid_out_for_onednn():
    laid_out = torch.ops.mkldnn._reorder_linear_weight(torch.eye(4), 128)
    assert laid_out.shape == (4, 4)


@uses("torch.ops.mkldnn._linear_pointwise", "torch", "forward/products.py")
def test_onednns_product_is_the_linear_layers():
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=random) for shape in ((3, 4), (4, 4), (4,)))
    for dtype, error in ((torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        own = [each.to(dtype) for each in (x, weight, bias)]
        try:
            laid_out = torch.ops.mkldnn._reorder_linear_weight(own[1], 128)
        except RuntimeError:  # a processor without bfloat16 products
            assert dtype == torch.bfloat16
            continue
        for added in (own[2], None):
            found = torch.ops.mkldnn._linear_pointwise(own[0], laid_out, added, "none", [], "")
            torch.testing.assert_close(
                found.float(), F.linear(x, weight, added if added is None else bias), atol=error, rtol=error
            )


@uses("Module._forward_hooks", "torch", "forward/peft_route.py")
def test_hooks_are_in_a_table_that_they_can_be_deleted_from():
    layer, seen = nn.Linear(1, 1), []
    layer.register_forward_hook(lambda *arguments: seen.append("after"))
    [(number, hook)] = layer._forward_hooks.items()
    assert hook.__module__ == __name__
    del layer._forward_hooks[number]
    layer(torch.ones(1))
    assert not seen


@uses("Module._forward_pre_hooks", "torch", "forward/peft_route.py")
def test_so_are_hooks_that_run_before():
    layer, seen = nn.Linear(1, 1), []
    layer.register_forward_pre_hook(lambda *arguments: seen.append("before"))
    [number] = layer._forward_pre_hooks
    del layer._forward_pre_hooks[number]
    layer(torch.ones(1))
    assert not seen


@uses("copy.deepcopy(module, memo)", "torch", "forward/twin.py")
def test_a_copy_of_a_module_shares_the_parameters_in_the_memo():
    layer = nn.Sequential(nn.Linear(2, 2))
    twin = copy.deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})
    assert twin[0] is not layer[0] and twin[0].weight is layer[0].weight


@uses("can't allocate memory", "torch", "forward/memory.py")
def test_memory_that_has_run_out_is_known_by_its_message():
    from llgbm_nb.forward.memory import out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)


@uses("size mismatch", "torch", "forward/peft_route.py")
def test_a_wrong_shape_is_a_line_of_the_message():
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 2).load_state_dict({"weight": torch.zeros(3, 3), "bias": torch.zeros(2)})
    assert [line for line in str(caught.value).splitlines() if "size mismatch for weight" in line]


# -- transformers ------------------------------------------------------------------------------------------------------


@uses("ALL_ATTENTION_FUNCTIONS", "transformers", "forward/packing.py")
def test_an_attention_function_can_be_registered_and_taken_away(model):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    shapes = []

    def ours(module, query, key, value, attention_mask, **kwargs):
        shapes.append((query.shape, key.shape))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    ids = torch.arange(5)[None]
    expected = model.model(ids).last_hidden_state
    ALL_ATTENTION_FUNCTIONS["ours"] = ours
    model.config._attn_implementation = "ours"
    found = model.model(ids).last_hidden_state
    del ALL_ATTENTION_FUNCTIONS["ours"]
    model.config._attn_implementation = "sdpa"
    assert shapes == [((1, 4, 5, 8), (1, 2, 5, 8))] * SIZES["num_hidden_layers"]  # (batch, heads, tokens, width)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.model(ids).last_hidden_state, expected)


@uses("config._attn_implementation", "transformers", "forward/packing.py")
def test_the_attention_in_use_is_named_in_the_config(model):
    assert model.config._attn_implementation == "sdpa"


@uses("sdpa_attention_forward", "transformers", "forward/packing.py")
def test_sdpa_attention_takes_heads_first_and_gives_tokens_first():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 5, 8, generator=random) for _ in range(3))
    module = nn.Module()
    found, weights = sdpa_attention_forward(module, query, key, value, None, scaling=8**-0.5, is_causal=True)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    assert weights is None


@uses("position_ids", "transformers", "forward/packing.py")
def test_positions_that_begin_anew_part_probes_in_one_row(model):
    probes = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    [pack] = pack_probes(probes)
    row = model.model(
        input_ids=pack.ids[None], position_ids=pack.positions[None], attention_mask=None, use_cache=False
    ).last_hidden_state[0, pack.last]
    alone = [model.model(torch.tensor([probe])).last_hidden_state[0, -1] for probe in probes]
    torch.testing.assert_close(row, torch.stack(alone), atol=1e-5, rtol=1e-4)


@uses("hidden_states", "transformers", "forward/packing.py")
def test_decoder_layers_get_their_input_first_and_the_last_state_is_normed(model):
    probes = [[1, 2, 3], [4, 5]]
    layers = list(range(SIZES["num_hidden_layers"] + 1))
    [pack] = pack_probes(probes)
    found = packed_states(model.model, pack, 1, layers)[0]
    assert len(blocks_of(model.model)) == SIZES["num_hidden_layers"]
    for probe, states in zip(probes, found, strict=True):
        expected = model(torch.tensor([probe]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(states, torch.stack([each[0, -1] for each in expected]), atol=1e-5, rtol=1e-4)


@uses("base_model_prefix", "transformers", "forward/base.py")
def test_a_causal_lm_names_its_body(model):
    assert getattr(model, model.base_model_prefix) is model.model


@uses("transformers.pytorch_utils.Conv1D", "transformers", "forward/twin.py")
def test_conv1d_is_a_linear_layer_with_its_weight_transposed():
    from transformers.pytorch_utils import Conv1D

    layer, x = Conv1D(3, 2), torch.randn(4, 2)  # (out, in)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight.T, layer.bias))


@uses("model.hf_quantizer", "transformers", "forward/demo_base.py")
def test_a_model_without_a_quantizer_is_saved_as_it_is(model, tmp_path):
    assert "hf_quantizer" in inspect.getsource(type(model).save_pretrained)
    model.hf_quantizer = None
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


# -- PEFT --------------------------------------------------------------------------------------------------------------


@uses("peft.tuners.tuners_utils._maybe_include_all_linear_layers", "peft", "forward/lora.py")
def test_all_linear_means_every_linear_layer_but_the_head(model):
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    config = _maybe_include_all_linear_layers(LoraConfig(target_modules="all-linear"), model)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name in linear if check_target_module_exists(config, name)} == linear - {"lm_head"}


@uses("peft.tuners.tuners_utils.check_target_module_exists", "peft", "forward/lora.py")
def test_a_config_says_which_modules_it_means():
    from peft.tuners.tuners_utils import check_target_module_exists

    for config, meant in (
        (LoraConfig(target_modules=["q_proj"]), True),
        (LoraConfig(target_modules=["q_proj"], layers_to_transform=[1]), False),
        (LoraConfig(target_modules=r".*\.0\..*q_proj"), True),
        (LoraConfig(target_modules=["q_proj"], exclude_modules=["q_proj"]), False),
        (LoraConfig(target_modules=["k_proj"]), False),
    ):
        assert bool(check_target_module_exists(config, LAYER)) is meant, config


@uses("peft.utils.other.get_pattern_key", "peft", "forward/lora.py")
def test_a_pattern_is_found_by_the_end_of_a_name():
    from peft.utils.other import get_pattern_key

    patterns = {"q_proj": 2, r"layers\.1.*v_proj": 7}
    assert get_pattern_key(patterns.keys(), LAYER) == "q_proj"
    assert get_pattern_key(patterns.keys(), "model.layers.1.self_attn.v_proj") == r"layers\.1.*v_proj"
    assert patterns.get(get_pattern_key(patterns.keys(), "model.layers.0.mlp.up_proj"), 8) == 8


@uses("peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING", "peft", "forward/peft_route.py")
def test_kinds_are_known_by_name():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert "LORA" in [*PEFT_TYPE_TO_CONFIG_MAPPING] and "no kind" not in [*PEFT_TYPE_TO_CONFIG_MAPPING]


@uses("peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING", "peft", "forward/peft_route.py")
def test_kinds_have_a_prefix_of_their_tensors():
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    assert PEFT_TYPE_TO_PREFIX_MAPPING["LORA"] == "lora_" and PEFT_TYPE_TO_PREFIX_MAPPING["IA3"] == "ia3_"


@uses("lora_embedding_A", "peft", "forward/lora.py")
def test_tensors_have_the_names_that_they_are_read_by(model):
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    saved = get_peft_model_state_dict(get_peft_model(model, config), save_embedding_layers=True)
    shapes = {name.removeprefix("base_model.model."): tuple(tensor.shape) for name, tensor in saved.items()}
    assert shapes[f"{LAYER}.lora_A.weight"] == (2, 32) and shapes[f"{LAYER}.lora_B.weight"] == (32, 2)
    embedding = {name.rsplit("embed_tokens.")[1] for name in shapes if "embed_tokens" in name}
    assert embedding == {"lora_embedding_A", "lora_embedding_B", "base_layer.weight"}


@uses("lora_magnitude_vector", "peft", "evidence/alternatives.py")
def test_the_magnitudes_of_dora_are_known_by_name(model):
    saved = get_peft_model_state_dict(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)))
    parts = {name.split("q_proj.")[1] for name in saved}
    assert parts == {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}


@uses("set_peft_model_state_dict(…).missing_keys", "peft", "forward/peft_route.py")
def test_what_is_missing_and_what_is_left_over_is_listed(model):
    wrapped = PeftModel(model, LoraConfig(r=2, target_modules=["q_proj"]))
    tensors = get_peft_model_state_dict(wrapped)
    lacking = tensors.popitem()[0]
    result = set_peft_model_state_dict(wrapped, tensors | {"base_model.model.nowhere.lora_A.weight": torch.zeros(1)})
    missing = [key for key in result.missing_keys if "lora_" in key]
    assert missing == [lacking.replace(".weight", ".default.weight")]
    assert [key for key in result.unexpected_keys if "nowhere" in key] == result.unexpected_keys != []


@uses("model.peft_config", "peft", "forward/peft_route.py")
def test_a_wrapped_base_is_marked_and_its_layers_are_replaced_in_place(model):
    before = model.get_submodule(LAYER)
    PeftModel(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert hasattr(model, "peft_config") and model.get_submodule(LAYER) is not before
    assert model.get_submodule(LAYER).base_layer is before


@uses("base_model.set_adapter([…])", "peft", "uses/together.py")
def test_two_adapters_that_are_active_add_up(model):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped, x = PeftModel(model, config), torch.randn(1, 32)
    wrapped.add_adapter("with1", config)
    layer = model.get_submodule(LAYER)
    bare, found = layer.base_layer(x), {}
    for names in (["default"], ["with1"], ["default", "with1"]):
        wrapped.base_model.set_adapter(names, inference_mode=True)
        found["+".join(names)] = layer(x) - bare
    assert not torch.allclose(found["default"], found["with1"])
    torch.testing.assert_close(found["default+with1"], found["default"] + found["with1"], atol=1e-5, rtol=1e-4)


@uses("base_model.add_weighted_adapter", "peft", "uses/together.py")
def test_adapters_are_merged_by_their_names(model):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped, x = PeftModel(model, config), torch.randn(1, 32)
    wrapped.add_adapter("with1", config)
    layer = model.get_submodule(LAYER)
    wrapped.base_model.set_adapter(["default", "with1"], inference_mode=True)
    both = layer(x)
    wrapped.base_model.add_weighted_adapter([*wrapped.peft_config], [1.0, 1.0], "merged", combination_type="cat")
    wrapped.base_model.set_adapter("merged", inference_mode=True)
    torch.testing.assert_close(layer(x), both, atol=1e-5, rtol=1e-4)


@uses("BaseTunerLayer.merge(safe_merge=True)", "peft", "forward/first_order.py")
@pytest.mark.parametrize("dora", [False, True])
def test_a_safe_merge_leaves_the_weight_that_was_there_as_it_is(model, dora):
    PeftModel(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, use_dora=dora))
    layer, x = model.get_submodule(LAYER), torch.randn(1, 32)
    assert isinstance(layer, BaseTunerLayer)
    weight, expected = layer.get_base_layer().weight, layer(x)
    before, copied = weight.data, weight.data.clone()
    layer.merge(safe_merge=True)
    assert torch.equal(before, copied) and not torch.equal(weight.data, before)
    torch.testing.assert_close(F.linear(x, weight, layer.get_base_layer().bias), expected, atol=1e-5, rtol=1e-4)


@uses("peft.utils.other.AuxiliaryTrainingWrapper", "peft", "forward/first_order.py")
def test_modules_that_are_saved_whole_are_wrapped(model):
    PeftModel(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert isinstance(model.lm_head, AuxiliaryTrainingWrapper)


# -- notebooks: Plotly, ipywidgets, IPython, papermill, tqdm -----------------------------------------------------------


@uses("FigureWidget._config", "plotly", "figures/explorer.py")
def test_the_config_of_a_figure_goes_to_the_browser():
    import plotly.graph_objects as go

    figure = go.FigureWidget()
    figure._config = {"responsive": True, "displayModeBar": False}
    assert figure.get_state()["_config"] == {"responsive": True, "displayModeBar": False}


@uses("Widget._repr_mimebundle_", "ipywidgets", "figures/explorer.py")
def test_a_widget_gives_a_bundle_that_a_picture_can_be_put_in():
    import ipywidgets

    bundle = ipywidgets.VBox()._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]


@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell

    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@uses("_render_traceback_", "ipython", "errors.py")
def test_an_error_that_renders_itself_is_one_line(shell, capsys):
    shell.user_ns["error"] = InputError("it is wrong")
    shell.run_cell("raise error")
    shown = "".join(capsys.readouterr())
    assert "InputError: it is wrong" in shown and "Traceback" not in shown and "raise error" not in shown


@uses('namespace["In"]', "ipython", "report/parameters.py")
def test_the_cells_that_have_run_are_in_the_namespace(shell):
    shell.run_cell("x = 1", store_history=True)
    assert shell.user_ns["In"][-1] == "x = 1"


@uses("shell.kernel", "ipykernel", "progress_bar.py")
def test_a_notebooks_shell_has_a_kernel(shell):
    from ipykernel.zmqshell import ZMQInteractiveShell

    assert hasattr(ZMQInteractiveShell, "kernel") and not hasattr(shell, "kernel")


@uses("# Parameters", "papermill", "report/parameters.py")
def test_injected_parameters_are_marked():
    from nbformat.v4 import new_code_cell, new_notebook
    from papermill.parameterize import parameterize_notebook

    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"), papermill={})
    book = new_notebook(cells=[new_code_cell("x = 1", metadata=dict(tags=["parameters"]))], metadata=kernel)
    assert parameterize_notebook(book, {"x": 2}).cells[1].source.startswith("# Parameters\n")


@uses("tqdm.last_print_n", "tqdm", "progress_bar.py")
def test_a_step_can_be_kept_out_of_the_pace():
    """What `initial` and `last_print_n` skip counts as done, and says nothing of how long the rest will take."""
    from tqdm import tqdm

    bar = tqdm(total=100, file=StringIO(), mininterval=0, miniters=0)
    bar.initial, bar.last_print_n = bar.initial + 50, bar.last_print_n + 50
    bar.update(50)
    bar.last_print_t = bar.start_t + bar.format_dict["elapsed"] - 2
    bar.update(1)  # it took two seconds
    assert bar.n == 51 and bar.format_dict["initial"] == 50
    assert 0.4 < bar.format_dict["rate"] < 0.6  # a second
    bar.close()


# -- Dask, the hub -----------------------------------------------------------------------------------------------------


@uses("worker.name", "distributed", "forward/dask_workers.py")
def test_workers_of_a_local_cluster_are_numbered():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        assert sorted(str(worker.name) for worker in cluster.workers.values()) == ["0", "1"]


@uses("models--", "huggingface_hub", "collection/bases.py")
def test_a_snapshot_in_the_hubs_cache_tells_its_repo(tmp_path):
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    assert repo_folder_name(repo_id="org/name", repo_type="model") == "models--org--name"
    assert constants.HF_HUB_CACHE


def test_the_tiny_model_is_what_the_tests_take_it_for(model):
    assert type(model.config) is Qwen2Config and model.get_submodule(LAYER).weight.shape == (32, 32)
