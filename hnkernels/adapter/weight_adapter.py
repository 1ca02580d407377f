"""A weight hypernetwork on a model: the handle that ``attach`` returns for it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hnkernels.adapter.deltas import State, WeightDelta
from hnkernels.adapter.handle import Handle
from hnkernels.adapter.layer import TappedLayer
from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.pipelines import WITH_GUIDANCE, calling_groups
from hnkernels.adapter.projections import Projection
from hnkernels.adapter.strength import PROJECTIONS, Place, Strength
from hnkernels.errors import InputError

if TYPE_CHECKING:
    from hnkernels.generator import GeneratedWeights, TargetLayer, WeightHypernetwork

_serials = itertools.count(1)


class WeightAdapter(Handle):
    """Generated weights in one model's attention projections. Made by ``attach``; a context manager that detaches.

    Without a condition the model computes as if nothing were attached:

        with adapter.condition("watercolour"):
            image = pipe("a lighthouse").images[0]

    Attributes:
        net: the ``WeightHypernetwork``; ``None`` where ``GeneratedWeights`` were attached.
        weights: the ``GeneratedWeights`` that act, or ``None``; assign to change them, between denoising steps too.
        guidance: whether the first half of each batch is the unconditional one of classifier-free guidance, which runs
            the base model alone. ``None`` asks the pipeline that is running, outside of training (in a model that is
            compiled as a whole, the one that it was attached to); without one it is ``False``.
        name, strength, enabled: as ``Adapter``'s; the tables also know ``q`` and ``out``. Strength acts while training
            too.
    """

    def __init__(
        self,
        source: WeightHypernetwork | GeneratedWeights,
        name: str,
        strength: Strength,
        pipeline: Any,
        found: Sequence[Projection],
    ):
        self.net = source if isinstance(source, nn.Module) else None
        self.layers: tuple[TargetLayer, ...] = source.layers
        _check_fit(self.layers, found)
        self._guidance: bool | None = None
        self._guided: bool | None = None  # in the last call
        self._pipeline = _Pipeline(pipeline)
        self._deltas = {layer.name: WeightDelta(self, layer.projection) for layer in self.layers}
        self._weights: GeneratedWeights | None = None
        self._dtype: torch.dtype | None = None  # that in which the deltas have them
        places = {layer.attention: Place.of(layer.attention, layer.kind) for layer in self.layers}
        streams = [p for p in PROJECTIONS if any(layer.projection == p for layer in self.layers)]
        super().__init__(name, strength, list(places.values()), streams)
        if self.net is None:
            self.weights = source  # type: ignore[assignment]

    @property
    def weights(self) -> GeneratedWeights | None:
        return self._weights

    @weights.setter
    def weights(self, weights: GeneratedWeights | None) -> None:
        from hnkernels.generator import GeneratedWeights

        if weights is not None:
            if not isinstance(weights, GeneratedWeights):
                raise InputError(f"weights must be GeneratedWeights or None, not {type(weights).__name__}")
            _check_fit(weights.layers, self.layers)
        self._weights = weights
        self._hand_out()

    @property
    def guidance(self) -> bool | None:
        return self._guidance

    @guidance.setter
    def guidance(self, guidance: bool | None) -> None:
        self._guidance = guidance
        self._hand_out()

    @contextmanager
    def condition(self, x: Any, mask: Tensor | None = None, *, guidance: bool | None = None) -> Iterator[WeightAdapter]:
        """Generates the weights for a condition and lets them act inside of the ``with``; then those before act again.

        Args:
            x, mask: what ``WeightHypernetwork.generate_weights`` takes, one row per picture (or one for all pictures);
                or ``GeneratedWeights``.
            guidance: see the attribute, for as long.
        """
        from hnkernels.generator import GeneratedWeights

        self._here()
        if not isinstance(x, GeneratedWeights):
            if self.net is None:
                raise AdapterError("weights were attached, not a network that could generate others; give such weights")
            x = self.net.generate_weights(x, mask)
        before = self._weights, self.guidance
        try:
            self._guidance = before[1] if guidance is None else guidance
            self.weights = x
            yield self
        finally:
            self._guidance = before[1]
            self.weights = before[0]

    def guided(self, guidance: bool | None) -> bool:
        """Whether half of the batch is unconditional, where the weights were set with this ``guidance``.

        Raises:
            AdapterError: the pipeline that is calling has other parts in its batches than these two halves.
        """
        if guidance is not None:
            return guidance
        if torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling():  # callers are not seen from traced code
            return self._pipeline.guides()
        groups = calling_groups() or (True,)
        if groups not in ((True,), WITH_GUIDANCE):
            raise AdapterError(
                f"the pipeline runs batches of {len(groups)} parts (another guidance beside the classifier-free one), "
                "in which generated weights cannot be told to their rows; repeat them for these rows with "
                "weights.with_index(…) and give condition(…, guidance=False)"
            )
        return groups == WITH_GUIDANCE

    def situation(self) -> object:
        super().situation()
        guided = None if self._weights is None else self.guided(self.guidance)
        if guided != self._guided:
            self._guided = guided
            self._tell()
        return guided

    def arrange(self, layers: Sequence[TappedLayer]) -> None:
        by_name = {layer.name: layer for layer in layers}
        levels = {place.name: self._level_of[i] for i, place in enumerate(self._places)}
        for target in self.layers:
            delta, layer = self._deltas[target.name], by_name[target.attention]
            delta.level = levels[target.attention]
            layer.add_delta(target.projection, target.name.removeprefix(f"{layer.spec.path}."), delta)
        self.renew()

    def renew(self) -> None:
        if self._host is not None and self._dtype != self._host.dtype:
            self._hand_out()

    def _hand_out(self) -> None:
        """Gives every delta its state, in the dtype of the model's linears."""
        weights = self._weights
        names = set() if weights is None else {layer.name for layer in weights.layers}
        if self._host is not None:
            self._dtype = self._host.dtype
            weights = None if weights is None else weights.to(self._dtype)
        serial = next(_serials)
        for name, delta in self._deltas.items():
            delta.state = None
            if weights is not None and name in names:
                a, b = weights.factors(name)
                delta.state = State(a, b, weights.scales(name), weights.index, self.guidance, serial)
        self._tell()

    def _reached(self) -> Iterable[int]:
        return range(len(self._places))

    def _device(self) -> torch.device:
        if self.net is not None:
            return next(self.net.parameters()).device
        return torch.device("cpu") if self._weights is None else self._weights.device

    def _move(self, device: torch.device) -> None:
        if self.net is not None:
            self.net.to(device)
        if self._weights is not None:
            self.weights = self._weights.to(device)

    def parameters(self) -> Iterable[nn.Parameter]:
        return () if self.net is None else self.net.parameters()


