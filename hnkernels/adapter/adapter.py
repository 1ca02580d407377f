"""``attach``, and the handle it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hnkernels import onednn
from hnkernels.adapter.contexts import CacheStats
from hnkernels.adapter.host import Host
from hnkernels.adapter.links import Link
from hnkernels.adapter.sites import (
    TARGETS,
    AdapterError,
    AttentionSpec,
    accepted_targets,
    check_reach,
    find_attention,
)
from hnkernels.adapter.strength import Level, Place, Strength, resolve
from hnkernels.folding import is_affine
from hnkernels.hypernetwork import Hypernetwork
from hnkernels.triton import derived


class Adapter:
    """One hypernetwork on one model. Made by ``attach``; also a context manager that detaches on leaving.

    Attributes:
        net: the hypernetwork. Change its parameters or its mode freely; nothing stale is used. (One exception: a
            write through ``parameter.data``, or the step of an optimiser with ``fused=True`` that trains it on another
            model, leaves no trace in PyTorch's version counter; call ``clear_cache()`` then.) A call of the model, if
            that is not compiled as a whole, moves it to the device of the model's inputs.
        name: by which ``hnkernels.adapters`` finds it.
        strength: factor on the network's multiplier: a number; ``PerRow(0, 1)`` for parts of the batch; or a table such
            as ``{"down": 0.5, "attn2": {"k": 0, "v": 1}, "up": {"block_1": [0.2, 0.4]}, "mid_block.*": 0}``. Where
            several keys fit a layer their strengths multiply, where none does it is 1. As in A1111 strength has no
            effect while the network is in training mode. Reading it gives a copy; assign to change it. With gradient
            checkpointing, change it only after the backward pass, which computes the layers once more.
        enabled: whether the network acts at all.
        targets: the kinds of attention it acts on.
        beside: whether it acts on what the network attached before it acts on, and adds to that one's result. Where
            that one does not act, it takes its place.
        fused: whether ``fuse()`` is in force.
    """

    def __init__(
        self,
        net: Hypernetwork,
        name: str,
        strength: Strength,
        targets: str | Sequence[str],
        beside: bool,
        specs: Sequence[AttentionSpec],
    ):
        self._host: Host | None = None
        self._net = net
        self._name = name
        self.beside = beside
        self.enabled = True
        self.fused = False
        self._layers = [(Place.of(spec.name, spec.kind), spec.width) for spec in specs]
        self._targets = accepted_targets(targets)
        self._levels: dict[tuple, Level] = {}
        self._level_of: dict[int, Level] = {}  # by the site's number
        self._strength: Strength = strength
        self._resolve(strength)

    @property
    def name(self) -> str:
        return self._name

    @property
    def net(self) -> Hypernetwork:
        return self._net

    @net.setter
    def net(self, value: Hypernetwork) -> None:
        if not isinstance(value, Hypernetwork):
            raise ValueError(f"net must be a Hypernetwork, not {type(value).__name__}")
        self._check_reach(value, self._targets)
        self._net = value
        self.fused = self.fused and _all_affine(value)
        self._resolve(self._strength)

    @property
    def strength(self) -> Strength:
        return copy.deepcopy(self._strength)

    @strength.setter
    def strength(self, value: Strength) -> None:
        self._resolve(value)

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
            specs = [site.spec for site in self._host.sites]
            check_reach(type(self._host.model).__name__, specs, list(net), targets)

    def _reached(self) -> list[int]:
        """The numbers of the sites that it reaches."""
        return [i for i, (p, width) in enumerate(self._layers) if p.kind in self._targets and width in self.net]

    def _resolve(self, strength: Strength) -> None:
        """Finds out how strong it is at every site, and tells the host."""
        everywhere = resolve(strength, [place for place, _ in self._layers])  # raises before anything has changed
        self._strength = copy.deepcopy(strength)
        device = next(self.net.parameters()).device
        levels: dict[tuple, Level] = {}
        for resolved in everywhere:
            # Layers that the same entries speak of keep one level, whose tensors a compiled model holds on to.
            level = levels[resolved.origin] = self._levels.get(resolved.origin) or Level()
            level.set(resolved.k, resolved.v, device)
        self._levels = levels
        self._level_of = {i: levels[everywhere[i].origin] for i in self._reached()}
        if self._host is not None:
            self._host.arrange()

    def level_at(self, site: int) -> Level | None:
        """How strong it is at the site with this number; ``None`` where it is not."""
        return self._level_of.get(site)

    def link(self, width: int, level: Level | None) -> Link | None:
        """What it does now with contexts of this width at this strength; ``None`` if nothing."""
        if level is None or not self.enabled:
            return None
        mlp_k, mlp_v = self.net[width]
        k, v = level.tensors if torch.compiler.is_compiling() else (level.k, level.v)
        # In training mode strength has no effect, and so is no reason to tell parts of the batch apart.
        link = Link(
            mlp_k, mlp_v, 1.0 if mlp_k.training else k, 1.0 if mlp_v.training else v, self.beside, self.fused
        )  # fmt: skip
        return link if link.acts else None

    def follow(self, device: torch.device) -> None:
        """Brings the network to a device."""
        here = next(self.net.parameters()).device
        if here.type == "meta":
            return
        if here != device:
            # Parameters that inference mode has touched could not be trained any more.
            with torch.inference_mode(False), torch.no_grad():
                self.net.to(device)
        for level in self._levels.values():
            if level.tensors[0].device != device:
                level.to(device)

    @property
    def attached(self) -> bool:
        """Whether the network is still on the model."""
        return self._host is not None

    def sites(self) -> list[str]:
        """Names of the attention layers that it reaches while it is enabled."""
        self._here()
        return [self._layers[i][0].name for i in self._reached()]

    def schedule(self, strengths: Sequence[Strength] | Callable[[float], Strength]) -> Callable[..., dict]:
        """Lets the strength follow the denoising steps: give the result to a pipeline as ``callback_on_step_end``.

        The first step's strength is set at once, and again after the last step.

        Args:
            strengths: one per step, of which the last also serves all later steps; or a function of the progress, from
                0.0 at the first step to 1.0 at the last.
        """
        if not callable(strengths):
            strengths = list(strengths)
            if not strengths:
                raise ValueError("strengths must have at least one entry")
            for strength in strengths:
                resolve(strength, [place for place, _ in self._layers])

        def at(step: int, steps: int) -> Strength:
            if callable(strengths):
                return strengths(step / max(steps - 1, 1))
            return strengths[min(step, len(strengths) - 1)]

        def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
            steps = pipeline.num_timesteps
            self.strength = at(step + 1 if step + 1 < steps else 0, steps)
            return tensors

        self.strength = at(0, 1)
        return on_step_end

    def stats(self) -> CacheStats:
        """What the cache of this model's prompts holds, and how often it has served; all its adapters share it."""
        return self._here().contexts.stats()

    def fuse(self) -> Adapter:
        """Computes an affine network inside the weights of ``to_k`` and ``to_v``: exact, and free at inference.

        The host's own weights stay untouched; changes of strength or weights are followed. Where a gradient of the
        network is recorded, ``to_k`` is no plain linear (LoRA), strength differs by row or the model is compiled, the
        layer computes unfused.

        Raises:
            AdapterError: the network is not affine or stands beside another, or another network that is not fused
                comes after it.
        """
        host = self._here()
        if self.beside or any(later.beside for later in host.adapters[host.adapters.index(self) + 1 :][:1]):
            raise AdapterError("networks side by side cannot be fused; attach them one after the other")
        if not _all_affine(self.net):
            raise AdapterError(
                "only an affine hypernetwork can be fused: activation None or 'linear', no layer_norm, no active "
                f"dropout (call net.eval()); this one has {self.net.config}"
            )
        for later in host.adapters[host.adapters.index(self) + 1 :]:
            if not later.fused and set(later.targets) & set(self.targets) and set(later.net) & set(self.net):
                raise AdapterError(
                    f"{later.name!r} comes after this network in the chain and is not fused; fuse it "
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
        host.arrange()
        self._host = None
        host.clear()
        onednn.forget()  # what was made of the model's own weights, which nobody watches from now on
        derived.forget()
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
        strength = f"{self._strength:g}" if isinstance(self._strength, (int, float)) else self._strength
        return f"<Adapter {self.name!r} at strength {strength}, {where}>"


def attach(
    model: Any,
    net: Hypernetwork,
    strength: Strength = 1.0,
    targets: Sequence[str] = TARGETS,
    *,
    name: str | None = None,
    beside: bool = False,
) -> Adapter:
    """Lets a hypernetwork act in every attention layer of a model whose context width it knows.

    The model keeps its modules, parameters and state-dict keys; only the inputs of ``to_k`` and ``to_v`` are tapped on
    the instances. Several networks may be attached; they chain in that order and come off in any order. Nothing is
    read from the model's weights, so that it may be on any device or none ("meta") yet.

    Args:
        model: a diffusers pipeline, or a UNet, transformer, ControlNet or other module with attention layers
            (``to_q``, ``to_k``, ``to_v``; see ``hnkernels.adapter.sites.find_attention`` for those with other names),
            also compiled or wrapped in DistributedDataParallel.
        net: the hypernetwork. Its dtype and device may differ from the model's.
        strength: factor on the network's multiplier; see ``Adapter``.
        targets: ``"attn1"`` (self-attention), ``"attn2"`` (cross-attention), or both.
        name: by which ``hnkernels.adapters(model)`` finds it. Without one, the network's own name, numbered if taken.
        beside: act beside the network attached before instead of after it: ``x + s₁·f₁(x) + s₂·f₂(x)``.

    Returns:
        The handle: ``.strength``, ``.fuse()``, ``.detach()``.

    Raises:
        AdapterError: the model has no attention layers, or none of a width that the network has; or the name is taken.
            The model is then as it was.
        ValueError: an argument is of the wrong kind.
    """
    if not isinstance(net, Hypernetwork):
        raise ValueError(f"net must be a Hypernetwork, not {type(net).__name__}; load one with load_hypernetwork(path)")
    targets = accepted_targets(targets)
    module = denoiser(model)
    host = Host.of(module)
    specs = find_attention(module) if host is None else [site.spec for site in host.sites]
    check_reach(type(module).__name__, specs, net.sizes, targets)
    adapter = Adapter(net, _free_name(name, net, host), strength, targets, beside, specs)
    if host is None:
        host = Host(module, specs)
        host.install()
    adapter._host = host
    host.adapters.append(adapter)
    host.arrange()
    return adapter


def denoiser(model: Any) -> nn.Module:
    """The module with the attention layers: a pipeline's UNet or transformer, or the module itself, unwrapped."""
    inside = () if isinstance(model, nn.Module) else (getattr(model, part, None) for part in ("unet", "transformer"))
    for candidate in (*inside, model):
        if isinstance(candidate, nn.Module):
            return _unwrapped(candidate)
    raise ValueError(f"model must be a diffusers pipeline or a torch module, not {type(model).__name__}")


def _all_affine(net: Hypernetwork) -> bool:
    return all(is_affine(mlp) for size in net for mlp in net[size])


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module)
    compiled = getattr(module, "_orig_mod", None)  # torch.compile's wrapper
    return _unwrapped(compiled) if isinstance(compiled, nn.Module) else module


def _free_name(name: str | None, net: Hypernetwork, host: Host | None) -> str:
    taken = {adapter.name for adapter in host.adapters} if host else set()
    if name is None:
        own = net.provenance.name
        return next(n for n in (own, *(f"{own}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    if name in taken:
        raise AdapterError(f"an adapter named {name!r} is on the model already; detach it, or give another name")
    return name
