"""Loading a diffusers pipeline from a local folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hnkernels.errors import InputError

_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[^.]+))?\.(?:safetensors|bin)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def check_pipeline(folder: Path) -> None:
    """Raises ``ValueError`` if there is not a pipeline in the folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"{folder} is not a diffusers pipeline: there is no model_index.json in it; give a folder that "
            "save_pretrained has written, or tiny-sd"
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "_class_name" not in content:
        raise InputError(f"{index} does not name the class of a pipeline; write the folder again with save_pretrained")


MODEL_DTYPES = ("fp32", "fp16", "bf16", "fp8")


def load_pipeline(folder: Path, device: Any = None, dtype: str = "fp32") -> Any:
    """The diffusers pipeline in a folder, without reaching for the network.

    Where there are only files of a variant (``….fp16.safetensors``), these are read.

    Args:
        folder: the pipeline's.
        device: where it goes; ``None`` for the GPU if there is one.
        dtype: of ``MODEL_DTYPES``. With ``"fp8"`` the denoiser's weights lie in 8 bits and are cast to bfloat16 layer
            by layer; the rest is in bfloat16.

    For programs, not for libraries: it switches off the loading bars and warnings of diffusers and transformers.

    Raises:
        ValueError: there is not a pipeline in the folder, or it cannot be loaded.
    """
    check_pipeline(folder)
    variant = _variant(folder)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # it would warn that torchvision, which is not needed, is missing
    transformers.logging.disable_progress_bar()
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # some versions warn of parts that are to stay in fp32 where there are none
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, variant=variant, local_files_only=True)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder} cannot be loaded as a pipeline: {error}") from error
    computed = {"fp32": torch.float32, "fp16": torch.float16}.get(dtype, torch.bfloat16)
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"), computed)
    if dtype == "fp8":
        _denoiser(pipeline).enable_layerwise_casting(torch.float8_e4m3fn, computed)
    return pipeline


def offload_by_groups(pipeline: Any) -> None:
    """Keeps the denoiser's weights in CPU memory and moves a block at a time to where the pipeline is.

    On the CPU they are where they are needed, and nothing is done: diffusers before 0.38 fails where there is no GPU.
    """
    if pipeline.device.type != "cpu":
        _denoiser(pipeline).enable_group_offload(pipeline.device, offload_type="block_level", num_blocks_per_group=1)


def _denoiser(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def _variant(folder: Path) -> str | None:
    """The variant that every part has whose weights are there in variants alone; ``None`` if there is no such part."""
    lacking: dict[str, set[str]] = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {m["variant"] for f in part.iterdir() if (m := _WEIGHTS.fullmatch(_SHARD.sub("", f.name)))}
        if found and None not in found:
            lacking[part.name] = found
    if not lacking:
        return None
    if not (common := set.intersection(*lacking.values())):
        listed = "; ".join(f"{part} has {', '.join(sorted(found))}" for part, found in lacking.items())
        raise InputError(f"{folder} has weights in different variants ({listed}); save it with one, or without")
    return "fp16" if "fp16" in common else min(common)
