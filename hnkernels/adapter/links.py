"""What the adapters of a model do with one context: the links of a chain, and how they are applied."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.strength import STREAMS, Level, Value, parts
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.hyper import hyper_context, hyper_context_pair


class Link(NamedTuple):
    """What one adapter does at one layer: its MLPs, their strengths, and whether it is parallel to the link before.

    The strengths are numbers, or tensors in a compiled model; one per part of the batch where they differ by row.
    """

    mlp_k: HypernetworkMLP
    mlp_v: HypernetworkMLP
    k: Value | Tensor
    v: Value | Tensor
    parallel: bool = False
    fused: bool = False

    def acts(self) -> bool:
        """Whether it changes anything."""
        return any(isinstance(s, Tensor) or (any(s) if isinstance(s, tuple) else s != 0) for s in (self.k, self.v))

    def part(self, index: int, count: int) -> Link:
        """The link as it is for one of ``count`` equal parts of the batch."""
        k, v = (s if parts(s) == 1 else s[index * parts(s) // count] for s in (self.k, self.v))  # type: ignore[index]
        return Link(self.mlp_k, self.mlp_v, k, v, self.parallel, self.fused)

    def stream(self, stream: str) -> tuple[HypernetworkMLP, Value | Tensor]:
        """The MLP of stream ``"k"`` or ``"v"`` with its strength."""
        return (self.mlp_k, self.k) if stream == "k" else (self.mlp_v, self.v)


Links = tuple[Link, ...]
"""In order of application."""


class Arguments(NamedTuple):
    """Links as ``hyper_kv`` takes them."""

    mlp_k: list[HypernetworkMLP]
    mlp_v: list[HypernetworkMLP]
    strength: dict[str, list]


def arguments(links: Links) -> Arguments:
    """Those of links for which ``in_one_operation`` holds."""
    chains = {s: [link.stream(s) for link in links] for s in STREAMS}
    mlps_k, mlps_v = ([mlp for mlp, _ in chains[s]] for s in STREAMS)
    return Arguments(mlps_k, mlps_v, {s: [m for _, m in chains[s]] for s in STREAMS})


class LinkSource(Protocol):
    """An adapter that rewrites contexts."""

    parallel: bool
    fused: bool

    def link(self, width: int, level: Level | None) -> Link | None:
        """What it does now with contexts of this width at this strength; ``None`` if nothing."""


class Action(NamedTuple):
    """One adapter at one attention layer, and how strong it is there."""

    adapter: LinkSource
    level: Level | None  # None where it does not reach


class Chain:
    """The adapters of a model at layers of one width, each with its strength there; one for all layers that are alike.

    Args:
        width: of the contexts.
        actions: in the order of the model's adapters.
    """

    def __init__(self, width: int, actions: Sequence[Action]):
        self.width, self.actions = width, tuple(actions)

    def links(self) -> Links:
        """What they do now, in order of application."""
        return acting([(a.adapter.link(self.width, a.level), a.adapter.parallel) for a in self.actions])


def acting(candidates: Iterable[tuple[Link | None, bool]]) -> Links:
    """The links that act, in order. Candidates: each adapter's link, ``None`` if it does not act, and ``parallel``.

    Where the first of several parallel ones does not act, the next of them takes its place.
    """
    links: list[Link] = []
    vacant = True
    for link, parallel in candidates:
        if not parallel:
            vacant = link is None
        elif link is not None and vacant:
            link, vacant = Link(link.mlp_k, link.mlp_v, link.k, link.v, False, link.fused), False
        if link is not None:
            links.append(link)
    return tuple(links)


def in_one_operation(links: Links) -> bool:
    """Whether the links follow one another, none in parallel to another, at the same strengths in the whole batch."""
    return not any(link.parallel for link in links[1:]) and all(
        parts(s) == 1 for link in links for s in (link.k, link.v)
    )


def rewrite(x: Tensor, links: Links) -> tuple[Tensor, Tensor]:
    """The context for K and for V. Shape: [batch, …, d] → two like it."""
    count = math.lcm(*(parts(s) for link in links for s in (link.k, link.v)))
    if count == 1:
        return _rewrite(x, links)
    if x.ndim < 2 or x.shape[0] % count:
        raise AdapterError(
            f"the strengths tell {count} equal parts of a batch apart, and a batch of {x.shape[0] if x.ndim else 0} "
            "has come in; give PerRow as many values as divide it (classifier-free guidance doubles the batch)"
        )
    segments: list[tuple[int, Links]] = []  # how many parts, and what acts there
    for index in range(count):
        parted = [link.part(index, count) for link in links]
        here = acting([(link if link.acts() else None, link.parallel) for link in parted])
        traced = any(isinstance(s, Tensor) for link in here for s in (link.k, link.v))
        if segments and not traced and segments[-1][1] == here:
            segments[-1] = (segments[-1][0] + 1, here)
        else:
            segments.append((1, here))
    rows = x.split([n * (x.shape[0] // count) for n, _ in segments])
    pairs = [_rewrite(part, here) for part, (_, here) in zip(rows, segments, strict=True)]
    y_k, y_v = (torch.cat(pieces) for pieces in zip(*pairs, strict=True))
    return y_k, y_v


def _rewrite(x: Tensor, links: Links) -> tuple[Tensor, Tensor]:
    if in_one_operation(links):
        mlps_k, mlps_v, strength = arguments(links)
        return hyper_context_pair(x, mlps_k, mlps_v, strength=strength)
    y = [x, x]
    groups: list[list[Link]] = []
    for link in links:
        if link.parallel and groups:
            groups[-1].append(link)
        else:
            groups.append([link])
    for group in groups:
        y = [_mixed(y_s, [link.stream(s) for link in group]) for y_s, s in zip(y, STREAMS, strict=True)]
    return y[0], y[1]


def _mixed(y: Tensor, links: list[tuple[HypernetworkMLP, Any]]) -> Tensor:
    """``y + Σ m·f(y)`` over parallel networks."""
    first, *others = (hyper_context(y, mlp, strength=m) for mlp, m in links)
    if not others:
        return first
    # Each result but y itself is what one network adds; in half precision the sum is rounded once.
    wide = torch.promote_types(first.dtype, torch.float32)
    total = first.to(wide)
    for other in others:
        total = total + (other.to(wide) - y.to(wide))
    return total.to(first.dtype)
