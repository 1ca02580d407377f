"""Running: what a tapped projection returns, given its layer's plan and the present call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hnkernels.adapter import deltas as with_deltas
from hnkernels.adapter.call import Call, Kept, autocast_dtype, to_keep
from hnkernels.adapter.contexts import SharedContext
from hnkernels.adapter.deltas import GroupedLinear, grouped_linears
from hnkernels.adapter.links import Links, rewrite
from hnkernels.adapter.plan import Layer, Plan, make_plan
from hnkernels.adapter.shared import Shared
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.adapter.trace import changed
from hnkernels.ops.folding import fold_projection
from hnkernels.ops.hyper import hyper_kv, hyper_qkv
from hnkernels.ops.portable import project
from hnkernels.triton.support import why_not

Projection = tuple[Tensor, Tensor | None]

# A captured graph reads folded weights at their address: they live as long as the weight that they were made of.
_in_graphs: WeakIdKeyDictionary = WeakIdKeyDictionary()


class RunLayer(Layer, Protocol):
    """What running has to know of a layer.

    Attributes:
        shared_context: whether it may receive a context that other layers receive as well.
        together: whether Q, K and V see one tensor, as far as is known.
        prepared: a context with its K and V, for code that is compiled by itself.
        folds: by stream and folded links, the projection that they live in.
        watched: by stream, the weight whose content the call has proven.
    """

    name: str
    shared: Shared
    shared_context: bool
    projections: dict[str, str]
    together: bool
    prepared: tuple[Tensor, Tensor, Tensor] | None
    folds: dict[tuple[str, Links], Projection]
    watched: dict[str, Tensor]
    peers: Sequence[RunLayer]
    fits: tuple[object, bool]


def tapped(layer: RunLayer, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The output of the linear for Q, K, V or the layer's output. Shape: [..., d] → [..., n]."""
    call = layer.shared.call(x)
    call.reached[tap.number] = True
    plan = plan_of(layer, call)
    stream = tap.stream
    deltas = plan.deltas.get(stream, ())
    bare = plan.plain and not args and not kwargs
    if not (plan.links or deltas) or stream not in layer.projections:
        if bare and not deltas and tap.plain:
            _make_ready(layer, call, tap, x, _own(tap))
        return changed(tap, deltas, x, args, kwargs)
    if stream == "q":
        q = _all_three(layer, call, plan, x) if bare and tap.plain else None
        if q is not None:
            return q
        if bare and not deltas and tap.plain and not plan.computed and not plan.changed_kv:
            _make_ready(layer, call, tap, x, _own(tap))
        return changed(tap, deltas, x, args, kwargs)
    index = 0 if stream == "k" else 1
    if bare and layer.prepared is not None and layer.prepared[0] is x:
        return layer.prepared[1 + index]
    entry = _entry(layer, call, x)
    if not bare:
        if entry is not None:
            y = _rewritten(layer, call, entry, plan.links)[index]
        else:
            y = _pair(layer, call, stream, x, plan.links)[index]
        return changed(tap, deltas, y, args, kwargs)
    if entry is not None:
        return _of_context(layer, call, plan, tap, x, entry)
    return _both(layer, call, plan, tap, x)


def plan_of(layer: RunLayer, call: Call) -> Plan:
    """What the layer does now: as planned for the call, or found out where nothing was proven."""
    grad = torch.is_grad_enabled()
    if call.loose or (layer.deltas and torch._C._current_graph_task_id() != -1):  # in a backward pass
        return make_plan(layer, grad, fold=False, replay=layer.shared.replay())
    if grad is not call.grad:
        return layer.shared.plans_in(grad).of(layer)
    if call.plans is None:
        call.plans = layer.shared.plans_in(grad)
        call.weights = call.plans.weights
    plan = call.plans.of(layer)
    if call.captured and plan.folded and any((stream, plan.folded) not in layer.folds for stream in STREAMS):
        return make_plan(layer, grad, fold=False)  # what is folded in a graph has no value before that runs
    return plan


