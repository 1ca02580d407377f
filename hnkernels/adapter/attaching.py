"""``attach``: puts a hypernetwork of either kind on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from hnkernels.adapter.adapter import Adapter
from hnkernels.adapter.handle import Handle
from hnkernels.adapter.host import Host
from hnkernels.adapter.layers import TARGETS, AdapterError, accepted_targets, check_reach, denoiser, find_attention
from hnkernels.adapter.projections import find_projections
from hnkernels.adapter.strength import Strength
from hnkernels.adapter.weight_adapter import WeightAdapter
from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork

if TYPE_CHECKING:
    from hnkernels.generator import GeneratedWeights, WeightHypernetwork


@overload
def attach(
    model: Any,
    net: Hypernetwork,
    strength: Strength = 1.0,
    targets: Sequence[str] = TARGETS,
    *,
    name: str | None = None,
    parallel: bool = False,
    beside: bool = False,
) -> Adapter: ...


@overload
def attach(
    model: Any, net: WeightHypernetwork | GeneratedWeights, strength: Strength = 1.0, *, name: str | None = None
) -> WeightAdapter: ...


def attach(
    model: Any,
    net: Hypernetwork | WeightHypernetwork | GeneratedWeights,
    strength: Strength = 1.0,
    targets: Sequence[str] = TARGETS,
    *,
    name: str | None = None,
    parallel: bool = False,
    beside: bool = False,
) -> Handle:
    """Lets a hypernetwork act in every attention layer of a model whose context width it knows.

    The model keeps its modules, parameters and state-dict keys; only the inputs of ``to_k`` and ``to_v`` are tapped on
    the instances. Several networks may be attached; they chain in that order and come off in any order. Nothing is
    read from the model's weights, so that it may be on any device or none ("meta") yet.

    A ``WeightHypernetwork`` acts on what its layers say, under a condition; see ``WeightAdapter``. ``GeneratedWeights``
    act at once. Both work on the contexts as the other kind leaves them.

    Args:
        model: a diffusers pipeline, or a UNet, transformer, ControlNet or other module with attention layers
            (``to_q``, ``to_k``, ``to_v``; see ``hnkernels.adapter.layers.find_attention`` for those with other names),
            also compiled or wrapped in DistributedDataParallel.
        net: the hypernetwork. Its dtype and device may differ from the model's.
        strength: factor on the network's multiplier; see ``Adapter``.
        targets: for a ``Hypernetwork``, ``"attn1"`` (self-attention), ``"attn2"`` (cross-attention), or both.
        name: by which ``hnkernels.adapters(model)`` finds it. Without one, the network's own name, numbered if taken.
        parallel: for a ``Hypernetwork``, act in parallel to the network attached before instead of after it:
            ``x + s₁·f₁(x) + s₂·f₂(x)``.
        beside: the former name of ``parallel``.

    Returns:
        The handle, an ``Adapter`` (``.strength``, ``.fuse()``, ``.detach()``) or ``WeightAdapter`` (``.condition(x)``).

    Raises:
        AdapterError: the model has no attention layers, or none of a width that the network has, or others than the
            weights are for; or the name is taken. The model is then as it was.
        ValueError: an argument is of the wrong kind.
    """
    from hnkernels.generator import GeneratedWeights, WeightHypernetwork  # they know the adapter's layers

    if not isinstance(net, (Hypernetwork, WeightHypernetwork, GeneratedWeights)):
        raise InputError(
            f"net must be a Hypernetwork, WeightHypernetwork or GeneratedWeights, not {type(net).__name__}; load one "
            "with load_hypernetwork(path)"
        )
    targets = accepted_targets(targets)
    module = denoiser(model)
    host = Host.of(module)
    specs = find_attention(module) if host is None else [layer.spec for layer in host.layers]
    adapter: Handle
    if isinstance(net, Hypernetwork):
        check_reach(type(module).__name__, specs, net.sizes, targets)
        adapter = Adapter(net, _free_name(name, net, host), strength, targets, parallel or beside, specs)
    else:
        if targets != TARGETS or parallel or beside:
            raise InputError("targets and parallel are for a Hypernetwork; generated weights act on their own layers")
        pipeline = None if isinstance(model, nn.Module) else model
        adapter = WeightAdapter(net, _free_name(name, net, host), strength, pipeline, find_projections(module))
    if host is None:
        host = Host(module, specs)
        host.install()
    adapter._host = host
    try:
        host.add(adapter)
    except BaseException:
        adapter._host = None
        raise
    return adapter


def _free_name(name: str | None, net: Hypernetwork | WeightHypernetwork | GeneratedWeights, host: Host | None) -> str:
    taken = {adapter.name for adapter in host.adapters} if host else set()
    if name is None:
        own = net.provenance.name if isinstance(net, nn.Module) else "weights"
        return next(n for n in (own, *(f"{own}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    if name in taken:
        raise AdapterError(f"an adapter named {name!r} is on the model already; detach it, or give another name")
    return name
