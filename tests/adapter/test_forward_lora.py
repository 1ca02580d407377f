"""LoRA that stands in the place of a linear's ``forward``, as kohya's trainer and LyCORIS apply it."""

import itertools

import pytest
import torch
from torch import nn

import hnkernels as hn
from tests.models import make_net, reference_of, relative_error

TOLERANCE = 1e-12  # in float64


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), nn.Linear(12, 8), nn.Linear(12, 8)

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn2 = Attention()

    def forward(self, x, context):
        return self.attn2(x, context)


class Lora:
    """One for every projection of the attention. What it finds it calls, and puts back."""

    def __init__(self, attention):
        self.linears = {name: getattr(attention, name) for name in ("to_q", "to_k", "to_v")}
        self.factors = {
            name: (torch.randn(2, m.in_features).double(), torch.randn(m.out_features, 2).double())
            for name, m in self.linears.items()
        }
        self.found = {}

    def change(self, name, x):
        down, up = self.factors[name]
        return x @ down.T @ up.T

    def on(self):
        for name, linear in self.linears.items():
            inner = self.found[name] = linear.forward
            linear.forward = lambda x, name=name, inner=inner: inner(x) + self.change(name, x)

    def off(self):
        for name, linear in self.linears.items():
            linear.forward = self.found[name]


def by_hand(attention, net, loras, x, context):
    """The network first; whatever LoRA there is sees what that makes of the context."""
    inputs = {"to_q": x, "to_k": context, "to_v": context}
    if net is not None:
        inputs["to_k"], inputs["to_v"] = (reference_of(mlp)(context) for mlp in net[12])
    projected = {
        name: nn.functional.linear(y, getattr(attention, name).weight, getattr(attention, name).bias)
        + sum(lora.change(name, y) for lora in loras)
        for name, y in inputs.items()
    }
    return nn.functional.scaled_dot_product_attention(*projected.values())


EVENTS = ("net on", "net off", "A on", "A off", "B on", "B off")
ORDERS = [
    order
    for order in itertools.permutations(EVENTS)
    if all(order.index(f"{who} on") < order.index(f"{who} off") for who in ("net", "A", "B"))
    # A LoRA that comes off while one that came later is on takes that along, with us or without.
    and not any(
        order.index(f"{a} on") < order.index(f"{b} on") < order.index(f"{a} off") < order.index(f"{b} off")
        for a, b in ("AB", "BA")
    )
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_in_any_order(order, grad):
    model, net = Model().double(), make_net((12,)).double().eval()
    x, context = torch.randn(2, 5, 8).double(), torch.randn(2, 7, 12).double()
    loras = {"A": Lora(model.attn2), "B": Lora(model.attn2)}
    there = set()
    with torch.set_grad_enabled(grad):
        for event in order:
            who, on = event.split()
            (there.add if on == "on" else there.remove)(who)
            if who != "net":
                getattr(loras[who], on)()
            elif on == "on":
                hn.attach(model, net, name="net")
            else:
                hn.adapters(model).delete("net")
            expected = by_hand(
                model.attn2, net if "net" in there else None, [loras[who] for who in there - {"net"}], x, context
            )
            for _ in range(2):
                assert relative_error(model(x, context), expected) < TOLERANCE
