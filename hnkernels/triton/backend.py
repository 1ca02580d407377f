"""The Triton backend: the same functions as ``hnkernels.portable`` has, on the kernels.

K and V travel together as long as their MLPs are of one structure; where they are not, each goes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hnkernels.activations import resolve
from hnkernels.folding import fold_projection, is_affine
from hnkernels.mlp import HypernetworkMLP
from hnkernels.portable import Chain
from hnkernels.triton.derived import derived
from hnkernels.triton.functions import Structure, run_linear, run_mlps

Rider = tuple[Tensor, Tensor | None]
"""Weight and bias of ``to_q``."""


def transform(x: Tensor, chain: Chain, recompute: bool = False) -> Tensor:
    """``x ← x + m·f(x)`` for every (f, m) of the chain. Shape: x [..., d] → [..., d]; x itself if nothing acts."""
    return _Streams(x, [chain], recompute).rewritten(keep_dtype=True)[0]


def transform_pair(x: Tensor, chain_k: Chain, chain_v: Chain, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """The K and the V stream of one context. Shape: x [..., d] → two of [..., d]."""
    y = _Streams(x, [chain_k, chain_v], recompute).rewritten(keep_dtype=True)
    return y[0], y[1]


def project_pair(
    x: Tensor,
    chain_k: Chain,
    chain_v: Chain,
    w: tuple[Tensor, Tensor],
    b: tuple[Tensor | None, Tensor | None],
    rider: Rider | None = None,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """K and V, and with a rider ``to_q``'s product at the end. Shape: x [..., d], w [n, d], b [n] → [..., n]."""
    streams = _Streams(x, [chain_k, chain_v], recompute)
    shape = x.shape[:-1]
    dtype = streams.dtype
    w = (_cast(w[0], dtype), _cast(w[1], dtype))
    b = tuple(None if t is None else _cast(t, dtype) for t in b)
    rider = None if rider is None else (_cast(rider[0], dtype), None if rider[1] is None else _cast(rider[1], dtype))
    results = streams.projected(w, b, rider)
    return tuple(t.unflatten(0, shape) if len(shape) != 1 else t for t in results)


