"""A hypernetwork's file of either kind, for programs that have nothing of hnkernels but its core."""

from __future__ import annotations

import os

from hnkernels.checkpoint import load_hypernetwork
from hnkernels.generator import WeightHypernetwork
from hnkernels.generator.summary import kind_of
from hnkernels.network.hypernetwork import Hypernetwork


def read_network(path: str | os.PathLike[str], legacy: bool = False) -> Hypernetwork | WeightHypernetwork:
    """The network of a file, whichever kind it is, in eval mode and without gradients.

    Args:
        path: ``.pt`` or ``.safetensors``.
        legacy: accept the softmax activations, which mix the pictures of a batch.

    Raises:
        CheckpointError: it cannot be read; the message says why and what to do.
    """
    if kind_of(path) is None:
        return load_hypernetwork(path, allow_legacy_activations=legacy).requires_grad_(False)
    return WeightHypernetwork.load(path).requires_grad_(False)
