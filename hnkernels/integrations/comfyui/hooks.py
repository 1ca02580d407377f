"""The node that lets a context hypernetwork act on some prompts: those whose conditioning has the hook."""

from __future__ import annotations

from typing import Any

from hnkernels.integrations.comfyui.acting import STRENGTH, STRENGTHS, TIMING, Tables, clock_of
from hnkernels.integrations.comfyui.compiled import WRAPPED, CompiledAgain
from hnkernels.integrations.comfyui.files import CATEGORY, HYPERNETWORK, context_net
from hnkernels.integrations.patcher.applying import context_patches
from hnkernels.integrations.patcher.timing import Timing
from hnkernels.network.hypernetwork import Hypernetwork


class HypernetworkHook:
    """A hook as ComfyUI's nodes for conditionings take it, with masks and ranges of the sampling if they like."""

    CATEGORY = CATEGORY
    FUNCTION = "create"
    RETURN_TYPES = ("HOOKS",)
    DESCRIPTION = (
        "Lets a context hypernetwork act on the prompts that get the hook, as in Cond Set Props, and on no others. It "
        "acts before those that are on the MODEL."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        model = {"tooltip": "A model of the kind that draws: it says which layers there are, and is not changed."}
        return {
            "required": {"model": ("MODEL", model), "hypernetwork": (HYPERNETWORK,), "strength": STRENGTH},
            "optional": {"where": (STRENGTHS,), "when": (TIMING,), "prev_hooks": ("HOOKS",)},
        }

    def create(
        self,
        model: Any,
        hypernetwork: Hypernetwork,
        strength: float,
        where: Tables = (),
        when: Timing | None = None,
        prev_hooks: Any = None,
    ) -> tuple[Any]:
        import comfy.hooks  # ComfyUI's own

        net, clock = context_net(hypernetwork), clock_of(model, when)
        patches = context_patches(model.model.diffusion_model, net, (strength, *where), clock)
        hooks = comfy.hooks.HookGroup() if prev_hooks is None else prev_hooks.clone()
        if patches:
            content = {
                "patches": {f"{kind}_patch": [patch] for kind, patch in patches.items()},
                "wrappers": {WRAPPED: {"hnkernels": [CompiledAgain(patches.values())]}},
            }
            scope = comfy.hooks.EnumHookScope.HookedOnly
            hooks.add(comfy.hooks.TransformerOptionsHook(content, hook_scope=scope))
        return (hooks,)
