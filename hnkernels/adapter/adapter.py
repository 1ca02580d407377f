"""``attach``, and the handle it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hnkernels import onednn
from hnkernels.adapter.host import Host
from hnkernels.adapter.sites import AdapterError, find_attention
from hnkernels.folding import is_affine
from hnkernels.hypernetwork import Hypernetwork
from hnkernels.triton import derived

TARGETS = ("attn1", "attn2")


class Adapter:
    """One hypernetwork on one model. Made by ``attach``; also a context manager that detaches on leaving.

    Attributes:
        net: the hypernetwork. Change its parameters or its mode freely; nothing stale is used. (One exception: a
            write through ``parameter.data``, or the step of an optimiser with ``fused=True`` that trains it on another
            model, leaves no trace in PyTorch's version counter; call ``clear_cache()`` then.)
        strength: factor on the network's multiplier, any float. As in A1111 it has no effect while the network is in
            training mode.
        enabled: whether the network acts at all.
        targets: the kinds of attention it acts on.
        fused: whether ``fuse()`` is in force.
    """

    def __init__(self, net: Hypernetwork, strength: float, targets: tuple[str, ...]):
        self._host: Host | None = None
        self.net = net
        self.strength = strength
        self.targets = targets
        self.enabled = True
        self.fused = False

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"strength must be a number, not {value!r}")
        self._strength = float(value)

    @property
    def attached(self) -> bool:
        """Whether the network is still on the model."""
        return self._host is not None

    def acts_on(self, kind: str, width: int) -> bool:
        """Whether it changes attention layers of this kind and context width now."""
        silent = self.strength == 0 and not self.net.training
        return self.enabled and not silent and kind in self.targets and width in self.net

    def sites(self) -> list[str]:
        """Names of the attention layers that it reaches while it is enabled."""
        return [s.name for s in self._here().sites if s.kind in self.targets and s.width in self.net]

    def fuse(self) -> Adapter:
        """Computes an affine network inside the weights of ``to_k`` and ``to_v``: exact, and free at inference.

        The host's own weights stay untouched; changes of strength or weights are followed. Where a gradient of the
        network is recorded, or ``to_k`` is no plain linear (LoRA), the layer computes unfused.

        Raises:
            AdapterError: the network is not affine, or another network that is not fused comes after it.
        """
        host = self._here()
        if not all(is_affine(mlp) for size in self.net for mlp in self.net[size]):
            raise AdapterError(
                "only an affine hypernetwork can be fused: activation None or 'linear', no layer_norm, no active "
                f"dropout (call net.eval()); this one has {self.net.config}"
            )
        for later in host.adapters[host.adapters.index(self) + 1 :]:
            if not later.fused and set(later.targets) & set(self.targets) and set(later.net) & set(self.net):
                raise AdapterError(
                    f"{later.net.provenance.name!r} comes after this network in the chain and is not fused; fuse it "
                    "first, or attach it earlier"
                )
        self.fused = True
        return self

    def unfuse(self) -> Adapter:
        """Takes ``fuse()`` back."""
        self._here()
        self.fused = False
        return self

    def clear_cache(self) -> None:
        """Forgets everything computed for this model's prompts, and all fused, prepacked and composed weights."""
        self._here().clear()
        onednn.forget()
        derived.forget()

    def detach(self) -> None:
        """Takes the network off the model. Without further adapters the model is as it was before, bit for bit.

        Raises:
            AdapterError: it is off already.
        """
        host = self._here()
        host.adapters.remove(self)
        self._host = None
        host.clear()
        derived.forget()  # composed weights hang on the model's own
        if not host.adapters:
            host.remove()

    def _here(self) -> Host:
        if self._host is None:
            raise AdapterError("this hypernetwork is detached already; attach it again with hnkernels.attach")
        return self._host

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.attached:
            self.detach()

    def __repr__(self) -> str:
        where = f"on {len(self.sites())} attention layers" if self.attached else "detached"
        return f"<Adapter of {self.net.provenance.name!r} at strength {self.strength:g}, {where}>"


def attach(
    model: Any,
    net: Hypernetwork,
    strength: float = 1.0,
    targets: Sequence[str] = TARGETS,
) -> Adapter:
    """Lets a hypernetwork act in every attention layer of a model whose context width it knows.

    The model keeps its modules, parameters and state-dict keys; only the inputs of ``to_k`` and ``to_v`` are tapped on
    the instances. Several networks may be attached; they chain in that order and come off in any order.

    Args:
        model: a diffusers pipeline, or a UNet or other module with attention layers (``to_q``, ``to_k``, ``to_v``).
        net: the hypernetwork, on the model's device. Its dtype may differ from the model's.
        strength: factor on the network's multiplier.
        targets: ``"attn1"`` (self-attention), ``"attn2"`` (cross-attention), or both.

    Returns:
        The handle: ``.strength``, ``.fuse()``, ``.detach()``.

    Raises:
        AdapterError: the model has no attention layers, or none of a width that the network has.
        ValueError: an argument is of the wrong kind.
    """
    if not isinstance(net, Hypernetwork):
        raise ValueError(f"net must be a Hypernetwork, not {type(net).__name__}; load one with load_hypernetwork(path)")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets or not set(targets) <= set(TARGETS):
        raise ValueError(f"targets must be some of {', '.join(TARGETS)}, not {targets!r}")
    module = denoiser(model)
    specs = find_attention(module)
    widths = {spec.width for spec in specs if spec.kind in targets}
    if not widths & set(net):
        raise AdapterError(
            f"{type(module).__name__} has attention contexts of the widths {sorted(widths) or 'none'} in "
            f"{', '.join(targets)}, the hypernetwork is for {sorted(net)}: it is for another model"
        )
    adapter = Adapter(net, strength, targets)  # checks the strength, so that the model is not touched in vain
    host = adapter._host = Host.of(module) or Host(module, specs)
    host.adapters.append(adapter)
    return adapter


def denoiser(model: Any) -> nn.Module:
    """The module with the attention layers: a pipeline's UNet or transformer, or the module itself."""
    for candidate in (getattr(model, "unet", None), getattr(model, "transformer", None), model):
        if isinstance(candidate, nn.Module):
            return candidate
    raise ValueError(f"model must be a diffusers pipeline or a torch module, not {type(model).__name__}")
