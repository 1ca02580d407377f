"""Running: what a tapped projection returns, given its layer's plan and the present call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hnkernels.adapter import deltas as with_deltas
from hnkernels.adapter.call import Call
from hnkernels.adapter.deltas import GroupedLinear, grouped_linears
from hnkernels.adapter.links import Links, rewrite
from hnkernels.adapter.plan import Plan
from hnkernels.adapter.projecting import Projection, RunLayer, own, plan_of, projected, projection
from hnkernels.adapter.shared_kv import entry_of, of_context, rewritten
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.adapter.trace import changed
from hnkernels.ops.hyper import hyper_kv, hyper_qkv
from hnkernels.triton.support import why_not


def tapped(layer: RunLayer, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The output of the linear for Q, K, V or the layer's output. Shape: [..., d] → [..., n]."""
    call = layer.shared.call(x)
    call.reached[tap.number] = True
    if call.loose and call.pending and layer.number not in call.pending:
        call.pending.clear()  # of a layer that was interrupted
    plan = plan_of(layer, call)
    stream = tap.stream
    deltas = plan.deltas.get(stream, ())
    bare = plan.plain and not args and not kwargs
    if not (plan.links or deltas) or stream not in layer.projections:
        if bare and not deltas and tap.plain:
            _make_ready(layer, call, tap, x, own(tap))
        return changed(tap, deltas, x, args, kwargs)
    if stream == "q":
        q = _all_three(layer, call, plan, x) if bare and tap.plain else None
        if q is not None:
            return q
        if bare and not deltas and tap.plain and not plan.computed and not plan.changed_kv:
            _make_ready(layer, call, tap, x, own(tap))
        return changed(tap, deltas, x, args, kwargs)
    index = 0 if stream == "k" else 1
    if bare and layer.prepared is not None and layer.prepared[0] is x:
        return layer.prepared[1 + index]
    entry = entry_of(layer, call, x)
    if not bare:
        if entry is not None:
            y = rewritten(layer, call, entry, plan.links)[index]
        else:
            y = _pair(layer, call, stream, x, plan.links)[index]
        return changed(tap, deltas, y, args, kwargs)
    if entry is not None:
        return of_context(layer, call, plan, tap, x, entry)
    return _both(layer, call, plan, tap, x)


def _all_three(layer: RunLayer, call: Call, plan: Plan, x: Tensor) -> Tensor | None:
    """Q, with K and V in the same operation, where that saves something: on the Triton backend, or where generated
    weights change them all."""
    if not layer.together:
        return None
    if plan.deltas:
        all_changed = all(plan.deltas.get(stream) for stream in ("q", *STREAMS))
        if plan.links or not all_changed:
            return None
        linears = [GroupedLinear(*own(layer.taps[s]), plan.deltas[s]) for s in ("q", *STREAMS)]
        q, k, v = grouped_linears([(x, linear) for linear in linears])
    else:
        if plan.one_operation is None or not _fits(layer, call, plan, x):
            return None
        w_q, b_q = own(layer.taps["q"])
        (w_k, b_k), (w_v, b_v) = (projection(layer, call, plan, s) for s in STREAMS)
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
        applied = projection(layer, call, plan, stream)
        deltas = plan.deltas.get(stream, ())
        if deltas:
            return with_deltas.linear(x, *applied, deltas)
        _make_ready(layer, call, tap, x, applied)
        return torch.nn.functional.linear(x, *applied)
    if plan.one_operation is not None and not plan.changed_kv:
        (w_k, b_k), (w_v, b_v) = (projection(layer, call, plan, s) for s in STREAMS)
        mlps_k, mlps_v, strength = plan.one_operation
        k, v = hyper_kv(x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strength)
    else:
        pair = rewrite(x, plan.computed)
        k, v = (projected(layer, call, plan, s, y) for s, y in zip(STREAMS, pair, strict=True))
    if stream == "v":  # on its own, or of another tensor than K's
        return v
    call.pending[layer.number] = (x, _version(x), {"v": v})
    return k


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


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _make_ready(layer: RunLayer, call: Call, tap: Tap, x: Tensor, applied: Projection) -> None:
    """The next time the tap applies these for itself."""
    weight, bias = applied
    if call.loose or call.plans is None or call.captured or torch.is_grad_enabled() is not call.grad:
        return
    if layer.watched.get(tap.stream) is own(tap)[0] and weight.device == x.device:
        call.weights[tap.number] = (weight, bias)
