"""A context hypernetwork on a model: the handle that ``attach`` returns for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from hnkernels.adapter.handle import Handle
from hnkernels.adapter.layer import TappedLayer
from hnkernels.adapter.layers import AdapterError, AttentionSpec, accepted_targets, check_reach
from hnkernels.adapter.links import Action, Link
from hnkernels.adapter.proof import Watch
from hnkernels.adapter.strength import Level, Place, Strength
from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.ops.folding import is_affine


class Adapter(Handle):
    """One hypernetwork on one model. Made by ``attach``; also a context manager that detaches on leaving.

    Attributes:
        net: the hypernetwork. Change its parameters or its mode freely; nothing stale is used. (A write that leaves no
            trace in PyTorch's version counter, through ``parameter.data`` say, is seen at the start of the next
            sampling run, but not between two steps of one; call ``clear_cache()`` then.) A call of the model, if that
            is not compiled as a whole, moves it to the device of the model's inputs.
        name: by which ``hnkernels.adapters`` finds it.
        strength: factor on the network's multiplier: a number; ``PerRow(0, 1)`` for parts of the batch; or a table such
            as ``{"down": 0.5, "attn2": {"k": 0, "v": 1}, "up": {"block_1": [0.2, 0.4]}, "mid_block.*": 0}``. Where
            several keys fit a layer their strengths multiply, where none does it is 1. As in A1111 strength has no
            effect while the network is in training mode. Reading it gives a copy; assign to change it. With gradient
            checkpointing, change it only after the backward pass, which computes the layers once more.
        enabled: whether the network acts at all.
        targets: the kinds of attention it acts on.
        parallel: whether it acts on what the network attached before it acts on, and adds to that one's result. Where
            that one does not act, it takes its place.
        fused: whether ``fuse()`` is in force.
    """

    def __init__(
        self,
        net: Hypernetwork,
        name: str,
        strength: Strength,
        targets: str | Sequence[str],
        parallel: bool,
        specs: Sequence[AttentionSpec],
    ):
        self._net = net
        self._parallel = parallel
        self._fused = False
        self._widths = [spec.width for spec in specs]
        self._targets = accepted_targets(targets)
        super().__init__(name, strength, [Place.of(spec.name, spec.kind) for spec in specs])

    @property
    def net(self) -> Hypernetwork:
        return self._net

    @net.setter
    def net(self, value: Hypernetwork) -> None:
        if not isinstance(value, Hypernetwork):
            raise InputError(f"net must be a Hypernetwork, not {type(value).__name__}")
        self._check_reach(value, self._targets)
        self._net = value
        self.fused = self.fused and _all_affine(value)
        self._resolve(self._strength)

    @property
    def parallel(self) -> bool:
        return self._parallel

    @parallel.setter
    def parallel(self, value: bool) -> None:
        self._parallel = value
        self._tell()

    beside = parallel  # its former name

    @property
    def fused(self) -> bool:
        return self._fused

    @fused.setter
    def fused(self, value: bool) -> None:
        self._fused = value
        if self._host is not None:
            self._host.arrange()

    @property
    def targets(self) -> tuple[str, ...]:
        return self._targets

    @targets.setter
    def targets(self, value: str | Sequence[str]) -> None:
        targets = accepted_targets(value)
        self._check_reach(self._net, targets)
        self._targets = targets
        self._resolve(self._strength)

    def _check_reach(self, net: Hypernetwork, targets: tuple[str, ...]) -> None:
        if self._host is not None:
            specs = [layer.spec for layer in self._host.layers]
            check_reach(type(self._host.model).__name__, specs, list(net), targets)

    def _reached(self) -> list[int]:
        places = enumerate(zip(self._places, self._widths, strict=True))
        return [i for i, (place, width) in places if place.kind in self._targets and width in self.net]

    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _move(self, device: torch.device) -> None:
        self.net.to(device)

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.net.parameters()

    def watch(self, watch: Watch) -> None:
        for width in {self._widths[i] for i in self._reached()}:
            watch.network(self.net, f"layers.{width}")

    def arrange(self, layers: Sequence[TappedLayer]) -> None:
        for number, layer in enumerate(layers):
            layer.add_action(Action(self, self._level_of.get(number)))

    def link(self, width: int, level: Level | None) -> Link | None:
        """What it does now with contexts of this width at this strength; ``None`` if nothing."""
        if level is None or not self.enabled:
            return None
        mlp_k, mlp_v = self.net[width]
        values = level.tensors if torch.compiler.is_compiling() else level.values
        k, v = values["k"], values["v"]
        # In training mode strength has no effect, and so is not a reason to tell parts of the batch apart.
        link = Link(
            mlp_k, mlp_v, 1.0 if mlp_k.training else k, 1.0 if mlp_v.training else v, self.parallel, self.fused
        )  # fmt: skip
        return link if link.acts() else None

    def fuse(self) -> Adapter:
        """Computes an affine network inside the weights of ``to_k`` and ``to_v``: exact, and free at inference.

        The host's own weights stay untouched; changes of strength or weights are followed. Where a gradient of the
        network is recorded, ``to_k`` is not a plain linear (LoRA), strength differs by row or the model is compiled,
        the layer computes unfused.

        Raises:
            AdapterError: the network is not affine or is parallel to another, or another network that is not fused
                comes after it.
        """
        host = self._here()
        later = [other for other in host.adapters[host.adapters.index(self) + 1 :] if isinstance(other, Adapter)]
        if self.parallel or any(other.parallel for other in later[:1]):
            raise AdapterError("networks side by side cannot be fused; attach them one after the other")
        if not _all_affine(self.net):
            raise AdapterError(
                "only an affine hypernetwork can be fused: activation None or 'linear', no layer_norm, no active "
                f"dropout (call net.eval()); this one has {self.net.config}"
            )
        for other in later:
            if not other.fused and set(other.targets) & set(self.targets) and set(other.net) & set(self.net):
                raise AdapterError(
                    f"{other.name!r} comes after this network in the chain and is not fused; fuse it "
                    "first, or attach it earlier"
                )
        self.fused = True
        return self

    def unfuse(self) -> Adapter:
        """Takes ``fuse()`` back."""
        self._here()
        self.fused = False
        return self


def _all_affine(net: Hypernetwork) -> bool:
    return all(is_affine(mlp) for size in net for mlp in net[size])
