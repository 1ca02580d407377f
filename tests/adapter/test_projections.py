"""Finding the linears of attention layers."""

import pytest
import torch
from torch import nn

from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.projections import Projection, find_projections
from tests.adapter.hosts import JOINT_ATTENTION
from tests.models import attention_layers, tiny_unet

PATHS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def expected_of(unet):
    return [
        Projection(f"{name}.{path}", name, name.rsplit(".", 1)[-1], projection, linear.out_features, linear.in_features)
        for name, module in attention_layers(unet).items()
        for projection, path in PATHS.items()
        for linear in [module.get_submodule(path)]
    ]


def test_every_linear_of_every_attention_layer_of_a_unet_is_found():
    unet = tiny_unet()
    found = find_projections(unet)
    assert found == expected_of(unet)
    assert len(found) == 14 * 4


def test_a_model_without_data_is_as_good():
    with torch.device("meta"):
        unet = tiny_unet()
    assert next(unet.parameters()).is_meta
    assert find_projections(unet) == expected_of(unet)


def test_linears_that_a_lora_wraps_are_found_under_their_own_names():
    peft = pytest.importorskip("peft")
    unet = tiny_unet()
    expected = expected_of(unet)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    assert isinstance(unet.get_submodule(expected[0].name), peft.tuners.lora.Linear)
    assert find_projections(unet) == expected


def test_joint_attention_has_the_projections_of_its_text_too():
    model = JOINT_ATTENTION["sd3"].build()
    found = find_projections(model)
    for projection in found:
        linear = model.get_submodule(projection.name)
        assert (linear.out_features, linear.in_features) == (projection.out_features, projection.in_features)
    path = "transformer_blocks.0.attn."
    assert [(p.name.removeprefix(path), p.kind, p.projection) for p in found if p.name.startswith(path)] == [
        ("to_q", "attn1", "q"),
        ("to_k", "attn1", "k"),
        ("to_v", "attn1", "v"),
        ("to_out.0", "attn1", "out"),
        ("add_q_proj", "attn2", "q"),
        ("add_k_proj", "attn2", "k"),
        ("add_v_proj", "attn2", "v"),
        ("to_add_out", "attn2", "out"),
    ]
    assert {p.attention for p in found if p.name.startswith(path)} == {path[:-1], f"{path}added"}


class Foreign(nn.Module):
    hypernetwork_projections = ("wq", "wk", "wv")
    is_cross_attention = True

    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv = nn.Linear(8, 6), nn.Linear(5, 6), nn.Linear(5, 6)


def test_a_class_with_names_of_its_own_is_found_and_an_output_that_is_not_there_is_left_out():
    model = nn.ModuleDict({"layer": Foreign()})
    assert find_projections(model) == [
        Projection("layer.wq", "layer", "attn2", "q", 6, 8),
        Projection("layer.wk", "layer", "attn2", "k", 6, 5),
        Projection("layer.wv", "layer", "attn2", "v", 6, 5),
    ]
    model["layer"].to_out = nn.Linear(6, 8)
    assert find_projections(model)[-1] == Projection("layer.to_out", "layer", "attn2", "out", 8, 6)


def test_a_class_that_names_what_is_not_a_linear_is_refused():
    model = Foreign()
    model.hypernetwork_projections = ("wq", "wk", "nothing")
    with pytest.raises(AdapterError, match="must name three of its linears"):
        find_projections(model)


def test_a_model_without_attention_has_none():
    assert find_projections(nn.Sequential(nn.Linear(2, 2))) == []
