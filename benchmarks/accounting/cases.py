"""What is counted: which networks, at which shapes, computed by whom.

Everything is in fp16, on the meta device, with base projections that are not trained; a context of text takes no
gradient. ``"reference"`` is the way of the web UIs on the reference modules, ``"eager"`` the kernels' algebra in eager
PyTorch, ``"portable"`` and ``"triton"`` are the backends of hnkernels. ``"recompute"`` checkpoints the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hnkernels as hn
import reference
from benchmarks import same_algebra
from benchmarks.accounting import bound
from benchmarks.accounting.ours import CountingKernels
from benchmarks.suites.attention import SD15, SDXL
from hnkernels.accounting.eager import Account, Counting, inference, training
from hnkernels.ops import fused, portable
from hnkernels.triton.ops import lowrank
from hnkernels.triton.target import TARGETS, planned_for

TARGET = "sm_80"
"""For which tiles are chosen unless another target is asked for; partial sums depend on them a little."""

TEXT = 77
"""Tokens of a prompt."""

Accounts = dict[str, Account]
"""By mode: ``"inference"``, ``"forward"``, ``"backward"``, ``"forward + backward"``, ``"recompute"``."""


class Work(NamedTuple):
    """Something to run, what it is applied to, and the parameters in it: the arguments of ``training``."""

    run: Callable[[], Sequence[Tensor]]
    inputs: Sequence[Tensor]
    parameters: Sequence[Tensor]


@dataclass(frozen=True)
class Network:
    """A ``[1, 2, 1]`` network; without an activation it is affine, and counted at inference alone."""

    activation: str | None
    layer_norm: bool = False

    @property
    def name(self) -> str:
        """``"silu + LayerNorm"``."""
        return f"{self.activation or 'affine'}{' + LayerNorm' if self.layer_norm else ''}"

    def references(self, width: int, device: str = "meta") -> list[reference.MLP]:
        """The reference's MLPs for K and V."""
        with torch.device(device):
            return [reference.MLP(width, (1, 2, 1), self.activation, self.layer_norm).half() for _ in "kv"]

    def mlps(self, width: int) -> tuple[hn.HypernetworkMLP, hn.HypernetworkMLP]:
        """Those of hnkernels."""
        with torch.device("meta"):
            net = hn.Hypernetwork((width,), activation=self.activation, layer_norm=self.layer_norm)
            return net.half()[width]


@dataclass(frozen=True)
class Projections:
    """K and V of attention layers over one context: of a single one, or of all cross-attention layers of a UNet.

    Attributes:
        benchmark, shape: as rows have them.
        network: what rewrites the context.
        width, tokens: of the context; tokens times batch.
        outs: n of every layer.
    """

    benchmark: str
    shape: str
    network: Network
    width: int
    tokens: int
    outs: tuple[int, ...]

    providers = ("reference", "eager", "portable", "triton")

    @property
    def input_gradient(self) -> bool:
        """Whether the context takes one."""
        return self.tokens != TEXT

    def bounds(self) -> Accounts:
        """See ``bound``."""
        network = self.network
        return bound.projections(
            self.tokens, self.width, 2 * self.width, self.outs, layer_norm=network.layer_norm,
            affine=network.activation is None, input_gradient=self.input_gradient,
        )  # fmt: skip

    def work(self, provider: str, training: bool, recompute: bool = False) -> Work:
        """What a provider has to do, at inference or in a training step, in which it may keep x alone."""
        x = _empty(self.tokens, self.width, grad=self.input_gradient)
        w = [(_empty(n, self.width), _empty(n, self.width)) for n in self.outs]
        if provider in ("reference", "eager"):
            mlps: Sequence[Any] = self.network.references(self.width)
        else:
            mlps = self.network.mlps(self.width)
        for mlp in mlps:
            mlp.train(training)
        parameters = [p for mlp in mlps for p in mlp.parameters()] + [t for pair in w for t in pair]
        if provider == "triton":
            return Work(lambda: _by_triton(x, mlps, w, recompute), [x], parameters)
        if provider == "portable":
            return Work(lambda: _by_portable(x, mlps, w), [x], parameters)
        if provider == "eager":
            once = not training and not self.network.layer_norm
            composed = [tuple(map(same_algebra.compose, mlps, pair)) for pair in w] if once else None
            return Work(lambda: _by_same_algebra(x, mlps, w, composed), [x], parameters)
        if recompute:
            return Work(lambda: checkpoint(_by_reference, x, mlps, w, use_reentrant=False), [x], parameters)
        return Work(lambda: _by_reference(x, mlps, w), [x], parameters)

    def accounts(self, provider: str, target: str = TARGET) -> Accounts:
        """What a provider does."""
        counting = CountingKernels if provider == "triton" else Counting
        with planned_for(TARGETS[target]):
            accounts = {"inference": inference(self.work(provider, False).run, counting)}
            if self.network.activation is None:
                return accounts
            accounts |= training(*self.work(provider, True), counting)
            if provider in ("reference", "triton"):
                work = self.work(provider, True, recompute=True)
                step = training(*work, counting)["forward + backward"]
                # What checkpointing keeps are its arguments, which autograd's hooks do not see.
                accounts["recompute"] = replace(step, saved=step.saved or sum(t.nbytes for t in work.inputs))
        return accounts


