"""Loading a diffusers pipeline from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_pipeline(folder: Path) -> Any:
    """The ``StableDiffusionPipeline`` in a folder, on the GPU if there is one, without reaching for the network.

    For programs, not for libraries: it switches off the loading bars and warnings of diffusers and transformers.

    Raises:
        ValueError: there is not a pipeline in the folder, or it cannot be loaded.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a diffusers pipeline: there is no model_index.json in it")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # it would warn that torchvision, which is not needed, is missing
    transformers.logging.disable_progress_bar()
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} cannot be loaded as a Stable Diffusion pipeline: {error}") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
