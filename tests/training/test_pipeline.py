"""Training on a whole pipeline: the embedded one."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline, offload_by_groups
from hnkernels.training import Example
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.data.text_encoder import TextEncoder, bytes_of
from hnkernels.training.families import family_of
from hnkernels.training.progress.preview import write_preview
from hnkernels.training.sampler import generator_of

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
    data = encoded(pipeline, examples(), **config)
    return [data.batch([0, 1, 2], generators(seed)) for seed in range(2)]


def encoded(pipeline, given, name="n", **config):
    data = PipelineData(family_of(pipeline), given, TrainingConfig.of(config), name)
    data.encode()
    return data


def generators(seed=0, count=3):
    return [torch.Generator().manual_seed(10 * seed + place) for place in range(count)]


def embedded(pipeline, captions):
    return TextEncoder(family_of(pipeline))(captions)["encoder_hidden_states"]


@pytest.mark.parametrize(("device", "offloaded_to"), [("cpu", []), ("cuda", [torch.device("cuda")])])
def test_blocks_move_to_a_gpu_and_stay_where_they_are_on_the_cpu(device, offloaded_to):
    moved = []
    unet = SimpleNamespace(enable_group_offload=lambda onload, **options: moved.append(onload))
    offload_by_groups(SimpleNamespace(device=torch.device(device), unet=unet))
    assert moved == offloaded_to


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
    ours = embedded(pipeline, ["digit one", "letter b", "digit one"])
    theirs, _ = pipeline.encode_prompt(["digit one", "letter b"], "cpu", 1, False)
    assert torch.equal(ours, theirs[[0, 1, 0]])


def test_caption_dropout_trains_on_the_empty_caption(pipeline):
    batch, _ = batches(pipeline, caption_dropout=1.0)
    assert torch.equal(batch["encoder_hidden_states"], embedded(pipeline, [""] * 3))


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


def shifted(pipeline, monkeypatch, shift):
    config = type(pipeline.vae.config)({**pipeline.vae.config, "shift_factor": shift})
    monkeypatch.setattr(pipeline.vae, "_internal_dict", config)


@pytest.mark.parametrize("shift", [None, 0.75])
@pytest.mark.parametrize("mode", ["once", "deterministic", "random"])
def test_latents_are_shifted_scaled_and_drawn_with_the_seed(pipeline, monkeypatch, mode, shift):
    shifted(pipeline, monkeypatch, shift)
    scaling = pipeline.vae.config.scaling_factor
    with torch.no_grad():
        found = pipeline.vae.encode(torch.stack([e.pixels(32) for e in examples()])).latent_dist
    for seed in (0, 1):
        ours = batches(pipeline, latent_sampling=mode, seed=seed)
        shape = found.mean.shape[1:]
        once = torch.stack([torch.randn(shape, generator=generator_of(seed, "latents", i)) for i in range(3)])
        for number, batch in enumerate(ours):
            each = torch.stack([torch.randn(shape, generator=g) for g in generators(number)])
            drawn = {"once": once, "deterministic": 0.0, "random": each}[mode]
            expected = (found.mean + found.std * drawn - (shift or 0.0)) * scaling
            torch.testing.assert_close(batch["latents"], expected)


@pytest.mark.parametrize("shift", [None, 0.75])
def test_pixels_given_to_a_step_are_drawn_shifted_and_scaled(pipeline, monkeypatch, shift):
    shifted(pipeline, monkeypatch, shift)
    pixels = torch.stack([e.pixels(32) for e in examples()])
    torch.manual_seed(5)
    found = pipeline.vae.encode(pixels).latent_dist.sample().detach()
    seen = []

    def loss(step):
        seen.append(step.batch["latents"])
        return next(trained.parameters()).sum()

    trained = net()
    torch.manual_seed(5)
    batch = {"pixel_values": pixels, "captions": ["a", "b", "c"]}
    hn.train_hypernetwork(trained, pipeline, batch, torch.optim.SGD(trained.parameters()), loss=loss)
    torch.testing.assert_close(seen[0], (found - (shift or 0.0)) * pipeline.vae.config.scaling_factor)


def test_a_batch_has_latents_captions_and_conditions_of_the_same_examples(pipeline):
    given = [Example(e.image, f"caption {i}", f"style {i}") for i, e in enumerate(examples())]
    data = encoded(pipeline, given, latent_sampling="deterministic")
    whole, some = (data.batch(indices, generators(0, len(indices))) for indices in ([0, 1, 2], [2, 0]))
    assert some["condition"] == ["style 2", "style 0"]
    for key in ("latents", "encoder_hidden_states"):
        assert torch.equal(some[key], whole[key][[2, 0]])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"caption_template": "[filewords] by [name]"}, "digit 1, printed by me"),
        ({"caption_dropout": 1.0, "caption_template": "a [filewords]"}, ""),
        ({"tag_dropout": 1.0, "caption_template": "a [filewords]"}, "a "),
    ],
)
def test_caption_settings_reach_the_captions(pipeline, config, expected):
    data = encoded(pipeline, examples(), "me", **config)
    data.text = lambda captions: {"encoder_hidden_states": captions}
    assert data.batch([1], generators(0, 1))["encoder_hidden_states"] == [expected]


def test_a_runs_captions_have_the_networks_name(pipeline, tmp_path, monkeypatch):
    seen, embed = [], TextEncoder.__call__

    def watched(self, captions):
        seen.extend(captions)
        return embed(self, captions)

    monkeypatch.setattr(TextEncoder, "__call__", watched)
    config = {"caption_template": "by [name]", "max_steps": 1, "output_dir": str(tmp_path), "progress": False}
    hn.HypernetworkTrainer(net(name="me"), pipeline, config, examples()).train()
    assert set(seen) == {"by me"}


def test_more_texts_than_are_kept_are_still_the_pipelines_own(pipeline, monkeypatch):
    text = TextEncoder(family_of(pipeline))
    size = bytes_of(TextEncoder(family_of(pipeline)).encode(["a"])["a"])
    monkeypatch.setattr("hnkernels.training.data.text_encoder.BYTES_AT_MOST", size)
    for captions in (["a", "b"], ["b", "c"], ["c", "a", "d"]):
        assert torch.equal(text(captions)["encoder_hidden_states"], embedded(pipeline, captions))
        assert len(text._known) <= 4


class Painter:
    """A pipeline that notes how it is called. It has the text encoder of a real one."""

    def __init__(self, pipeline, adapter=None):
        self.text_encoder, self.encode_prompt = pipeline.text_encoder, pipeline.encode_prompt
        self.unet, self.tokenizer = pipeline.unet, pipeline.tokenizer
        self._progress_bar_config = {"desc": "mine"}
        self.adapter, self.calls = adapter, []

    def set_progress_bar_config(self, **config):
        self._progress_bar_config = config

    def __call__(self, prompt, **options):
        weights = self.adapter and (self.adapter.weights, self.adapter.guidance)
        self.calls.append((prompt, options, options["generator"].initial_seed(), weights))
        return SimpleNamespace(images=[Image.new("RGB", (4, 4))])


def test_a_preview_follows_its_settings_and_leaves_the_progress_bar_alone(pipeline, tmp_path):
    painter = Painter(pipeline)
    config = TrainingConfig(preview_prompts=("a", "b"), preview_inference_steps=3, preview_guidance=2.5, seed=7)
    write_preview(painter, config, tmp_path / "preview.png", None)
    assert [prompt for prompt, *_ in painter.calls] == ["a", "b"]
    for _, options, seed, _ in painter.calls:
        assert (options["num_inference_steps"], options["guidance_scale"], seed) == (3, 2.5, 7)
    assert painter._progress_bar_config == {"desc": "mine", "disable": False}


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("conditions", [(), ("ink", {"ink": 0.5, "oil": 0.5})])
def test_every_preview_has_its_own_condition_and_guides_as_the_pipeline_does(pipeline, tmp_path, conditions, guidance):
    width = pipeline.unet.config.cross_attention_dim
    gen = hn.WeightHypernetwork(embedding_dim=width, hidden_dim=8, model=pipeline, styles=("ink", "oil")).eval()
    prompts = ("digit one", "letter b")
    config = TrainingConfig(preview_prompts=prompts, preview_conditions=conditions, preview_guidance=guidance)
    with hn.attach(pipeline.unet, gen) as adapter:
        painter = Painter(pipeline, adapter)
        write_preview(painter, config, tmp_path / "preview.png", adapter)
    given = conditions or [embedded(pipeline, [prompt]) for prompt in prompts]
    for (_, _, _, (weights, guided)), condition in zip(painter.calls, given, strict=True):
        assert guided is (guidance > 1)  # where diffusers doubles the batch
        for a, b in zip(weights._groups.values(), gen(condition)._groups.values(), strict=True):
            torch.testing.assert_close(a, b)
