"""Every family is trained for the very loss that its authors trained it for, computed here by hand in float64."""

import copy
import math

import pytest
import torch
from PIL import Image

import hnkernels as hn
from hnkernels.adapter.layers import find_attention
from hnkernels.training import Example, denoising
from hnkernels.training.families import FAMILIES, family_of
from tests.models import randomise, reference_of, relative_error
from tests.training.families import pipelines

RAMP, DISC = (gradient("L") for gradient in (Image.linear_gradient, Image.radial_gradient))
SHOWN = [(RAMP, DISC, (24, 20), "a digit one"), (DISC, RAMP, (16, 30), "a letter, two")]
PICTURES = [
    Example(image.resize(size).convert("RGB"), caption, source=other.resize(size).convert("RGB"))
    for image, other, size, caption in SHOWN
]


def ddpm(pipeline, batch):
    """Noisy latents and the noise, by the scheduler's own betas."""
    config = pipeline.scheduler.config
    start, end = config.beta_start, config.beta_end
    if config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float32) ** 2
    else:
        betas = torch.linspace(start, end, 1000, dtype=torch.float32)
    kept = torch.cumprod(1 - betas, 0).double()[batch["timesteps"]][:, None, None, None]
    x, noise = batch["latents"].double(), batch["noise"].double()
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * x
    target = velocity if config.get("prediction_type") == "v_prediction" else noise
    return kept.sqrt() * x + (1 - kept).sqrt() * noise, target


def flow(batch):
    sigma = batch["timesteps"].double()[:, None, None, None] / 1000
    x, noise = batch["latents"].double(), batch["noise"].double()
    return (1 - sigma) * x + sigma * noise, noise - x


def by_unet(pipeline, batch):
    noisy, target = ddpm(pipeline, batch)
    beside = [batch[key].double() for key in ("mask", "masked_latents", "source_latents") if key in batch]
    told = {}
    if "time_ids" in batch:
        told["added_cond_kwargs"] = {key: batch[key].double() for key in ("text_embeds", "time_ids")}
    text = batch["encoder_hidden_states"].double()
    prediction = pipeline.unet(torch.cat([noisy, *beside], 1), batch["timesteps"], text, **told).sample
    return (prediction - target).square().mean()


def by_pixart(pipeline, batch):
    noisy, target = ddpm(pipeline, batch)
    prediction = pipeline.transformer(
        noisy,
        encoder_hidden_states=batch["encoder_hidden_states"].double(),
        encoder_attention_mask=batch["encoder_attention_mask"],
        timestep=batch["timesteps"],
        added_cond_kwargs={key: batch.get(key) for key in ("resolution", "aspect_ratio")},
    ).sample
    return (prediction.chunk(2, 1)[0] - target).square().mean()


def by_sana(pipeline, batch):
    noisy, target = flow(batch)
    prediction = pipeline.transformer(
        noisy,
        encoder_hidden_states=batch["encoder_hidden_states"].double(),
        encoder_attention_mask=batch["encoder_attention_mask"],
        timestep=batch["timesteps"],
    ).sample
    return (prediction - target).square().mean()


def by_sd3(pipeline, batch):
    noisy, target = flow(batch)
    prediction = pipeline.transformer(
        noisy, batch["encoder_hidden_states"].double(), batch["pooled_projections"].double(), batch["timesteps"]
    ).sample
    return (prediction - target).square().mean()


def by_flux(pipeline, batch):
    noisy, target = flow(batch)
    b, c, h, w = noisy.shape
    prediction = pipeline.transformer(
        pipeline._pack_latents(noisy, b, c, h, w),
        batch["encoder_hidden_states"].double(),
        batch["pooled_projections"].double(),
        batch["timesteps"].double() / 1000,
        pipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float64),
        torch.zeros(batch["encoder_hidden_states"].shape[1], 3),
        torch.ones(b, dtype=torch.float64) if pipeline.transformer.config.guidance_embeds else None,
    ).sample
    scale = pipeline.vae_scale_factor
    return (pipeline._unpack_latents(prediction, h * scale, w * scale, scale) - target).square().mean()


HANDS = {
    "stable_diffusion": by_unet, "velocity": by_unet, "xl": by_unet, "refiner": by_unet, "pixart": by_pixart,
    "pixart_with_sizes": by_pixart, "sana": by_sana, "stable_diffusion_3": by_sd3, "flux": by_flux,
    "flux_with_guidance": by_flux, "inpainting": by_unet, "edits": by_unet, "inpainting_xl": by_unet,
}  # fmt: skip


