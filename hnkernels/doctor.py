"""What this machine has for hypernetworks, and whether the answers come out right on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hnkernels
from hnkernels.network.mlp import HypernetworkMLP, MLPConfig
from hnkernels.ops.hyper import hyper_kv
from hnkernels.ops.lowrank import lowrank_linear
from hnkernels.triton.autotune import cache_file
from hnkernels.triton.support import why_not

PACKAGES: Mapping[str, str] = {
    "torch": "",
    "triton": "the kernels on GPUs, and explain: pip install triton",
    "safetensors": "",
    "diffusers": "pipelines: pip install 'hnkernels[train]'",
    "transformers": "pipelines: pip install 'hnkernels[train]'",
    "accelerate": "training: pip install 'hnkernels[train]'",
    "peft": "LoRA beside a hypernetwork: pip install peft",
    "gradio": "the page: pip install 'hnkernels[ui]'",
}
"""Package → what it is for and how to get it; empty for those that hnkernels cannot be installed without."""

VARIABLES = ("HNKERNELS_ROUTE", "HNKERNELS_AUTOTUNE", "HNKERNELS_CACHE", "TRITON_INTERPRET", "TRITON_CACHE_DIR")
"""Environment variables that decide how operations run."""

_BOUND = 1.5
"""How far from float64 an operation may be, in eager PyTorch's own distance at the same dtype. The tests hold the
kernels to 1.0 to 1.2 on many shapes; one small shape, where both distances are chance, is given some room."""

_FLOOR = 1e-6
"""Distances below this are those of fp32, whatever their ratio."""


@dataclass(frozen=True)
class Device:
    """A device and what runs on it.

    Attributes:
        name: PyTorch's, ``"cuda:0"``.
        what: the card.
        backend: ``"triton"`` or ``"portable"``, as ``backend="auto"`` chooses.
        why: why not Triton's kernels; empty if they run.
    """

    name: str
    what: str
    backend: str
    why: str


@dataclass(frozen=True)
class Check:
    """An operation that was tried.

    Attributes:
        device: where.
        what: the operation.
        error: relative distance from float64, the worst of results and gradients, as a multiple of eager PyTorch's;
            ``None`` if it could not be run.
        fault: what is wrong; empty if nothing is.
    """

    device: str
    what: str
    error: float | None
    fault: str


@dataclass(frozen=True)
class Report:
    """What was found."""

    versions: Mapping[str, str | None]
    devices: tuple[Device, ...]
    variables: Mapping[str, str]
    caches: Mapping[str, str]
    checks: tuple[Check, ...]

    @property
    def right(self) -> bool:
        """Whether every operation that was tried came out right."""
        return not any(check.fault for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "right": self.right}


def examine() -> Report:
    """Looks at versions, devices and caches, and tries the operations on every device; some seconds."""
    devices = tuple(map(_device, _names()))
    return Report(
        versions={"hnkernels": hnkernels.__version__, "Python": platform.python_version()} | _versions(),
        devices=devices,
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        caches={"tiles": str(cache_file()), "kernels": _kernel_cache()},
        checks=tuple(check for device in devices for check in _checks(device.name)),
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _kernel_cache() -> str:
    return os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")


def _names() -> Iterator[str]:
    yield "cpu"
    for kind in ("cuda", "xpu"):
        backend: Any = getattr(torch, kind)
        if backend.is_available():
            yield from (f"{kind}:{index}" for index in range(backend.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"


def _device(name: str) -> Device:
    why = why_not(torch.empty(0, 8, device=name), ()) or ""
    kind = name.partition(":")[0]
    if kind in ("cuda", "xpu"):
        what = getattr(torch, kind).get_device_name(name)
    else:
        what = platform.processor() or platform.machine()
    return Device(name, what, "portable" if why else "triton", why)


def _checks(device: str) -> Iterator[Check]:
    for dtype in (torch.float32, torch.bfloat16):
        said = str(dtype).removeprefix("torch.")
        for activation, norm in (("relu", False), ("silu", True)):
            layers = f"{activation}{', LayerNorm' if norm else ''}"
            config = MLPConfig(activation=activation, layer_norm=norm)
            yield _tried(device, f"hyper_kv, {layers}, {said}", dtype, lambda c=config: _HyperKV(c))
        yield _tried(device, f"lowrank_linear, {said}", dtype, _Lowrank)


class _HyperKV:
    """Keys and values of 77 tokens, and the gradients."""

    def __init__(self, config: MLPConfig):
        self.mlps = [HypernetworkMLP(32, config) for _ in range(2)]
        self.inputs = [torch.randn(77, 32), torch.randn(48, 32), torch.randn(48, 32)]

    def ours(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        (mlp_k, mlp_v), (x, w_k, w_v) = self._at(device, dtype)
        return _gradients(hyper_kv(x, mlp_k, mlp_v, w_k, w_v), [x, *mlp_k.parameters(), *mlp_v.parameters()])

    def plain(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        mlps, (x, *weights) = self._at(device, dtype)
        results = [torch.nn.functional.linear(mlp(x), w) for mlp, w in zip(mlps, weights, strict=True)]
        return _gradients(results, [x, *mlps[0].parameters(), *mlps[1].parameters()])

    def _at(self, device: str, dtype: torch.dtype) -> tuple[list[HypernetworkMLP], list[Tensor]]:
        copies = []
        for mlp in self.mlps:
            copy = HypernetworkMLP(mlp.dim, mlp.config).to(device, dtype)
            copy.load_state_dict(mlp.state_dict())
            copies.append(copy)
        x, *weights = (t.to(device, dtype) for t in self.inputs)
        return copies, [x.requires_grad_(), *weights]


class _Lowrank:
    """A linear with generated weights for each of two samples, and the gradients."""

    def __init__(self) -> None:
        self.inputs = [torch.randn(2, 64, 32), torch.randn(48, 32), torch.randn(2, 4, 32), torch.randn(2, 48, 4)]

    def ours(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        x, weight, a, b = self._at(device, dtype)
        return _gradients([lowrank_linear(x, weight, a, b)], [x, a, b])

    def plain(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        x, weight, a, b = self._at(device, dtype)
        return _gradients([x @ weight.T + (x @ a.transpose(1, 2)) @ b.transpose(1, 2)], [x, a, b])

    def _at(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        x, weight, a, b = (t.to(device, dtype, copy=True) for t in self.inputs)
        return [x.requires_grad_(), weight, a.requires_grad_(), b.requires_grad_()]


def _gradients(results: Any, leaves: list[Tensor]) -> list[Tensor]:
    """The results, and the gradients of half their sum of squares."""
    results = list(results)
    torch.autograd.backward(results, [result.detach() for result in results])
    return [t.detach() for t in (*results, *(leaf.grad for leaf in leaves))]


def _tried(device: str, what: str, dtype: torch.dtype, make: Any) -> Check:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        try:
            case = make()
            truth, ours = case.plain("cpu", torch.float64), case.ours(device, dtype)
            plain = case.plain(device, dtype)
        except Exception as error:  # whatever a driver or a compiler raises is what is to be found out
            return Check(device, what, None, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}")
    ratios = [_distance(a, t) / max(_distance(b, t), _FLOOR) for a, b, t in zip(ours, plain, truth, strict=True)]
    worst = max(ratios)
    fault = "" if worst <= _BOUND else f"{worst:.2f} times eager PyTorch's own error; at most {_BOUND} is right"
    return Check(device, what, worst, fault)


def _distance(result: Tensor, truth: Tensor) -> float:
    return float((result.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-30))
