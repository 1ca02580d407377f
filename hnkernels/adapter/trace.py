"""The layers while PyTorch's compiler is watching: no plan, no call, nothing kept.

What changes from call to call would be compiled once more every time. A graph reads strengths and generated weights
from tensors that stay the same objects, and computes networks unfused, for a folded weight would be built into it.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from hnkernels.adapter import deltas as with_deltas
from hnkernels.adapter.deltas import GroupedLinear, grouped_linears
from hnkernels.adapter.links import Chain, Link, Links, arguments, in_one_operation, rewrite
from hnkernels.adapter.plan import Layer, acting_deltas
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.ops.hyper import hyper_kv, hyper_qkv
from hnkernels.ops.portable import project
from hnkernels.triton.support import why_not

_CONTEXT = "context for v"
"""What waits where V's own projection is not ours to compute."""


class TracedContext:
    """The model's context while a call is traced: rewritten once, inside the graph.

    Chains are asked once as well: every question takes the compiler time, and is one more thing that a graph guards.
    """

    def __init__(self, source: Tensor):
        self.tensor = source
        self._links: list[tuple[Chain, Links]] = []
        self._rewritten: list[tuple[Links, tuple[Tensor, Tensor]]] = []

    def links(self, chain: Chain) -> Links:
        """What the adapters do at the layers of this chain."""
        for known, links in self._links:
            if known is chain:
                return links
        links = chain.links()
        self._links.append((chain, links))
        return links

    def rewritten(self, links: Links) -> tuple[Tensor, Tensor]:
        """The context for K and for V, after the links."""
        for known, pair in self._rewritten:
            if len(known) == len(links) and all(_same(a, b) for a, b in zip(known, links, strict=True)):
                return pair
        pair = rewrite(self.tensor, links)
        self._rewritten.append((links, pair))
        return pair


def _same(a: Link, b: Link) -> bool:
    mlps = a.mlp_k is b.mlp_k and a.mlp_v is b.mlp_v
    return mlps and a.k is b.k and a.v is b.v and a.parallel == b.parallel


class TracedLayer(Layer, Protocol):
    """What a layer has for traced code.

    Attributes:
        shared_context: whether it may receive the model's context.
        prepared: a context with its K and V, computed outside of a block that is compiled by itself.
        waiting: a tensor, and what was computed of it for taps that are yet to ask.
    """

    shared_context: bool
    projections: dict[str, str]
    prepared: tuple[Tensor, Tensor, Tensor] | None
    waiting: tuple[Tensor, dict[str, Tensor]] | None
    together: bool

    @property
    def traced(self) -> TracedContext | None:
        """The model's context, while that is traced too."""


def traced(layer: TracedLayer, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The output of the linear for Q, K or V for the layer's context x. Shape: [..., d] → [..., n]."""
    stream = tap.stream
    waiting = None if args or kwargs else _take(layer, stream, x)
    if waiting is not None:
        return waiting
    context = layer.traced
    links = layer.chain.links() if context is None else context.links(layer.chain)
    own = acting_deltas(layer.deltas.get(stream, ()))
    if not (links or own) or stream not in layer.projections:
        return changed(tap, own, x, args, kwargs)
    bare = not args and not kwargs and layer.plain
    if stream == "q":
        q = _all_three(layer, x, links) if bare and tap.plain else None
        return changed(tap, own, x, args, kwargs) if q is None else q
    index = STREAMS.index(stream)
    if bare and layer.prepared is not None and layer.prepared[0] is x:
        return layer.prepared[1 + index]
    if not bare:
        return changed(tap, own, _pair(layer, stream, x, links)[index], args, kwargs)
    return _both(layer, stream, x, links)


def changed(tap: Tap, deltas: with_deltas.Deltas, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What the module does, with the generated weights that act on it."""
    if deltas and tap.plain and not args and not kwargs:
        return with_deltas.linear(x, tap.module.weight, tap.module.bias, deltas)  # type: ignore[arg-type]
    return with_deltas.add(tap.inner(x, *args, **kwargs), x, deltas)


def _grouped(layer: TracedLayer, stream: str) -> GroupedLinear:
    module = layer.taps[stream].module
    deltas = acting_deltas(layer.deltas.get(stream, ()))
    return GroupedLinear(module.weight, module.bias, deltas)  # type: ignore[arg-type]


def _all_three(layer: TracedLayer, x: Tensor, links: Links) -> Tensor | None:
    if not layer.together:
        return None
    if layer.deltas:
        q, k, v = (_grouped(layer, stream) for stream in ("q", *STREAMS))
        if links or not (q.deltas and k.deltas and v.deltas):
            return None
        results = tuple(grouped_linears([(x, q), (x, k), (x, v)]))
    else:
        mlps = [mlp for link in links for mlp in (link.mlp_k, link.mlp_v)]
        if not links or why_not(x, mlps) is not None or not in_one_operation(links):
            return None
        q, k, v = (_grouped(layer, stream) for stream in ("q", *STREAMS))
        mlps_k, mlps_v, strength = arguments(links)
        results = hyper_qkv(
            x, mlps_k, mlps_v, q.weight, k.weight, v.weight, q.bias, k.bias, v.bias, strength=strength
        )  # fmt: skip
    layer.waiting = (x, {"k": results[1], "v": results[2]})
    return results[0]


def _both(layer: TracedLayer, stream: str, x: Tensor, links: Links) -> Tensor:
    """K, with V for when that is asked for; or V by itself."""
    context = layer.traced
    if layer.shared_context and context is not None and context.tensor is x:
        pair = context.rewritten(links)
    elif links and in_one_operation(links) and not layer.deltas:
        mlps_k, mlps_v, strength = arguments(links)
        k_linear, v_linear = (_grouped(layer, s) for s in STREAMS)
        k, v = hyper_kv(
            x, mlps_k, mlps_v, k_linear.weight, v_linear.weight, k_linear.bias, v_linear.bias, strength=strength
        )  # fmt: skip
        if stream == "v":
            return v
        layer.waiting = (x, {"v": v})
        return k
    else:
        pair = rewrite(x, links) if links else (x, x)
    if stream == "k":
        layer.waiting = (x, {"v": _projected(layer, "v", pair[1])})
    return _projected(layer, stream, pair[STREAMS.index(stream)])


def _projected(layer: TracedLayer, stream: str, y: Tensor) -> Tensor:
    weight, bias, deltas = _grouped(layer, stream)
    return with_deltas.linear(y, weight, bias, deltas) if deltas else project(y, weight, bias)


def _pair(layer: TracedLayer, stream: str, x: Tensor, links: Links) -> tuple[Tensor, Tensor]:
    if stream == "v":
        waiting = _take(layer, _CONTEXT, x)
        if waiting is not None:
            return x, waiting
    if not links:
        return x, x
    pair = rewrite(x, links)
    if stream == "k":
        layer.waiting = (x, {_CONTEXT: pair[1]})
    return pair


def _take(layer: TracedLayer, stream: str, x: Tensor) -> Tensor | None:
    if layer.waiting is None or stream not in layer.waiting[1]:
        return None
    if layer.waiting[0] is not x:
        layer.together = layer.together and stream != "k"  # Q and K see different tensors here
        return None
    value = layer.waiting[1].pop(stream)
    if not layer.waiting[1]:
        layer.waiting = None  # as it was before the layer: nothing for a graph's guards to see
    return value
