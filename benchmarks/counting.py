"""What every provider launches, computes, moves and keeps at a shape, exact on any machine.

Everything is in fp16, on the meta device, with base projections that are not trained; a context of text takes no
gradient. ``"reference"`` is the way of the web UIs on the reference modules, ``"eager"`` the kernels' algebra in eager
PyTorch, ``"portable"`` and ``"triton"`` are the backends of hnkernels. ``"recompute"`` checkpoints the reference.

Of the Triton backend the launches are those of ``hnkernels.triton.launch``, planned for any target; what PyTorch does
besides, outside the operators and inside them, counts as in eager PyTorch. Allocations are seen inside the operators
too: on the meta device their Python implementation runs as on a GPU, without launching.

``"compile"`` is what ``torch.compile`` makes of the reference, from Inductor's own schedule. A launch is a node of it
after fusion: a generated kernel, or a call of a library's product. Its bytes are those that Inductor counts for it
(what ``torch._inductor.metrics.num_bytes_accessed`` adds up), the FLOPs PyTorch's count of the products. Inductor
compiles for no GPU that is absent, so this is its schedule for the CPU. It writes what ``exp`` and ``sigmoid`` give to
memory before it is used twice, which it would not do on a GPU; so silu is left out. How much memory is in use at once
is not part of the schedule, and left out too.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils.checkpoint import checkpoint

import hnkernels as hn
import reference
from benchmarks import baselines
from benchmarks.shapes import RELU, SD15, TEXTS, Layers, Samples, Shape
from hnkernels.accounting.eager import Account, Counting, inference, saved_bytes, training
from hnkernels.ops import fused, portable
from hnkernels.triton import vendor
from hnkernels.triton.launch import Launch, recording
from hnkernels.triton.ops import lowrank
from hnkernels.triton.target import TARGETS, planned_for

TARGET = "sm_80"
"""For which tiles are chosen unless another target is asked for; partial sums depend on them a little."""

Accounts = dict[str, Account]
"""By mode: ``"inference"``, ``"forward"``, ``"backward"``, ``"forward + backward"``, ``"recompute"``."""

COMPILED = (*SD15[:2], TEXTS[0])
"""Where the reference is compiled: elsewhere it would tell nothing new, and takes seconds every time."""


class Work(NamedTuple):
    """Something to run, what it is applied to, and the parameters in it: the arguments of ``training``."""

    run: Callable[[], Sequence[Tensor]]
    inputs: Sequence[Tensor]
    parameters: Sequence[Tensor]


class CountingKernels(Counting):
    """``Counting`` that looks into the operators of hnkernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "hnkernels":
            return super().__torch_dispatch__(func, types, args, kwargs)
        with recording() as launches, self:  # PyTorch has switched this mode off while it handles an operation
            results = func.redispatch(DispatchKeySet(DispatchKey.Meta), *args, **(kwargs or {}))
        # What PyTorch computes inside of it this mode has seen for itself.
        self.launches += [launch for launch in launches if not launch.kernel.startswith(vendor.PREFIX)]
        return results


def providers(shape: Shape) -> tuple[str, ...]:
    """Who can compute a shape, the usual way first, without ``torch.compile``."""
    if isinstance(shape, Samples):
        return "einsum", "token", "loop", "portable", "triton"
    return "reference", "eager", "portable", "triton"


def compilable(shape: Shape) -> bool:
    """Whether the shape is one of those at which the reference is compiled."""
    return isinstance(shape, Layers) and shape.network.activation == "relu" and shape.of(RELU) in COMPILED


def accounts(shape: Shape, provider: str, target: str = TARGET, recompute: bool = False) -> Accounts:
    """What a provider does at a shape, by mode; an affine network is counted at inference alone.

    With ``recompute`` also of a step that keeps its arguments alone, where the provider can.
    """
    if provider == "compile" and isinstance(shape, Layers):
        return _compiled(shape)
    counting = CountingKernels if provider == "triton" else Counting
    with planned_for(TARGETS[target]):
        found = {"inference": inference(work(shape, provider, False).run, counting)}
        if isinstance(shape, Layers) and shape.network.activation is None:
            return found
        found |= training(*work(shape, provider, True), counting)
        if recompute and isinstance(shape, Layers) and provider in ("reference", "triton"):
            done = work(shape, provider, True, recompute=True)
            step = training(*done, counting)["forward + backward"]
            # What checkpointing keeps are its arguments, which autograd's hooks do not see.
            found["recompute"] = replace(step, saved=step.saved or sum(t.nbytes for t in done.inputs))
    return found


def work(shape: Shape, provider: str, training: bool, recompute: bool = False) -> Work:
    """What a provider has to do, at inference or in a training step, in which it may keep x alone.

    In ``Samples`` x and the factors take gradients, the scales do not, and everything is kept.
    """
    if isinstance(shape, Samples):
        return _samples(shape, provider, training)
    return _layers(shape, provider, training, recompute)


