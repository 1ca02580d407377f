"""The weights that a layer projects with, and which plan it follows now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hnkernels.adapter import deltas as with_deltas
from hnkernels.adapter.call import Call, to_keep
from hnkernels.adapter.links import Links
from hnkernels.adapter.plan import Layer, Plan, make_plan
from hnkernels.adapter.shared import Shared
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.ops.folding import fold_projection
from hnkernels.ops.portable import project

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
        unrecorded: whether a recorded call of the model has last computed it without recording.
    """

    name: str
    shared: Shared
    shared_context: bool
    projections: dict[str, str]
    together: bool
    prepared: tuple[Tensor, Tensor, Tensor] | None
    folds: dict[tuple[str, Links], Projection]
    watched: dict[str, Tensor]
    unrecorded: bool
    peers: Sequence[RunLayer]
    fits: tuple[object, bool]


def plan_of(layer: RunLayer, call: Call) -> Plan:
    """What the layer does now: as planned for the call, or found out where nothing was proven."""
    grad = torch.is_grad_enabled()
    if call.loose or (layer.deltas and torch._C._current_graph_task_id() != -1):  # in a backward pass
        return make_plan(layer, grad, fold=False, replay=layer.shared.replay())
    if grad is not call.grad:
        return layer.shared.plans_in(grad).of(layer)
    if call.plans is None:
        call.plans = layer.shared.plans_in(grad)
        call.ready = call.plans.ready
    plan = call.plans.of(layer)
    if call.captured and plan.folded and any((stream, plan.folded) not in layer.folds for stream in STREAMS):
        return make_plan(layer, grad, fold=False)  # what is folded in a graph has no value before that runs
    return plan


def own(tap: Tap) -> Projection:
    parameters = tap.module._parameters
    weight = parameters["weight"]
    assert weight is not None
    return weight, parameters["bias"]


def projection(layer: RunLayer, call: Call, plan: Plan, stream: str) -> Projection:
    """Weight and bias, with the folded links in them."""
    weight, bias = own(layer.taps[stream])
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


def projected(layer: RunLayer, call: Call, plan: Plan, stream: str, y: Tensor, few_rows: bool = False) -> Tensor:
    """K or V of its context after the links."""
    weight, bias = projection(layer, call, plan, stream)
    deltas = plan.deltas.get(stream, ())
    return with_deltas.linear(y, weight, bias, deltas) if deltas else project(y, weight, bias, few_rows=few_rows)


def keep_for_graph(layer: RunLayer) -> None:
    """A graph is being captured: what it reads of folded weights stays where it is."""
    for (stream, _), folded in layer.folds.items():
        alive = _in_graphs.setdefault(layer.watched[stream], [])
        if not any(other is folded for other in alive):
            alive.append(folded)
