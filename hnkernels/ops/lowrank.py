"""Linear layers with low-rank weights of their own for every sample: what a weight hypernetwork's output is used by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.ops.checks import Scale, check_computed, check_factors, check_same_device, check_weight, describe
from hnkernels.ops.lowrank_portable import Slice
from hnkernels.ops.lowrank_portable import lowrank_linears as portable
from hnkernels.triton.support import check_backend, compute_dtype, takes_triton


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Scale = None,
    bias: Tensor | None = None,
    *,
    index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``y[s] = x[s] Wᵀ + bias + scale[s]·(x[s] A[i]ᵀ) B[i]ᵀ`` with i = index[s].

    Differentiable in everything but the index. What is kept for the backward pass is x and the factors; nothing is
    copied per token; samples of scale 0 cost the plain linear. The factors may have another floating dtype than x (fp32
    master weights, say).

    Args:
        x: [S, ..., d] in a floating dtype, S samples.
        weight: W, [n, d] in x's dtype (any floating dtype under autocast).
        a, b: the low-rank factors, [G, r, d] and [G, n, r], r at most 64 and at most n and d.
        scale: [S], [G], or one number for all; ``None`` is 1.
        bias: [n].
        index: [S] integers below G, which set serves which sample. Without it S is a multiple of G, and every set
            serves as many consecutive samples: what ``num_images_per_prompt`` makes of a batch.
        backend: ``"portable"`` is plain PyTorch; ``"triton"`` are the fused kernels, one launch with the linear itself,
            refused with a reason where they cannot run; ``"auto"`` takes these wherever they can, as ``hyper_kv`` does.

    Returns:
        [S, ..., n] in x's dtype, or autocast's.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run; the message names them.
        RuntimeError: a gradient of the Triton backend is differentiated once more. (The portable one's may be.)
    """
    triton = _takes_triton(backend, x)
    check_weight(x, weight, bias)
    check_factors(x, weight.shape[0], a, b, scale, index)
    return _run(x, [Slice(None, weight, bias, a, b, None)], [scale], index, triton)[0]


def lowrank_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Scale | Sequence[Scale] = None,
    biases: Sequence[Tensor | None] | None = None,
    *,
    index: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """``lowrank_linear`` for several linears of one x (to_q, to_k and to_v, say), which read it together.

    On the Triton backend they are one launch, however many.

    Args:
        x, index, backend: as for ``lowrank_linear``.
        weights, a, b, biases: one entry per linear, of widths and ranks of their own, but with as many sets G.
        scales: one for all linears, or a list with one each.

    Returns:
        [S, ..., n] for every linear.
    """
    count = len(weights)
    biases = [None] * count if biases is None else biases
    each: list[Any] = list(scales) if isinstance(scales, (list, tuple)) else [scales] * count
    lengths = {"a": len(a), "b": len(b), "biases": len(biases), "scales": len(each)}
    if not count or set(lengths.values()) != {count}:
        raise InputError(f"give one entry per weight, of which there are {count} (at least 1), not {lengths}")
    triton = _takes_triton(backend, x)
    for number in range(count):
        check_weight(x, weights[number], biases[number], f"s[{number}]", f"es[{number}]")
        check_factors(x, weights[number].shape[0], a[number], b[number], each[number], index, f"[{number}]")
    if len({t.shape[0] for t in a}) > 1:
        raise InputError(f"all linears must have as many sets of factors, not {[t.shape[0] for t in a]}")
    slices = [Slice(None, w, bias, a_i, b_i, None) for w, bias, a_i, b_i in zip(weights, biases, a, b, strict=True)]
    return _run(x, slices, each, index, triton)


