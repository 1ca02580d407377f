"""K, V and Q of one attention layer: by ``hyper_kv`` and ``hyper_qkv``, and as modules called one after another."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.host.sides import Side

BATCH = 10


def inference(width: int, layer_norm: bool, query: bool) -> dict[str, Side]:
    """Both sides for one token; to be run without gradients."""
    mlps, linears = _modules(width, layer_norm, query)
    for mlp in mlps:
        mlp.eval().requires_grad_(False)
    x = torch.randn(1, 1, width)
    return {
        "ours": Side(partial(_ours, x, mlps, linears, query), batch=BATCH),
        "modules": Side(partial(_as_modules, x, mlps, linears), batch=BATCH),
    }


def training(width: int, layer_norm: bool, query: bool) -> dict[str, Side]:
    """Both sides for one token, forward and backward."""
    mlps, linears = _modules(width, layer_norm, query)
    x = torch.randn(1, 1, width)
    ones = [torch.ones(1, 1, width)] * 2

    def clear() -> None:
        for mlp in mlps:
            for parameter in mlp.parameters():
                parameter.grad = None

    def ours() -> None:
        torch.autograd.backward(_ours(x, mlps, linears, query)[-2:], ones)

    def as_modules() -> None:
        torch.autograd.backward(_as_modules(x, mlps, linears)[-2:], ones)

    return {"ours": Side(ours, clear, BATCH), "modules": Side(as_modules, clear, BATCH)}


def operation(width: int, layer_norm: bool, query: bool) -> Side:
    """Ours alone, called as it is, so that nothing else is counted."""
    mlps, linears = _modules(width, layer_norm, query)
    for mlp in mlps:
        mlp.eval().requires_grad_(False)
    function = hn.hyper_qkv if query else hn.hyper_kv
    return Side(partial(function, torch.randn(1, 1, width), *mlps, *[linear.weight for linear in linears]))


def _modules(width: int, layer_norm: bool, query: bool) -> tuple[list[hn.HypernetworkMLP], list[nn.Linear]]:
    """The MLPs for K and V, in training mode, and the frozen projections: Q if it is asked for, K and V."""
    config = hn.MLPConfig(layer_norm=layer_norm)
    linears = [nn.Linear(width, width, bias=False).requires_grad_(False) for _ in range(2 + query)]
    return [hn.HypernetworkMLP(width, config) for _ in range(2)], linears


def _ours(x: Tensor, mlps: list[hn.HypernetworkMLP], linears: list[nn.Linear], query: bool) -> tuple[Tensor, ...]:
    function = hn.hyper_qkv if query else hn.hyper_kv
    return function(x, *mlps, *[linear.weight for linear in linears])


def _as_modules(x: Tensor, mlps: list[hn.HypernetworkMLP], linears: list[nn.Linear]) -> tuple[Tensor, ...]:
    """The web UIs' way."""
    mlp_k, mlp_v = mlps
    *to_q, to_k, to_v = linears
    return (*[linear(x) for linear in to_q], to_k(mlp_k(x)), to_v(mlp_v(x)))
