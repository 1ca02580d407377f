"""How far results are from the reference in float64, beside how far eager PyTorch's are (design.md §9)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import reference
from hnkernels import HypernetworkMLP, hyper_kv, hyper_qkv
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, make_mlp, reference_of

# design.md §9: what half precision may differ from float64, as a multiple of eager PyTorch's difference.
RATIO = 1.1

# Where eager half precision happens to hit float64's rounded value exactly, its error says nothing about ours.
ABSOLUTE_FLOOR = 1e-7


@dataclass
class Call:
    """Inputs of one ``hyper_kv`` call, or with ``w_q`` of ``hyper_qkv``, and the upstream gradients of its outputs."""

    context: Tensor
    mlps_k: Sequence[HypernetworkMLP]
    mlps_v: Sequence[HypernetworkMLP]
    w_k: Tensor
    w_v: Tensor
    b_k: Tensor | None
    b_v: Tensor | None
    upstream: tuple[Tensor, ...]
    strength: float | Sequence[float] = 1.0
    w_q: Tensor | None = None
    b_q: Tensor | None = None
    recompute: bool = False

    @classmethod
    def make(
        cls,
        dim: int = 8,
        shape: tuple[int, ...] = (2, 5),
        n: tuple[int, ...] = (6, 7),
        dtype: torch.dtype = torch.float32,
        mlp_dtype: torch.dtype | None = None,
        bias: bool = True,
        trained: bool = True,
        length: int = 1,
        train: bool = True,
        strength: float | Sequence[float] = 1.0,
        recompute: bool = False,
        **options,
    ) -> Call:
        """Random tensors in ``dtype``; all of them take gradients, the projections only if ``trained``.

        ``n`` are the widths of K and V, and of Q if there is to be one.
        """

        def draw(*size: int, grad: bool = True) -> Tensor:
            return torch.randn(size).to(dtype).requires_grad_(grad)

        chains = [
            [make_mlp(dim, dtype=mlp_dtype or dtype, **options).train(train) for _ in range(length)] for _ in "kv"
        ]
        for i in range(length):  # no two alike: one that is taken for another shows
            chains[0][i].multiplier, chains[1][i].multiplier = 1 - 0.2 * i, 0.7 + 0.1 * i
        biases = [draw(width, grad=trained) if bias else None for width in n]
        upstream = tuple(torch.randn(*shape, width).to(dtype) for width in n)
        context = draw(*shape, dim)
        weights = [draw(width, dim, grad=trained) for width in n]
        query = {"w_q": weights[2], "b_q": biases[2]} if len(n) == 3 else {}
        return cls(
            context, *chains, *weights[:2], *biases[:2], upstream, strength, recompute=recompute, **query
        )  # fmt: skip

    def inputs(self) -> list[Tensor]:
        return list(self.named_inputs().values())

    def named_inputs(self) -> dict[str, Tensor]:
        """Every tensor that may take a gradient."""
        names = ("context", "w_q", "w_k", "w_v", "b_q", "b_k", "b_v")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for stream, mlps in (("k", self.mlps_k), ("v", self.mlps_v)):
            for i, mlp in enumerate(mlps):
                own |= {f"mlp_{stream}[{i}] {name}": p for name, p in mlp.named_parameters()}
        return own

    def names(self) -> list[str]:
        """Of the results."""
        outputs = ["K", "V", "Q"][: len(self.upstream)]
        return outputs + [f"gradient of {name}" for name, t in self.named_inputs().items() if t.requires_grad]

    def ours(self) -> tuple[Tensor, ...]:
        """K, V, and Q if there is one."""
        chains, weights, biases = (self.mlps_k, self.mlps_v), (self.w_k, self.w_v), (self.b_k, self.b_v)
        options = {"strength": self.strength, "recompute": self.recompute}
        if self.w_q is None:
            return hyper_kv(self.context, *chains, *weights, *biases, **options)
        q, k, v = hyper_qkv(self.context, *chains, self.w_q, *weights, self.b_q, *biases, **options)
        return k, v, q

    def results(self) -> list[Tensor]:
        """The outputs and the gradient of every input that takes one, in ``names`` order."""
        return self._with_gradients(self.ours(), self.inputs())

    def expected(self, dtype: torch.dtype = torch.float64, context_dtype: torch.dtype | None = None) -> list[Tensor]:
        """The same from the reference at ``dtype``, the context alone perhaps at another."""
        strengths = self.strength if isinstance(self.strength, Sequence) else [self.strength] * len(self.mlps_k)
        chains = []
        for mlps in (self.mlps_k, self.mlps_v):
            chain = [reference_of(mlp, dtype) for mlp in mlps]
            for mlp, original, s in zip(chain, mlps, strengths, strict=True):
                mlp.multiplier *= s
                for p, q in zip(mlp.parameters(), original.parameters(), strict=True):
                    p.requires_grad_(q.requires_grad)
            chains.append(chain)

        def cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if t is None else t.detach().to(dtype, copy=True).requires_grad_(t.requires_grad)

        context = cast(self.context, context_dtype or dtype)
        w_q, w_k, w_v = (cast(t, dtype) for t in (self.w_q, self.w_k, self.w_v))
        b_q, b_k, b_v = (cast(t, dtype) for t in (self.b_q, self.b_k, self.b_v))
        outputs = reference.project_kv(context, *chains, w_k, w_v, b_k, b_v)
        if w_q is not None:
            outputs = (*outputs, F.linear(context, w_q, b_q))
        inputs = [t for t in (context, w_q, w_k, w_v, b_q, b_k, b_v) if t is not None]
        inputs += [p for chain in chains for mlp in chain for p in mlp.parameters()]
        return self._with_gradients(outputs, inputs)

    def cast_upstream(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return [u.to(t.dtype) for u, t in zip(self.upstream, outputs, strict=True)]

    def _with_gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        trained = [t for t in inputs if t.requires_grad]
        return [*outputs, *torch.autograd.grad(outputs, trained, self.cast_upstream(outputs))]


class Errors(NamedTuple):
    """Relative Frobenius errors, ours and eager PyTorch's.

    ``ours`` and ``eager`` take all draws as one long vector: one draw of a short vector or a single number says little.
    ``ratio`` is ours to eager's, the geometric mean over the draws: at an activation's kink a single rounding now and
    then makes an error a hundred times as large as the others are together, and either side may have drawn it.
    """

    ours: float
    eager: float
    ratio: float


def errors_of(draws: Sequence[Tensor]) -> Errors:
    """Each draw is the squared norms of our deviation, of eager's and of the exact values, in one tensor [3]."""

    def relative(norms: Tensor) -> Tensor:
        ours, eager, exact = norms.sqrt()
        return torch.stack((ours, eager)) / (exact if exact > 0 else 1.0)

    ours, eager = relative(torch.stack(list(draws)).sum(0)).tolist()
    single = torch.stack([relative(norms) for norms in draws]) + ABSOLUTE_FLOOR
    return Errors(ours, eager, (single[:, 0] / single[:, 1]).log().mean().exp().item())


