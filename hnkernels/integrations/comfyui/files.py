"""The node that reads a hypernetwork's file, of either kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hnkernels.errors import InputError
from hnkernels.files import load_hypernetwork
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork

CATEGORY = "hnkernels"

HYPERNETWORK = "HNKERNELS_HYPERNETWORK"
"""Type of the wire that a ``Hypernetwork`` or ``WeightHypernetwork`` travels on."""


class LoadHypernetwork:
    """Reads a file of ComfyUI's folder ``models/hypernetworks``."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (HYPERNETWORK, "STRING")
    RETURN_NAMES = ("hypernetwork", "about")
    DESCRIPTION = "Loads a hypernetwork of AUTOMATIC1111 (every variant) or of hnkernels. Code in files is never run."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # ComfyUI's name
        import folder_paths  # ComfyUI's own

        legacy = {"default": False, "tooltip": "Accept softmax activations, which mix the pictures of a batch."}
        return {
            "required": {
                "name": (folder_paths.get_filename_list("hypernetworks"),),
                "allow_softmax": ("BOOLEAN", legacy),
            }
        }

    @classmethod
    def IS_CHANGED(cls, name: str, allow_softmax: bool) -> float:  # ComfyUI's name
        """What is another value when the file has changed."""
        return os.path.getmtime(_path(name))

    def load(self, name: str, allow_softmax: bool) -> tuple[Hypernetwork | WeightHypernetwork, str]:
        net = load_hypernetwork(_path(name), allow_legacy_activations=allow_softmax).requires_grad_(False)
        return net, f"{net.provenance.name}, {net.provenance.step} steps\n{_about(net)}"


def context_net(net: Hypernetwork | WeightHypernetwork) -> Hypernetwork:
    """What came on the wire, if it is a context hypernetwork.

    Raises:
        ValueError: it is a weight hypernetwork.
    """
    if not isinstance(net, Hypernetwork):
        raise InputError("this is a weight hypernetwork; connect it to Apply Style Mixture instead")
    return net


def _about(net: Hypernetwork | WeightHypernetwork) -> str:
    if isinstance(net, Hypernetwork):
        config = net.config
        norm = ", LayerNorm" if config.layer_norm else ""
        return (
            f"widths {', '.join(map(str, net.sizes))}; {config.activation or 'linear'}{norm}; {config.layer_structure}"
        )
    encoder: Any = net.encoder
    styles = ", ".join(encoder.config["styles"]) or "none"
    return f"weight hypernetwork for {len(net.layers)} layers; styles: {styles}"


def _path(name: str) -> Path:
    import folder_paths

    path = folder_paths.get_full_path("hypernetworks", name)
    if path is None:
        raise InputError(f"there is no {name} in the folder hypernetworks any more; refresh ComfyUI's list of files")
    return Path(path)
