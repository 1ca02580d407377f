"""A call, and everything that its plan assumes: what is changed under it must be noticed, and decided again."""

from __future__ import annotations

import torch

import hnkernels as hn
from tests.models import make_mlp

WIDTH, OUT = 64, 48


class Call:
    """``hyper_kv`` or ``hyper_qkv`` of one token; ``run()`` makes the same call each time."""

    def __init__(self, query: bool = False, training: bool = False, dtype: torch.dtype = torch.float16, **options):
        self.mlps = [make_mlp(WIDTH, **options).to(dtype).train(training) for _ in "kv"]
        self.w = {s: torch.randn(OUT, WIDTH, dtype=dtype) for s in "qkv"}
        self.x = torch.randn(1, 3, WIDTH, dtype=dtype)
        self.query, self.training, self.options = query, training, {}

    def run(self) -> tuple[torch.Tensor, ...]:
        with torch.set_grad_enabled(self.training):
            if self.query:
                return hn.hyper_qkv(self.x, *self.mlps, *self.w.values(), **self.options)
            return hn.hyper_kv(self.x, *self.mlps, self.w["k"], self.w["v"], **self.options)


def inplace(call):
    with torch.no_grad():
        next(call.mlps[0].parameters()).mul_(2)


def load(call):
    call.mlps[1].load_state_dict({k: v + 1 for k, v in call.mlps[1].state_dict().items()})


def other_storage(call):
    weight = call.mlps[0].linear[0].weight
    weight.data = weight.data.clone()


def transposed(call):
    call.w["k"].data = torch.randn(WIDTH, OUT, dtype=call.x.dtype).t()


def round_trip(call):
    call.mlps[0].double().to(call.x.dtype)


def other_parameter(call):
    call.mlps[1].linear[0].bias = torch.nn.Parameter(torch.ones_like(call.mlps[1].linear[0].bias))


def other_module(call):
    linear = call.mlps[0].linear
    last = max(i for i, module in enumerate(linear) if isinstance(module, torch.nn.Linear))
    linear[last] = torch.nn.Linear(linear[last].in_features, linear[last].out_features, dtype=call.x.dtype)


def fused_optimizer(call):
    parameters = list(call.mlps[0].parameters())
    for p in parameters:
        p.grad = torch.ones_like(p)
    torch.optim.SGD(parameters, lr=0.1, fused=True).step()


def projection_inplace(call):
    call.w["v"].mul_(2)


def other_projection(call):
    call.w["k"] = call.w["k"].clone()


def multiplier(call):
    call.mlps[0].multiplier = 0.3


def strength(call):
    call.options = {"strength": {"k": 0.3, "v": 1.0}}


CHANGES = [
    inplace, load, other_storage, transposed, round_trip, other_parameter, other_module, fused_optimizer,
    projection_inplace, other_projection, multiplier, strength,
]  # fmt: skip