@dataclass(frozen=True)
class LowRank:
    """Linears with low-rank weights of their own for every sample.

    Attributes:
        shape: as rows have it.
        width, tokens: d and tokens per sample.
        outs: n of every linear that reads x.
    """

    shape: str
    width: int
    tokens: int
    outs: tuple[int, ...]
    samples: int = 8
    rank: int = 4

    benchmark = "lowrank"
    providers = ("einsum", "token", "loop", "portable", "triton")

    def bounds(self) -> Accounts:
        """See ``bound``."""
        return bound.lowrank(self.samples, self.tokens, self.width, self.outs, self.rank)

    def work(self, provider: str, training: bool) -> Work:
        """What a provider has to do; x and the factors take gradients, the scales do not."""
        x = _empty(self.samples, self.tokens, self.width, grad=training)
        w = [_empty(n, self.width) for n in self.outs]
        a = [_empty(self.samples, self.rank, self.width, grad=training) for _ in self.outs]
        b = [_empty(self.samples, n, self.rank, grad=training) for n in self.outs]
        # The kernels scale in fp32; the others would be promoted by that.
        scale = torch.empty(self.samples, device="meta", dtype=torch.float32 if provider == "triton" else torch.float16)
        none = [None] * len(w)

        def run() -> Sequence[Tensor]:
            if provider == "triton":
                return lowrank.lowrank_linears(x, w, none, a, b, [scale] * len(w))
            if provider == "portable":
                return hn.lowrank_linears(x, w, a, b, scale, backend="portable")
            way = {"einsum": reference.by_einsum, "token": reference.by_token, "loop": reference.by_loop}[provider]
            return [way(x, *factors, scale) for factors in zip(w, a, b, strict=True)]

        return Work(run, [x, *a, *b], w)

    def accounts(self, provider: str, target: str = TARGET) -> Accounts:
        """What a provider does."""
        counting = CountingKernels if provider == "triton" else Counting
        with planned_for(TARGETS[target]):
            accounts = {"inference": inference(self.work(provider, False).run, counting)}
            return accounts | training(*self.work(provider, True), counting)


Case = Projections | LowRank

NETWORKS = (
    Network("relu"), Network("silu"), Network("relu", True), Network("silu", True), Network(None)
)  # fmt: skip

SHAPES = (
    (320, 4096, 320), (320, 8192, 320), (640, 1024, 640), (1280, 256, 1280),  # self-attention of SD 1.x at 512 px
    (640, 4096, 640), (1280, 1024, 1280),  # of SDXL at 1024 px
    (768, TEXT, 1280), (1024, TEXT, 1280), (2048, TEXT, 1280),  # cross-attention of SD 1.x, SD 2.x, SDXL
)  # fmt: skip
"""Width of the context, tokens, and n of ``to_k`` and ``to_v``."""


def cases() -> list[Case]:
    """All of them."""
    return [
        *(
            Projections(f"projection, {network.name}", f"{width} x {tokens}", network, width, tokens, (n,))
            for network in NETWORKS
            for width, tokens, n in SHAPES
        ),
        Projections("cross attention, relu", "16 layers, 768 x 77", NETWORKS[0], 768, TEXT, tuple(SD15.channels)),
        Projections("cross attention, relu", "70 layers, 2048 x 77", NETWORKS[0], 2048, TEXT, tuple(SDXL.channels)),
        LowRank("320 x 1024", 320, 1024, (320,)),
        LowRank("320 x 1024, q k v", 320, 1024, (320, 320, 320)),
        LowRank("768 x 77", 768, TEXT, (640,)),
        LowRank("768 x 77, k v", 768, TEXT, (640, 640)),
    ]


def _by_reference(x, mlps, w):
    return [t for pair in w for t in reference.project_kv(x, mlps[:1], mlps[1:], *pair)]


def _by_same_algebra(x, mlps, w, composed):
    composed = composed or [None] * len(w)
    return [t for pair, c in zip(w, composed, strict=True) for t in same_algebra.hyper_kv(x, *mlps, *pair, composed=c)]


def _by_portable(x, mlps, w):
    if len(w) == 1:
        return hn.hyper_kv(x, *mlps, *w[0], backend="portable")
    y = portable.transform_pair(x, *_chains(mlps))
    return [portable.project(t, weight, None, few_rows=True) for pair in w for t, weight in zip(y, pair, strict=True)]


def _by_triton(x, mlps, w, recompute):
    """What ``hn.hyper_kv`` does, and for many layers what ``hn.attach`` does; both refuse tensors without a device."""
    if len(w) == 1:
        (w_k, w_v), (chain_k, chain_v) = w[0], _chains(mlps)
        return fused.project_pair(x, chain_k, chain_v, (w_k, None), (w_v, None), recompute=recompute)
    y_k, y_v = fused.transform_pair(x, *_chains(mlps), recompute)
    return fused.project_group(y_k, y_v, [(t, None) for pair in w for t in pair], [0, 1] * len(w))


def _chains(mlps: Sequence[hn.HypernetworkMLP]) -> tuple[portable.Chain, portable.Chain]:
    chain_k, chain_v = (((mlp, mlp.multiplier_at(1.0)),) for mlp in mlps)
    return chain_k, chain_v


def _empty(*shape: int, grad: bool = False) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.float16, requires_grad=grad)
