"""How long a layer takes on this machine, by the kernels and by eager PyTorch in turns: measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.hyper import hyper_kv

_WARM_UP, _ROUNDS = 5, 50


def measure(
    mlps: tuple[HypernetworkMLP, HypernetworkMLP],
    tokens: int,
    out_features: int,
    *,
    train: bool = False,
    dtype: torch.dtype = torch.float16,
    device: str = "cuda",
    rounds: int = _ROUNDS,
) -> tuple[float, float]:
    """Seconds of one pass by the kernels and by eager PyTorch, the median of each.

    Args:
        mlps, tokens, out_features, train, dtype: as ``comparison.compare`` takes them; values are random.
        device: where; the backend is chosen as everywhere.
        rounds: how often each is timed.

    Raises:
        ValueError: there is too little memory.
    """
    try:
        return _measured(mlps, tokens, out_features, train, dtype, device, rounds)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{device} has too little memory for {tokens} tokens; give fewer") from error


@torch.inference_mode(False)
def _measured(
    mlps: tuple[HypernetworkMLP, HypernetworkMLP],
    tokens: int,
    out_features: int,
    train: bool,
    dtype: torch.dtype,
    device: str,
    rounds: int,
) -> tuple[float, float]:
    width = mlps[0].dim
    copies = [HypernetworkMLP(mlp.dim, mlp.config).to(device, dtype).train(train) for mlp in mlps]
    x = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=train)
    w_k, w_v = (torch.randn(out_features, width, device=device, dtype=dtype) for _ in range(2))
    leaves = [x, *(p for mlp in copies for p in mlp.parameters())]
    gradient = torch.randn(tokens, out_features, device=device, dtype=dtype)

    def ours() -> Any:
        return hyper_kv(x, copies[0], copies[1], w_k, w_v)

    def eager() -> Any:
        return F.linear(copies[0](x), w_k), F.linear(copies[1](x), w_v)

    def passing(forward: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
        def run() -> object:
            if train:
                with torch.enable_grad():
                    return torch.autograd.grad(forward(), leaves, [gradient, gradient])
            with torch.no_grad():
                return forward()

        return run

    sides = [passing(ours), passing(eager)]
    for _ in range(_WARM_UP):
        for side in sides:
            side()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, kept in zip(sides, times, strict=True):
            kept.append(_seconds(side, device))
    return median(times[0]), median(times[1])


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
