"""The nodes for what lies in a model's weights: style mixtures, merged hypernetworks, and LoRA files of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hnkernels.adapter.layers import TARGETS
from hnkernels.checkpoint.atomic import replacing
from hnkernels.convert.lora_export import to_lora
from hnkernels.errors import InputError
from hnkernels.generator import GeneratedWeights, WeightHypernetwork
from hnkernels.integrations.comfyui.acting import STRENGTH, STRENGTHS, Tables
from hnkernels.integrations.comfyui.files import CATEGORY, HYPERNETWORK, context_net
from hnkernels.integrations.comfyui.merging import attention_weights, merge_into
from hnkernels.integrations.original_names import diffusers_names
from hnkernels.integrations.patcher.generated import kohya_lora, renamed, scaled
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.wording import shown

_KINDS = {"attn1 and attn2": TARGETS, "attn1": ("attn1",), "attn2": ("attn2",)}
_STYLES = ("STRING", {"default": "", "placeholder": "ink: 0.7, oil: 0.3"})


def style_mixture(text: str) -> dict[str, float]:
    """``"ink: 0.7, oil: 0.3"`` as a mixture; a style without a number has 1.

    Raises:
        ValueError: it names no style, one of them twice, or something that is not a number.
    """
    mixture: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        name, colon, weight = part.rpartition(":")
        name = name.strip() if colon else part
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            raise InputError(f"{shown(part)} is not a style; write 'ink' or 'ink: 0.7'") from None
        if name in mixture:
            raise InputError(f"the style {shown(name)} is named twice; name it once")
        mixture[name] = value
    if not mixture:
        raise InputError("name the styles to mix, such as 'ink: 0.7, oil: 0.3'")
    return mixture


@torch.no_grad()
def generated(net: Any, styles: str, strength: float) -> GeneratedWeights:
    """One set of weights for a mixture of styles."""
    if not isinstance(net, WeightHypernetwork):
        raise InputError(
            "this is a context hypernetwork, which has no styles; connect it to Apply Hypernetwork instead"
        )
    return net.cpu().generate_weights(style_mixture(styles)).scaled(strength)


class ApplyStyles:
    """Lets the weights that a weight hypernetwork generates for a mixture of styles act on a clone of a model."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = "Generates a LoRA for a mixture of a weight hypernetwork's styles, and puts it on the model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"model": ("MODEL",), "hypernetwork": (HYPERNETWORK,), "styles": _STYLES, "strength": STRENGTH}
        return {"required": required, "optional": {"where": (STRENGTHS,)}}

    def apply(
        self, model: Any, hypernetwork: WeightHypernetwork, styles: str, strength: float, where: Tables = ()
    ) -> tuple[Any]:
        import comfy.sd  # ComfyUI's own: its patches of LoRAs have had several forms

        weights = renamed(generated(hypernetwork, styles, strength), model.model.diffusion_model)
        for table in where:
            weights = scaled(weights, table)
        return (comfy.sd.load_lora_for_models(model, None, kohya_lora(weights.to_lora_state_dict()), 1.0, 0.0)[0],)


class MergeHypernetwork:
    """Puts an affine hypernetwork into the weights of a clone of a model, for ComfyUI's nodes to save."""

    CATEGORY = CATEGORY
    FUNCTION = "merge"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = (
        "Exact, for hypernetworks without activation and LayerNorm. LoRAs go before it: it acts on theirs too."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"model": ("MODEL",), "hypernetwork": (HYPERNETWORK,), "strength": STRENGTH}
        return {"required": {**required, "attention": (list(_KINDS),)}}

    def merge(self, model: Any, hypernetwork: Hypernetwork, strength: float, attention: str) -> tuple[Any]:
        return (merge_into(model, context_net(hypernetwork), strength, _KINDS[attention]),)


class ExportLora:
    """Writes a LoRA into ComfyUI's output folder: of a style mixture, or of an affine hypernetwork as well as its rank
    allows."""

    CATEGORY = CATEGORY
    FUNCTION = "export"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True
    DESCRIPTION = "Writes a LoRA with kohya's keys for a hypernetwork without activation, or for a mixture of styles."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "hypernetwork": (HYPERNETWORK,),
                "strength": STRENGTH,
                "styles": _STYLES,
                "rank": ("INT", {"default": 16, "min": 1, "max": 1280}),
                "filename_prefix": ("STRING", {"default": "loras/hypernetwork"}),
            }
        }

    def export(
        self,
        model: Any,
        hypernetwork: Hypernetwork | WeightHypernetwork,
        strength: float,
        styles: str,
        rank: int,
        filename_prefix: str,
    ) -> dict[str, Any]:
        import folder_paths  # ComfyUI's own

        if isinstance(hypernetwork, Hypernetwork):
            state, report = to_lora(hypernetwork, attention_weights(model), rank, strength)
            said = f"rank {report.rank}, relative error {report.worst:.3g} at worst, {report.dropped:.3g} of it dropped"
        else:
            weights = renamed(generated(hypernetwork, styles, strength), model.model.diffusion_model)
            state = weights.to_lora_state_dict()
            said = f"the weights of {styles.strip()}, exactly"
        unet = model.model.diffusion_model
        folder, name, counter, *_ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        with replacing(path) as file:
            file.write(safetensors.torch.save(kohya_lora(_in_diffusers(state, unet))))
        written = f"{path}: {said}"
        return {"ui": {"text": (written,)}, "result": (written,)}  # "ui" is what ComfyUI keeps in its history


def _in_diffusers(state: dict[str, Tensor], unet: torch.nn.Module) -> dict[str, Tensor]:
    """A LoRA's state dict with diffusers' names, which all programs that read LoRAs know."""
    paths = {key.removeprefix("unet.").partition(".lora_")[0] for key in state}
    named = {path: name for name, path in diffusers_names(unet, paths).items()}
    return {
        f"unet.{named[key.removeprefix('unet.').partition('.lora_')[0]]}.lora_{key.partition('.lora_')[2]}": value
        for key, value in state.items()
    }