def _layers(shape: Layers, provider: str, training: bool, recompute: bool) -> Work:
    x = _empty(shape.tokens, shape.width, grad=not shape.text)
    w = [(_empty(n, shape.width), _empty(n, shape.width)) for n in shape.outs]
    if provider in ("reference", "eager"):
        mlps: Sequence[Any] = shape.network.references(shape.width)
    else:
        mlps = shape.network.mlps(shape.width)
    for mlp in mlps:
        mlp.train(training)
    parameters = [p for mlp in mlps for p in mlp.parameters()] + [t for pair in w for t in pair]
    if provider == "triton":
        return Work(lambda: _by_triton(x, mlps, w, recompute), [x], parameters)
    if provider == "portable":
        return Work(lambda: _by_portable(x, mlps, w), [x], parameters)
    if provider == "eager":
        once = not training and not shape.network.layer_norm
        composed = [tuple(map(baselines.compose, mlps, pair)) for pair in w] if once else None
        return Work(lambda: _by_same_algebra(x, mlps, w, composed), [x], parameters)
    if recompute:
        return Work(lambda: checkpoint(_by_reference, x, mlps, w, use_reentrant=False), [x], parameters)
    return Work(lambda: _by_reference(x, mlps, w), [x], parameters)


def _samples(shape: Samples, provider: str, training: bool) -> Work:
    x = _empty(shape.samples, shape.tokens, shape.width, grad=training)
    w = [_empty(n, shape.width) for n in shape.outs]
    a = [_empty(shape.samples, shape.rank, shape.width, grad=training) for _ in shape.outs]
    b = [_empty(shape.samples, n, shape.rank, grad=training) for n in shape.outs]
    # The kernels scale in fp32; the others would be promoted by that.
    scale = torch.empty(shape.samples, device="meta", dtype=torch.float32 if provider == "triton" else torch.float16)
    none = [None] * len(w)

    def run() -> Sequence[Tensor]:
        if provider == "triton":
            return lowrank.lowrank_linears(x, w, none, a, b, [scale] * len(w))
        if provider == "portable":
            return hn.lowrank_linears(x, w, a, b, scale, backend="portable")
        way = {"einsum": reference.by_einsum, "token": reference.by_token, "loop": reference.by_loop}[provider]
        return [way(x, *factors, scale) for factors in zip(w, a, b, strict=True)]

    return Work(run, [x, *a, *b], w)


def _by_reference(x, mlps, w):
    return [t for pair in w for t in reference.project_kv(x, mlps[:1], mlps[1:], *pair)]


def _by_same_algebra(x, mlps, w, composed):
    composed = composed or [None] * len(w)
    return [t for pair, c in zip(w, composed, strict=True) for t in baselines.hyper_kv(x, *mlps, *pair, composed=c)]


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


def _compiled(shape: Layers) -> Accounts:
    """The reference, compiled for inference and for training; nothing, and a warning, without a C++ compiler."""
    if shutil.which("g++") is None:
        warnings.warn("g++ is not installed, without which torch.compile cannot be counted", stacklevel=2)
        return {}
    x = torch.zeros(shape.tokens, shape.width, dtype=torch.float16, requires_grad=not shape.text)
    mlps = shape.network.references(shape.width, "cpu")
    w = [torch.zeros(n, shape.width, dtype=torch.float16) for n in shape.outs for _ in "kv"]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return reference.project_kv(x, mlps[:1], mlps[1:], *w)

    for mlp in mlps:
        mlp.eval()
    with torch.no_grad():
        ((at_inference,), _) = _graphs(run, x, [])
    for mlp in mlps:
        mlp.train()
    parameters = [p for mlp in mlps for p in mlp.parameters()] + w
    (forward, backward), saved = _graphs(run, x, parameters)
    return {
        "inference": Account(at_inference),
        "forward": Account(forward, saved=saved),
        "backward": Account(backward),
        "forward + backward": Account(forward + backward, saved=saved),
    }


def _graphs(
    run: Callable[..., Sequence[Tensor]], x: Tensor, parameters: Sequence[Tensor]
) -> tuple[list[tuple[Launch, ...]], int]:
    """The launches of every graph that is compiled for a call, and the bytes that the call keeps for backward."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    graphs: list[tuple[Launch, ...]] = []

    def note(nodes: list[Any]) -> list[Any]:
        launches = [_launch(node) for node in nodes]
        graphs.append(tuple(launch for launch in launches if launch.bytes_written))
        return nodes

    torch._dynamo.reset()
    with (
        inductor.patch(_post_fusion_custom_pass=note, fx_graph_cache=False, compile_threads=1),
        functorch.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ):
        compiled = torch.compile(run, fullgraph=True, dynamic=False)
        saved = saved_bytes(lambda: compiled(x), parameters)
    torch._dynamo.reset()
    return graphs, saved


def _launch(node: Any) -> Launch:
    """Of a node of the schedule; without bytes if it computes nothing."""
    name = getattr(node.node, "python_kernel_name", None) or "generated"
    read, written = node.get_read_buffer_sizes(), node.get_write_buffer_sizes()
    return Launch(name, 1, None, node.estimate_flops() or 0, read, written)