def computed_links(layer: RunLayer, plan: Plan) -> Links:
    """What is to be computed of a context: all links but those that live in the projections' weights."""
    return plan.computed if plan.plain else plan.links


def grouped_kv(layer: RunLayer, call: Call, entry: SharedContext, links: Links) -> bool:
    """Computes K and V of all layers that see this context after these links in one operation, if that pays.

    It does not with projections that are trained, nor on the portable backend without generated weights.
    """
    x = entry.source()
    assert x is not None
    mlps = [mlp for link in links for mlp in (link.mlp_k, link.mlp_v)]
    group: list[tuple[RunLayer, Plan]] = []
    for peer in layer.peers:
        if peer.shared_context and peer.width == layer.width:
            plan = plan_of(peer, call)
            if plan.plain and not plan.folded and plan.computed == links and (links or plan.changed_kv):
                group.append((peer, plan))
    has_deltas = any(plan.changed_kv for _, plan in group)
    if not has_deltas and (not mlps or why_not(x, mlps) is not None):
        return False
    linears = {
        peer.taps[stream].number: (peer, stream, GroupedLinear(*_own(peer.taps[stream]), plan.deltas.get(stream, ())))
        for peer, plan in group
        for stream in STREAMS
    }
    weights = [t for _, _, g in linears.values() for t in (g.weight, g.bias) if t is not None]
    if not weights or (torch.is_grad_enabled() and any(t.requires_grad for t in weights)):
        return False
    if any(t.device != x.device for t in weights):  # offloaded for now, or on another GPU
        return False
    if not entry.recorded and not all(peer.watched.get(s) is g.weight for peer, s, g in linears.values()):
        return False
    y_k, y_v = _rewritten(layer, call, entry, links)

    def compute() -> Sequence[Tensor]:
        if has_deltas:
            return grouped_linears([(y_k if s == "k" else y_v, g) for _, s, g in linears.values()])
        from hnkernels.ops.fused import project_group

        streams = [STREAMS.index(s) for _, s, _ in linears.values()]
        return project_group(y_k, y_v, [(g.weight, g.bias) for _, _, g in linears.values()], streams)

    results = to_keep(compute)
    for (number, (peer, stream, _)), value in zip(linears.items(), results, strict=True):
        token = _token(peer, call, plan_of(peer, call), stream, x, entry)
        entry.kv[number] = Kept(value, value._version, token, call.serial)
    return True


def _entry(layer: RunLayer, call: Call, x: Tensor) -> SharedContext | None:
    """The entry of a context that layers share; ``None`` where each has to compute for itself."""
    if not layer.shared_context:
        return None
    grad = torch.is_grad_enabled()
    if x is call.context:
        entry = call.entry
    elif grad:  # a checkpointed block that is computed once more uses what was computed outside of it
        entry = layer.shared.contexts.find(x)
    elif call.loose or call.captured:  # nothing is proven here; nothing has a value before the graph runs
        entry = None
    else:
        entry = layer.shared.contexts.open(x)
        entry.check(call.serial)
    return entry if entry is not None and entry.recorded is grad else None


def _rewritten(layer: RunLayer, call: Call, entry: SharedContext, links: Links) -> tuple[Tensor, Tensor]:
    if not links:  # nothing that is kept may hold on to the context itself
        x = entry.source()
        assert x is not None
        return x, x
    with layer.shared.contexts.lock:
        return entry.rewritten(links, call.serial).pair


def _token(layer: RunLayer, call: Call, plan: Plan, stream: str, x: Tensor, entry: SharedContext) -> object:
    """Equal for as long as the layer's K or V of this context stays what it is."""
    rewritten = entry.rewritten(plan.computed, call.serial) if plan.computed else autocast_dtype(x)
    return rewritten, plan.folded, tuple(delta.rows(x).token for delta in plan.deltas.get(stream, ()))


