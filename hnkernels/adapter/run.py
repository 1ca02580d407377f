"""Running: what a tapped projection returns, given its layer's plan and the present call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hnkernels.adapter import deltas as with_deltas
from hnkernels.adapter.call import Call, Waiting, autocast_dtype, in_backward, version_of
from hnkernels.adapter.deltas import GroupedLinear, grouped_linears
from hnkernels.adapter.links import Links, rewrite
from hnkernels.adapter.plan import Plan
from hnkernels.adapter.projecting import RunLayer, own, plan_of, projected, projection
from hnkernels.adapter.ready import Operation, Run
from hnkernels.adapter.shared_kv import entry_of, of_context, rewritten
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.adapter.trace import changed
from hnkernels.ops.hyper import hyper_kv, hyper_qkv, kv_runner
from hnkernels.triton.support import why_not


def tapped(layer: RunLayer, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The output of the linear for Q, K, V or the layer's output. Shape: [..., d] → [..., n]."""
    call = layer.shared.call(x)
    call.reached[tap.number] = True
    if call.loose and not {other.number for other in layer.taps.values()} & {*call.waiting, *call.rewritten}:
        call.forget_waiting()  # of a layer that was interrupted
    if call.grad and not call.loose:
        layer.unrecorded = not torch.is_grad_enabled()
    elif layer.unrecorded and call.grad and in_backward():
        layer.shared.arrivals.expect(p for adapter in layer.shared.adapters for p in adapter.parameters())
    plan = plan_of(layer, call)
    stream = tap.stream
    deltas = plan.deltas.get(stream, ())
    bare = plan.plain and not args and not kwargs
    if not (plan.links or deltas) or stream not in layer.projections:
        return _alone(layer, call, tap, deltas, x, args, kwargs)
    if stream == "q":
        q = _all_three(layer, call, plan, tap, x) if bare and tap.plain else None
        if q is not None:
            return q
        return _alone(layer, call, tap, deltas, x, args, kwargs)
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


def _alone(
    layer: RunLayer, call: Call, tap: Tap, deltas: with_deltas.Deltas, x: Tensor, args: tuple, kwargs: dict[str, Any]
) -> Tensor:
    """What a projection gives that no other has to do with."""
    y = changed(tap, deltas, x, args, kwargs)
    if tap.plain and not args and not kwargs:
        if not deltas:
            _make_ready(layer, call, [tap], lambda: own(tap))
        else:
            _make_operation(layer, call, [tap], x, partial(with_deltas.runner, x, [GroupedLinear(*own(tap), deltas)]))
    return y


def _all_three(layer: RunLayer, call: Call, plan: Plan, tap: Tap, x: Tensor) -> Tensor | None:
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
        make = partial(with_deltas.runner, x, linears)
    else:
        if plan.one_operation is None or not _fits(layer, call, plan, x):
            return None
        w_q, b_q = own(layer.taps["q"])
        (w_k, b_k), (w_v, b_v) = (projection(layer, call, plan, s) for s in STREAMS)
        mlps_k, mlps_v, strength = plan.one_operation
        q, k, v = hyper_qkv(x, mlps_k, mlps_v, w_q, w_k, w_v, b_q, b_k, b_v, strength=strength)
        make = partial(kv_runner, x, mlps_k, mlps_v, w_k, w_v, w_q, b_k, b_v, b_q, strength=strength)
    taps = [tap, *(layer.taps[s] for s in STREAMS)]
    _make_operation(layer, call, taps, x, make, (0, 1, 2) if plan.deltas else (2, 0, 1))
    _wait(call.waiting, x, taps[1:], (k, v))
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
    waiting = _take(layer, call.waiting, tap, x)
    if waiting is not None:
        return waiting
    if not plan.computed:
        applied = projection(layer, call, plan, stream)
        deltas = plan.deltas.get(stream, ())
        if deltas:
            y = with_deltas.linear(x, *applied, deltas)
            _make_operation(layer, call, [tap], x, partial(with_deltas.runner, x, [GroupedLinear(*applied, deltas)]))
            return y
        _make_ready(layer, call, [tap], lambda: applied)
        return torch.nn.functional.linear(x, *applied)
    if plan.one_operation is not None and not plan.changed_kv:
        (w_k, b_k), (w_v, b_v) = (projection(layer, call, plan, s) for s in STREAMS)
        mlps_k, mlps_v, strength = plan.one_operation
        k, v = hyper_kv(x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strength)
        if stream == "k":
            make = partial(kv_runner, x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strength)
            _make_operation(layer, call, [tap, layer.taps["v"]], x, make, (0, 1))
    else:
        pair = rewrite(x, plan.computed)
        k, v = (projected(layer, call, plan, s, y) for s, y in zip(STREAMS, pair, strict=True))
    if stream == "v":  # on its own, or of another tensor than K's
        return v
    _wait(call.waiting, x, [layer.taps["v"]], [v])
    return k


def _pair(layer: RunLayer, call: Call, stream: str, x: Tensor, links: Links) -> tuple[Tensor, Tensor]:
    """The context for K and for V, computed when K is asked for."""
    if stream == "v":
        waiting = _take(layer, call.rewritten, layer.taps["v"], x)
        if waiting is not None:
            return x, waiting
    if not links:
        return x, x
    pair = rewrite(x, links)
    if stream == "k":
        _wait(call.rewritten, x, [layer.taps["v"]], pair[1:])
    return pair


def _wait(where: dict[int, Waiting], x: Tensor, taps: Sequence[Tap], values: Sequence[Tensor]) -> None:
    """Lays out what was computed of x for taps that have not asked yet."""
    version = version_of(x)
    for tap, value in zip(taps, values, strict=True):
        where[tap.number] = Waiting(x, version, value)


def _take(layer: RunLayer, where: dict[int, Waiting], tap: Tap, x: Tensor) -> Tensor | None:
    """What was computed of x before it was asked for."""
    waiting = where.get(tap.number)
    if waiting is None:
        return None
    if waiting.x is not x or waiting.version != version_of(x):
        layer.together = layer.together and tap.stream != "k"  # Q and K see different tensors here
        return None
    del where[tap.number]
    return waiting.value


def _make_ready(layer: RunLayer, call: Call, taps: Sequence[Tap], make: Callable[[], Any]) -> None:
    """The next time the first of these taps does by itself what ``make`` gives, if their weights are proven."""
    if call.loose or call.plans is None or call.captured or torch.is_grad_enabled() is not call.grad:
        return
    for tap in taps:
        weight = own(tap)[0]
        if layer.watched.get(tap.stream) is not weight or weight.device != call.device:
            return
    call.ready[taps[0].number] = make()


def _make_operation(
    layer: RunLayer,
    call: Call,
    taps: Sequence[Tap],
    x: Tensor,
    make: Callable[[], Run | None],
    places: Sequence[int] = (0,),
) -> None:
    """The same for an operation of x that has just been run the long way; ``places`` are those of the taps' results."""

    def operation() -> Operation | None:
        run = make() if call.plans.launches() else None
        later = [(tap.number, place) for tap, place in zip(taps[1:], places[1:], strict=True)]
        return None if run is None else Operation(run, places[0], later, x, call)

    if call.triton is None:
        call.triton = why_not(x, ()) is None
    if call.triton and not call.grad and autocast_dtype(x) is call.autocast:
        _make_ready(layer, call, taps, operation)
