"""K and V of one self-attention layer with a hypernetwork [1, 2, 1] relu, at the shapes of Stable Diffusion 1.5."""

from __future__ import annotations

import torch

import hnkernels as hn
import reference
from benchmarks.baseline import reference_pair
from benchmarks.result import Result
from benchmarks.timing import interleave

SHAPES = ((320, 4096), (640, 1024), (1280, 256))
ROUNDS = 15


def run() -> list[Result]:
    return [result for width, tokens in SHAPES for result in _one(width, tokens)]


def _one(width: int, tokens: int) -> list[Result]:
    torch.manual_seed(0)
    net = hn.Hypernetwork((width,), activation="relu").eval().requires_grad_(False)
    mlp_k, mlp_v = net[width]
    their_k, their_v = reference_pair(net, width)
    x = torch.randn(1, tokens, width)
    w_k, w_v = torch.randn(2, width, width) * width**-0.5
    frozen = (w_k, w_v)
    trained = tuple(w.clone().requires_grad_() for w in frozen)
    gradient = torch.randn(1, tokens, width)
    torch.testing.assert_close(
        hn.hyper_kv(x, mlp_k, mlp_v, *frozen), reference.project_kv(x, [their_k], [their_v], *frozen)
    )

    with torch.no_grad():
        forward = interleave(
            {
                "a1111": lambda: reference.project_kv(x, [their_k], [their_v], *frozen),
                "hnkernels": lambda: hn.hyper_kv(x, mlp_k, mlp_v, *frozen),
            },
            ROUNDS,
        )

    net.train().requires_grad_(True), their_k.train(), their_v.train()
    x.requires_grad_()
    leaves = [x, *trained, *net.parameters(), *their_k.parameters(), *their_v.parameters()]

    def backward(k: torch.Tensor, v: torch.Tensor) -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward((k, v), (gradient, gradient))

    both = interleave(
        {
            "a1111": lambda: backward(*reference.project_kv(x, [their_k], [their_v], *trained)),
            "hnkernels": lambda: backward(*hn.hyper_kv(x, mlp_k, mlp_v, *frozen)),
        },
        ROUNDS,
    )
    return [
        Result(
            f"self-attention {width} x {tokens}, {what}", "the A1111 way, eager", ratio, "x", "≥ 1", ratio >= 1, ROUNDS
        )
        for what, ratio in (
            ("forward", forward.speedup("a1111", "hnkernels")),
            ("forward + backward", both.speedup("a1111", "hnkernels")),
        )
    ]
