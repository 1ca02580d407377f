"""The layers of a model are found without its weights, those that are alike once."""

import json
import shutil

import pytest

from hnkernels.accounting.layers import KNOWN, LayerShape, layers_of
from hnkernels.assets import TINY_SD


def test_the_layers_of_the_embedded_model():
    assert layers_of(TINY_SD) == (
        LayerShape("attn1", 48, 48, 64, 3),
        LayerShape("attn1", 80, 80, 16, 4),
        LayerShape("attn2", 96, 48, 77, 3),
        LayerShape("attn2", 96, 80, 77, 4),
    )


def test_a_model_of_the_shape_of_stable_diffusion_has_the_layers_that_are_known(tmp_path):
    shutil.copytree(TINY_SD, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    config = tmp_path / "model" / "unet" / "config.json"
    sizes = {
        "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
        "attention_head_dim": 8, "layers_per_block": 2, "norm_num_groups": 32,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }  # fmt: skip
    config.write_text(json.dumps(json.loads(config.read_text()) | sizes))
    assert set(layers_of(tmp_path / "model")) == set(KNOWN["Stable Diffusion 1.5, 512 pixels"])


def test_a_label_tells_layers_apart():
    for shapes in KNOWN.values():
        assert len({shape.label for shape in shapes}) == len(shapes)
    assert LayerShape("attn1", 320, 320, 4096, 5).label == "self-attention 320 → 320, 4096 tokens"
    assert LayerShape("attn2", 768, 320, 77, 1).label == "cross-attention 768 → 320"


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a diffusers model"):
        layers_of(tmp_path)
