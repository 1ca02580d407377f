"""Low-rank changes of linears in plain PyTorch: one autograd Function for all linears that read one x."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad


class Slice(NamedTuple):
    """One linear with low-rank weights of its own for every sample: ``y = base + scale·(x Aᵀ) Bᵀ``.

    Attributes:
        base: [S, T, n], the linear's own output; or else
        weight: [n, d], what it is computed from, with
        bias: [n].
        a, b: [S, r, d] and [S, n, r].
        scale: [S, parts], one for each of as many equal parts of a sample's tokens; ``None`` is 1.
    """

    base: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: Tensor | None


def lowrank_linears(x: Tensor, slices: Sequence[Slice]) -> tuple[Tensor, ...]:
    """Every slice's y. Shape: x [S, T, d] → [S, T, n] each."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return tuple(_plain(x, s) for s in slices)
    runs = _acting([s.scale for s in slices], x.shape[0])
    return _LowRank.apply(runs, x, *(t for s in slices for t in s))


def _plain(x: Tensor, s: Slice) -> Tensor:
    """One slice's y, as PyTorch's compiler is to see it: it derives and fuses by itself. (Of an autograd Function some
    versions make gradients that are zero, without a word: 2.11.)"""
    y = s.base
    if y is None:
        assert s.weight is not None
        y = F.linear(x, s.weight, s.bias)
    return y + torch.bmm(_scaled(torch.bmm(x, s.a.mT), s.scale, (0, x.shape[0])), s.b.mT)


def _acting(scales: Sequence[Tensor | None], samples: int) -> tuple[tuple[int, int], ...]:
    """Stretches of the batch in which some scale is not 0: nothing is computed of the others.

    Only where looking costs nothing and a gradient of the scale is not asked for: elsewhere it is the whole batch.
    """
    acts = [False] * samples
    for scale in scales:
        if scale is None or scale.device.type != "cpu" or scale.requires_grad:
            return ((0, samples),)
        for sample, values in enumerate(scale.detach().tolist()):
            acts[sample] = acts[sample] or any(values)
    stretches = [(key, len(list(group))) for key, group in groupby(acts)]
    ends = list(accumulate(length for _, length in stretches))
    return tuple((end - length, end) for (act, length), end in zip(stretches, ends, strict=True) if act)


class _LowRank(torch.autograd.Function):
    """With u = x Aᵀ and g = dy B: dx = Σ dy W + s·g A, dA = (s·g)ᵀ x, dB = dyᵀ (s·u), ds = Σ g∘u.

    u is made once more in the backward pass, which costs r/n of the layer; of the forward pass x and the factors are
    kept. The factors of all slices that read x lie one after another, so that its products with them are one.
    """

    @staticmethod
    def forward(ctx, runs, x, *flat):
        slices = _slices(flat)
        ctx.save_for_backward(x, *(t for s in slices for t in (s.weight, s.a, s.b, s.scale)))
        ctx.runs = runs
        results, left = [], []
        for number, s in enumerate(slices):
            if s.weight is not None and _worth_merging(x, s.weight, s.scale):
                y = x.new_empty(*x.shape[:2], s.weight.shape[0])
                for (rows, target), merged in _merged(s, x, y):
                    torch.mm(rows, merged.mT, out=target)
                results.append(y if s.bias is None else y.add_(s.bias))
                continue
            left.append(number)
            if s.weight is None:
                assert s.base is not None
                results.append(s.base.clone(memory_format=torch.contiguous_format))
            else:
                results.append(F.linear(x, s.weight, s.bias))
        for part in runs if left else ():
            u = torch.bmm(_of(x, part), _joined([slices[i].a for i in left], part).mT)
            for i, u_i in zip(left, _split(u, [slices[i].a for i in left], 2), strict=True):
                s = slices[i]
                _of(results[i], part).baddbmm_(_scaled(u_i, s.scale, part), _rows(s.b, part))
        return tuple(results)

    @staticmethod
    def backward(ctx, *dys):
        x, *saved = ctx.saved_tensors
        needs_x, needs = ctx.needs_input_grad[1], [Slice(*flags) for flags in _in_sixes(ctx.needs_input_grad[2:])]
        slices = [Slice(None, w, None, a, b, scale) for w, a, b, scale in zip(*[iter(saved)] * 4, strict=True)]
        dys = tuple(dy.contiguous() for dy in dys)
        dx, merged = _through_the_weights(x, slices, dys) if needs_x else (None, [True] * len(slices))
        pieces: list[dict[str, list[Tensor]]] = [{"a": [], "b": [], "scale": []} for _ in slices]
        for part in ctx.runs:
            _of_the_factors(x, slices, dys, part, needs, merged, dx, pieces)
        gradients: list[Tensor | None] = []
        for s, dy, need, piece in zip(slices, dys, needs, pieces, strict=True):
            gradients += [
                dy if need.base else None,
                dy.flatten(0, 1).mT @ x.flatten(0, 1) if need.weight else None,
                dy.sum((0, 1)) if need.bias else None,
                _whole(piece["a"], ctx.runs, s.a) if need.a else None,
                _whole(piece["b"], ctx.runs, s.b) if need.b else None,
                piece["scale"][0] if need.scale else None,  # then there is one run, the whole batch
            ]
        return None, dx, *gradients


