"""Trains the embedded model: a small but genuine Stable Diffusion that draws printed characters.

    python -m hnkernels.demo.tiny_sd --out hnkernels/assets/tiny-sd --seed 0

First the autoencoder learns ink in general (strokes.py), then the UNet and the text encoder together learn printed
characters (glyphs.py) in its latent space: epsilon prediction, captions dropped at random for classifier-free guidance,
an exponential moving average of the weights kept. The result is an ordinary StableDiffusionPipeline folder with fp16
weights; `StableDiffusionPipeline.from_pretrained(folder)` loads it as fp32.

The result is a function of the seed, the thread count and the torch build; training.json in the folder records them.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hnkernels.demo.glyphs import DIGIT_WORDS, SIZE, Pictures, printed_glyphs
from hnkernels.demo.latents import encode, to_tensor
from hnkernels.demo.strokes import stroke_pictures
from hnkernels.demo.tokens import MAX_TOKENS, build_tokenizer

LOG = logging.getLogger("hnkernels.demo.tiny_sd")
WORDS = ("digit", "letter", "printed", "handwritten", *DIGIT_WORDS)
CROSS_DIM = 96
LATENT_SIZE = SIZE // 4


@dataclass(frozen=True)
class Recipe:
    """Training lengths and rates. Batch sizes in pictures, learning rates at the top of the cosine."""

    vae_pictures: int = 12000
    vae_steps: int = 2200
    vae_batch: int = 32
    vae_learning_rate: float = 2e-3
    kl_weight: float = 1e-3
    glyphs: int = 12000
    steps: int = 3000
    batch: int = 64
    learning_rate: float = 1.5e-3
    caption_dropout: float = 0.12
    ema_decay: float = 0.995


def build_vae() -> AutoencoderKL:
    """32x32 pictures to 4x8x8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    """Self- and cross-attention at 8x8 (width 48) and 4x4 (width 80), heads of 16 channels."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(48, 80),
        layers_per_block=1,
        cross_attention_dim=CROSS_DIM,
        attention_head_dim=(3, 5),  # the number of heads, whatever diffusers' name for it says
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, as wide as the UNet's cross-attention context."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CROSS_DIM,
        intermediate_size=2 * CROSS_DIM,
        projection_dim=CROSS_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 100) -> LambdaLR:
    """Linear warm-up, then a half cosine down to zero."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup)
        return rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    return LambdaLR(optimizer, factor)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields `steps` index tensors [size], going through a fresh permutation of `count` before repeating any."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]


def train_vae(vae: AutoencoderKL, recipe: Recipe, seed: int) -> None:
    """Trains the autoencoder on distorted ink: squared and absolute error, plus a small KL term."""
    images = to_tensor(stroke_pictures(recipe.vae_pictures, seed))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_learning_rate, weight_decay=1e-4)
    schedule = warmup_cosine(optimizer, recipe.vae_steps)
    started = time.perf_counter()
    for step, chosen in enumerate(batches(len(images), recipe.vae_batch, recipe.vae_steps, generator), start=1):
        target = images[chosen]
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        error = F.mse_loss(decoded, target)
        kl = posterior.kl().sum() / posterior.mean.numel()
        loss = error + 0.2 * F.l1_loss(decoded, target) + recipe.kl_weight * kl
        _step(loss, vae, optimizer, schedule)
        _log("vae", step, recipe.vae_steps, started, mse=error.item(), kl=kl.item())


def train_unet(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    latents: Tensor,
    glyphs: Pictures,
    recipe: Recipe,
    seed: int,
) -> None:
    """Trains UNet and text encoder together on scaled latents [n, 4, 8, 8]; leaves the averaged weights in both."""
    models = torch.nn.ModuleList([unet, text_encoder])
    average = AveragedModel(models, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    optimizer = torch.optim.AdamW(models.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = warmup_cosine(optimizer, recipe.steps)
    alphas = build_scheduler().alphas_cumprod
    captions = ["", *dict.fromkeys(glyphs.captions)]
    ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    caption_of = torch.tensor([captions.index(text) for text in glyphs.captions])
    generator = torch.Generator().manual_seed(seed + 1)
    started = time.perf_counter()
    for step, chosen in enumerate(batches(len(latents), recipe.batch, recipe.steps, generator), start=1):
        kept = torch.rand(len(chosen), generator=generator) >= recipe.caption_dropout
        context = text_encoder(ids[caption_of[chosen] * kept]).last_hidden_state
        noise = torch.randn(latents[chosen].shape, generator=generator)
        times = torch.randint(len(alphas), (len(chosen),), generator=generator)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        loss = F.mse_loss(unet(noisy, times, context).sample, noise)
        _step(loss, models, optimizer, schedule)
        average.update_parameters(models)
        _log("unet", step, recipe.steps, started, loss=loss.item())
    models.load_state_dict(average.module.state_dict())


def train(out: Path, seed: int, recipe: Recipe) -> None:
    """Trains the whole model and writes the pipeline folder `out`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(WORDS, out / "tokenizer")
    vae, unet, text_encoder = build_vae(), build_unet(), build_text_encoder(tokenizer)
    train_vae(vae, recipe, seed)
    vae.eval()
    glyphs = printed_glyphs(recipe.glyphs, seed)
    latents = encode(vae, glyphs.images)
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    LOG.info("latent mean %s, scaling factor %s", latents.mean((0, 2, 3)).tolist(), vae.config.scaling_factor)
    train_unet(unet, text_encoder, tokenizer, latents * vae.config.scaling_factor, glyphs, recipe, seed)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, unet, text_encoder):
        part.to(torch.float16)
    pipeline.save_pretrained(out)
    # transformers loads a model in the dtype its config names, diffusers in fp32: all of it is to load as fp32.
    _set_json(out / "text_encoder" / "config.json", dtype="float32")
    _name_as_before(out / "text_encoder" / "model.safetensors")
    record = {"seed": seed, "threads": torch.get_num_threads(), "torch": torch.__version__, "recipe": vars(recipe)}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _set_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _name_as_before(file: Path, prefix: str = "text_model.") -> None:
    """Gives the text encoder's tensors the names that every version of transformers loads.

    Version 5 saves them without the prefix and loads both forms. Earlier versions do not find names without it, and
    initialise those weights at random.
    """
    tensors = {f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def _step(loss: Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _log(name: str, step: int, steps: int, started: float, **values: float) -> None:
    if step % 50 == 0 or step == steps:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
        LOG.info("%s step %d/%d: %s (%.2f s/step)", name, step, steps, figures, (time.perf_counter() - started) / step)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the embedded Stable Diffusion model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="torch threads; part of what fixes the result")
    parser.add_argument("--vae-steps", type=int, default=Recipe.vae_steps)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="UNet and text encoder steps")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    train(args.out, args.seed, Recipe(vae_steps=args.vae_steps, steps=args.steps))
    LOG.info("wrote %s in %.0f s", args.out, time.perf_counter() - started)


if __name__ == "__main__":
    main()
