"""K and V of one context through one MLP each, with gradients: the MLPs' and the projections' launches in one program.

The same launches as ``mlp.run_mlps`` and ``linear.run_linear`` after it, which PyTorch's compiler sees, for half
of what these cost on the host: one autograd function, one program forward and one backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.triton.ops.linear import gradient_pieces, linear, linear_weight_gradient
from hnkernels.triton.ops.mlp import Cuts, Structure, mlp_backward, mlp_forward
from hnkernels.triton.ops.registry import once
from hnkernels.triton.program import Planned, Program, signature


def _forward(
    x: Tensor,
    parameters: Sequence[Tensor],
    w: Sequence[Tensor],
    b: Sequence[Tensor],
    query: Sequence[Tensor | None],
    structure: Structure,
    multipliers: Sequence[float],
    save: bool,
    keep_y: bool,
) -> list[Tensor]:
    """K, V, the query's product if there is one, y of K and V if they are kept, and what the MLPs' backward wants."""
    rows = [x.reshape(-1, x.shape[-1])]
    results = mlp_forward.function(
        rows, (), parameters, (), None, query[0], query[1], *structure, multipliers, None, x.dtype, save
    )
    outs = 2 + (query[0] is not None)
    kv = linear.function(results[:2], w, b, False)
    projected = [t.view(*x.shape[:-1], t.shape[-1]) for t in (*kv, *results[2:outs])]
    return [*projected, *(results[:2] if keep_y else ()), *results[outs:]]


def _backward(
    dy: Sequence[Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    w: Sequence[Tensor],
    query_w: Sequence[Tensor],
    y: Sequence[Tensor],
    saved: Sequence[Tensor],
    structure: Structure,
    multipliers: Sequence[float],
    biases: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    """The gradients that are needed: of the projections (flat), of x, of the parameters (flat), of the query (flat).

    ``needs``: of x, of the parameters, of the query.
    """
    needs_x, needs_parameters, needs_query = needs
    dy = [t.reshape(-1, t.shape[-1]).contiguous() for t in dy]
    kv, rows = dy[:2], [x.reshape(-1, x.shape[-1])]
    below = linear.function(kv, w, (), True) if any(needs) else kv
    projections = [linear_weight_gradient.function(kv, y, biases)] if y else []
    if not any(needs):
        return projections
    dq, query = (dy[2], query_w[0]) if query_w else (None, None)
    gradients = mlp_backward.function(
        below, dq, rows, parameters, saved, None, query, *structure, multipliers, None, x.dtype, needs_x,
        needs_parameters, needs_query,
    )  # fmt: skip
    if needs_x:
        gradients[0] = gradients[0].view(x.shape)
    return [*projections, *gradients]


_forward_programs, _backward_programs = Planned(_forward), Planned(_backward)


class _KV(torch.autograd.Function):
    """Tensors: x, then the parameters of K's MLP and of V's, w_k, w_v, the biases (both or none), w_q and b_q."""

    @staticmethod
    def forward(ctx, structure, multipliers, recompute, count, biases, query, known, *tensors):
        end = 1 + count
        x, parameters, w = tensors[0], tensors[1:end], tensors[end : end + 2]
        b = tensors[end + 2 : end + 4] if biases else ()
        at = end + 2 + len(b)
        query_w = tensors[at] if query else None
        query_b = tensors[at + 1] if query == 2 else None
        needed = ctx.needs_input_grad[7:]
        trained = any(needed[end:at])
        save = not recompute and any(needed)
        program = known.get((save, trained))
        if program is None:
            program = known[save, trained] = _forward_programs.program(
                (structure, multipliers, save, trained, biases, query, *signature(tensors), x.device),
                (x, parameters, w, b, (query_w, query_b), structure, multipliers, save, trained),
            )
        results = program.run(tensors)
        outs = 2 + (query > 0)
        ctx.save_for_backward(x, *parameters, *w, *((query_w,) if query else ()), *results[outs:])
        ctx.given = structure, multipliers, count, biases, query, trained, program
        return tuple(results[:outs])

    @staticmethod
    def backward(ctx, *dy):
        structure, multipliers, count, biases, query, trained, program = ctx.given
        tensors = ctx.saved_tensors
        end = 1 + count
        x, parameters, w, rest = tensors[0], tensors[1:end], tensors[end : end + 2], tensors[end + 2 :]
        query_w, rest = (rest[:1], rest[1:]) if query else ((), rest)
        y, saved = (rest[:2], rest[2:]) if trained else ((), rest)
        needed = ctx.needs_input_grad[7:]
        at = end + 2 + 2 * biases
        needs = needed[0], any(needed[1:end]), any(needed[at:])
        key = (needs, *signature(dy))  # all else is as it was in the forward pass
        backward = program.known.get(key)
        if backward is None:
            backward = program.known[key] = _backward_programs.program(
                (program, needs, *signature(dy), dy[0].device),
                (dy, x, parameters, w, query_w, y, saved, structure, multipliers, biases, needs),
            )
        results = backward.run([*dy, *tensors])
        d: list[Tensor | None] = [None] * len(needed)
        if trained:
            dw, db = gradient_pieces(results.pop(0), w, biases)
            d[end:at] = [*dw, *db]
        if needs[0]:
            d[0] = results.pop(0)
        if needs[1]:
            cuts = program.known.get("cuts")
            if cuts is None:
                cuts = program.known["cuts"] = Cuts(structure, parameters, 2)
            d[1:end] = cuts.of(results[: cuts.count])
            results = results[cuts.count :]
        if needs[2]:
            dw, db = gradient_pieces(results[0], query_w, True)
            d[at:] = [*dw, *db][: len(d) - at]
        return (None,) * 7 + once(d, *dy, *tensors)


def run_kv(
    x: Tensor,
    parameters: Sequence[Tensor],
    structure: Structure,
    multipliers: tuple[float, float],
    w: Sequence[Tensor],
    b: Sequence[Tensor] = (),
    query: tuple[Tensor, Tensor | None] | None = None,
    recompute: bool = False,
    known: dict[Any, Program] | None = None,
) -> tuple[Tensor, ...]:
    """K, V and, with a query, Q, with gradients; without dropout.

    Args:
        x: [..., d], contiguous, in the compute dtype as all tensors.
        parameters: of K's MLP and then of V's, as ``run_mlps`` takes them.
        w, b: [n, d] and [n] of K and V; b of both or none.
        query: (weight, bias) of ``to_q``.
        known: remembers the program, for the next call with tensors of this signature.
        recompute: keeps x alone for the backward pass.

    Returns:
        [..., n] each.
    """
    given: list[Any] = [x, *parameters, *w, *b]
    kind = 0
    if query is not None:
        given += [t for t in query if t is not None]
        kind = 1 + (query[1] is not None)
    return _KV.apply(
        structure, multipliers, recompute, len(parameters), len(b) > 0, kind, {} if known is None else known, *given
    )
