"""Training on a whole pipeline: the embedded one."""

import pytest
import torch
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from hnkernels.training import Example
from hnkernels.training.config import TrainingConfig
from hnkernels.training.encoding import PipelineData, TextEncoder

SIZES = (48, 80, 96)


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(TINY_SD)


def examples(count=3):
    return [Example(Image.new("RGB", (40, 32), (70 * i, 20, 90)), f"digit {i}, printed") for i in range(count)]


def net(**options):
    torch.manual_seed(0)
    return hn.Hypernetwork(SIZES, init="identity", **options)


def batches(pipeline, **config):
    data = PipelineData(pipeline, examples(), TrainingConfig.of(config), "n")
    return [data.batch([0, 1, 2], torch.Generator().manual_seed(seed)) for seed in range(2)]


def test_images_are_encoded_once_and_captions_too(pipeline, monkeypatch, tmp_path):
    counts = {"images": 0, "captions": 0}
    encode, encode_prompt = pipeline.vae.encode, pipeline.encode_prompt

    def count_images(pixels, *args, **kwargs):
        counts["images"] += len(pixels)
        return encode(pixels, *args, **kwargs)

    def count_captions(captions, *args, **kwargs):
        counts["captions"] += len(captions)
        return encode_prompt(captions, *args, **kwargs)

    monkeypatch.setattr(pipeline.vae, "encode", count_images)
    monkeypatch.setattr(pipeline, "encode_prompt", count_captions)
    config = {"max_epochs": 3, "batch_size": 2, "output_dir": str(tmp_path), "progress": False}
    hn.HypernetworkTrainer(net(), pipeline, config, examples()).train()
    assert counts == {"images": 3, "captions": 3}


@pytest.mark.parametrize(("mode", "same"), [("once", True), ("deterministic", True), ("random", False)])
def test_latents_are_drawn_once_or_at_every_use(pipeline, mode, same):
    first, second = batches(pipeline, latent_sampling=mode)
    assert torch.equal(first["latents"], second["latents"]) is same


def test_deterministic_latents_are_the_scaled_means(pipeline):
    batch, _ = batches(pipeline, latent_sampling="deterministic")
    pixels = torch.stack([e.pixels(32) for e in examples()])
    with torch.no_grad():
        means = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(batch["latents"], means)


def test_embeddings_are_the_pipelines_own(pipeline):
    ours = TextEncoder(pipeline)(["digit one", "letter b", "digit one"])
    theirs, _ = pipeline.encode_prompt(["digit one", "letter b"], "cpu", 1, False)
    assert torch.equal(ours, theirs[[0, 1, 0]])


def test_caption_dropout_trains_on_the_empty_caption(pipeline):
    batch, _ = batches(pipeline, caption_dropout=1.0)
    assert torch.equal(batch["encoder_hidden_states"], TextEncoder(pipeline)([""] * 3))


def test_previews_come_every_n_steps_and_change_nothing(pipeline, tmp_path):
    base = {"max_steps": 2, "batch_size": 2, "progress": False}
    previews = {"preview_every": 1, "preview_prompts": ["digit one", "digit two"], "preview_inference_steps": 2}
    nets = []
    for name, config in (("a", base), ("b", base | previews)):
        trained = net(dropout_structure=(0, 0.2, 0))
        config = config | {"output_dir": str(tmp_path / name)}
        hn.HypernetworkTrainer(trained, pipeline, config, examples()).train()
        nets.append(trained)
    assert [p.name for p in sorted((tmp_path / "b" / "previews").iterdir())] == ["step-000001.png", "step-000002.png"]
    assert Image.open(tmp_path / "b" / "previews" / "step-000001.png").size == (64, 32)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_step_may_be_given_pixels_and_captions(pipeline):
    trained = net()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    batch = {"pixel_values": torch.stack([e.pixels(32) for e in examples()]), "captions": ["a", "b", "c"]}
    metrics = hn.train_hypernetwork(trained, pipeline, batch, optimizer)
    assert metrics["updated"] == 1.0


def test_a_resolution_that_the_model_cannot_have_is_refused(pipeline, tmp_path):
    config = {"resolution": 33, "output_dir": str(tmp_path / "x"), "progress": False}
    with pytest.raises(ValueError, match="multiple of 4"):
        hn.HypernetworkTrainer(net(), pipeline, config, examples()).train()


def test_sdxl_is_refused():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=20,
    )
    with pytest.raises(ValueError, match="SDXL"):
        hn.HypernetworkTrainer(hn.Hypernetwork((8, 12)), unet)