def check(
    make: Callable[[], Call],
    eager: Callable[[Call], list[Tensor]],
    kind: Callable[[str], str],
    right: Callable[[str, Errors], bool],
    most: int,
) -> dict[str, Errors]:
    """Asserts that the outputs, recorded and at inference, and every gradient are ``right``; returns the errors.

    Draws are added as long as some are not, up to ``most``: luck evens out, a fault does not.
    """
    draws: dict[str, list[Tensor]] = {}
    wrong: dict[str, Errors] = {}
    for i in range(most):
        call = make()
        with torch.no_grad():
            inferred = call.ours()
        names, results, others, exact = call.names(), call.results(), eager(call), call.expected()
        compared = list(zip(names, results, others, exact, strict=True))
        compared += [(f"{n} at inference", *t) for n, *t in zip(names, inferred, others, exact, strict=False)]
        for name, *tensors in compared:
            norms = draws.setdefault(kind(name), [])
            if len(norms) == i:
                norms.append(torch.zeros(3, dtype=torch.float64))
            norms[i] += _squared_norms(*tensors)
        errors = {name: errors_of(norms) for name, norms in draws.items()}
        wrong = {name: e for name, e in errors.items() if not right(name, e)}  # NaN is wrong
        if not wrong:
            return errors
    raise AssertionError(wrong)


def _squared_norms(ours: Tensor, eager: Tensor, exact: Tensor) -> Tensor:
    assert ours.shape == eager.shape == exact.shape
    ours, eager, exact = (t.detach().double() for t in (ours, eager, exact))
    return torch.stack([t.square().sum() for t in (ours - exact, eager - exact, exact)])


def check_fp32(case: Call | Callable[[], Call], most: int = 8) -> dict[str, Errors]:
    """Asserts design.md §9's bounds for every output and every gradient."""

    def tolerance(name: str) -> float:
        return GRADIENT_TOLERANCE if name.startswith("gradient") else FORWARD_TOLERANCE

    return check(
        case if callable(case) else lambda: case,
        lambda call: call.expected(torch.float32),
        kind=str,
        # Some sums have no bound in any implementation: PReLU's gradient is one number whose terms may cancel, and
        # LayerNorm magnifies a row of nearly equal values by up to 1/sqrt(eps). Eager's own error says how far.
        right=lambda name, e: e.ours <= max(tolerance(name), 1.2 * e.eager),
        most=most,
    )


def check_half(
    make: Callable[[], Call], eager: Callable[[Call], list[Tensor]], most: int = 24
) -> dict[str, Errors]:  # fmt: skip
    """Asserts that errors are at most ``RATIO`` times those that eager PyTorch makes at the same dtype (§9).

    The same tensors of all MLPs and of both streams are taken together. One rounding too many, of the size of the
    others, makes a ratio of 1.4.
    """
    return check(make, eager, kind=_role, right=lambda _, e: e.ratio <= RATIO, most=most)


def _role(name: str) -> str:
    """The name without the stream and the position in the chain."""
    return re.sub(r"mlp_[kv]\[\d+\]", "mlp", re.sub(r"\b([wb])_[kv]", r"\1", re.sub(r"^[KVQ]\b", "output", name)))