def _through_the_weights(x: Tensor, slices: Sequence[Slice], dys: Sequence[Tensor]) -> tuple[Tensor, list[bool]]:
    """``Σ dy W`` [S, T, d], and of which slices it has the low-rank part too."""
    dx, merged = x.new_zeros(x.shape) if all(s.weight is None for s in slices) else None, []
    for s, dy in zip(slices, dys, strict=True):
        if s.weight is None:
            merged.append(False)
            continue
        # Merged weights are written into their place, where a second derivative would lose sight of them.
        merged.append(_worth_merging(x, s.weight, s.scale) and not torch.is_grad_enabled())
        if not merged[-1]:
            flat = dy.flatten(0, 1)
            product = flat @ s.weight if dx is None else torch.addmm(dx.flatten(0, 1), flat, s.weight)
            dx = product.view(x.shape)
            continue
        first = dx is None
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if dx is None else dx
        for (rows, target), weight in _merged(s, dy, dx):
            torch.mm(rows, weight, out=target) if first else target.addmm_(rows, weight)
    assert dx is not None
    return dx, merged


def _of_the_factors(
    x: Tensor,
    slices: Sequence[Slice],
    dys: Sequence[Tensor],
    part: tuple[int, int],
    needs: Sequence[Slice],
    merged: Sequence[bool],
    dx: Tensor | None,
    pieces: Sequence[dict[str, list[Tensor]]],
) -> None:
    """Adds a stretch's low-rank part to dx, and its gradients of the factors and scales to the pieces."""
    x = _of(x, part)
    us: Sequence[Tensor | None] = [None] * len(slices)
    if any(need.b or need.scale for need in needs):
        us = _split(torch.bmm(x, _joined([s.a for s in slices], part).mT), [s.a for s in slices], 2)
    gs: list[Tensor] = []
    used = [i for i, need in enumerate(needs) if need.a or need.scale or not merged[i]]
    for i, (s, whole, need, u) in enumerate(zip(slices, dys, needs, us, strict=True)):
        dy = _of(whole, part)
        if need.b:
            assert u is not None
            pieces[i]["b"].append(torch.bmm(_scaled(u, s.scale, part).mT, dy).mT)
        if i not in used:
            continue
        g = torch.bmm(dy, _rows(s.b, part).mT)
        if need.scale:
            assert u is not None
            assert s.scale is not None
            wide = torch.promote_types(g.dtype, torch.float32)
            sums = (g.to(wide) * u.to(wide)).reshape(*s.scale.shape, math.prod(g.shape[1:]) // max(s.scale.shape[1], 1))
            pieces[i]["scale"].append(sums.sum(-1).to(s.scale.dtype))
        gs.append(_scaled(g, s.scale, part))
    if not used:
        return
    if any(needs[i].a for i in used):
        together = torch.bmm(_concatenated(gs, 2).mT, x)
        for i, da in zip(used, _split(together, [slices[i].a for i in used], 1), strict=True):
            pieces[i]["a"].append(da)
    into_x = [(g, slices[i].a) for i, g in zip(used, gs, strict=True) if not merged[i]]
    if dx is not None and into_x:
        _of(dx, part).baddbmm_(_concatenated([g for g, _ in into_x], 2), _joined([a for _, a in into_x], part))


def _slices(flat: Sequence[Tensor | None]) -> list[Slice]:
    return [Slice(*six) for six in _in_sixes(flat)]


def _in_sixes(flat: Sequence) -> Iterator[tuple]:
    return zip(*[iter(flat)] * len(Slice._fields), strict=True)


def _worth_merging(x: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
    """Whether a weight of its own per sample, ``W + s·B A``, costs less than passing over x and y once more.

    On the CPU, where the scale is known, and not in half precision, whose weights would round small changes away.
    """
    n, d = weight.shape
    tokens = x.shape[1] // (1 if scale is None else max(scale.shape[1], 1))
    exact = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return exact and tokens * (d + 2 * n) >= 4 * n * d


def _merged(s: Slice, source: Tensor, target: Tensor) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """For every part of every sample its tokens in source and target, each [T', …], and its weight [n, d]."""
    assert s.weight is not None
    for item in range(source.shape[0]):
        scales = [1.0] if s.scale is None else s.scale[item].tolist()
        tokens = source.shape[1] // len(scales)
        for part, alpha in enumerate(scales):
            rows = slice(part * tokens, (part + 1) * tokens)
            merged = s.weight if alpha == 0 else torch.addmm(s.weight, s.b[item], s.a[item], alpha=alpha)
            yield (source[item, rows], target[item, rows]), merged


def _of(t: Tensor, part: tuple[int, int]) -> Tensor:
    """These samples of it. (A view of the whole would cost as much time as a small product.)"""
    return t if part == (0, t.shape[0]) else t[part[0] : part[1]]


def _concatenated(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _split(t: Tensor, factors: Sequence[Tensor], dim: int) -> Sequence[Tensor]:
    """What belongs to each slice's rank, of a product with all factors at once."""
    return [t] if len(factors) == 1 else t.split([a.shape[1] for a in factors], dim)


def _joined(factors: Sequence[Tensor], part: tuple[int, int]) -> Tensor:
    """The factors A of these samples one after another, [S', Σ r, d]."""
    return _concatenated([_of(a, part) for a in factors], 1)


def _rows(b: Tensor, part: tuple[int, int]) -> Tensor:
    """These samples' Bᵀ [S', r, n]. In rows of r numbers, as it comes, every product takes several times as long."""
    return _of(b, part).mT.contiguous()


def _scaled(u: Tensor, scale: Tensor | None, part: tuple[int, int]) -> Tensor:
    """u [S', T, r] times each part's scale."""
    if scale is None:
        return u
    s = _of(scale, part)
    if s.shape[1] == 1:
        return u * s[..., None]
    parts = max(s.shape[1], 1)
    return (u.unflatten(1, (parts, u.shape[1] // parts)) * s[..., None, None]).flatten(1, 2)


def _whole(pieces: list[Tensor], runs: tuple[tuple[int, int], ...], like: Tensor) -> Tensor:
    """The gradients of the stretches, with 0 between them."""
    if len(pieces) == 1 and pieces[0].shape == like.shape:
        return pieces[0]
    parts, at = [], 0
    for piece, (start, end) in zip(pieces, runs, strict=True):
        parts += [like.new_zeros(start - at, *like.shape[1:]), piece]
        at = end
    return torch.cat([*parts, like.new_zeros(like.shape[0] - at, *like.shape[1:])])
