"""Trains a hypernetwork on a folder of images, with the options of diffusers' example scripts.

    python examples/train_hypernetwork.py \\
        --pretrained_model_name_or_path="$(python -c 'from hnkernels.assets import TINY_SD; print(TINY_SD)')" \\
        --train_data_dir=my_images --resolution=64 --train_batch_size=4 --max_train_steps=200 \\
        --learning_rate=1e-3 --validation_prompt="digit seven" --output_dir=runs/digits

TINY_SD is the small model that comes with hnkernels; any folder or hub id of a pipeline that hnkernels trains on goes.
Several processes: accelerate launch examples/train_hypernetwork.py …
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline

import hnkernels as hn
from hnkernels.integrations.model_card import model_card
from hnkernels.training.data import read_image_folder
from hnkernels.training.networks import KINDS, new_network


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pretrained_model_name_or_path", required=True, help="Folder, or id on the hub, of a diffusers pipeline.")
    add("--revision", help="Of the model on the hub.")
    add("--variant", help="Of the model's files, for example fp16.")
    add("--train_data_dir", required=True, help="Images, with captions in .txt files or in metadata.jsonl.")
    add("--output_dir", default="hypernetwork-model", help="Where network, checkpoints, pictures and card go.")
    add("--seed", type=int, default=0)
    add("--resolution", type=int, help="Side of the training images; the model's own by default.")
    add("--random_flip", action="store_true", help="Mirror every other image.")
    add("--train_batch_size", type=int, default=16, help="Per process.")
    add("--num_train_epochs", type=int, default=100)
    add("--max_train_steps", type=int, help="Ends the run before num_train_epochs.")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--gradient_checkpointing", action="store_true")
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", default="constant", help="constant, linear, cosine, constant_with_warmup …")
    add("--lr_warmup_steps", type=int, default=0)
    add("--snr_gamma", type=float, help="Min-SNR weighting; 5 is recommended.")
    add("--noise_offset", type=float, default=0.0)
    add("--adam_weight_decay", type=float, default=1e-2)
    add("--max_grad_norm", type=float, default=1.0)
    add("--mixed_precision", default="no", choices=["no", "fp16", "bf16"])
    add("--report_to", action="append", default=[], help="A tracker of accelerate: tensorboard, wandb …")
    add("--checkpointing_steps", type=int, default=500)
    add("--resume_from_checkpoint", help="A checkpoint's folder, or 'latest'.")
    add("--validation_prompt", help="What the pictures during and after training show.")
    add("--num_validation_images", type=int, default=4, help="Pictures after training, for the card.")
    add("--validation_steps", type=int, default=100, help="Steps between the pictures during training.")
    add("--kind", default="context", choices=KINDS, help="Network that changes the context, or generates weights.")
    add("--layer_structure", type=float, nargs="+", default=[1, 2, 1], help="Of a network that changes the context.")
    add("--activation", default="silu", help="Likewise.")
    add("--rank", type=int, default=4, help="Of generated weights.")
    return parser.parse_args(arguments)


def training_config(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of ``HypernetworkTrainer`` that the options mean."""
    constant = args.lr_scheduler == "constant"  # which takes no warm-up, and a longer run can be resumed with it
    return {
        "output_dir": args.output_dir,
        "seed": args.seed,
        "resolution": args.resolution,
        "random_flip": args.random_flip,
        "batch_size": args.train_batch_size,
        "max_epochs": args.num_train_epochs,
        "max_steps": args.max_train_steps,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_checkpointing": args.gradient_checkpointing,
        "gradient_clip": args.max_grad_norm,
        "learning_rate": args.learning_rate,
        "lr_scheduler": None if constant else args.lr_scheduler,
        "lr_warmup_steps": 0 if constant else args.lr_warmup_steps,
        "snr_gamma": args.snr_gamma,
        "noise_offset": args.noise_offset,
        "weight_decay": args.adam_weight_decay,
        "mixed_precision": args.mixed_precision,
        "trackers": args.report_to,
        "checkpoint_every": args.checkpointing_steps,
        "preview_prompts": [args.validation_prompt] if args.validation_prompt else [],
        "preview_every": args.validation_steps if args.validation_prompt else 0,
    }


def draw(pipe: Any, net: Any, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Pictures of the validation prompt with the network; (file name, prompt) of each."""
    drawn = []
    adapter = hn.attach(pipe, net)
    for number in range(args.num_validation_images if args.validation_prompt else 0):
        generator = torch.Generator().manual_seed(args.seed + number)
        if args.kind == "weights":
            options = {"device": pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
            with torch.no_grad():
                text = pipe.encode_prompt(args.validation_prompt, **options)[0]
            with torch.no_grad(), adapter.condition(text):
                image = pipe(args.validation_prompt, generator=generator).images[0]
        else:
            image = pipe(args.validation_prompt, generator=generator).images[0]
        image.save(Path(args.output_dir) / f"image_{number}.png")
        drawn.append((f"image_{number}.png", args.validation_prompt))
    adapter.detach()
    return drawn


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    accelerator = Accelerator()
    set_seed(args.seed)
    pipe = DiffusionPipeline.from_pretrained(
        args.pretrained_model_name_or_path, revision=args.revision, variant=args.variant
    ).to(accelerator.device)
    settings = (
        {"layer_structure": args.layer_structure, "activation": args.activation}
        if args.kind == "context"
        else {"rank": args.rank}
    )
    name = Path(args.output_dir).name
    model = getattr(pipe, "unet", None) or pipe.transformer
    net = new_network(args.kind, model, ("attn1", "attn2"), name, settings, [])
    data = read_image_folder(args.train_data_dir)
    trainer = hn.HypernetworkTrainer(net, pipe, training_config(args), data, accelerator=accelerator)
    resume = args.resume_from_checkpoint
    result = trainer.train(resume=True if resume == "latest" else resume or False)
    if accelerator.is_main_process:
        card = model_card(
            net,
            base_model=args.pretrained_model_name_or_path,
            file=result.files[0].name,
            prompt=args.validation_prompt or "a photo",
            images=draw(pipe, net, args),
        )
        card.save(Path(args.output_dir) / "README.md")
        accelerator.print(f"wrote {args.output_dir}: mean loss {result.loss:.4f} after {result.step} steps")
    accelerator.end_training()


if __name__ == "__main__":
    main()
