"""A file that unpickles but is not a consistent hypernetwork gives one CheckpointError that says what is wrong."""

import pytest
import torch

from hnkernels.checkpoint import describe
from reference import MLP
from tests.checkpoint.a1111_files import flat_dict, pair, write
from tests.checkpoint.hostile import refused


def change(**metadata):
    return lambda content: content | metadata


def weight(replacement, key="linear.0.weight", dim=4, stream=0):
    def apply(content):
        content[dim][stream][key] = replacement(content[dim][stream][key]) if callable(replacement) else replacement
        return content

    return apply


def value(replacement):
    return lambda content: content | {4: replacement(content[4])}


def key(new):
    return lambda content: {new if k == 4 else k: v for k, v in content.items()}


def without(name):
    def apply(content):
        for state in content[4]:
            state.pop(name, None)
        return content

    return apply


def shared_structure(content):
    tower = ["x"]
    for _ in range(60):
        tower = [tower, tower]
    return content | {"name": tower}


def tied_tower(content):
    layer = {"weight": torch.zeros(4, 4), "bias": torch.zeros(4)}
    state = {f"linear.{i}.{k}": v for i in range(50) for k, v in layer.items()}
    return {4: (state, state), "layer_structure": [1] * 51}


BAD_CONTENT = {
    "a list": (lambda content: [1, 2], "holds a list, not a dict"),
    "a tensor": (lambda content: torch.zeros(3), "not a dict"),
    "an empty dict": (lambda content: {}, "no weights for any context width"),
    "no width": (lambda content: {"step": 1, "name": "x"}, "no weights for any context width"),
    "an embedding": (lambda content: {"string_to_param": {"*": torch.zeros(1, 4)}}, "not an embedding"),
    "a bool as width": (key(True), "key True"),
    "a float as width": (key(4.0), r"key 4\.0"),
    "a tuple as width": (key((4,)), "key a tuple"),
    "a numeric string as width": (key("4"), "key '4'"),
    "a width of zero": (key(0), "impossible width 0"),
    "a negative width": (key(-4), "impossible width -4"),
    "another width than the weights": (key(5), "does not follow from width 5"),
    "an enormous width": (key(10**9), "does not follow from width"),
    "a width of five hundred digits": (key(10**500), "impossible width a huge int"),
    "a single state dict": (value(lambda p: p[0]), "not the pair of K and V"),
    "K without V": (value(lambda p: (p[0],)), "a tuple of 1 for width 4"),
    "three state dicts": (value(lambda p: (*p, p[0])), "a tuple of 3"),
    "V is None": (value(lambda p: (p[0], None)), "V: is None, not a state dict"),
    "V is empty": (value(lambda p: (p[0], {})), "V: has other sub-layers"),
    "both are empty": (value(lambda p: ({}, {})), "has 0 linear layers"),
    "V has other sub-layers": (
        value(lambda p: (p[0], MLP(4, [1, 2, 2, 1], "relu").state_dict())), "V: has other sub-layers",
    ),
    "a foreign key": (weight(torch.zeros(4), "alpha"), "foreign key 'alpha'"),
    "a whole module's key": (weight(torch.zeros(4), "linear.0.weight.extra"), "foreign key"),
    "old and new keys": (weight(torch.zeros(8, 4), "linear1.weight"), "foreign key 'linear1.weight'"),
    "an index with leading zero": (weight(torch.zeros(8, 4), "linear.00.weight"), "foreign key"),
    "an enormous index": (weight(torch.zeros(8, 4), f"linear.{'9' * 5000}.weight"), "foreign key"),
    "an int as tensor key": (weight(torch.zeros(4), 3), "foreign key 3"),
    "a missing bias": (without("linear.0.bias"), "neither a Linear nor a LayerNorm nor a PReLU"),
    "a missing weight": (without("linear.2.weight"), "neither a Linear"),
    "a list for a tensor": (weight([1.0]), "is a list, not a tensor"),
    "None for a tensor": (weight(None), "is None, not a tensor"),
    "a wrong shape": (weight(torch.zeros(8, 5)), "does not follow from width 4"),
    "a transposed weight": (weight(lambda t: t.t()), "neither a Linear"),
    "a 3-D weight": (weight(lambda t: t[None]), "neither a Linear"),
    "a whole-number tensor": (weight(lambda t: t.long()), r"torch\.int64, not a floating-point type"),
    "a complex tensor": (weight(lambda t: t.to(torch.complex64)), "not a floating-point type"),
    "a float8 tensor": (weight(lambda t: t.to(torch.float8_e4m3fn)), "not a floating-point type"),
    "a quantized tensor": (
        weight(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "sparse, quantized or data-less",
    ),
    "a sparse tensor": (weight(lambda t: t.to_sparse()), "sparse, quantized or data-less"),
    "a tensor without data": (weight(lambda t: t.to("meta")), "sparse, quantized or data-less"),
    "a NaN": (weight(lambda t: t.index_fill(0, torch.tensor(3), float("nan"))), "K: linear.0.weight holds NaN"),
    "an infinity": (weight(torch.full((4,), float("-inf")), "linear.2.bias", stream=1), "V: linear.2.bias holds NaN"),
    "mixed dtypes": (weight(lambda t: t.half()), r"mixes dtypes \(torch.float16, torch.float32\)"),
    "a billion elements from one": (weight(torch.zeros(1).expand(10**9)), "claims 4000000000 bytes and holds 4"),
    "one matrix as fifty layers": (tied_tower, "claims .* bytes of weights and holds"),
    "layer_structure a string": (change(layer_structure="1, 2, 1"), "layer_structure = '1, 2, 1'"),
    "layer_structure of strings": (change(layer_structure=["1", "2", "1"]), "layer_structure = a list"),
    "layer_structure of bools": (change(layer_structure=[True, 2, True]), "layer_structure = a list"),
    "layer_structure empty": (change(layer_structure=[]), "at least two entries"),
    "layer_structure starting with 2": (change(layer_structure=[2, 2, 1]), "start and end with 1"),
    "layer_structure with NaN": (change(layer_structure=[1, float("nan"), 1]), "positive and finite"),
    "layer_structure negative": (change(layer_structure=[1, -2, 1]), "positive and finite"),
    "layer_structure enormous": (change(layer_structure=[1, 1e308, 1]), "does not follow from width"),
    "layer_structure enormous and whole": (change(layer_structure=[1, 10**400, 1]), "positive and finite|impossible"),
    "layer_structure too long": (change(layer_structure=[1, 2, 2, 1]), "has 2 linear layers"),
    "layer_structure of other widths": (change(layer_structure=[1, 3, 1]), "1 → 3"),
    "unknown activation": (change(activation_func="snake"), "'snake' is unknown; accepted are linear"),
    "activation in capitals": (change(activation_func="ReLU"), "'ReLU' is unknown"),
    "activation that halves the width": (change(activation_func="glu"), "cannot be used"),
    "activation a number": (change(activation_func=1), "activation_func = 1"),
    "activation without its place": (change(activation_func=None), "neither activation nor LayerNorm nor dropout"),
    "activation whose weight is missing": (change(activation_func="prelu"), r"linear\.1\.weight is missing"),
    "is_layer_norm a string": (change(is_layer_norm="True"), "is_layer_norm = 'True', which must be True or False"),
    "is_layer_norm a number": (change(is_layer_norm=1), "is_layer_norm = 1"),
    "is_layer_norm without its weights": (change(is_layer_norm=True), "sub-layers between"),
    "activate_output a string": (change(activate_output="yes"), "activate_output"),
    "use_dropout a number": (change(use_dropout=0.3), "use_dropout"),
    "last_layer_dropout a list": (change(last_layer_dropout=[]), "last_layer_dropout = a list"),
    "dropout_structure a number": (change(dropout_structure=0.3), "dropout_structure"),
    "dropout_structure too short": (change(dropout_structure=[0, 0]), "dropout_structure of 2 entries"),
    "dropout_structure of ones": (change(dropout_structure=[0, 0, 1.0]), r"must lie in \[0, 1\)"),
    "dropout_structure negative": (change(dropout_structure=[0, 0, -0.1]), r"must lie in \[0, 1\)"),
    "weight_initialization a number": (change(weight_initialization=3), "weight_initialization = 3"),
    "step a string": (change(step="100"), "step = '100'"),
    "step a bool": (change(step=True), "step = True"),
    "step a float": (change(step=1.5), "step"),
    "step a number of five hundred digits": (change(step=10**500), "step = a huge int"),
    "name a number": (change(name=5), "name = 5"),
    "name a tower of shared lists": (shared_structure, "name = a list"),
    "sd_checkpoint a number": (change(sd_checkpoint=1), "sd_checkpoint"),
    "sd_checkpoint_name a list": (change(sd_checkpoint_name=[]), "sd_checkpoint_name"),
    "optional_info a dict": (change(optional_info={}), "optional_info"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's own, about the odd tensors made here
@pytest.mark.parametrize("name", BAD_CONTENT)
def test_bad_content_is_refused(name, tmp_path):
    spoil, match = BAD_CONTENT[name]
    good = flat_dict({4: pair(4, activation="relu")}, activation_func="relu", activate_output=False)
    path = write(tmp_path / "bad.pt", spoil(good))
    refused(path, match)
    refused(path, match, describe)


NORM = {"activation": "relu", "layer_norm": True}
IRREGULAR = {
    "LayerNorm stated absent": (NORM, {"activation_func": "relu", "is_layer_norm": False, "activate_output": False}),
    "output stated active, LayerNorm shows it is not": (NORM, {"activation_func": "relu", "activate_output": True}),
    "output stated inactive, LayerNorm shows it is": (
        NORM | {"activate_output": True}, {"activation_func": "relu", "activate_output": False},
    ),
    "two sub-layers too many": ({**NORM, "dropout_structure": [0, 0.1, 0]}, {"is_layer_norm": True}),
    "a dropout's place, but no dropout": (
        {"activation": "relu", "dropout_structure": [0, 0.3, 0]},
        {"activation_func": "relu", "use_dropout": False, "activate_output": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IRREGULAR)
def test_positions_that_no_dropout_explains_are_refused(name, tmp_path):
    options, metadata = IRREGULAR[name]
    refused(write(tmp_path / "odd.pt", flat_dict({4: pair(4, **options)}, **metadata)))


def test_layer_norm_before_the_activation_is_refused(tmp_path):
    state = {
        "linear.0.weight": torch.zeros(8, 4), "linear.0.bias": torch.zeros(8),
        "linear.1.weight": torch.zeros(8), "linear.1.bias": torch.zeros(8),
        "linear.3.weight": torch.zeros(4, 8), "linear.3.bias": torch.zeros(4),
        "linear.4.weight": torch.zeros(4), "linear.4.bias": torch.zeros(4),
    }  # fmt: skip
    content = {4: (state, dict(state)), "activation_func": "relu", "is_layer_norm": True}
    refused(write(tmp_path / "f.pt", content), "is missing")