def _of_context(layer: RunLayer, call: Call, plan: Plan, tap: Tap, x: Tensor, entry: SharedContext) -> Tensor:
    """K or V of a context that other layers see as well."""
    with layer.shared.contexts.lock:
        stream, number = tap.stream, tap.number
        weight, _ = _own(tap)
        proven = entry.recorded or layer.watched.get(stream) is weight
        token = _token(layer, call, plan, stream, x, entry)
        kept = _valid(entry, number, token) if proven else None
        group = (id(entry), plan.computed)
        if kept is None and proven and not plan.folded and group not in call.grouped:
            call.grouped.add(group)  # once per call, whatever comes of it
            if grouped_kv(layer, call, entry, plan.computed):
                kept = _valid(entry, number, token)
        if kept is None:
            y = _rewritten(layer, call, entry, plan.computed)[STREAMS.index(stream)]
            if entry.recorded or not proven:
                return _projected(layer, call, plan, stream, y, few_rows=True)
            value = to_keep(lambda: (_projected(layer, call, plan, stream, y, few_rows=True),))[0]
            kept = entry.kv[number] = Kept(value, value._version, token, call.serial)
        if not entry.recorded:
            fresh = kept.serial == call.serial
            call.misses += fresh
            call.hits += not fresh
            if x is call.context and not _once(plan) and autocast_dtype(x) is call.autocast:
                call.kept[number] = kept
        return kept.value


def _valid(entry: SharedContext, number: int, token: object) -> Kept | None:
    kept = entry.kv.get(number)
    return kept if kept is not None and kept.token == token and kept.value._version == kept.version else None


def _once(plan: Plan) -> bool:
    return any(mlp.training for mlp in plan.mlps)


def _all_three(layer: RunLayer, call: Call, plan: Plan, x: Tensor) -> Tensor | None:
    """Q, with K and V in the same operation, where that saves something: on the Triton backend, or where generated
    weights change them all."""
    if not layer.together:
        return None
    if plan.deltas:
        all_changed = all(plan.deltas.get(stream) for stream in ("q", *STREAMS))
        if plan.links or not all_changed:
            return None
        linears = [GroupedLinear(*_own(layer.taps[s]), plan.deltas[s]) for s in ("q", *STREAMS)]
        q, k, v = grouped_linears([(x, linear) for linear in linears])
    else:
        if plan.one_operation is None or not _fits(layer, call, plan, x):
            return None
        w_q, b_q = _own(layer.taps["q"])
        (w_k, b_k), (w_v, b_v) = (_projection(layer, call, plan, s) for s in STREAMS)
        mlps_k, mlps_v, strength = plan.one_operation
        q, k, v = hyper_qkv(x, mlps_k, mlps_v, w_q, w_k, w_v, b_q, b_k, b_v, strength=strength)
    call.pending[layer.number] = (x, _version(x), {"k": k, "v": v})
    return q


def _fits(layer: RunLayer, call: Call, plan: Plan, x: Tensor) -> bool:
    """Whether the Triton backend takes the plan's networks for such an x."""
    key = (plan, x.dtype, x.device, torch.is_autocast_enabled(call.device_type))
    if layer.fits[0] != key:
        layer.fits = (key, why_not(x, plan.mlps) is None)
    return layer.fits[1]


