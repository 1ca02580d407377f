"""diffusers' names for the layers of an original repository's UNet, which blocks are counted differently in.

``input_blocks.4.1`` is ``down_blocks.1.attentions.0``: an input block is a residual block with its attention, or a
downsampler, and the first is the convolution before them; one of diffusers' blocks is a level of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from hnkernels.adapter.layers import AdapterError

_DOWNSAMPLER = re.compile(r"input_blocks\.\d+\.0\.op")
_ATTENTION = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.1)?\.(transformer_blocks\..+)")
_BLOCK = re.compile(r"output_blocks\.(\d+)\.0")


def diffusers_name(path: str, blocks: int = 3) -> str:
    """diffusers' name of what lies in an attention layer; anything else stays as it is.

    Args:
        path: a name in an original repository's UNet.
        blocks: output blocks of a level, and as many input blocks with its downsampler; 3 in Stable Diffusion 1, 2
            and XL.
    """
    match = _ATTENTION.fullmatch(path)
    if match is None:
        return path
    half, number, rest = match[1], int(match[2]), match[3]
    if half == "middle_block":
        return f"mid_block.attentions.0.{rest}"
    level, attention = divmod(number - (half == "input_blocks"), blocks)
    return f"{'down' if half == 'input_blocks' else 'up'}_blocks.{level}.attentions.{attention}.{rest}"


def diffusers_names(unet: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """diffusers' name → path, for paths into attention layers.

    Raises:
        AdapterError: the UNet is not divided like those of Stable Diffusion 1, 2 and XL, or a path leads elsewhere.
    """
    modules = [name for name, _ in unet.named_modules()]
    levels = 1 + sum(_DOWNSAMPLER.fullmatch(name) is not None for name in modules)
    outputs = len({match[1] for name in modules if (match := _BLOCK.fullmatch(name))})
    if outputs == 0 or outputs % levels:
        raise AdapterError(
            f"{type(unet).__name__} has {outputs} output blocks in {levels} levels; layers are found by name in the "
            "UNets of Stable Diffusion 1, 2 and XL"
        )
    names = {}
    for path in paths:
        name = diffusers_name(path, outputs // levels)
        if name == path:
            raise AdapterError(f"{path} of {type(unet).__name__} has no name in diffusers")
        names[name] = path
    return names
