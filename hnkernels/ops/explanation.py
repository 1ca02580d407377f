"""What an operation would launch, told without a GPU: kernels, tiles, floating-point operations and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.hyper import MLPs
from hnkernels.ops.portable import Chain
from hnkernels.triton.support import DTYPES, HAS_TRITON, mlp_fault

if TYPE_CHECKING:
    from hnkernels.triton.launch import Launch


@dataclass(frozen=True)
class Explanation:
    """The launches of one ``hyper_kv`` or ``hyper_qkv`` on the Triton backend; ``print`` it for a table.

    All figures are counted, not measured.

    Attributes:
        target: the architecture that the tiles were chosen for.
        forward, backward: launches in order; ``backward`` is empty for inference.
        saved_bytes: what is kept for the backward pass besides the parameters, each tensor once.
    """

    target: str
    forward: tuple[Launch, ...]
    backward: tuple[Launch, ...]
    saved_bytes: int

    @property
    def launches(self) -> tuple[Launch, ...]:
        """All of them."""
        return self.forward + self.backward

    @property
    def flops(self) -> int:
        """Floating-point operations of all products, a multiply-add as two."""
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written, every byte once per launch."""
        return sum(launch.bytes_read + launch.bytes_written for launch in self.launches)

    def __str__(self) -> str:
        lines = [f"{'launch':<34}{'tiles':>14}{'programs':>10}{'GFLOP':>9}{'MB read':>10}{'MB written':>12}  route"]
        for name, launches in (("forward", self.forward), ("backward", self.backward)):
            if launches:
                lines.append(f"{name}, {_counted(launches)}")
            for launch in launches:
                t = launch.tiles
                lines.append(
                    f"  {launch.kernel.removesuffix('_kernel'):<32}"
                    f"{f'{t.block_m}x{t.block_n}x{t.block_k}' if t else '-':>14}{launch.programs:>10}"
                    f"{launch.flops / 1e9:>9.3f}{launch.bytes_read / 1e6:>10.2f}{launch.bytes_written / 1e6:>12.2f}"
                    f"  {launch.why}".rstrip()
                )
        lines.append(
            f"{_counted(self.launches)}, {self.flops / 1e9:.3f} GFLOP, {self.bytes_moved / 1e6:.2f} MB moved, "
            f"{self.saved_bytes / 1e6:.2f} MB saved for backward; counted for {self.target}, not measured"
        )
        return "\n".join(lines)


def _counted(launches: Sequence[Launch]) -> str:
    return f"{len(launches)} launch{'es' if len(launches) != 1 else ''}"


@torch.inference_mode(False)
@torch.enable_grad()
def explain(
    mlp_k: MLPs,
    mlp_v: MLPs,
    tokens: int = 8192,
    out_features: int | None = None,
    training: bool = True,
    *,
    query_features: int | None = None,
    dtype: torch.dtype = torch.float16,
    recompute: bool = False,
    input_gradient: bool = True,
    train_projections: bool = False,
    target: str = "sm_80",
) -> Explanation:
    """The launches that ``hyper_kv`` would make for these MLPs; nothing is computed.

    Args:
        mlp_k, mlp_v: one MLP each, or chains. Their parameters are taken to be in ``dtype``.
        tokens: rows of the context, batch times tokens.
        out_features: n of ``to_k`` and ``to_v``; the context's width if not given.
        training: a recorded forward pass and its backward pass; else inference, with everything in place that is
            computed once and kept.
        query_features: n of ``to_q``, to explain ``hyper_qkv`` instead.
        dtype: what is computed in.
        recompute: as in ``hyper_kv``.
        input_gradient: whether the context takes a gradient; that of a text encoder does not.
        train_projections: whether ``to_k`` and ``to_v`` (and ``to_q``) take gradients.
        target: architecture to choose tiles for: one of ``hnkernels.triton.target.TARGETS``.

    Raises:
        ValueError: Triton is not installed, the target is unknown, a number is not positive, or the kernels cannot do
            it.
    """
    if not HAS_TRITON:
        raise InputError("explain needs Triton, which is not installed: pip install triton")
    from hnkernels.ops.fused import project_pair
    from hnkernels.triton.launch import recording
    from hnkernels.triton.target import TARGETS, planned_for

    if target not in TARGETS:
        raise InputError(f"target {target!r} is unknown; accepted are {', '.join(TARGETS)}")
    for name, number in (("tokens", tokens), ("out_features", out_features), ("query_features", query_features)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise InputError(f"{name} must be a positive integer, not {number!r}")
    chains = [_on_meta(mlps, training, dtype) for mlps in (mlp_k, mlp_v)]
    mlps = [mlp for chain in chains for mlp, _ in chain]
    if not mlps:
        raise InputError("give an MLP for K or V: without one there is nothing to explain")
    fault = next(filter(None, map(mlp_fault, mlps)), None)
    if fault is not None:
        raise InputError(f"the Triton backend would not run: {fault}")
    width = mlps[0].dim
    if any(mlp.dim != width for mlp in mlps):
        raise InputError(f"all MLPs must have one width, not {sorted({mlp.dim for mlp in mlps})}")
    if dtype not in DTYPES:
        raise InputError(f"the Triton backend computes in float16, bfloat16 and float32, not {dtype}")
    n = out_features or width

    def empty(*shape: int, grad: bool = False) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype, requires_grad=grad)

    x = empty(tokens, width, grad=training and input_gradient)
    w_k, w_v = (empty(n, width, grad=training and train_projections) for _ in range(2))
    query = None
    if query_features is not None:
        query = (empty(query_features, width, grad=training and train_projections), None)

    def run() -> tuple[Tensor, ...]:
        return project_pair(x, chains[0], chains[1], (w_k, None), (w_v, None), query, recompute)

    with planned_for(TARGETS[target]):
        if not training:
            with torch.no_grad():
                run()  # folds, composes and casts what is kept from then on
                with recording() as launches:
                    run()
            return Explanation(target, tuple(launches), (), 0)
        saved: dict[int, Tensor] = {}
        parameters = [p for chain in chains for mlp, _ in chain for p in mlp.parameters()]
        known = {id(t) for t in (*parameters, w_k, w_v, *(query or ()))}

        def pack(t: Tensor) -> Tensor:
            if id(t) not in known:
                saved[id(t)] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), recording() as forward:
            results = run()
        with recording() as backward:
            torch.autograd.backward(results, [torch.empty_like(t) for t in results])
        size = sum(t.numel() * t.element_size() for t in saved.values())
        return Explanation(target, tuple(forward), tuple(backward), size)


def _on_meta(mlps: MLPs, training: bool, dtype: torch.dtype) -> Chain:
    """The chain's MLPs once more, without data."""
    chain: list[tuple[HypernetworkMLP, float | Tensor]] = []
    for mlp in mlps if isinstance(mlps, Iterable) else (mlps,):
        if not isinstance(mlp, HypernetworkMLP):
            raise InputError(f"mlp_k and mlp_v must be HypernetworkMLPs or sequences of them, not {type(mlp).__name__}")
        with torch.device("meta"):
            copy = HypernetworkMLP(mlp.dim, mlp.config)
        copy.multiplier = mlp.multiplier
        chain.append((copy.to(dtype).train(training), copy.multiplier_at(1.0)))
    return tuple(chain)