class _Pipeline:
    """A pipeline, to be asked by traced code and not to be kept. A copy of it, made with a copied pipeline, belongs to
    that one."""

    def __init__(self, pipeline: Any):
        self._ref = None if pipeline is None else weakref.ref(pipeline)

    def guides(self) -> bool:
        """Whether it doubles its batches for classifier-free guidance."""
        pipeline = None if self._ref is None else self._ref()
        return bool(getattr(pipeline, "do_classifier_free_guidance", False))

    def __deepcopy__(self, memo: dict) -> _Pipeline:
        pipeline = None if self._ref is None else self._ref()
        return _Pipeline(memo.get(id(pipeline)))

    def __reduce__(self):
        return _Pipeline, (None,)


def _check_fit(layers: Sequence[Projection], there: Sequence[Projection]) -> None:
    """Refuses weights for layers that are not there, or of another shape.

    Raises:
        AdapterError: names the first of them.
    """
    shapes = {p.name: (p.out_features, p.in_features) for p in there}
    for layer in layers:
        wanted, found = (layer.out_features, layer.in_features), shapes.get(layer.name)
        if found != wanted:
            what = "is not there" if found is None else f"is {list(found)} there"
            raise AdapterError(
                f"the weights are for another model: {layer.name} {list(wanted)} {what}; build the WeightHypernetwork "
                "with model=, the pipeline or module that it is for"
            )
