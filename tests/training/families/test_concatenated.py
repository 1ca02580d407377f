"""UNets that see further channels beside the noisy latents."""

import pytest
import torch

from hnkernels.training.families import family_of
from tests.training.families import pipelines

LABELS = {
    "inpainting": "Stable Diffusion inpainting",
    "edits": "InstructPix2Pix",
    "inpainting_xl": "Stable Diffusion XL inpainting",
}


@pytest.mark.parametrize("name", LABELS)
def test_they_are_known_by_their_channels_with_and_without_a_pipeline(name):
    pipeline = getattr(pipelines, name)()
    assert family_of(pipeline).label == family_of(pipeline.unet).label == LABELS[name]
    assert family_of(pipeline).latent_channels == 4


@pytest.mark.parametrize("name", LABELS)
def test_further_channels_come_after_the_latents_the_mask_first(name, monkeypatch):
    pipeline = getattr(pipelines, name)()
    family, seen = family_of(pipeline), []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = {
        "mask": torch.full((2, 1, 8, 8), 1.0), "masked_latents": torch.full((2, 4, 8, 8), 2.0),
        "source_latents": torch.full((2, 4, 8, 8), 3.0), "time_ids": torch.ones(2, 6), **family.text(["a", "b"]),
    }  # fmt: skip
    try:
        prediction = family.predict(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), batch)
    finally:
        hook.remove()
    assert prediction.shape == (2, 4, 8, 8)
    further = [3.0] * 4 if name == "edits" else [1.0, 2.0, 2.0, 2.0, 2.0]
    assert seen[0][:, :, 0, 0].tolist() == [[0.0] * 4 + further] * 2


def test_the_picture_to_be_edited_is_not_scaled():
    pipeline = pipelines.edits()
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mean
        torch.testing.assert_close(family_of(pipeline).source_latents(pixels), expected)
        assert pipeline.vae.config.scaling_factor != 1
