"""The way the web UIs run a hypernetwork, on the reference modules: one pair of MLP calls per attention layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

import hnkernels as hn
import reference
from hnkernels.adapter.layers import find_attention


def reference_pair(net: hn.Hypernetwork, size: int) -> tuple[reference.MLP, reference.MLP]:
    """The reference's copies of a network's K and V MLPs for contexts of this width."""
    pair = []
    for mlp in net[size]:
        config = mlp.config
        copy = reference.MLP(
            mlp.dim,
            config.layer_structure,
            config.activation,
            config.layer_norm,
            config.dropout_structure,
            config.activate_output,
        )
        copy.load_state_dict(mlp.state_dict())
        pair.append(copy.train(mlp.training))
    return pair[0], pair[1]


def reference_net(net: hn.Hypernetwork) -> nn.ModuleDict:
    """The reference's copy of a network: width → [K MLP, V MLP]."""
    return nn.ModuleDict({str(size): nn.ModuleList(reference_pair(net, size)) for size in net})


def patch(model: nn.Module, mlps: nn.ModuleDict) -> Callable[[], None]:
    """Puts the MLPs of ``reference_net`` in front of every ``to_k`` and ``to_v``; returns what takes them out again."""
    handles = []
    for spec in find_attention(model):
        if str(spec.width) in mlps:
            mlp_k, mlp_v = mlps[str(spec.width)].children()
            for name, mlp in (("to_k", mlp_k), ("to_v", mlp_v)):
                handles.append(spec.module.get_submodule(name).register_forward_pre_hook(rewriter(mlp)))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def rewriter(mlp: nn.Module) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    return lambda module, args: mlp(args[0])
