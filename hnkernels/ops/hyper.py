"""The hypernetwork operations as functions: check the inputs, pick the backend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops import plan, portable
from hnkernels.ops.checks import check_call, check_chain, check_context, describe, is_real
from hnkernels.triton import support
from hnkernels.wording import shown

MLPs = HypernetworkMLP | Sequence[HypernetworkMLP]

Strength = float | Tensor | Sequence[float | Tensor]
"""One for all MLPs of a chain, or one each. A tensor of no dimensions is read when the kernels run."""

_GREATEST = sys.float_info.max  # by itself, because the compiler of PyTorch 2.6 cannot trace where it comes from


def hyper_context(
    context: Tensor,
    mlps: MLPs,
    *,
    strength: Strength = 1.0,
    backend: str = "auto",
    recompute: bool = False,
) -> Tensor:
    """The context after one MLP or a chain of them: ``x ← x + m·f(x)`` for each, in order.

    Args:
        context: [..., d] in a floating dtype.
        mlps: one MLP of width d, or a chain applied first to last. Parameters may have another floating dtype than
            the context (fp32 master weights, say); they are cast to the context's for the computation.
        strength: factor on every MLP's own multiplier, or one factor each. Without effect on MLPs in training mode. A
            tensor without dimensions, on the context's device, is read when the kernels run: neither a compiled nor a
            captured graph is tied to its value. It gets no gradient.
        backend, recompute: see ``hyper_kv``.

    Returns:
        [..., d] in the context's dtype; under autocast as eager PyTorch promotes it.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names them.
    """
    chain = _chain("mlps", mlps, strength)
    support.check_backend(backend)
    check_context(context)
    check_chain("mlps", chain, context)
    if _takes_triton(backend, context, chain):
        from hnkernels.ops.fused import transform

        return transform(context, chain, recompute)
    return portable.transform(context, chain)


def hyper_context_pair(
    context: Tensor,
    mlp_k: MLPs,
    mlp_v: MLPs,
    *,
    strength: Strength | Mapping[str, Strength] = 1.0,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """``hyper_context`` for the K and the V stream of one context, on the Triton backend in the same launches.

    Args and errors as those of ``hyper_kv``. Shape: context [..., d] → two of [..., d].
    """
    chain_k, chain_v = _chains(mlp_k, mlp_v, strength)
    support.check_backend(backend)
    check_context(context)
    check_chain("mlp_k", chain_k, context)
    check_chain("mlp_v", chain_v, context)
    if _takes_triton(backend, context, (*chain_k, *chain_v)):
        from hnkernels.ops.fused import transform_pair

        return transform_pair(context, chain_k, chain_v, recompute)
    return portable.transform_pair(context, chain_k, chain_v)


def hyper_kv(
    context: Tensor,
    mlp_k: MLPs,
    mlp_v: MLPs,
    w_k: Tensor,
    w_v: Tensor,
    b_k: Tensor | None = None,
    b_v: Tensor | None = None,
    *,
    strength: Strength | Mapping[str, Strength] = 1.0,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """K and V of attention with a hypernetwork: ``K = (x + m·f_k(x)) w_kᵀ + b_k``, V likewise.

    Differentiable in the context, in every MLP parameter, and in the projections where they require a gradient.

    Args:
        context: x, [..., d] in a floating dtype.
        mlp_k, mlp_v: one MLP of width d each, or chains of them; an empty sequence leaves the context as it is.
        w_k, w_v: [n_k, d] and [n_v, d], in the context's dtype (any floating dtype under autocast).
        b_k, b_v: [n_k] and [n_v].
        strength: factor on the multiplier of every MLP, or one per position of the chain, for K and V alike; a mapping
            ``{"k": …, "v": …}`` tells the two apart. Tensors and training mode: see ``hyper_context``.
        backend: ``"portable"`` is plain PyTorch; ``"triton"`` are the fused kernels, refused with a reason where they
            cannot run; ``"auto"`` takes these wherever they can run on a GPU (CUDA from compute capability 8.0, ROCm,
            XPU), and on CPU tensors under ``TRITON_INTERPRET=1``.
        recompute: on the Triton backend, keep nothing but x for the backward pass and compute the rest once more there.

    Returns:
        K [..., n_k] and V [..., n_v].

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run; the message names what was given
            and what is accepted.
        RuntimeError: a gradient of the Triton backend is differentiated once more.
    """
    k, v = _projected(context, mlp_k, mlp_v, (w_k, w_v, b_k, b_v), strength, backend, recompute)
    return k, v


def hyper_qkv(
    x: Tensor,
    mlp_k: MLPs,
    mlp_v: MLPs,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    b_q: Tensor | None = None,
    b_k: Tensor | None = None,
    b_v: Tensor | None = None,
    *,
    strength: Strength | Mapping[str, Strength] = 1.0,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V of self-attention with a hypernetwork: ``Q = x w_qᵀ + b_q``, K and V as in ``hyper_kv``.

    On the Triton backend Q is computed in the launch of the MLPs' first linears, which read the same x (with Triton
    3.2, whose compiler does not get through that, as a linear of its own).

    Args:
        x: [..., d].
        w_q: [n_q, d].
        b_q: [n_q].
        mlp_k, mlp_v, w_k, w_v, b_k, b_v, strength, backend, recompute: see ``hyper_kv``, with its errors.

    Returns:
        Q [..., n_q], K [..., n_k] and V [..., n_v].
    """
    k, v, q = _projected(x, mlp_k, mlp_v, (w_k, w_v, w_q, b_k, b_v, b_q), strength, backend, recompute)
    return q, k, v


