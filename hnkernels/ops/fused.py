"""The Triton backend: the same functions as ``hnkernels.ops.portable`` has, on the kernels.

K and V travel together as long as their MLPs are of one structure; where they are not, each goes alone. At inference
what can be computed once is: affine MLPs fold into the projection, the last linear of any other is composed with it.
What is decided here for one call at inference, a tape notes for the next ones (``plan.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.network.mlp import HypernetworkMLP, Prepared
from hnkernels.ops.casting import cast
from hnkernels.ops.composition import compose
from hnkernels.ops.derived import derived
from hnkernels.ops.folding import fold_projection, is_affine
from hnkernels.ops.plan import Tape
from hnkernels.ops.portable import Chain, acts
from hnkernels.triton import vendor
from hnkernels.triton._compat import QUERY_COMES_ALONG
from hnkernels.triton.mlps import all_norm_vectors, unflatten
from hnkernels.triton.ops.grouped import run_grouped_linear
from hnkernels.triton.ops.kv import run_kv
from hnkernels.triton.ops.linear import linear, run_linear
from hnkernels.triton.ops.mlp import Structure, mlp_forward, mlp_project, run_mlps
from hnkernels.triton.ops.registry import Operator
from hnkernels.triton.support import compute_dtype

Projection = tuple[Tensor, Tensor | None]
"""Weight [n, d] and bias [n]."""

Link = tuple[HypernetworkMLP, float | Tensor]
"""One MLP with its multiplier, a number or a tensor without dimensions."""


def transform(x: Tensor, chain: Chain, recompute: bool = False) -> Tensor:
    """``x ← x + m·f(x)`` for every (f, m) of the chain. Shape: x [..., d] → [..., d]; x itself if nothing acts."""
    return _Streams(x, [chain], recompute).rewritten()[0]


def transform_pair(x: Tensor, chain_k: Chain, chain_v: Chain, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """The K and the V stream of one context. Shape: x [..., d] → two of [..., d]."""
    y_k, y_v = _Streams(x, [chain_k, chain_v], recompute).rewritten()
    return y_k, y_v


def project_pair(
    x: Tensor,
    chain_k: Chain,
    chain_v: Chain,
    projection_k: Projection,
    projection_v: Projection,
    query: Projection | None = None,
    recompute: bool = False,
    tape: Tape | None = None,
) -> tuple[Tensor, ...]:
    """K and V, and with a query ``to_q``'s product at the end. Shape: x [..., d] → [..., n] each.

    The tape notes what is launched, where all of it could be launched again.
    """
    streams = _Streams(x, [chain_k, chain_v], recompute, tape)
    results = streams.projected([projection_k, projection_v], query)
    if streams.tape is not None:
        streams.tape.end(results)
    return tuple([t.view(*x.shape[:-1], t.shape[-1]) for t in results])


def recorded_pair(
    chain_k: Chain, chain_v: Chain, x: Tensor, given: Sequence[Tensor | None], with_query: bool, recompute: bool
) -> Callable[..., Sequence[Tensor]] | None:
    """``project_pair`` with gradients for one MLP each, of one structure, with all that can be decided now decided.

    ``given`` are w_k, w_v, [w_q,] b_k, b_v [, b_q]. ``None`` for other calls. What is returned takes x, the parameters
    of both MLPs, and what is given.
    """
    if len(chain_k) != 1 or len(chain_v) != 1 or (with_query and not QUERY_COMES_ALONG):
        return None
    if not all([mlp.prepared().is_bare() for mlp, _ in (*chain_k, *chain_v)]):
        return None
    mlps, multipliers = (chain_k[0][0], chain_v[0][0]), (chain_k[0][1], chain_v[0][1])
    known = not any([isinstance(m, Tensor) or m == 0 for m in multipliers])
    structure, dtype = _structure(mlps[0]), compute_dtype(x)
    weights = 3 if with_query else 2
    parameters = [p for mlp in mlps for p in _parameters(mlp)]
    records = x.requires_grad or any([p.requires_grad for p in parameters])
    if not known or not _alike(mlps) or any(structure.dropouts) or not records or x.dtype != dtype:
        return None
    linears = [of for mlp in mlps for of in _are_linears(mlp)]
    plain = all([t.dtype == dtype for t in (*parameters, *given) if t is not None])
    has_biases = given[weights] is not None or given[weights + 1] is not None
    numbers = (float(multipliers[0]), float(multipliers[1]))
    programs: dict[Any, Any] = {}

    def run(x: Tensor, parameters: list[Tensor], given: Sequence[Any]) -> Sequence[Tensor]:
        if not plain:
            parameters = [cast(p, dtype) if of else p for p, of in zip(parameters, linears, strict=True)]
            given = [None if t is None else cast(t, dtype) for t in given]
        w_k, w_v, b_k, b_v = given[0], given[1], given[weights], given[weights + 1]
        biases = _biases([(w_k, b_k), (w_v, b_v)]) if has_biases else ()
        query = (given[2], given[5]) if with_query else None
        return run_kv(x, parameters, structure, numbers, (w_k, w_v), biases, query, recompute, programs)

    return run


def project_group(
    y_k: Tensor, y_v: Tensor, projections: Sequence[Projection], streams: Sequence[int]
) -> tuple[Tensor, ...]:
    """Many frozen projections of one context, rewritten for K (stream 0) and for V (stream 1), in one launch.

    Shape: y [..., d] → [..., n] for every projection.
    """
    dtype = compute_dtype(y_k)
    projections = [(cast(w, dtype), None if b is None else cast(b, dtype)) for w, b in projections]
    weights = [w for w, _ in projections]
    biases = _biases(projections)
    rows = [y.reshape(-1, y.shape[-1]).to(dtype) for y in (y_k, y_v)]
    results = run_grouped_linear((rows[0], rows[1]), weights, biases, streams)
    return tuple(t.view(*y_k.shape[:-1], t.shape[-1]) for t in results)


class _Streams:
    """One context on its way through one chain, or through those of K and V side by side."""

    def __init__(self, context: Tensor, chains: Sequence[Chain], recompute: bool, tape: Tape | None = None):
        self.context = context
        self.dtype = compute_dtype(context)  # autocast does not reach into custom operators
        self.recompute = recompute
        self.tape = tape
        self.chains = [[link for link in chain if acts(link[1])] for chain in chains]
        self.recording = torch.is_grad_enabled() and (
            context.requires_grad
            or any([p.requires_grad for chain in self.chains for mlp, _ in chain for p in _parameters(mlp)])
        )

    def rewritten(self) -> list[Tensor]:
        """The context after every chain, [..., d], in the dtype that eager PyTorch gives it."""
        x = self._rows()
        y, _ = self._run([x] * len(self.chains), self.chains, None, keep_dtype=True)
        return [self.context if t is x else t.view(self.context.shape) for t in y]

    def projected(self, projections: Sequence[Projection], query: Projection | None) -> list[Tensor]:
        """The projections of the rewritten context, and the query's, [M, n] each."""
        chains = self.chains
        projections = [self._cast_projection(p) for p in projections]
        query = None if query is None else self._cast_projection(query)
        trained = [t for p in (*projections, *(() if query is None else (query,))) for t in p if t is not None]
        recording = self.recording or (torch.is_grad_enabled() and any([t.requires_grad for t in trained]))
        known = not any([isinstance(m, Tensor) for chain in chains for _, m in chain])
        if recording or not known:
            self.tape = None
        # A compiled graph could not keep what is computed once here.
        if not recording and known and not torch.compiler.is_compiling():
            chains, projections = self._folded(projections)
            if all(chains) and _composable([chain[-1][0] for chain in chains]):
                return self._composed(chains, projections, query)
        x = self._rows()
        along = query if any(chains) and QUERY_COMES_ALONG else None
        y, q = self._run([x, x], chains, along, keep_dtype=False)
        # The shorter of two chains ends while the context still has the wider dtype.
        y = [self._to(y[0])] * 2 if y[0] is y[1] else [self._to(t) for t in y]
        # A stream without an MLP, and to_q where it could not come along, are plain projections.
        acted = [i for i, chain in enumerate(chains) if chain]
        products = iter(self._project([y[i] for i in acted], [projections[i] for i in acted], recording))
        kv = [next(products) if i in acted else self._vendor(x, p) for i, p in enumerate(projections)]
        if query is not None and q is None:
            q = self._vendor(x, query)
        return [*kv, *([] if q is None else [q])]

    def _run(
        self, y: list[Tensor], chains: Sequence[Sequence[Link]], query: Projection | None, keep_dtype: bool
    ) -> tuple[list[Tensor], Tensor | None]:
        """Every chain applied to its stream, and the query's product if it could come along with a pair.

        Between links the context keeps the wider dtype, as in eager PyTorch under autocast; after the last with
        ``keep_dtype`` only.
        """
        q = None
        length = max([len(chain) for chain in chains])
        for position in range(length):
            links = [chain[position] if position < len(chain) else None for chain in chains]
            keep = keep_dtype or position + 1 < length
            pair = [link for link in links if link is not None]
            if len(pair) == 2 and _alike([mlp for mlp, _ in pair]):
                shared = y[0] is y[1]
                along = query if position == 0 and shared else None
                results = self._apply(y[:1] if shared else y, pair, along, keep)
                y = list(results[:2])
                q = results[2] if along is not None else q
            else:
                y = [
                    t if link is None else self._apply([t], [link], None, keep)[0]
                    for t, link in zip(y, links, strict=True)
                ]
        return y, q

    def _apply(
        self, x: Sequence[Tensor], links: Sequence[Link], query: Projection | None, keep_dtype: bool
    ) -> tuple[Tensor, ...]:
        """One MLP per stream, of one structure, and the query's product."""
        mlps = [mlp for mlp, _ in links]
        multipliers, strength = _multipliers([m for _, m in links], x[0].device)
        structure = _structure(mlps[0])
        parameters = [p for mlp in mlps for p in self._parameters(mlp)]
        seed = None
        if any(structure.dropouts):
            # On the device and from its generator: no wait, and a checkpointed recomputation draws the same again.
            seed = torch.randint(2**62, (1,), device=x[0].device)
        out_dtype = torch.promote_types(x[0].dtype, self.dtype) if keep_dtype else self.dtype
        if self.recording or (query is not None and torch.is_grad_enabled()):
            self.tape = None
            return run_mlps(
                x, parameters, structure, multipliers, out_dtype=out_dtype, strength=strength, seed=seed, query=query,
                recompute=self.recompute,
            )  # fmt: skip
        inputs = [self._to(t) for t in x]
        residual = list(x) if x[0].dtype != self.dtype else []
        vectors = _vectors(mlps, parameters, structure)
        self._constant(*vectors)
        return self._call(
            mlp_forward, inputs, residual, parameters, vectors, seed, *(query or (None, None)), *structure, multipliers,
            strength, out_dtype, False,
        )  # fmt: skip

    def _composed(
        self, chains: Sequence[Sequence[Link]], projections: Sequence[Projection], query: Projection | None
    ) -> list[Tensor]:
        """The last MLP of every chain inside the projection, whose weight its last linear is composed with."""
        x = self._rows()
        along = query if QUERY_COMES_ALONG else None
        y, q = self._run([x, x], [chain[:-1] for chain in chains], along, keep_dtype=True)
        links = [chain[-1] for chain in chains]
        structure = _structure(links[0][0])
        hidden = Structure(
            structure.act, structure.activated[:-1], structure.norms[:-1], structure.dropouts[:-1]
        )  # fmt: skip
        composed = [compose(*p, mlp, float(m)) for p, (mlp, m) in zip(projections, links, strict=True)]
        self._constant(*[t for pair in composed for t in pair])
        parameters = [p for mlp, _ in links for p in self._parameters(mlp)[:-2]]
        shared = y[0] is y[1]
        along = along if q is None and shared else None
        results = self._call(
            mlp_project, [self._to(t) for t in (y[:1] if shared else y)], parameters, *(along or (None, None)), *hidden,
            [w for w, _ in projections], [g for g, _ in composed], [c for _, c in composed],
        )  # fmt: skip
        if query is not None and along is None:
            results = (*results, q if q is not None else self._vendor(x, query))
        return list(results)

    def _folded(self, projections: Sequence[Projection]) -> tuple[list[list[Link]], list[Projection]]:
        """The chains without the affine MLPs at their ends, and the projections that do their work."""
        chains, folded = [], []
        for chain, (w, b) in zip(self.chains, projections, strict=True):
            count = len(chain)
            while count and is_affine(chain[count - 1][0]):
                count -= 1
            tail = tuple(chain[count:])
            chains.append(chain[:count])
            folded.append((w, b) if not tail else _fold(w, b, tail))
        self._constant(*[t for pair in folded for t in pair])
        return chains, folded

    def _project(self, y: Sequence[Tensor], projections: Sequence[Projection], recording: bool) -> tuple[Tensor, ...]:
        """K and V, or one of them, in one launch."""
        if not y:
            return ()
        weights, biases = [w for w, _ in projections], _biases(projections)
        y = y[:1] if len(y) == 2 and y[0] is y[1] else y
        if recording or torch.compiler.is_compiling():
            return run_linear(y, weights, biases)
        return self._call(linear, y, weights, biases, False)

    def _vendor(self, x: Tensor, projection: Projection) -> Tensor:
        x = self._to(x)
        return self._noted(vendor.linear, x, *projection)

    def _call(self, operator: Operator, *arguments: Any) -> tuple[Tensor, ...]:
        results = tuple(operator(*arguments))
        if self.tape is not None:
            self.tape.note(operator.function, arguments, results)
        return results

    def _to(self, t: Tensor) -> Tensor:
        """In the compute dtype."""
        return t if t.dtype == self.dtype else self._noted(Tensor.to, t, self.dtype)

    def _noted(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        result = function(*arguments)
        if self.tape is not None:
            self.tape.note(function, arguments, [result])
        return result

    def _rows(self) -> Tensor:
        rows = self.context.reshape(-1, self.context.shape[-1])
        return rows if self.tape is None else self.tape.rows(rows)

    def _constant(self, *tensors: Tensor | None) -> None:
        if self.tape is not None:
            self.tape.constant(*tensors)

    def _parameters(self, mlp: HypernetworkMLP) -> list[Tensor]:
        """The parameters in the operators' order, in the compute dtype; LayerNorm's and prelu's stay in theirs."""
        parameters = _parameters(mlp)
        if any([p.dtype != self.dtype for p in parameters]):
            linears = _are_linears(mlp)
            parameters = [cast(p, self.dtype) if of else p for p, of in zip(parameters, linears, strict=True)]
        self._constant(*parameters)
        return parameters

    def _cast_projection(self, projection: Projection) -> Projection:
        w, b = projection
        projection = cast(w, self.dtype), None if b is None else cast(b, self.dtype)
        if projection[0] is not w or projection[1] is not b:
            self._constant(*projection)
        return projection


def _multipliers(values: Sequence[float | Tensor], device: torch.device) -> tuple[tuple[float, ...], Tensor | None]:
    """One number per stream, and where they are not known yet a tensor of factors on them, [streams]."""
    if not any(isinstance(m, Tensor) for m in values):
        return tuple(float(m) for m in values), None
    tensors = [torch.as_tensor(m, dtype=torch.float32, device=device) for m in values]
    return (1.0,) * len(values), torch.stack(tensors).detach()


def _biases(projections: Sequence[Projection]) -> list[Tensor]:
    """All or none: a bias on some only is rare, and the others' is 0."""
    if all(b is None for _, b in projections):
        return []
    return [w.new_zeros(w.shape[0]) if b is None else b for w, b in projections]


def _fold(w: Tensor, b: Tensor | None, tail: Chain) -> Projection:
    tensors = [w, *([] if b is None else [b]), *(p for mlp, _ in tail for p in mlp.parameters())]
    purpose = ("fold", id(b), tuple(id(mlp) for mlp, _ in tail))
    return derived(w, purpose, tensors, lambda: fold_projection(w, b, tail), extra=tuple(m for _, m in tail))


def _structure(mlp: HypernetworkMLP) -> Structure:
    known = Prepared(mlp) if torch.compiler.is_compiling() else mlp.prepared()
    dropouts = (0.0,) * len(known.norms)
    if mlp.training and known.drops:  # as they are now: a schedule may have changed them
        dropouts = tuple([layer.dropout for layer in mlp.layers()])
    return Structure(known.act, known.activated, known.norms, dropouts)


def _parameters(mlp: HypernetworkMLP) -> list[Tensor]:
    if not torch.compiler.is_compiling():
        return mlp.prepared().parameters()
    parameters: list[Tensor] = []  # PyTorch's compiler knows parameters by the modules that they are reached through
    for layer in mlp.layers():
        parameters += [layer.linear.weight, layer.linear.bias]
        if isinstance(layer.activation, nn.PReLU):
            parameters.append(layer.activation.weight)
        if layer.norm is not None:
            parameters += [layer.norm.weight, layer.norm.bias]
    return parameters


def _are_linears(mlp: HypernetworkMLP) -> list[bool]:
    return (Prepared(mlp) if torch.compiler.is_compiling() else mlp.prepared()).is_linears


def _alike(mlps: Sequence[HypernetworkMLP]) -> bool:
    """Whether the MLPs can share launches."""
    first, *others = mlps
    return all(
        [
            _structure(other) == _structure(first)
            and [(p.shape, p.dtype) for p in _parameters(other)] == [(p.shape, p.dtype) for p in _parameters(first)]
            for other in others
        ]
    )


def _composable(mlps: Sequence[HypernetworkMLP]) -> bool:
    """Whether the MLPs end in a bare linear, with another one before it, and drop nothing."""
    structure = _structure(mlps[0])
    bare = not structure.activated[-1] and not structure.norms[-1] and not any(structure.dropouts)
    return bare and len(structure.norms) > 1 and _alike(mlps)


def _vectors(mlps: Sequence[HypernetworkMLP], parameters: Sequence[Tensor], structure: Structure) -> list[Tensor]:
    """What LayerNorms need at inference, computed once; nothing while compiling, where the operator computes it."""
    if not any(structure.norms) or torch.compiler.is_compiling():
        return []
    layers, count = structure.layers(), len(parameters) // len(mlps)
    flat = [parameters[s * count : (s + 1) * count] for s in range(len(mlps))]
    sources = [p for mlp in mlps for p in mlp.parameters()]
    purpose = ("vectors", parameters[0].dtype, tuple(map(id, mlps)), structure)
    return derived(sources[0], purpose, sources, lambda: all_norm_vectors(layers, unflatten(layers, flat)))
