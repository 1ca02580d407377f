"""A network module for kohya's sd-scripts: ``--network_module hnkernels.integrations.kohya``.

It trains hypernetworks of both kinds on Stable Diffusion 1.x, 2.x (``train_network.py``) and XL
(``sdxl_train_network.py``), with those trainers' data, optimisers, log and samples. The files are hnkernels' own, with
the trainer's ``ss_…`` metadata in safetensors; ``--save_model_as pt`` writes a context hypernetwork for A1111.

``--network_args`` (``name=value`` each):

==================  ====================================================================================================
``kind``            ``context`` (as in the web UIs; the default) or ``weights``
``target_layers``   ``attn1,attn2``; for ``weights`` any selectors of ``WeightHypernetwork``
``dropout``         of hidden units, or of generated ranks; the same as ``--network_dropout``
for ``context``     ``layer_structure=1,2,1``, ``activation=relu`` (or ``none``), ``layer_norm=true``,
                    ``activate_output=true``, ``dropout_structure=0,0.1,0``, ``init=identity``, ``sizes=320,768``
for ``weights``     ``hidden_dim=1024``, ``projections=k,v``, ``head=lora``, ``init=hyperfan-in``,
                    ``pooling=perceiver``, ``styles=ink,oil`` with ``style=ink``; ``--network_dim`` is the rank, 4 if
                    not given
==================  ====================================================================================================

A network module is called with the batch's text embeddings and nothing else of the batch. So a weight hypernetwork is
conditioned on the captions; or, with ``styles`` and ``style``, on one style for the whole run. Several styles are
trained one run after another, each with ``--network_weights FILE --dim_from_weights --network_args style=oil``; or
together, by hnkernels' own trainer.

Nothing is trained in the text encoder: ``--network_train_unet_only`` is needed. ``--network_alpha`` has no effect.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.integrations.kohya.arguments import Arguments
from hnkernels.integrations.kohya.files import load
from hnkernels.integrations.kohya.network import KohyaNetwork

__all__ = ["KohyaNetwork", "create_network", "create_network_from_weights"]


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **network_args: Any,
) -> KohyaNetwork:
    """A new network, as the trainers ask for one.

    Args:
        multiplier: strength.
        network_dim: rank of a weight hypernetwork; without effect on a context hypernetwork.
        network_alpha, vae, text_encoder: not used.
        unet: that the network is for.
        neuron_dropout: ``--network_dropout``.
        network_args: see the module.

    Raises:
        ValueError: an argument is unknown or outside its range.
    """
    arguments = Arguments.of(network_args, neuron_dropout)
    if arguments.kind == "context" and network_dim is not None:
        warnings.warn(
            f"--network_dim {network_dim} has no effect on a context hypernetwork, whose widths --network_args "
            "layer_structure=1,2,1 sets",
            stacklevel=2,
        )
    net = arguments.network(unet, network_dim)
    return KohyaNetwork(net, arguments.targets, arguments.style, multiplier)


def create_network_from_weights(
    multiplier: float,
    file: str,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    weights_sd: Any = None,
    for_inference: bool = False,
    **network_args: Any,
) -> tuple[KohyaNetwork, dict[str, Tensor]]:
    """The network of a file, with its kind, layers and shape: ``--dim_from_weights`` and ``--base_weights``.

    Args:
        multiplier: strength.
        file: ``.safetensors`` or ``.pt``.
        vae, text_encoder, unet, weights_sd: not used.
        for_inference: whether nothing is to be trained.
        network_args: ``target_layers`` of a context hypernetwork, or ``style`` of a weight hypernetwork.

    Returns:
        The network, and its state dict.

    Raises:
        CheckpointError: the file cannot be read.
        ValueError: an argument is unknown, or contradicts the file.
    """
    net = load(Path(file)).float()  # a file of --save_precision fp16 could not be trained as it is
    kind = "weights" if isinstance(net, WeightHypernetwork) else "context"
    arguments = Arguments.of(network_args, kind=kind)
    if arguments.kind != kind or arguments.options or arguments.dropout:
        raise InputError(
            f"{file} says itself what network it holds; of --network_args only target_layers (kind=context) and style "
            "(kind=weights) go with it"
        )
    network = KohyaNetwork(net, arguments.targets, arguments.style, multiplier, for_inference)
    return network, network.state_dict()