def kv_runner(
    context: Tensor, mlp_k: MLPs, mlp_v: MLPs, *given: Tensor | None, strength: Any
) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """What ``hyper_kv`` runs for these arguments, if a plan of them is kept: K and V of a context like this one, and Q.

    For those who know at each call that nothing which the plan assumes has changed (``plan.Plan``), nor
    ``derived.epoch``, nor ``plan.launching``, nor autocast. It has no gradient.

    Args:
        context, mlp_k, mlp_v, strength: as ``hyper_kv`` takes them.
        given: w_k, w_v, [w_q,] b_k, b_v [, b_q].
    """
    return plan.runner(*plan.key_of(context, mlp_k, mlp_v, strength, "auto", False, given), given)


_watchers = torch._C._len_torch_dispatch_stack  # who look at every operation, where a plan would have none to show


def _projected(
    context: Tensor,
    mlp_k: MLPs,
    mlp_v: MLPs,
    given: tuple[Any, ...],
    strength: Strength | Mapping[str, Strength],
    backend: str,
    recompute: bool,
) -> Sequence[Tensor]:
    """K, V and, where there is a projection for it, Q; ``given`` are the weights in this order, and then the biases."""
    owner = key = None
    if type(context) is Tensor and not torch.compiler.is_compiling() and not _watchers():
        owner, key = plan.key_of(context, mlp_k, mlp_v, strength, backend, recompute, given)
        if owner is not None and (results := plan.attempt(owner, key, context, given)) is not None:
            return results
    count = len(given) // 2
    projections = {name: (given[i], given[count + i]) for i, name in enumerate("kvq"[:count])}
    chain_k, chain_v = _chains(mlp_k, mlp_v, strength)
    check_call(context, {"mlp_k": chain_k, "mlp_v": chain_v}, projections, backend)
    query = projections.get("q")
    if _takes_triton(backend, context, (*chain_k, *chain_v)):
        from hnkernels.ops.fused import project_pair, recorded_pair

        if owner is None:
            return project_pair(context, chain_k, chain_v, projections["k"], projections["v"], query, recompute)
        mlps = [mlp for mlp, _ in (*chain_k, *chain_v)]
        if torch.is_grad_enabled() and context.is_contiguous():
            # Decided before the first call: a checkpoint that computes it once more must save the very same tensors.
            run = recorded_pair(chain_k, chain_v, context, given, "q" in projections, recompute)
            if run is not None:
                recorded = plan.Recorded(run, mlps, given)
                plan.store(owner, key, recorded, given)
                return recorded.run(context, given)
        tape = plan.Tape(context, given)
        results = project_pair(context, chain_k, chain_v, projections["k"], projections["v"], query, recompute, tape)
        if tape.results is not None:
            plan.keep(owner, key, tape, mlps)
        return results
    y_k, y_v = portable.transform_pair(context, chain_k, chain_v)
    kv = portable.project(y_k, *projections["k"]), portable.project(y_v, *projections["v"])
    return kv if query is None else (*kv, portable.project(context, *query))


def _chains(
    mlp_k: MLPs, mlp_v: MLPs, strength: Strength | Mapping[str, Strength]
) -> tuple[portable.Chain, portable.Chain]:
    """Both streams' MLPs with their multipliers."""
    if not isinstance(strength, Mapping):
        strength = {"k": strength, "v": strength}
    if set(strength) != {"k", "v"}:
        raise InputError(f"strength by stream must be {{'k': …, 'v': …}}, not {shown(dict(strength))}")
    return _chain("mlp_k", mlp_k, strength["k"]), _chain("mlp_v", mlp_v, strength["v"])


def _chain(name: str, mlps: MLPs, strength: Strength) -> portable.Chain:
    """The MLPs with the multiplier each is to use now."""
    mlps = tuple(mlps) if isinstance(mlps, Iterable) and not isinstance(mlps, str) else (mlps,)
    for mlp in mlps:
        if not isinstance(mlp, HypernetworkMLP):
            raise InputError(f"{name} must be a HypernetworkMLP or a sequence of them, not {type(mlp).__name__}")
    strengths: tuple[Any, ...] = tuple(strength) if isinstance(strength, (tuple, list)) else (strength,) * len(mlps)
    for s in strengths:
        if not (isinstance(s, Tensor) and s.ndim == 0 and is_real(s)) and not (
            isinstance(s, (int, float)) and abs(s) <= _GREATEST
        ):
            raise InputError(
                "strength must be a number, not infinite, or a tensor without dimensions, or one per MLP of the chain, "
                "not " + (describe(s) if isinstance(s, Tensor) else shown(strength))
            )
    if len(strengths) != len(mlps):
        raise InputError(f"strength has {len(strengths)} values and {name} is a chain of {len(mlps)}; give one each")
    return tuple((mlp, mlp.multiplier_at(s)) for mlp, s in zip(mlps, strengths, strict=True))


def _takes_triton(backend: str, context: Tensor, chain: portable.Chain) -> bool:
    """Whether the Triton backend is to run."""
    return support.takes_triton(backend, context, [mlp for mlp, m in chain if portable.acts(m)])