def _both(layer: RunLayer, call: Call, plan: Plan, tap: Tap, x: Tensor) -> Tensor:
    """K and V in one operation when K is asked for; V then finds its half waiting."""
    stream = tap.stream
    waiting = _take(layer, call, stream, x)
    if waiting is not None:
        return waiting
    if not plan.computed:
        projection = _projection(layer, call, plan, stream)
        deltas = plan.deltas.get(stream, ())
        if deltas:
            return with_deltas.linear(x, *projection, deltas)
        _make_ready(layer, call, tap, x, projection)
        return torch.nn.functional.linear(x, *projection)
    if plan.one_operation is not None and not plan.changed_kv:
        (w_k, b_k), (w_v, b_v) = (_projection(layer, call, plan, s) for s in STREAMS)
        mlps_k, mlps_v, strength = plan.one_operation
        k, v = hyper_kv(x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strength)
    else:
        pair = rewrite(x, plan.computed)
        k, v = (_projected(layer, call, plan, s, y) for s, y in zip(STREAMS, pair, strict=True))
    if stream == "v":  # on its own, or of another tensor than K's
        return v
    call.pending[layer.number] = (x, _version(x), {"v": v})
    return k


def _projected(layer: RunLayer, call: Call, plan: Plan, stream: str, y: Tensor, few_rows: bool = False) -> Tensor:
    """K or V of its context after the links."""
    weight, bias = _projection(layer, call, plan, stream)
    deltas = plan.deltas.get(stream, ())
    return with_deltas.linear(y, weight, bias, deltas) if deltas else project(y, weight, bias, few_rows=few_rows)


def _pair(layer: RunLayer, call: Call, stream: str, x: Tensor, links: Links) -> tuple[Tensor, Tensor]:
    """The context for K and for V, computed when K is asked for."""
    if stream == "v":
        waiting = _take(layer, call, "v", x)
        if waiting is not None:
            return x, waiting
    if not links:
        return x, x
    pair = rewrite(x, links)
    if stream == "k":
        call.pending[layer.number] = (x, _version(x), {"v": pair[1]})
    return pair


def _take(layer: RunLayer, call: Call, stream: str, x: Tensor) -> Tensor | None:
    """What was computed of x before it was asked for."""
    waiting = call.pending.get(layer.number)
    if waiting is None or stream not in waiting[2]:
        return None
    if waiting[0] is not x or waiting[1] != _version(x):
        layer.together = layer.together and stream != "k"  # Q and K see different tensors here
        return None
    value = waiting[2].pop(stream)
    if not waiting[2]:
        del call.pending[layer.number]
    return value


def _own(tap: Tap) -> Projection:
    parameters = tap.module._parameters
    weight = parameters["weight"]
    assert weight is not None
    return weight, parameters["bias"]


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _projection(layer: RunLayer, call: Call, plan: Plan, stream: str) -> Projection:
    """Weight and bias, with the folded links in them."""
    weight, bias = _own(layer.taps[stream])
    if not plan.folded:
        return weight, bias
    key = (stream, plan.folded)
    proven = layer.watched.get(stream) is weight
    folded = layer.folds.get(key) if proven else None
    if folded is None:
        streams = (link.stream(stream) for link in plan.folded)  # strengths by row are never folded
        chain = tuple((mlp, mlp.multiplier_at(s)) for mlp, s in streams if not isinstance(s, tuple))
        folded = to_keep(lambda: fold_projection(weight, bias, chain))
        if proven and not call.captured:
            for old in [k for k in layer.folds if k[0] == stream]:
                del layer.folds[old]
            layer.folds[key] = folded
    return folded


def keep_for_graph(layer: RunLayer) -> None:
    """A graph is being captured: what it reads of folded weights stays where it is."""
    for (stream, _), folded in layer.folds.items():
        alive = _in_graphs.setdefault(layer.watched[stream], [])
        if not any(other is folded for other in alive):
            alive.append(folded)


def _make_ready(layer: RunLayer, call: Call, tap: Tap, x: Tensor, projection: Projection) -> None:
    """The next time the tap applies these for itself."""
    weight, bias = projection
    own = tap.module._parameters["weight"]
    if call.loose or call.plans is None or call.captured or torch.is_grad_enabled() is not call.grad:
        return
    if layer.watched.get(tap.stream) is own and weight.device == x.device:
        call.weights[tap.number] = (weight, bias)