class _Streams:
    """One context on its way through one chain, or through those of K and V side by side."""

    def __init__(self, x: Tensor, chains: Sequence[Chain], recompute: bool):
        self.shape = x.shape
        device = x.device.type
        # Autocast does not reach into custom operators.
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        self.context = x
        self.recompute = recompute
        self.chains = [[link for link in chain if link[1] != 0] for chain in chains]
        self.recording = torch.is_grad_enabled() and (
            x.requires_grad
            or any(p.requires_grad for chain in self.chains for mlp, _ in chain for p in mlp.parameters())
        )

    def rewritten(self, keep_dtype: bool) -> list[Tensor]:
        """The context after every chain."""
        x = self.context.reshape(-1, self.shape[-1])
        y, _ = self._run([x] * len(self.chains), [list(chain) for chain in self.chains], None, keep_dtype)
        return [self.context if t is x else t.view(self.shape) for t in y]

    def projected(self, w: tuple[Tensor, Tensor], b: Sequence[Tensor | None], rider: Rider | None) -> list[Tensor]:
        """The projections of the rewritten context, [M, n] each, and the rider's."""
        x = self.context.reshape(-1, self.shape[-1])
        chains = [list(chain) for chain in self.chains]
        frozen = not (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*w, *b, *(rider or ())))
        )
        if frozen and not self.recording and not torch.compiler.is_compiling():
            folded = [self._fold(chain, *wb) for chain, wb in zip(chains, zip(w, b, strict=True), strict=True)]
            chains, w, b = ([c for c, _, _ in folded], tuple(t for _, t, _ in folded), [t for _, _, t in folded])
            if all(chains) and _composable(*(chain[-1][0] for chain in chains)):
                heads = [chain[:-1] for chain in chains]
                y, q = self._run([x, x], heads, rider, keep_dtype=True)
                *kv, late_q = self._composed(y, [chain[-1] for chain in chains], w, b, rider if q is None else None)
                return [*kv, *[t for t in (q, late_q) if t is not None]]
        if not any(chains):  # the plain projections, by the vendor's GEMM
            x = x.to(self.dtype)
            riders = () if rider is None else (rider,)
            return [F.linear(x, *wb) for wb in (*zip(w, b, strict=True), *riders)]
        y, q = self._run([x, x], chains, rider, keep_dtype=False)
        y = [t.to(self.dtype) for t in y]
        biases = () if all(t is None for t in b) else tuple(
            t if t is not None else o.new_zeros(o.shape[0]) for t, o in zip(b, w, strict=True)
        )  # fmt: skip
        kv = run_linear([y[0]] if y[0] is y[1] else y, w, biases)
        if rider is not None and q is None:
            q = F.linear(x.to(self.dtype), *rider)
        return [*kv, *([] if q is None else [q])]

    def _run(
        self, y: list[Tensor], chains: list[list], rider: Rider | None, keep_dtype: bool
    ) -> tuple[list[Tensor], Tensor | None]:
        """Every chain applied to its stream, and the rider's product if it could come along with a pair."""
        q = None
        for position in range(max(map(len, chains), default=0)):
            links = [chain[position] if position < len(chain) else None for chain in chains]
            mlps = [link[0] for link in links if link is not None]
            # Between links the context keeps the wider dtype, as in eager PyTorch under autocast.
            keep = keep_dtype or position + 1 < max(map(len, chains))
            if len(mlps) == 2 and _alike(*mlps):
                with_rider = rider if position == 0 and y[0] is y[1] else None
                results = self._apply([y[0]] if y[0] is y[1] else y, links, with_rider, keep)
                y = list(results[:2])
                q = results[2] if with_rider is not None else q
            else:
                y = [
                    t if link is None else self._apply([t], [link], None, keep)[0]
                    for t, link in zip(y, links, strict=True)
                ]
        return y, q

    def _apply(self, x: Sequence[Tensor], links: Sequence, rider: Rider | None, keep_dtype: bool) -> tuple[Tensor, ...]:
        mlps, multipliers = [mlp for mlp, _ in links], tuple(float(m) for _, m in links)
        structure = _structure(mlps[0])
        parameters = [p for mlp in mlps for p in self._parameters(mlp, structure)]
        seed = None
        if any(structure.dropouts):
            # On the device and from its generator: no wait, and a checkpointed recomputation draws the same again.
            seed = torch.randint(2**62, (1,), device=x[0].device)
        # Eager PyTorch adds the residual in the wider of the two dtypes.
        out_dtype = torch.promote_types(x[0].dtype, self.dtype) if keep_dtype else self.dtype
        if self.recording:
            return run_mlps(
                x, parameters, structure, multipliers, out_dtype=out_dtype, seed=seed, rider=rider,
                recompute=self.recompute,
            )  # fmt: skip
        inputs = [t.to(self.dtype) for t in x]
        residual = list(x) if x[0].dtype != self.dtype else []
        vectors = _vectors(mlps, parameters, structure)
        return tuple(
            torch.ops.hnkernels.mlp_forward(
                inputs, residual, parameters, vectors, seed, *(rider or (None, None)), *structure, multipliers, out_dtype,
                False,
            )
        )  # fmt: skip

    def _composed(
        self, y: list[Tensor], links: Sequence, w: Sequence[Tensor], b: Sequence[Tensor | None], rider: Rider | None
    ) -> list[Tensor | None]:
        """The last MLP inside the projection: its last linear and the projection are one weight."""
        mlps = [mlp for mlp, _ in links]
        structure = _structure(mlps[0])
        hidden = Structure(structure.act, *(part[:-1] for part in structure[1:]))
        composed = [_composition(wp, bp, mlp, m) for wp, bp, (mlp, m) in zip(w, b, links, strict=True)]
        parameters = [p for mlp in mlps for p in self._parameters(mlp, structure)[:-2]]
        rides = rider is not None and y[0] is y[1]
        results = torch.ops.hnkernels.mlp_project(
            [y[0].to(self.dtype)] if y[0] is y[1] else [t.to(self.dtype) for t in y], parameters,
            *(rider if rides else (None, None)), *hidden, w, [g for g, _ in composed], [c for _, c in composed],
        )  # fmt: skip
        if rides:
            return results
        q = None if rider is None else F.linear(self.context.reshape(-1, self.shape[-1]).to(self.dtype), *rider)
        return [*results, q]

    def _fold(self, chain: list, w: Tensor, b: Tensor | None) -> tuple[list, Tensor, Tensor | None]:
        """The chain without the affine MLPs at its end, and the projection that does their work."""
        count = len(chain)
        while count and is_affine(chain[count - 1][0]):
            count -= 1
        tail = tuple(chain[count:])
        if not tail:
            return chain, w, b
        tensors = [w, *([] if b is None else [b]), *(p for mlp, _ in tail for p in mlp.parameters())]
        purpose = ("fold", b is None, tuple((id(mlp), m) for mlp, m in tail))
        return chain[:count], *derived(w, purpose, tensors, lambda: fold_projection(w, b, tail))

    def _parameters(self, mlp: HypernetworkMLP, structure: Structure) -> list[Tensor]:
        """The parameters in the operators' order, in the compute dtype; those of LayerNorm stay in theirs."""
        parameters = []
        for layer in mlp.layers():
            parameters += [self._parameter(layer.linear.weight), self._parameter(layer.linear.bias)]
            if structure.act == "prelu" and layer.activation is not None:
                parameters.append(layer.activation.weight)
            if layer.norm is not None:
                parameters += [layer.norm.weight, layer.norm.bias]
        return parameters

    def _parameter(self, p: Tensor) -> Tensor:
        return p.to(self.dtype) if self.recording else _cast(p, self.dtype)


