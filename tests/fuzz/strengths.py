"""Strengths: numbers, tables and ``PerRow``, on a model of a few attention layers."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
from hnkernels.adapter.strength import PerRow
from tests.fuzz.campaign import Target
from tests.fuzz.model import WIDTH, Attention, Model
from tests.fuzz.mutations import odd_number, odd_text, odd_value, spoilt_value

_ROWS = 6
_KEYS = (
    "down",
    "mid",
    "up",
    "block_0",
    "block_1",
    "attn1",
    "attn2",
    "k",
    "v",
    "*",
    "down_blocks.*",
    "*.attn2",
    "[",
    "q",
)


@cache
def _things() -> tuple[Model, hn.Hypernetwork, Tensor]:
    torch.manual_seed(0)
    net = hn.Hypernetwork((WIDTH,)).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return Model().eval().requires_grad_(False), net, torch.randn(_ROWS, 3, WIDTH)


def _draw(random: Random, depth: int = 0) -> Any:
    kind = random.random()
    if depth < 4 and kind < 0.55:
        keys = random.sample(_KEYS, random.randrange(1, 4))
        table = {key: _draw(random, depth + 1) for key in keys}
        return spoilt_value(table, random) if kind < 0.1 else table
    if kind < 0.65:
        return random.choice((odd_value(random), odd_text(random), odd_number(random)))
    values = [random.choice((0, 1, 0.5, -2.0)) for _ in range(random.randrange(1, 5))]
    if kind < 0.72:
        return values
    return _per_row(values if random.random() < 0.8 else [odd_number(random)]) if kind < 0.82 else values[0]


def _per_row(values: list[Any]) -> Any:
    try:
        return PerRow(*values)
    except ValueError:
        return values


def _run(strength: Any) -> Tensor:
    model, net, x = _things()
    adapter = hn.attach(model, net, strength=strength)
    try:
        return model(x)
    finally:
        adapter.detach()


def _check(strength: Any, y: Tensor) -> None:
    model, net, x = _things()
    assert not any("forward" in module.__dict__ for module in model.modules()), "something stays behind"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if isinstance(strength, (int, float)) and abs(strength) < 100:
        expected = _by_hand(model, net, x, float(strength))
        if not expected.isfinite().all():  # the products of eight layers are beyond float32
            assert not y.isfinite().all()
            return
        assert (y - expected).norm() <= 1e-3 * expected.norm(), (y, expected)


def _by_hand(model: Model, net: hn.Hypernetwork, x: Tensor, strength: float) -> Tensor:
    k, v = net[WIDTH]
    for layer in model.modules():
        if isinstance(layer, Attention):
            context = [x + strength * mlp.linear(x) for mlp in (k, v)]
            x = x + layer.to_q(x) + layer.to_k(context[0]) * layer.to_v(context[1])
    return x


STRENGTH = Target(draw=_draw, run=_run, check=_check, refusals=(ValueError, hn.AdapterError))