def lowrank_add(
    base: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Scale = None,
    *,
    index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``base[s] + scale[s]·(x[s] A[i]ᵀ) B[i]ᵀ``: the change alone, for a linear that computes by itself.

    Args:
        base: [S, ..., n], the linear's output.
        x, a, b, scale, index, backend: as for ``lowrank_linear``.

    Returns:
        [S, ..., n] in base's dtype.
    """
    triton = _takes_triton(backend, x)
    if not isinstance(base, Tensor) or not base.is_floating_point() or base.shape[:-1] != x.shape[:-1]:
        raise InputError(f"base must be a floating-point tensor {[*x.shape[:-1], 'n']}, not {describe(base)}")
    check_computed("base", base)
    check_same_device("base", base, x)
    check_factors(x, base.shape[-1], a, b, scale, index)
    dtype = compute_dtype(x)
    exact = torch.promote_types(base.dtype, dtype) == dtype
    start = base if exact else torch.zeros_like(base, dtype=dtype)  # a wider base is not to be rounded
    y = _run(x, [Slice(start, None, None, a, b, None)], [scale], index, triton)[0]
    return (y if exact else base + y).to(base.dtype)


def lowrank_runner(
    x: Tensor,
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[Scale],
    biases: Sequence[Tensor | None],
    index: Tensor | None,
) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """What ``lowrank_linears`` runs for these arguments, which it has taken: the outputs for an x like this one.

    For those who know at each call that none of the other tensors has been replaced, and that neither
    ``plan.launching`` nor autocast has changed. It has no gradient. ``None`` on the portable backend, with other
    dimensions than [S, T, d], with casts, or for so many linears that the kernel reads a table of addresses.
    """
    tensors = [t for t in (*weights, *biases, *a, *b) if t is not None]
    if x.ndim != 3 or any(t.dtype != x.dtype for t in tensors) or not takes_triton("auto", x):
        return None
    from hnkernels.triton.ops.lowrank import linears_runner

    rows = [_by_sample(scale, x, a[0].shape[0], index) for scale in scales]
    return linears_runner(x, weights, biases, a, b, rows, None if index is None else index.long())


def _run(
    x: Tensor, slices: list[Slice], scales: Sequence[Scale], index: Tensor | None, triton: bool
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(x)
    rows = [_by_sample(scale, x, slices[0].a.shape[0], index) for scale in scales]
    run = _run_triton if triton else _run_portable
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):  # autocast does not know the meta device
        return run(x, slices, rows, index, dtype)
    with torch.autocast(x.device.type, enabled=False):
        return run(x, slices, rows, index, dtype)


def _run_triton(
    x: Tensor, slices: list[Slice], scales: list[Tensor | None], index: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    from hnkernels.triton.ops import lowrank as fused

    shape = (x.shape[0], math.prod(x.shape[1:-1]))
    tokens = _shaped(x, shape).to(dtype)
    a, b = [s.a.to(dtype) for s in slices], [s.b.to(dtype) for s in slices]
    index = None if index is None else index.long()
    bases = [_shaped(s.base, shape).to(dtype) for s in slices if s.base is not None]
    if bases:
        results = fused.lowrank_add(bases, tokens, a, b, scales, index)
    else:
        weights = [s.weight.to(dtype) for s in slices if s.weight is not None]
        biases = [_to(s.bias, dtype) for s in slices]
        results = fused.lowrank_linears(tokens, weights, biases, a, b, scales, index)
    return tuple(_shaped(y, x.shape[:-1]) for y in results)


def _run_portable(
    x: Tensor, slices: list[Slice], scales: list[Tensor | None], index: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    samples, sets = x.shape[0], slices[0].a.shape[0]
    each = samples // max(sets, 1)  # samples that a set serves, without an index
    if index is not None:
        slices = [Slice(s.base, s.weight, s.bias, s.a[index], s.b[index], s.scale) for s in slices]
        sets, each = samples, 1
    # The samples of one set are as good as one sample with all their tokens.
    shape = (sets, each * math.prod(x.shape[1:-1]))
    tokens = _shaped(x, shape).to(dtype)

    def cast(s: Slice, scale: Tensor | None) -> Slice:
        base = None if s.base is None else _shaped(s.base, shape)
        scale = None if scale is None else scale.view(sets, each)
        return Slice(
            _to(base, dtype), _to(s.weight, dtype), _to(s.bias, dtype), s.a.to(dtype), s.b.to(dtype), _to(scale, dtype)
        )

    results = portable(tokens, [cast(s, scale) for s, scale in zip(slices, scales, strict=True)])
    return tuple(_shaped(y, x.shape[:-1]) for y in results)


def _to(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


def _shaped(t: Tensor, shape: Sequence[int]) -> Tensor:
    """t with these dimensions in front of its last; itself if it has them, for a view costs time too."""
    return t if t.shape[:-1] == tuple(shape) else t.reshape(*shape, t.shape[-1])


def _by_sample(scale: Scale, x: Tensor, sets: int, index: Tensor | None) -> Tensor | None:
    """The scale of every sample, [S]."""
    if isinstance(scale, Tensor):
        if scale.shape[0] == x.shape[0]:
            return scale
        return scale[index] if index is not None else scale.repeat_interleave(x.shape[0] // max(sets, 1))
    return None if scale is None else x.new_full((x.shape[0],), float(scale))


def _takes_triton(backend: str, x: Tensor) -> bool:
    """Whether the Triton backend is to run on x, which must be a tensor [S, ..., d]."""
    check_backend(backend)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise InputError(f"x must be a floating-point tensor [S, ..., d], not {describe(x)}")
    check_computed("x", x)
    return takes_triton(backend, x)
