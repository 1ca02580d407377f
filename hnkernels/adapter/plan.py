"""The plan: what one attention layer does, decided once and kept for as long as what it assumed holds.

A plan assumes the adapters with their strengths, conditions and flags; the mode and multiplier of every MLP; which
modules stand after the taps, and which parameters take a gradient; and the grad mode. ``Host`` drops all plans when
an adapter changes, and ``Watch`` sees the rest. What depends on autocast is keyed by its dtype where it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hnkernels.adapter.deltas import ActingDelta, Deltas, Replay, WeightDelta
from hnkernels.adapter.links import Arguments, Chain, Link, Links, arguments, in_one_operation
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import Tap
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.folding import is_affine
from hnkernels.ops.plan import launching


@dataclass(frozen=True, eq=False)
class Plan:
    """What one layer does in one grad mode.

    Attributes:
        links: all that act on its context, in order.
        computed, folded: those that are computed, and those after them that live in the projections' weights.
        deltas: by stream, the generated weights that act; ``changed_kv``, whether some do on K or V.
        plain: whether K's and V's taps stand in front of linears without any other tool in between.
        one_operation: the computed links as one operation takes them; ``None`` if that cannot be.
        mlps: of the computed links.
    """

    links: Links
    computed: Links
    folded: Links
    deltas: Mapping[str, Deltas]
    changed_kv: bool
    plain: bool
    one_operation: Arguments | None
    mlps: Sequence[HypernetworkMLP]


class Layer(Protocol):
    """What a plan has to know of a layer."""

    number: int
    width: int
    chain: Chain
    deltas: dict[str, list[WeightDelta]]
    taps: dict[str, Tap]

    @property
    def plain(self) -> bool:
        """Whether no other tool has a hand in K and V."""


def make_plan(layer: Layer, grad: bool, fold: bool = True, replay: Replay | None = None) -> Plan:
    """The plan of a layer as things are.

    Args:
        fold: whether networks may live in the projections' weights.
        replay: the generated weights of a recorded call that is computed once more.
    """
    links = layer.chain.links()
    deltas = {stream: acting_deltas(given, replay) for stream, given in layer.deltas.items()}
    deltas = {stream: found for stream, found in deltas.items() if found}
    plain = layer.plain
    count = len(links)
    # Generated weights of K and V act on what the links make of the context: these cannot be in the weights then.
    changed_kv = any(stream in deltas for stream in STREAMS)
    if fold and plain and not changed_kv:
        while count and _foldable(layer, links[count - 1], grad):
            count -= 1
    computed = links[:count]
    one_operation = arguments(computed) if computed and in_one_operation(computed) else None
    mlps = [mlp for link in computed for mlp in (link.mlp_k, link.mlp_v)]
    return Plan(links, computed, links[count:], deltas, changed_kv, plain, one_operation, mlps)


def acting_deltas(given: Sequence[WeightDelta], replay: Replay | None = None) -> Deltas:
    """Those of the deltas that act, with their weights."""
    states = [(delta, delta.acting(replay)) for delta in given]
    return tuple(ActingDelta.of(delta, state) for delta, state in states if state is not None)


def _foldable(layer: Layer, link: Link, grad: bool) -> bool:
    if not (link.fused and is_affine(link.mlp_k) and is_affine(link.mlp_v)):
        return False
    if link.parallel or isinstance(link.k, tuple) or isinstance(link.v, tuple):
        return False
    if not grad:
        return True
    modules = (link.mlp_k, link.mlp_v, *(layer.taps[stream].module for stream in STREAMS))
    return not any(p.requires_grad for module in modules for p in module.parameters())


class Plans:
    """The plans of a model's layers in one grad mode, each made when its layer first asks.

    Attributes:
        ready: by tap number, what it does by itself: the weight and bias that are all that is to be applied, or an
            operation (``ready.py``). A tap has it from when it was first asked.
    """

    def __init__(self, taps: int):
        self._plans: list[Plan | None] = [None] * taps
        self.ready: list[Any] = [None] * taps
        self._launching: object = None
        self._situation: object = None

    def forget(self) -> None:
        """Drops what is ready; a call that is under way keeps what it began with."""
        self.ready, self._launching = [None] * len(self.ready), None

    def ready_in(self, situation: object) -> list[Any]:
        """What is ready in a situation: what it depends on that is neither planned nor proven."""
        if situation != self._situation or (self._launching is not None and self._launching != launching()):
            self._situation = situation
            self.forget()
        return self.ready

    def launches(self) -> bool:
        """Whether an operation of the Triton backend may be ready from now on: it depends on more."""
        if self._launching is None:
            self._launching = launching()
        return self._launching is not None

    def of(self, layer: Layer) -> Plan:
        """The layer's plan."""
        plan = self._plans[layer.number]
        if plan is None:
            plan = self._plans[layer.number] = make_plan(layer, torch.is_grad_enabled())
        return plan
