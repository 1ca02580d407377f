"""Every variant of A1111's file gives the function that its weights and options stand for."""

import warnings

import pytest
import torch

from hnkernels import load_hypernetwork
from reference import MLP
from tests.checkpoint.a1111_files import assert_same_function, flat_dict, pair, plain_file, write

DIMS = (4, 10)

# What the modules really are, and what the file says about them.
VARIANTS = {
    "every option stated": (
        {"layer_structure": [1, 2, 1], "activation": "relu"},
        {
            "layer_structure": [1, 2, 1], "activation_func": "relu", "is_layer_norm": False, "use_dropout": False,
            "weight_initialization": "Normal", "activate_output": False, "last_layer_dropout": False,
            "dropout_structure": [0, 0, 0], "step": 20000, "name": "style", "sd_checkpoint": "81761151",
            "sd_checkpoint_name": "v1-5", "optional_info": None,
        },
    ),
    "no metadata at all": ({}, {}),
    "activation stated, activate_output not": (
        {"activation": "tanh", "activate_output": True}, {"activation_func": "tanh"},
    ),
    "activate_output unstated, LayerNorm shows there is none": (
        {"activation": "relu", "layer_norm": True}, {"activation_func": "relu", "is_layer_norm": True},
    ),
    "activate_output unstated, LayerNorm shows it": (
        {"activation": "relu", "layer_norm": True, "activate_output": True},
        {"activation_func": "relu", "is_layer_norm": True},
    ),
    "activate_output unstated, prelu shows it": (
        {"activation": "prelu", "activate_output": True}, {"activation_func": "prelu"},
    ),
    "activate_output unstated, prelu shows there is none": (
        {"activation": "prelu"}, {"activation_func": "prelu"},
    ),
    "is_layer_norm unstated, the weights show it": (
        {"activation": "relu", "layer_norm": True}, {"activation_func": "relu", "activate_output": False},
    ),
    "linear by name": ({}, {"activation_func": "linear", "activate_output": True}),
    "float layer structure": (
        {"layer_structure": [1.0, 0.3, 1.7, 1.0], "activation": "mish"},
        {"layer_structure": [1.0, 0.3, 1.7, 1.0], "activation_func": "mish", "activate_output": False},
    ),
    "a single linear": ({"layer_structure": [1, 1]}, {"layer_structure": [1, 1], "use_dropout": True}),
    "tuples for lists": (
        {"layer_structure": [1, 2, 2, 1], "dropout_structure": [0, 0.1, 0, 0]},
        {"layer_structure": (1, 2, 2, 1), "dropout_structure": (0, 0.1, 0, 0)},
    ),
    "dropout by the rule": (
        {"layer_structure": [1, 2, 2, 2, 1], "activation": "relu", "dropout_structure": [0, 0.3, 0.3, 0, 0]},
        {"layer_structure": [1, 2, 2, 2, 1], "activation_func": "relu", "use_dropout": True, "activate_output": False},
    ),
    "dropout by the rule, last layer too": (
        {"layer_structure": [1, 2, 2, 1], "activation": "relu", "dropout_structure": [0, 0.3, 0.3, 0]},
        {
            "layer_structure": [1, 2, 2, 1], "activation_func": "relu", "use_dropout": True,
            "last_layer_dropout": True, "activate_output": False,
        },
    ),
    "three entries with use_dropout have none": (
        {"activation": "relu"}, {"activation_func": "relu", "use_dropout": True, "activate_output": False},
    ),
    "dropout after the output": (
        {"activation": "swish", "dropout_structure": [0, 0, 0.15]},
        {"activation_func": "swish", "use_dropout": True, "dropout_structure": [0, 0, 0.15], "activate_output": False},
    ),
    "unknown init": ({}, {"weight_initialization": "Orthogonal"}),
    "no init": ({}, {"weight_initialization": None}),
    "options of forks": ({}, {"multiplier_hint": 0.7, "tags": ["a", {"b": 1}]}),
    "everything at once": (
        {
            "layer_structure": [1, 1.5, 2, 1], "activation": "prelu", "layer_norm": True, "activate_output": True,
            "dropout_structure": [0, 0.05, 0.15, 0.2],
        },
        {
            "layer_structure": [1, 1.5, 2, 1], "activation_func": "prelu", "is_layer_norm": True,
            "activate_output": True, "dropout_structure": [0, 0.05, 0.15, 0.2], "use_dropout": True,
            "weight_initialization": "KaimingUniform",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("lists", [False, True], ids=["tuple pairs", "list pairs"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_gives_the_function_of_its_modules(name, lists, tmp_path):
    options, metadata = VARIANTS[name]
    modules = {dim: pair(dim, **options) for dim in DIMS}
    content = flat_dict(modules, **metadata)
    if lists:
        content = {key: list(value) if type(key) is int else value for key, value in content.items()}
    net = load_hypernetwork(write(tmp_path / "file.pt", content))
    assert net.sizes == DIMS
    for dim in DIMS:
        for mlp, expected in zip(net[dim], modules[dim], strict=True):
            assert mlp.state_dict().keys() == expected.state_dict().keys()
            assert_same_function(mlp, expected, dim)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_in_the_format_before_torch_1_6_is_read_too(name, tmp_path):
    options, metadata = VARIANTS[name]
    modules = pair(4, **options)
    path = write(tmp_path / "f.pt", flat_dict({4: modules}, **metadata), _use_new_zipfile_serialization=False)
    for mlp, expected in zip(load_hypernetwork(path)[4], modules, strict=True):
        assert_same_function(mlp, expected, 4)


# Dropout lists as the weights' positions show them, and what the file says instead.
MOVED_DROPOUTS = {
    "after every hidden linear": ([1, 2, 2, 1], "relu", False, [0, 0.3, 0.3, 0], {"use_dropout": True}),
    "after the only hidden linear": ([1, 2, 1], "relu", False, [0, 0.3, 0], {"use_dropout": True}),
    "without an activation": ([1, 2, 1], None, False, [0, 0.3, 0], {"use_dropout": True}),
    "with LayerNorm": ([1, 2, 2, 1], "elu", True, [0, 0.3, 0.3, 0], {"use_dropout": True}),
    "nowhere": ([1, 2, 2, 2, 1], "relu", False, [0, 0, 0, 0, 0], {"use_dropout": True}),
    "one of the rule's missing": ([1, 2, 2, 2, 1], "prelu", True, [0, 0, 0.3, 0, 0], {"use_dropout": True}),
    "rates from a list with other places": (
        [1, 2, 2, 2, 1], "relu", False, [0, 0.1, 0.3, 0, 0.2],
        {"use_dropout": True, "dropout_structure": [0, 0.1, 0, 0.4, 0.2]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED_DROPOUTS)
def test_dropouts_at_other_places_are_found_by_the_positions_of_the_weights(name, tmp_path):
    structure, activation, layer_norm, dropouts, metadata = MOVED_DROPOUTS[name]
    options = {"layer_structure": structure, "activation": activation, "layer_norm": layer_norm}
    modules = {dim: pair(dim, **options, dropout_structure=dropouts) for dim in DIMS}
    stated = {"layer_structure": structure, "activation_func": activation, "is_layer_norm": layer_norm}
    content = flat_dict(modules, **stated, **metadata, activate_output=False)
    net = load_hypernetwork(write(tmp_path / "october.pt", content))
    assert net.config.dropout_structure == (tuple(dropouts) if any(dropouts) else None)
    for dim in DIMS:
        for mlp, expected in zip(net[dim], modules[dim], strict=True):
            assert_same_function(mlp, expected, dim)


def test_the_oldest_keys_are_two_linears(tmp_path):
    modules = {dim: pair(dim) for dim in DIMS}
    renamed = {
        dim: tuple(
            {k.replace("linear.0", "linear1").replace("linear.1", "linear2"): v for k, v in mlp.state_dict().items()}
            for mlp in mlps
        )
        for dim, mlps in modules.items()
    }
    net = load_hypernetwork(write(tmp_path / "oldest.pt", renamed))
    assert net.config.activation is None
    assert net.provenance.name == "oldest"
    for dim in DIMS:
        for mlp, expected in zip(net[dim], modules[dim], strict=True):
            assert_same_function(mlp, expected, dim)


def test_options_that_a_file_does_not_state_have_a1111s_defaults(tmp_path):
    net = load_hypernetwork(write(tmp_path / "my style.v2.pt", flat_dict({4: pair(4)})))
    config = net.config
    assert config.layer_structure == (1, 2, 1)
    assert config.activation is None
    assert config.activate_output is True
    assert config.layer_norm is False
    assert config.dropout_structure is None
    assert config.init == "normal"
    origin = net.provenance
    assert (origin.name, origin.step, origin.sd_checkpoint) == ("my style.v2", 0, None)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Normal", "normal"),
        ("XavierUniform", "xavier_uniform"),
        ("XavierNormal", "xavier_normal"),
        ("KaimingUniform", "kaiming_uniform"),
        ("KaimingNormal", "kaiming_normal"),
        ("Sparse", "normal"),
    ],
)
def test_the_init_is_translated_and_never_draws_or_warns(written, read, tmp_path):
    path = plain_file(tmp_path / "f.pt", weight_initialization=written)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load_hypernetwork(path)
    assert torch.equal(before, torch.get_rng_state())
    assert net.config.init == read
    assert all(mlp.config is net.config for dim in net for mlp in net[dim])


def test_provenance_is_carried(tmp_path):
    said = {"name": "n", "step": 9, "sd_checkpoint": "abc", "sd_checkpoint_name": "v2", "optional_info": "free text"}
    assert vars(load_hypernetwork(plain_file(tmp_path / "f.pt", **said)).provenance) == {**said, "training": {}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_file_is_kept(dtype, tmp_path):
    mlp = MLP(4).to(dtype)
    net = load_hypernetwork(write(tmp_path / "f.pt", {4: (mlp.state_dict(), mlp.state_dict())}))
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert_same_function(net[4][0], mlp, 4)


def test_parameters_are_ordinary_and_trainable(tmp_path):
    content = flat_dict({4: pair(4)})
    state = content[4][0]
    state["linear.0.weight"] = torch.randn(4, 8).t()  # not contiguous
    state["linear.0.bias"] = torch.randn(100)[3:11]  # a view
    with torch.inference_mode():
        net = load_hypernetwork(write(tmp_path / "f.pt", content))
    assert not net.training
    for parameter in net.parameters():
        assert type(parameter) is torch.nn.Parameter
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert not parameter.is_inference()
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    assert torch.equal(net[4][0].linear[0].weight, state["linear.0.weight"])
    net[4][0](torch.randn(3, 4)).sum().backward()
    torch.optim.AdamW(net.parameters()).step()


def test_k_and_v_that_share_tensors_in_the_file_are_apart_after_loading(tmp_path):
    state = MLP(20).state_dict()
    net = load_hypernetwork(write(tmp_path / "f.pt", {20: (state, state)}))
    assert len({p.data_ptr() for p in net.parameters()}) == len(list(net.parameters()))


def test_modules_saved_with_their_parameter_objects_are_read(tmp_path):
    mlp = MLP(4)
    state = dict(mlp.named_parameters())
    net = load_hypernetwork(write(tmp_path / "f.pt", {4: (state, state)}))
    assert_same_function(net[4][1], mlp, 4)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_the_softmax_family_loads_by_flag_only(tmp_path):
    modules = pair(4, activation="softmax")
    content = flat_dict({4: modules}, activation_func="softmax", activate_output=False)
    path = write(tmp_path / "f.pt", content)
    with pytest.raises(Exception, match="allow_legacy_activations=True"):
        load_hypernetwork(path)
    net = load_hypernetwork(path, allow_legacy_activations=True)
    assert_same_function(net[4][0], modules[0], 4)


def test_names_may_be_strings_and_extensions_upper_case(tmp_path):
    path = plain_file(tmp_path / "F.PT")
    assert load_hypernetwork(str(path)).sizes == DIMS


@pytest.mark.parametrize("metadata", [{}, {"name": None}, {"name": ""}], ids=str)
def test_a_file_that_says_no_name_has_its_own(tmp_path, metadata):
    path = write(tmp_path / "style.v2.pt", flat_dict({4: pair(4)}, **metadata))
    assert load_hypernetwork(path).provenance.name == "style.v2"