def make(name):
    pipeline = copy.deepcopy(getattr(pipelines, name)()).to(dtype=torch.float64)
    for part in ("text_encoder", "text_encoder_2"):  # some versions of transformers cannot run CLIP in float64
        if isinstance(encoder := pipeline.components.get(part), torch.nn.Module):
            encoder.float()
    model = family_of(pipeline).model
    torch.manual_seed(1)
    net = hn.Hypernetwork(sorted({spec.width for spec in find_attention(model)}), activation="swish")
    randomise(net, 0.1)
    return pipeline, model, net


def by_hand(name, pipeline, model, net, batch):
    """The loss with the network's MLPs called before the projections, as the web UIs do."""
    mlps = {d: [reference_of(mlp) for mlp in net[d]] for d in net}
    hooks = []
    for spec in find_attention(model):
        for stream in "kv":
            mlp = mlps[spec.width]["kv".index(stream)]
            linear = model.get_submodule(spec.projection(stream))
            hooks.append(linear.register_forward_pre_hook(lambda _, args, mlp=mlp: (mlp(args[0]),)))
    try:
        with torch.no_grad():
            return HANDS[name](pipeline, batch).item()
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", HANDS)
def test_a_run_brings_down_the_loss_of_its_family(name, tmp_path):
    pipeline, model, net = make(name)
    seen = []

    def watched(step):
        loss = denoising(step)
        seen.append((copy.deepcopy(net), dict(step.batch), loss.item()))
        return loss

    config = {
        "max_steps": 3, "batch_size": 2, "learning_rate": 1e-2, "resolution": 16, "progress": False,
        "output_dir": str(tmp_path),
    }  # fmt: skip
    hn.HypernetworkTrainer(net, pipeline, config, PICTURES, loss=watched).train()
    assert len(seen) == 3
    for then, batch, loss in seen:
        assert loss == pytest.approx(by_hand(name, pipeline, model, then, batch), rel=1e-6)
    assert relative_error(*(next(iter(n.parameters())).detach() for n in (seen[-1][0], seen[0][0]))) > 1e-3


def test_every_family_is_tried_here():
    tried = {type(family_of(getattr(pipelines, name)())) for name in HANDS}
    assert tried == set(FAMILIES)


@pytest.mark.parametrize("name", ["xl", "refiner"])
def test_sdxl_is_told_the_sizes_of_each_picture(name):
    family = family_of(getattr(pipelines, name)())
    ids = family.of_picture(original=(640, 480), crop=(3, 5), size=(1024, 768))["time_ids"].tolist()
    assert ids == ([480, 640, 5, 3, 768, 1024] if name == "xl" else [480, 640, 5, 3, 6.0])


def test_a_bare_refiner_is_known_by_the_width_of_its_text():
    refiner = pipelines.unet(
        cross_attention_dim=1280, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=28,
    )  # fmt: skip
    assert type(family_of(refiner)).__name__ == "StableDiffusionXLRefiner"


@pytest.mark.parametrize("name", ["xl", "refiner", "pixart", "sana", "stable_diffusion_3", "flux"])
def test_text_is_what_the_pipeline_samples_with(name):
    pipeline = getattr(pipelines, name)()
    model, seen = family_of(pipeline).model, {}

    def note(_, args, kwargs):
        seen.update(kwargs | kwargs.get("added_cond_kwargs", {}))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    options = {"image": torch.rand(1, 3, 32, 32), "strength": 1.0} if name == "refiner" else {"height": 32, "width": 32}
    if name in ("pixart", "sana"):
        options["use_resolution_binning"] = False
    try:
        pipeline("a digit one", num_inference_steps=1, guidance_scale=0.0, output_type="latent", **options)
    finally:
        hook.remove()
    text = family_of(pipeline).text(["a digit one"])
    for key, value in text.items():
        torch.testing.assert_close(seen[key], value)


def test_a_model_of_no_family_is_refused_by_name():
    with pytest.raises(ValueError, match=r"training is not for this UNet2DConditionModel \(in_channels 5, .*Flux$"):
        family_of(pipelines.unet(in_channels=5))
    with pytest.raises(ValueError, match="training needs a UNet or transformer of diffusers, not Linear"):
        family_of(torch.nn.Linear(2, 2))


def test_flow_matching_draws_timesteps_by_the_models_shift():
    for name, shift in (("stable_diffusion_3", 3.0), ("flux", math.exp(0.5 + 0.65 * (16 - 256) / 3840))):
        noising = family_of(getattr(pipelines, name)()).noising()
        generators = [torch.Generator().manual_seed(i) for i in range(200)]
        drawn = torch.stack([noising.draw("auto", 0, 1000, (4, 8, 8), g) for g in generators]) / 1000
        generators = [torch.Generator().manual_seed(i) for i in range(200)]
        u = torch.stack([torch.randn((), generator=g).sigmoid() for g in generators])
        torch.testing.assert_close(drawn, shift * u / (1 + (shift - 1) * u))