def _structure(mlp: HypernetworkMLP) -> Structure:
    row = resolve(mlp.config.activation, mlp.config.allow_legacy_activations)
    layers = mlp.layers()
    return Structure(
        row.device or "linear" if row is not None else "linear",
        tuple(layer.activation is not None for layer in layers),
        tuple(layer.norm is not None for layer in layers),
        tuple(layer.dropout if mlp.training else 0.0 for layer in layers),
    )


def _alike(a: HypernetworkMLP, b: HypernetworkMLP) -> bool:
    """Whether two MLPs can share launches."""
    return _structure(a) == _structure(b) and all(
        p.linear.weight.shape == q.linear.weight.shape for p, q in zip(a.layers(), b.layers(), strict=True)
    )


def _composable(a: HypernetworkMLP, b: HypernetworkMLP) -> bool:
    """Whether two MLPs end in a bare linear, with another one before it."""
    last = a.layers()[-1]
    bare = last.activation is None and last.norm is None and not (a.training and last.dropout > 0)
    return bare and len(a.layers()) > 1 and not any(_structure(a).dropouts) and _alike(a, b)


def _composition(w: Tensor, b: Tensor | None, mlp: HypernetworkMLP, m: float) -> tuple[Tensor, Tensor]:
    """``m·W W₂`` [n, h] and ``m·W b₂ + b`` [n], in w's dtype."""
    last = mlp.layers()[-1].linear

    def compute() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(w.device.type, enabled=False):
            wide = w.float()
            shift = wide @ last.bias.float() * m
            return (m * (wide @ last.weight.float())).to(w.dtype), (shift if b is None else shift + b).to(w.dtype)

    tensors = [w, last.weight, last.bias, *([] if b is None else [b])]
    return derived(w, ("compose", id(last), m, b is None), tensors, compute)


def _vectors(mlps: Sequence[HypernetworkMLP], parameters: Sequence[Tensor], structure: Structure) -> list[Tensor]:
    if not any(structure.norms) or torch.compiler.is_compiling():
        return []
    from hnkernels.triton.mlps import norm_vectors, unflatten

    layers, count = structure.layers(), len(parameters) // len(mlps)
    flat = [parameters[s * count : (s + 1) * count] for s in range(len(mlps))]
    sources = [p for mlp in mlps for p in mlp.parameters()]
    anchor, purpose = sources[0], ("vectors", parameters[0].dtype, tuple(map(id, mlps)))
    return derived(anchor, purpose, sources, lambda: norm_vectors(layers, unflatten(layers, flat)))


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    if t.dtype == dtype or (torch.is_grad_enabled() and t.requires_grad):
        return t.to(dtype)
    return derived(t, ("cast", dtype), [t], lambda: t.detach().to(dtype))
