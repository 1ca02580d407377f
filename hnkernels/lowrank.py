"""A linear layer with low-rank weights of its own for every sample: what a weight hypernetwork's output is used by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hnkernels.triton.support import compute_dtype

HIGHEST_RANK = 64


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor | float | None = None,
    bias: Tensor | None = None,
    *,
    index: Tensor | None = None,
) -> Tensor:
    """``y[s] = x[s] Wᵀ + bias + scale[s]·(x[s] A[i]ᵀ) B[i]ᵀ`` with i = index[s].

    Differentiable in everything but the index, twice too. What is kept for the backward pass is x and the factors;
    nothing is copied per token. The factors may have another floating dtype than x (fp32 master weights, say).

    Args:
        x: [S, ..., d] in a floating dtype, S samples.
        weight: W, [n, d] in x's dtype (any floating dtype under autocast).
        a, b: the low-rank factors, [G, r, d] and [G, n, r], r at most 64 and at most n and d.
        scale: [S], [G], or one number for all; ``None`` is 1.
        bias: [n].
        index: [S] whole numbers below G, which set serves which sample. Without it S is a multiple of G, and every set
            serves as many consecutive samples: what ``num_images_per_prompt`` makes of a batch.

    Returns:
        [S, ..., n] in x's dtype, or autocast's.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names them.
    """
    _check(x, weight, a, b, scale, bias, index)
    samples, sets, dtype = x.shape[0], a.shape[0], compute_dtype(x)
    each = samples // max(sets, 1)  # samples that a set serves, without an index
    if isinstance(scale, Tensor):
        if scale.shape[0] != samples:
            scale = scale[index] if index is not None else scale.repeat_interleave(each)
    elif scale is not None:
        scale = x.new_full((samples,), float(scale))
    if index is not None:
        a, b, sets, each = a[index], b[index], samples, 1
    # The samples of one set are as good as one sample with all their tokens.
    tokens = x.reshape(sets, each * math.prod(x.shape[1:-1]), x.shape[-1])
    runs = _acting(scale, sets)
    if scale is not None:
        scale = scale.view(sets, each)
    inputs = [None if t is None else t.to(dtype) for t in (tokens, weight, bias, a, b, scale)]
    with torch.autocast(x.device.type, enabled=False):
        y = _LowRankLinear.apply(*inputs, runs)
    return y.view(*x.shape[:-1], weight.shape[0])


def _acting(scale: Tensor | None, batch: int) -> tuple[tuple[int, int], ...]:
    """Stretches of the batch in which the scale is not 0 throughout: nothing is computed of the others.

    Only where looking costs nothing and a gradient of the scale is not asked for: elsewhere it is the whole batch.
    """
    everything = ((0, batch),)
    if scale is None or scale.device.type != "cpu" or scale.requires_grad or torch.compiler.is_compiling():
        return everything
    acts = [any(values) for values in scale.detach().view(batch, scale.numel() // batch).tolist()] if batch else []
    stretches = [(key, len(list(group))) for key, group in groupby(acts)]
    ends = list(accumulate(length for _, length in stretches))
    return tuple((end - length, end) for (act, length), end in zip(stretches, ends, strict=True) if act)


class _LowRankLinear(torch.autograd.Function):
    """One set of factors per item of the batch: x [S, T, d], a [S, r, d], b [S, n, r], scale [S, parts of T].

    With u = x Aᵀ and g = dy B: dx = dy W + s·g A, dA = (s·g)ᵀ x, dB = dyᵀ (s·u), ds = Σ g∘u. u is made once more in
    the backward pass, which costs r/n of the layer; of the forward pass x and the factors are kept.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale, runs):
        ctx.save_for_backward(x, weight, a, b, scale)
        ctx.runs = runs
        if _worth_merging(x, weight, scale):
            y = x.new_empty(*x.shape[:2], weight.shape[0])
            for rows, merged in _merged(weight, a, b, scale, x, y):
                torch.mm(rows[0], merged.mT, out=rows[1])
            return y if bias is None else y.add_(bias)
        y = F.linear(x, weight, bias)
        for start, end in runs:
            part = slice(start, end)
            u = _scaled(torch.bmm(x[part], a[part].mT), scale, part)
            y[part].baddbmm_(u, b[part].mT)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, a, b, scale = ctx.saved_tensors
        needs_x, needs_w, needs_bias, needs_a, needs_b, needs_scale, _ = ctx.needs_input_grad
        dx = None
        merging = needs_x and _worth_merging(x, weight, scale) and not torch.is_grad_enabled()
        if merging:
            dx = torch.empty_like(x)
            for rows, merged in _merged(weight, a, b, scale, dy, dx):
                torch.mm(rows[0], merged, out=rows[1])
        elif needs_x:
            dx = dy @ weight
        dw = dy.flatten(0, 1).mT @ x.flatten(0, 1) if needs_w else None
        d_bias = dy.sum((0, 1)) if needs_bias else None
        da, db, d_scale = [], [], None
        for start, end in ctx.runs:
            part = slice(start, end)
            if needs_b or needs_scale:
                u = torch.bmm(x[part], a[part].mT)
            if needs_b:
                db.append(torch.bmm(dy[part].mT, _scaled(u, scale, part)))
            if not (needs_a or needs_scale or (needs_x and not merging)):
                continue
            g = torch.bmm(dy[part], b[part])
            if needs_scale:  # then there is one run, the whole batch
                wide = torch.promote_types(g.dtype, torch.float32)
                sums = (g.to(wide) * u.to(wide)).view(*scale.shape, math.prod(g.shape[1:]) // max(scale.shape[1], 1))
                d_scale = sums.sum(-1).to(scale.dtype)
            g = _scaled(g, scale, part)
            if dx is not None and not merging:
                dx[part].baddbmm_(g, a[part])
            if needs_a:
                da.append(torch.bmm(g.mT, x[part]))
        d_a = _joined(da, ctx.runs, a) if needs_a else None
        d_b = _joined(db, ctx.runs, b) if needs_b else None
        return dx, dw, d_bias, d_a, d_b, d_scale, None


def _worth_merging(x: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
    """Whether a weight of its own per sample, ``W + s·B A``, costs less than passing over x and y once more.

    On the CPU, where the scale is known, and not in half precision, whose weights would round small changes away.
    """
    n, d = weight.shape
    tokens = x.shape[1] // (1 if scale is None else max(scale.shape[1], 1))
    known = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return known and x.dtype in (torch.float32, torch.float64) and tokens * (d + 2 * n) >= 4 * n * d


def _merged(
    weight: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, source: Tensor, target: Tensor
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """For every sample its tokens in source and target, each [T', …], and its weight [n, d]."""
    for item in range(source.shape[0]):
        scales = [1.0] if scale is None else scale[item].tolist()
        tokens = source.shape[1] // len(scales)
        for part, s in enumerate(scales):
            rows = slice(part * tokens, (part + 1) * tokens)
            merged = weight if s == 0 else torch.addmm(weight, b[item], a[item], alpha=s)
            yield (source[item, rows], target[item, rows]), merged


def _scaled(u: Tensor, scale: Tensor | None, part: slice) -> Tensor:
    """u [S', T, r] times each part's scale."""
    if scale is None:
        return u
    s = scale[part]
    return (u.view(*s.shape, u.shape[1] // max(s.shape[1], 1), u.shape[2]) * s[..., None, None]).view(u.shape)


def _joined(parts: list[Tensor], runs: tuple[tuple[int, int], ...], like: Tensor) -> Tensor:
    """The gradients of the stretches, with 0 between them."""
    if len(parts) == 1 and parts[0].shape == like.shape:
        return parts[0]
    pieces, at = [], 0
    for part, (start, end) in zip(parts, runs, strict=True):
        pieces += [like.new_zeros(start - at, *like.shape[1:]), part]
        at = end
    return torch.cat([*pieces, like.new_zeros(like.shape[0] - at, *like.shape[1:])])


def _check(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor | float | None,
    bias: Tensor | None,
    index: Tensor | None,
) -> None:
    for name, t in {"x": x, "weight": weight, "a": a, "b": b, "bias": bias}.items():
        if t is None and name == "bias":
            continue
        if not isinstance(t, Tensor) or not t.is_floating_point():
            given = f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"{name} must be a floating-point tensor, not {given}")
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}; move one with .to(device)")
    if x.ndim < 2 or weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"x must be [S, ..., d] and weight [n, d], not {list(x.shape)} and {list(weight.shape)}")
    n, d = weight.shape
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias must be [{n}] like weight, not {list(bias.shape)}")
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise ValueError(f"a must be [G, r, {d}] and b [G, {n}, r], not {list(a.shape)} and {list(b.shape)}")
    sets, rank = a.shape[:2]
    if a.shape[2] != d or b.shape[1] != n:
        raise ValueError(
            f"a must be [{sets}, {rank}, {d}] and b [{sets}, {n}, {rank}] for a weight [{n}, {d}], not {list(a.shape)} "
            f"and {list(b.shape)}"
        )
    if not 1 <= rank <= min(n, d, HIGHEST_RANK):
        raise ValueError(f"the rank must be between 1 and {min(n, d, HIGHEST_RANK)} for this weight, not {rank}")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} is {t.dtype} and x {x.dtype}; cast one of them, or run under torch.autocast")
    samples = x.shape[0]
    if index is not None:
        if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32) or index.shape != (samples,):
            raise ValueError(f"index must be [{samples}] whole numbers below {sets}, not {_describe(index)}")
        seen = index.device.type == "cpu" and not torch.compiler.is_compiling() and samples  # elsewhere it would wait
        if seen and not 0 <= int(index.min()) <= int(index.max()) < sets:
            raise ValueError(f"index must be [{samples}] whole numbers below {sets}, not {index.tolist()}")
    elif sets == 0 or samples % sets:
        raise ValueError(
            f"a batch of {samples} is no multiple of the {sets} sets of factors; give an index that says which set "
            "serves which sample"
        )
    _check_scale(scale, samples, sets, x.device)


def _check_scale(scale: Any, samples: int, sets: int, device: torch.device) -> None:
    if scale is None or (isinstance(scale, (int, float)) and not isinstance(scale, bool)):
        return
    fits = isinstance(scale, Tensor) and scale.is_floating_point() and scale.shape in ((samples,), (sets,))
    if not fits:
        raise ValueError(f"scale must be a number, [{samples}] or [{sets}], not {_describe(scale)}")
    if scale.device != device:
        raise ValueError(f"scale is on {scale.device}, x on {device}; move one with .to(device)")


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
