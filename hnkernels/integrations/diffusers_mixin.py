"""Hypernetworks as methods of a diffusers pipeline, as its LoRAs have them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnkernels.adapter import adapters, attach
from hnkernels.adapter.layers import TARGETS
from hnkernels.adapter.strength import Strength
from hnkernels.checkpoint import load_hypernetwork
from hnkernels.generator import GeneratedWeights, WeightHypernetwork
from hnkernels.generator.files import NETWORK, WEIGHTS
from hnkernels.generator.summary import kind_of

_OF_KIND: dict[str | None, Any] = {
    None: load_hypernetwork,
    NETWORK: WeightHypernetwork.load,
    WEIGHTS: GeneratedWeights.load,
}


class HypernetworkLoaderMixin:
    """Methods of the kind of diffusers' ``LoraLoaderMixin``, over ``hnkernels.attach`` and ``hnkernels.adapters``::

    class MyPipeline(HypernetworkLoaderMixin, StableDiffusionPipeline):
        pass
    """

    def load_hypernetwork(
        self,
        path: str | os.PathLike[str],
        adapter_name: str | None = None,
        strength: Strength = 1.0,
        targets: Sequence[str] = TARGETS,
    ) -> Any:
        """Attaches what a file holds: a hypernetwork of either kind, or generated weights.

        Args:
            path: ``.pt`` or ``.safetensors``; nothing in it is executed.
            adapter_name: by which the other methods find it; without one, the name in the file.
            strength, targets: see ``hnkernels.attach``.

        Returns:
            The handle, an ``Adapter`` or ``WeightAdapter``.

        Raises:
            CheckpointError: the file cannot be read.
            AdapterError: it is for another model, or the name is taken.
        """
        net = _OF_KIND[kind_of(path)](Path(path))
        return attach(self, net, strength, targets, name=adapter_name)

    def set_hypernetworks(
        self, adapter_names: str | Sequence[str], adapter_weights: Strength | Sequence[Strength] | None = None
    ) -> None:
        """Enables these and disables all others; strengths as for ``hnkernels.adapters(pipeline).set``."""
        adapters(self).set(adapter_names, adapter_weights)

    def enable_hypernetworks(self) -> None:
        """Enables all."""
        adapters(self).enable()

    def disable_hypernetworks(self) -> None:
        """Disables all: the pipeline computes as without them, bit for bit."""
        adapters(self).disable()

    def get_active_hypernetworks(self) -> list[str]:
        """The names of those that are enabled."""
        return adapters(self).active

    def get_list_hypernetworks(self) -> list[str]:
        """The names of all, in their order of application."""
        return list(adapters(self))

    def delete_hypernetworks(self, adapter_names: str | Sequence[str]) -> None:
        """Detaches these."""
        adapters(self).delete(*([adapter_names] if isinstance(adapter_names, str) else adapter_names))

    def unload_hypernetworks(self) -> None:
        """Detaches all: the pipeline is as it was before the first."""
        adapters(self).delete(*adapters(self))
