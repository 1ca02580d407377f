"""The nodes that let a context hypernetwork act on a model: where, when, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnkernels.errors import InputError
from hnkernels.integrations.comfyui.compiled import WRAPPED, CompiledAgain
from hnkernels.integrations.comfyui.files import CATEGORY, HYPERNETWORK, context_net
from hnkernels.integrations.patcher.applying import apply_context, strength_table
from hnkernels.integrations.patcher.context_patch import ROWS
from hnkernels.integrations.patcher.timing import Clock, Timing
from hnkernels.network.hypernetwork import Hypernetwork

STRENGTHS = "HNKERNELS_STRENGTHS"
TIMING = "HNKERNELS_TIMING"
STRENGTH = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})

_PLACES = ("down", "mid", "up", "attn1", "attn2", "k", "v")
_SHARE = {"min": 0.0, "max": 1.0, "step": 0.001}

Tables = tuple[Mapping[str, Any], ...]


class HypernetworkStrengths:
    """Strengths by part of the UNet, kind of attention and stream, and by block in a table."""

    CATEGORY = CATEGORY
    FUNCTION = "strengths"
    RETURN_TYPES = (STRENGTHS,)
    RETURN_NAMES = ("where",)
    DESCRIPTION = (
        "Factors on a hypernetwork's strength. The table is JSON: down, mid, up, inside these block_<n> with ComfyUI's "
        "numbers, attn1, attn2, k, v, and patterns of layer names; factors that fit a layer multiply."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        table = {"default": "", "multiline": True, "placeholder": '{"up": {"block_3": 0.5, "attn2": {"k": 0}}}'}
        return {"required": {**dict.fromkeys(_PLACES, STRENGTH), "table": ("STRING", table)}}

    def strengths(self, table: str, **places: float) -> tuple[Tables]:
        # A place that a model has not is named only if something is asked of it.
        named = {place: value for place, value in places.items() if value != 1}
        return (tuple(part for part in (named, strength_table(table)) if part),)


class HypernetworkTiming:
    """When a hypernetwork acts while a picture is drawn."""

    CATEGORY = CATEGORY
    FUNCTION = "timing"
    RETURN_TYPES = (TIMING,)
    RETURN_NAMES = ("when",)
    DESCRIPTION = (
        "From which share of the sampling to which a hypernetwork acts, and factors on its strength: one per step, of "
        "which the last serves all later steps, or spread over all steps."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "start_percent": ("FLOAT", {"default": 0.0, **_SHARE}),
                "end_percent": ("FLOAT", {"default": 1.0, **_SHARE}),
                "strengths": ("STRING", {"default": "", "placeholder": "0, 0.5, 1"}),
                "spread": (["one per step", "over all steps"],),
            }
        }

    def timing(self, start_percent: float, end_percent: float, strengths: str, spread: str) -> tuple[Timing]:
        try:
            values = [float(part) for part in strengths.replace(",", " ").split()]
        except ValueError:
            raise InputError(f"strengths must be numbers such as '0, 0.5, 1', not {strengths!r}") from None
        return (Timing(start_percent, end_percent, values, spread == "over all steps"),)


class ApplyHypernetwork:
    """Lets a context hypernetwork act on a clone of a model, after the hypernetworks that act on it already."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = "Rewrites what attention makes keys and values of. Several in a row chain in that order."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "hypernetwork": (HYPERNETWORK,),
                "strength": STRENGTH,
                "rows": (list(ROWS), {"tooltip": "Act on all prompts, or on the positive or the negative ones alone."}),
            },
            "optional": {"where": (STRENGTHS,), "when": (TIMING,)},
        }

    def apply(
        self,
        model: Any,
        hypernetwork: Hypernetwork,
        strength: float,
        rows: str = "all",
        where: Tables = (),
        when: Timing | None = None,
    ) -> tuple[Any]:
        net = context_net(hypernetwork)
        if strength == 0:
            return (model,)
        clone, patches = apply_context(model, net, (strength, *where), clock_of(model, when), rows)
        if patches and hasattr(clone, "add_wrapper_with_key"):  # not in old patchers
            clone.add_wrapper_with_key(WRAPPED, "hnkernels", CompiledAgain(patches))
        return (clone,)


def clock_of(model: Any, when: Timing | None) -> Clock | None:
    """A timing by the noise schedule of a patched model."""
    return None if when is None else when.clock(model.get_model_object("model_sampling").percent_to_sigma)
