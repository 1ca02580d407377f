"""Nodes for ComfyUI. A file in its folder ``custom_nodes`` with this line makes them known there:

from hnkernels.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
"""

from hnkernels.integrations.comfyui.acting import ApplyHypernetwork, HypernetworkStrengths, HypernetworkTiming
from hnkernels.integrations.comfyui.files import LoadHypernetwork
from hnkernels.integrations.comfyui.hooks import HypernetworkHook
from hnkernels.integrations.comfyui.weights import ApplyStyles, ExportLora, MergeHypernetwork

NODE_CLASS_MAPPINGS = {
    "HnkernelsLoadHypernetwork": LoadHypernetwork,
    "HnkernelsApplyHypernetwork": ApplyHypernetwork,
    "HnkernelsHook": HypernetworkHook,
    "HnkernelsStrengths": HypernetworkStrengths,
    "HnkernelsTiming": HypernetworkTiming,
    "HnkernelsApplyStyles": ApplyStyles,
    "HnkernelsMergeHypernetwork": MergeHypernetwork,
    "HnkernelsExportLora": ExportLora,
}
"""What ComfyUI calls the nodes in its workflows. Names stay as they are, or saved workflows are lost."""

NODE_DISPLAY_NAME_MAPPINGS = {
    "HnkernelsLoadHypernetwork": "Load Hypernetwork (hnkernels)",
    "HnkernelsApplyHypernetwork": "Apply Hypernetwork (hnkernels)",
    "HnkernelsHook": "Create Hook Hypernetwork (hnkernels)",
    "HnkernelsStrengths": "Hypernetwork Strengths by Place (hnkernels)",
    "HnkernelsTiming": "Hypernetwork Timing (hnkernels)",
    "HnkernelsApplyStyles": "Apply Style Mixture (hnkernels)",
    "HnkernelsMergeHypernetwork": "Merge Hypernetwork into Model (hnkernels)",
    "HnkernelsExportLora": "Export Hypernetwork as LoRA (hnkernels)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
