"""K and V of contexts that layers share: kept, or computed for all layers at once where that pays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hnkernels.adapter.call import Call, Kept, autocast_dtype, to_keep
from hnkernels.adapter.contexts import SharedContext
from hnkernels.adapter.deltas import GroupedLinear, grouped_linears
from hnkernels.adapter.links import Links
from hnkernels.adapter.plan import Plan
from hnkernels.adapter.projecting import RunLayer, own, plan_of, projected
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.triton.support import why_not


def entry_of(layer: RunLayer, call: Call, x: Tensor) -> SharedContext | None:
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


def rewritten(layer: RunLayer, call: Call, entry: SharedContext, links: Links) -> tuple[Tensor, Tensor]:
    if not links:  # nothing that is kept may hold on to the context itself
        x = entry.source()
        assert x is not None
        return x, x
    with layer.shared.contexts.lock:
        return entry.rewritten(links, call.serial).pair


def of_context(layer: RunLayer, call: Call, plan: Plan, tap: Tap, x: Tensor, entry: SharedContext) -> Tensor:
    """K or V of a context that other layers see as well."""
    with layer.shared.contexts.lock:
        stream, number = tap.stream, tap.number
        weight, _ = own(tap)
        proven = entry.recorded or layer.watched.get(stream) is weight
        token = _token(layer, call, plan, stream, x, entry)
        kept = _valid(entry, number, token) if proven else None
        group = (id(entry), plan.computed)
        if kept is None and proven and not plan.folded and group not in call.grouped:
            call.grouped.add(group)  # once per call, whatever comes of it
            if grouped_kv(layer, call, entry, plan.computed):
                kept = _valid(entry, number, token)
        if kept is None:
            y = rewritten(layer, call, entry, plan.computed)[STREAMS.index(stream)]
            if entry.recorded or not proven:
                return projected(layer, call, plan, stream, y, few_rows=True)
            value = to_keep(lambda: (projected(layer, call, plan, stream, y, few_rows=True),))[0]
            kept = entry.kv[number] = Kept(value, value._version, token, call.serial)
        if not entry.recorded:
            fresh = kept.serial == call.serial
            call.misses += fresh
            call.hits += not fresh
            if x is call.context and not call.captured and not _once(plan) and autocast_dtype(x) is call.autocast:
                call.kept[number] = kept
        return kept.value


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
        peer.taps[stream].number: (peer, stream, GroupedLinear(*own(peer.taps[stream]), plan.deltas.get(stream, ())))
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
    y_k, y_v = rewritten(layer, call, entry, links)

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


def _token(layer: RunLayer, call: Call, plan: Plan, stream: str, x: Tensor, entry: SharedContext) -> object:
    """Equal for as long as the layer's K or V of this context stays what it is."""
    source = entry.rewritten(plan.computed, call.serial) if plan.computed else autocast_dtype(x)
    return source, plan.folded, tuple(delta.rows(x).token for delta in plan.deltas.get(stream, ()))


def _valid(entry: SharedContext, number: int, token: object) -> Kept | None:
    kept = entry.kv.get(number)
    return kept if kept is not None and kept.token == token and kept.value._version == kept.version else None


def _once(plan: Plan) -> bool:
    return any(mlp.training for mlp in plan.mlps)
