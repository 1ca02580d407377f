"""K and V of the cross-attention layers of Stable Diffusion 1.5 (16, width 768) and XL (70, 2048), [1, 2, 1] relu."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.baseline import patch, reference_net
from benchmarks.result import Result
from benchmarks.timing import interleave

CHANNELS = (320,) * 5 + (640,) * 5 + (1280,) * 6
ROWS, TOKENS, WIDTH = 1, 77, 768
XL_CHANNELS = (640,) * 10 + (1280,) * 60
XL_WIDTH = 2048
ROUNDS, XL_ROUNDS = 40, 8


class _Attention(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(width, channels, bias=False)
        self.to_v = nn.Linear(width, channels, bias=False)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(context), self.to_v(context)


class CrossAttentions(nn.Module):
    """The projections of all cross-attention layers, without the rest of the UNet."""

    def __init__(self, channels: Sequence[int] = CHANNELS, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"layer{i}": nn.ModuleDict({"attn2": _Attention(c, width)}) for i, c in enumerate(channels)}
        )

    def forward(self, encoder_hidden_states: Tensor) -> list[Tensor]:
        return [t for layer in self.layers.values() for t in layer["attn2"](encoder_hidden_states)]


def run() -> list[Result]:
    torch.manual_seed(0)
    net = hn.Hypernetwork((WIDTH,), activation="relu").eval().requires_grad_(False)
    ours, theirs = CrossAttentions().requires_grad_(False), CrossAttentions()
    theirs.load_state_dict(ours.state_dict())
    hn.attach(ours, net)
    mlps = reference_net(net)
    patch(theirs, mlps)
    prompt = torch.randn(ROWS, TOKENS, WIDTH)

    with torch.no_grad():
        for a, b in zip(ours(prompt), theirs(prompt), strict=True):
            torch.testing.assert_close(a, b)
        seen = prompt.clone()
        forward = interleave(
            {
                "a1111": lambda: theirs(prompt.clone()),
                "new prompt": lambda: ours(prompt.clone()),
                "same prompt": lambda: ours(seen),
            },
            ROUNDS,
        )

    net.train().requires_grad_(True)
    mlps.train()
    gradients = [torch.randn(ROWS, TOKENS, c) for c in CHANNELS for _ in range(2)]

    def step(model: nn.Module, *trained: nn.Module) -> None:
        for module in trained:
            module.zero_grad(set_to_none=True)
        torch.autograd.backward(model(prompt), gradients)

    step(ours, net)
    step(theirs, theirs, mlps)
    for size in net:
        for a, b in zip(nn.ModuleList(net[size]).parameters(), mlps[str(size)].parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    both = interleave({"a1111": lambda: step(theirs, theirs, mlps), "hnkernels": lambda: step(ours, net)}, ROUNDS // 2)

    return [
        _result("16 cross-attention layers, forward", forward.speedup("a1111", "new prompt"), 6, ROUNDS),
        _result("the same from the second denoising step on", forward.speedup("a1111", "same prompt"), 50, ROUNDS),
        _result("16 cross-attention layers, forward + backward", both.speedup("a1111", "hnkernels"), 6, ROUNDS // 2),
    ]


def run_xl() -> list[Result]:
    torch.manual_seed(0)
    net = hn.Hypernetwork((XL_WIDTH,), activation="relu").eval().requires_grad_(False)
    ours, theirs = (CrossAttentions(XL_CHANNELS, XL_WIDTH).requires_grad_(False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    hn.attach(ours, net)
    patch(theirs, reference_net(net))
    prompt = torch.randn(ROWS, TOKENS, XL_WIDTH)
    with torch.no_grad():
        for a, b in zip(ours(prompt), theirs(prompt), strict=True):
            torch.testing.assert_close(a, b)
        forward = interleave(
            {"a1111": lambda: theirs(prompt.clone()), "hnkernels": lambda: ours(prompt.clone())}, XL_ROUNDS
        )
    ratio = forward.speedup("a1111", "hnkernels")
    return [_result("70 cross-attention layers of SDXL, forward", ratio, 10, XL_ROUNDS)]


def _result(name: str, ratio: float, target: float, rounds: int) -> Result:
    return Result(name, "the A1111 way, eager", ratio, "x", f"≥ {target}", ratio >= target, rounds)
