"""Files of networks of either kind, by one name for reading and one for writing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hnkernels.checkpoint import CheckpointError, files

if TYPE_CHECKING:
    from hnkernels.generator import WeightHypernetwork
    from hnkernels.network.hypernetwork import Hypernetwork


def load_hypernetwork(
    path: str | os.PathLike[str], *, allow_legacy_activations: bool = False
) -> Hypernetwork | WeightHypernetwork:
    """Loads a network of either kind; never executes code from the file.

    Args:
        path: a ``.pt`` file of AUTOMATIC1111 in any of its variants since October 2022, or a ``.safetensors`` file
            of ``save_hypernetwork``.
        allow_legacy_activations: accept the softmax family, which mixes the items of a batch.

    Returns:
        The network on the CPU, in eval mode, in the dtype of the file (fp32 for A1111's), with what the file says
        about its origin in ``provenance``. For a ``.pt`` file that says nothing about an option, A1111's default
        counts: layer structure [1, 2, 1], no activation, no dropout, activated output.

    Raises:
        CheckpointError: the file is missing, damaged, hostile, not a hypernetwork, holds NaN or infinite weights, or
            contradicts itself. The message names the file, the fault, and what to do.
    """
    if os.fspath(path).lower().endswith(".safetensors"):
        from hnkernels.generator.files import NETWORK
        from hnkernels.generator.hypernetwork import WeightHypernetwork
        from hnkernels.generator.summary import kind_of

        kind = kind_of(path)
        if kind == NETWORK:
            return WeightHypernetwork.load(path)
        if kind is not None:
            raise CheckpointError(f"{os.fspath(path)}: holds {kind}, not a network; load it with GeneratedWeights.load")
    return files.load_hypernetwork(path, allow_legacy_activations=allow_legacy_activations)


def save_hypernetwork(net: Hypernetwork | WeightHypernetwork, path: str | os.PathLike[str]) -> None:
    """Saves a network of either kind, so that the file is either new and whole or as it was.

    ``.safetensors`` loses nothing. ``.pt``, for a network that changes the context, is what AUTOMATIC1111 loads:
    tensors always in fp32, the activation ``None`` as ``"linear"``, the init ``"identity"`` as ``"KaimingNormal"``,
    without ``provenance.training``. The same network gives the same bytes. Multipliers, conditions and training mode
    are not part of a file.

    Args:
        net: on any device.
        path: its extension, ``.pt`` or ``.safetensors``, decides the format. An existing file is replaced.

    Raises:
        CheckpointError: the file cannot be written, or could not be read back (NaN or infinite weights, several
            dtypes or entries of ``provenance.training`` that are not texts in ``.safetensors``, no data); a weight
            hypernetwork in ``.pt``, or one with parts that are not hnkernels' own.
        TypeError: ``net`` is not a network.
    """
    from hnkernels.network.hypernetwork import Hypernetwork

    if not isinstance(net, Hypernetwork):
        from hnkernels.generator.hypernetwork import WeightHypernetwork

        if isinstance(net, WeightHypernetwork):
            net.save(path)
            return
    files.save_hypernetwork(net, path)
