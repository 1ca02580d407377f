"""Models that need not be at hand."""

import pytest
import torch
from torch import nn

from hnkernels.adapter.projections import find_projections
from hnkernels.generator.architectures import ARCHITECTURES, projections_of
from tests.models import tiny_unet

SD = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
CONFIGS = {
    "sd15": {**SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        **SD,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def unet(name):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[name])


def test_the_configurations_are_of_the_architectures():
    assert CONFIGS.keys() == set(ARCHITECTURES)


@pytest.mark.parametrize(("name", "layers"), [("sd15", 16), ("sd21", 16), ("sdxl", 70)])
def test_names_and_shapes_are_those_of_diffusers(name, layers):
    ours, theirs = projections_of(name), find_projections(unet(name))
    assert set(ours) == set(theirs)
    assert len(ours) == len(theirs) == 2 * layers * 4
    for kind in ("attn1", "attn2"):
        assert len({p.attention for p in ours if p.kind == kind}) == layers


def test_pipelines_and_modules_are_read():
    class Pipeline:
        unet = tiny_unet()

    assert projections_of(Pipeline()) == projections_of(Pipeline.unet) == find_projections(Pipeline.unet)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("sd1.5", r"'sd1.5', which is not a known architecture; did you mean 'sd15'\? accepted are sd15, sd21"),
        ("flux", "'flux', which is not a known architecture; accepted are"),
        (7, "model must be a diffusers pipeline or a torch module, not int"),
        (nn.Linear(2, 2), "Linear has no attention layers"),
    ],
)
def test_anything_else_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        projections_of(model)


def test_projections_under_other_names_serve_in_the_place_of_a_model():
    found = find_projections(tiny_unet())
    assert projections_of(found) == found
    with pytest.raises(ValueError, match="a pipeline or a module"):
        projections_of("sd3")
