"""A checkpoint in one file as a folder of diffusers, which training takes.

It is run as a program, ``python -m hnkernels.integrations.training.single_file CHECKPOINT FOLDER``: the memory that it
takes is given back when it ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors

from hnkernels.errors import InputError

_SDXL = "conditioner.embedders."
"""What keys of SDXL's text encoders start with in such a file."""


def convert(checkpoint: Path, folder: Path) -> None:
    """Writes the pipeline of a checkpoint of Stable Diffusion 1, 2 or XL into a folder, in half precision.

    diffusers asks the hub for the small files that a checkpoint has not: configurations and tokenizers.

    Raises:
        ValueError: it is not a ``.safetensors`` file, or not of one of these models, or damaged.
    """
    if checkpoint.suffix.lower() != ".safetensors":
        raise InputError(f"{checkpoint} is not a .safetensors file; convert it to one, or choose a diffusers folder")
    try:
        with safetensors.safe_open(checkpoint, framework="pt") as content:
            keys = list(content.keys())
    except safetensors.SafetensorError as error:
        raise InputError(f"{checkpoint} is damaged: {error}; fetch it again") from error
    if not any(key.startswith("model.diffusion_model.input_blocks.") for key in keys):
        raise InputError(f"{checkpoint} is not a checkpoint of Stable Diffusion 1, 2 or XL")
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if any(key.startswith(_SDXL) for key in keys) else StableDiffusionPipeline
    pipeline = kind.from_single_file(str(checkpoint), torch_dtype=torch.float16)
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
