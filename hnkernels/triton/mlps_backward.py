"""The backward pass of a pair of residual MLPs: from the last layer down, one product per layer and gradient.

Behind every product stands what the layer below needs: the derivative of an activation, a mask of dropout, and most of
LayerNorm (``norm_backward.py``). Row kernels run for the LayerNorm that no product follows, for prelu, whose slope
has a gradient, and where dropout stands between a LayerNorm and the next product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hnkernels.triton.kernels.arguments import LayerGradient, Streams, acc_dtype
from hnkernels.triton.kernels.hidden_gradient import hidden_gradient
from hnkernels.triton.kernels.input_gradient import input_gradient
from hnkernels.triton.kernels.layer_output_backward import layer_output_backward
from hnkernels.triton.kernels.norm_backward import normed_gradient
from hnkernels.triton.kernels.weight_gradient import NormInFront, WeightGradients, neighbours
from hnkernels.triton.mlps import Layer, Parameters, Saved, dropout_of, output_serves, waits_for_product
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import row_programs


class Gradients(NamedTuple):
    """The result of ``backward``.

    ``weights`` and ``vectors`` (γ, β and prelu's slopes) are flat; ``parameter_gradients`` cuts them up.
    """

    x: tuple[Tensor | None, ...]
    weights: Tensor | None
    vectors: Tensor | None
    query: Tensor | None


def backward(
    dy: Streams,
    x: Streams,
    layers: Sequence[Layer],
    parameters: Sequence[Parameters],
    multiplier: tuple[float, ...],
    saved: Sequence[Saved],
    *,
    shared: bool,
    needs_x: bool,
    needs_parameters: bool,
    x_dtype: torch.dtype,
    seed: Tensor | None = None,
    query: tuple[Tensor, Tensor] | None = None,
    needs_query: bool = False,
    strength: Tensor | None = None,
) -> Gradients:
    """The gradients of ``mlps.forward``. Shape: dy [M, d] per stream, strength [streams].

    ``query`` is (dq [M, Q], w_q [Q, d]). With ``shared`` x is one tensor, and so is its gradient.
    """
    scaled = dy
    if strength is not None:  # a factor that is not known beforehand: in a compiled model, outside training mode
        scaled = tuple((t.to(strength.dtype) * s).to(t.dtype) for t, s in zip(dy, strength, strict=True))
    descent = _Descent(scaled, x, layers, parameters, saved, seed, needs_parameters)
    descent.through_output(multiplier)
    for index in range(len(layers) - 1, 0, -1):
        if needs_x or needs_parameters:
            descent.down(index)
    descent.at_first_layer()
    dx: tuple[Tensor | None, ...] = (None,) * len(dy)
    if needs_x:
        dx = input_gradient(
            dy, descent.da, parameters[0].w, shared=shared, out_dtype=x_dtype, query=query
        )[: len(dy)]  # fmt: skip
    weights, vectors = descent.parameter_gradients()
    d_query = None
    if needs_query:
        assert query is not None
        one = WeightGradients([_sizes(query[1:])], x[0].shape[0], x[0].dtype, x[0].device)
        one.add(0, query[:1], x[:1])
        d_query = one.total()
    return Gradients(dx, weights, vectors, d_query)


class _Descent:
    """The state between two layers: the gradient of the upper one's pre-activations, ``scale · da``."""

    def __init__(
        self,
        dy: Streams,
        x: Streams,
        layers: Sequence[Layer],
        parameters: Sequence[Parameters],
        saved: Sequence[Saved],
        seed: Tensor | None,
        needs_parameters: bool,
    ):
        self.x, self.layers, self.parameters, self.saved, self.seed = x, layers, parameters, saved, seed
        self.da, self.scale = dy, (1.0,) * len(dy)
        self.bias: Tensor | None = None  # Σ da in parts, if it was made beside
        self.dots: Tensor | None = None  # what the LayerNorm below needs to know of da, if its product finishes it
        rows, dtype, device = x[0].shape[0], x[0].dtype, x[0].device
        self.offsets, self.vector_count = vector_offsets(layers, parameters)
        self.gradients: WeightGradients | None = None
        self.sums: Tensor | None = None  # one row of partial sums per program of the row kernel
        self.summed: list[int] = []  # layers whose vectors' gradients are in them
        self.finished: dict[int, Tensor] = {}  # likewise in parts of their own, one per tile row of the weight above
        if needs_parameters:
            normed = [i + 1 for i in range(len(layers) - 1) if self._finished_by_product(i)]
            self.gradients = WeightGradients([_sizes(p.w) for p in parameters], rows, dtype, device, normed=normed)
            if self.vector_count:
                self.sums = torch.empty(
                    row_programs(rows, target_of(device)), self.vector_count, device=device, dtype=acc_dtype(dtype)
                )  # fmt: skip

    def through_output(self, multiplier: tuple[float, ...]) -> None:
        """From the gradient of y to that of the last layer's pre-activations."""
        last = len(self.layers) - 1
        if self._by_rows(last) or (last == 0 and any(m != 1 for m in multiplier)):
            through = self._through_rows(last, self.da, multiplier, with_h=False)
            self.da, self.dots, self.bias = tuple(through.da), through.dots, through.bias
        else:
            self.scale = multiplier

    def down(self, index: int) -> None:
        """From layer ``index`` to the one below, with the weight gradient in between."""
        below, p = self.layers[index - 1], self.parameters[index]
        kept = self.saved[index - 1]
        assert kept.pre is not None
        normed = self._finished_by_product(index - 1)
        # ẑ is always written: to make it once more for every tile of the weight would take the gradient longer.
        wb = self._constant_part(index - 1)
        serves = output_serves(below) and not below.norm and wb is None
        with_h = self.gradients is not None and not serves
        if normed:
            gamma = self.parameters[index - 1].gamma
            assert gamma is not None
            assert kept.stats is not None
            assert self.dots is not None
            below_gradient = normed_gradient(
                self.da, p.w, gamma, below.act, kept.pre, kept.stats, self.dots, with_normal=with_h, wb=wb,
                wg=self._wg(index - 1),
            )  # fmt: skip
        else:
            fused = not self._by_rows(index - 1)
            below_gradient = hidden_gradient(
                self.da, p.w, act=below.act, a=kept.pre if fused and below.act != "linear" else None, wb=wb,
                fused=fused,
                with_h=with_h and fused, dropout=dropout_of(below, self.seed, index - 1) if fused else None,
                scale=self.scale, with_bias=self._wants_bias(index - 1),
            )  # fmt: skip
            if not fused:
                below_gradient = self._through_rows(
                    index - 1, tuple(below_gradient.da), (1.0,) * len(self.da), with_h, below_gradient.da
                )
        if self.gradients is not None:
            h = kept.pre if serves else below_gradient.h
            assert h is not None
            finished = self.gradients.add(
                index, self.da, tuple(h), self.scale, norm=self._norm_in(index) if normed else None, bias=self.bias
            )  # fmt: skip
            if finished is not None:
                self.finished[index - 1] = finished
        self.da, self.scale = tuple(below_gradient.da), (1.0,) * len(self.da)
        self.dots, self.bias = below_gradient.dots, below_gradient.bias

    def at_first_layer(self) -> None:
        """The weight gradient of the layer that x enters."""
        if self.gradients is not None:
            self.gradients.add(0, self.da, self.x, self.scale, bias=self.bias)

    def parameter_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """All of them, flat: of weights and biases, and of vectors."""
        if self.gradients is None:
            return None, None
        if self.sums is None:
            return self.gradients.total(), None
        dtype = vector_dtype(self.parameters, self.sums.dtype)
        vectors = torch.empty(self.vector_count, device=self.sums.device, dtype=dtype)
        summed = neighbours((self.offsets[i][0], self._end(i)) for i in sorted(self.summed))
        more = [(self.sums[:, first:end], vectors[first:end]) for first, end in summed]
        more += [(parts, vectors[self.offsets[i][0] : self._end(i)]) for i, parts in self.finished.items()]
        return self.gradients.total(*more), vectors

    def _end(self, index: int) -> int:
        """Where the sums of a layer's vectors end."""
        first, per_stream = self.offsets[index]
        return first + len(self.x) * per_stream

    def _norm_in(self, index: int) -> NormInFront:
        """The LayerNorm in front of this layer's product."""
        below = self.parameters[index - 1]
        assert below.gamma is not None
        assert below.beta is not None
        return NormInFront(self.parameters[index].w, below.gamma, below.beta)

    def _through_rows(
        self, index: int, dh: Streams, multiplier: tuple[float, ...], with_h: bool, out: Tensor | None = None
    ) -> LayerGradient:
        """From the gradient of a layer's output to that of its pre-activations, by the row kernel."""
        layer, p, (first, per_stream) = self.layers[index], self.parameters[index], self.offsets[index]
        if self.sums is not None and per_stream:
            self.summed.append(index)
        return layer_output_backward(
            dh, self.saved[index].pre, layer.act, gamma=p.gamma, beta=p.beta, alpha=p.alpha,
            dropout=dropout_of(layer, self.seed, index), multiplier=multiplier, with_h=with_h,
            sums=self.sums if per_stream else None, sums_at=first, stream_of_sums=per_stream,
            wb=self._constant_part(index), wg=self._wg(index), with_bias=self._wants_bias(index), out=out,
        )  # fmt: skip

    def _wants_bias(self, index: int) -> bool:
        """Whether Σ da is to come along. Beside a LayerNorm's sums and a mask a thread has no registers for it."""
        layer = self.layers[index]
        crowded = layer.norm and layer.dropout > 0
        return self.gradients is not None and self.gradients.by_vendor(index) and not crowded

    def _constant_part(self, index: int) -> Tensor | None:
        """W β + b of this layer's product, if it finishes a LayerNorm: what its kept pre-activations are without."""
        return None if index == 0 else self.saved[index - 1].wb

    def _wg(self, index: int) -> Tensor | None:
        """W γ likewise, if that LayerNorm is differentiated in this layer's product too."""
        return self.saved[index - 1].wg if index > 0 and self._finished_by_product(index - 1) else None

    def _by_rows(self, index: int) -> bool:
        """Whether a row kernel makes the gradient of this layer's pre-activations."""
        layer = self.layers[index]
        if index == len(self.layers) - 1:
            return layer.act != "linear" or layer.norm or layer.dropout > 0
        return layer.act == "prelu" or (layer.norm and not self._finished_by_product(index))

    def _finished_by_product(self, index: int) -> bool:
        """Whether this layer's LayerNorm is differentiated in the product above it, which needs to hear from there."""
        if not waits_for_product(self.layers, index) or self.layers[index].act == "prelu":
            return False
        return self._by_rows(index + 1) or self._finished_by_product(index + 1)


def parameter_gradients(
    layers: Sequence[Layer], parameters: Sequence[Parameters], weights: Tensor, vectors: Tensor | None
) -> list[list[Tensor]]:
    """Views of the flat gradients, in the order of the flat parameter lists, for every stream."""
    streams = len(parameters[0].w)
    offsets = WeightGradients.layout([_sizes(p.w) for p in parameters])[0]
    vectors_at, _ = vector_offsets(layers, parameters)
    result: list[list[Tensor]] = [[] for _ in range(streams)]
    for layer, p, starts, (first, per_stream) in zip(layers, parameters, offsets, vectors_at, strict=True):
        for s, gradients in enumerate(result):
            w, b = p.w[s], p.b[s]
            gradients.append(weights[starts[s] : starts[s] + w.numel()].view(w.shape))
            gradients.append(weights[starts[streams + s] :][: b.numel()])
            if vectors is None:
                continue
            at, n = first + s * per_stream, b.numel()
            if layer.act == "prelu":
                slope = at + (2 * n if layer.norm else 0)
                gradients.append(vectors[slope : slope + 1])
            if layer.norm:
                gradients += [vectors[at : at + n], vectors[at + n : at + 2 * n]]
    return result


def gradient_sizes(layers: Sequence[Layer], parameters: Sequence[Parameters]) -> tuple[int, int]:
    """Elements of the two flat gradients, ``weights`` and ``vectors``."""
    weights = WeightGradients.layout([_sizes(p.w) for p in parameters])[1]
    return weights, vector_offsets(layers, parameters)[1]


def vector_dtype(parameters: Sequence[Parameters], acc: torch.dtype) -> torch.dtype:
    """What the flat gradient of the vectors is kept in: their own dtype, so that autograd need not cast each of them;
    where they have several, that of the sums."""
    dtypes = {t.dtype for p in parameters for pair in (p.gamma, p.beta, p.alpha) for t in pair or ()}
    return dtypes.pop() if len(dtypes) == 1 else acc


def vector_offsets(layers: Sequence[Layer], parameters: Sequence[Parameters]) -> tuple[list[tuple[int, int]], int]:
    """Where each layer's sums begin (γ, β, slope; stream by stream), how many a stream has, and how many there are."""
    offsets, end = [], 0
    for layer, p in zip(layers, parameters, strict=True):
        per_stream = (2 * p.b[0].shape[0] if layer.norm else 0) + (1 if layer.act == "prelu" else 0)
        offsets.append((end, per_stream))
        end += len(p.w) * per_stream
    return offsets, end


def _sizes(weights: Streams) -> list[tuple[int, int]]:
    return [(w.shape[0], w.shape[1]) for w in weights]
