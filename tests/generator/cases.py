"""Small weight hypernetworks and weights, with values of a size at which all of them matter."""

from __future__ import annotations

import torch

import hnkernels as hn
from hnkernels.generator.architectures import projections_of
from hnkernels.generator.targets import TargetLayer, select_layers
from tests.models import randomise, tiny_unet

EMBEDDING = 6
HIDDEN = 16
STYLES = ("ink", "chalk", "oil")
TASKS = 3

_TINY = projections_of(tiny_unet())


def tiny_layers(target_layers="*", rank=2, **options) -> tuple[TargetLayer, ...]:
    """Layers of ``tiny_unet``."""
    return select_layers(_TINY, target_layers, rank, **options)


def make_generator(**options) -> hn.WeightHypernetwork:
    """A weight hypernetwork for ``tiny_unet``, as it is built."""
    given = {
        "target_layers": "*",
        "embedding_dim": EMBEDDING,
        "hidden_dim": HIDDEN,
        "rank": 2,
        "model": tiny_unet(),
        "tasks": TASKS,
        "styles": STYLES,
    }
    return hn.WeightHypernetwork(**{**given, **options})


def trained_generator(**options) -> hn.WeightHypernetwork:
    """One whose parameters are all random, in eval mode."""
    net = make_generator(**options)
    randomise(net)
    return net.eval()


def make_weights(sets: int = 3, layers=None, dtype: torch.dtype = torch.float64) -> hn.GeneratedWeights:
    """Random weights for layers of ``tiny_unet``."""
    layers = tiny_layers() if layers is None else layers
    return hn.GeneratedWeights.from_factors(
        layers,
        {
            x.name: (
                torch.randn(sets, x.rank, x.in_features, dtype=dtype),
                torch.randn(sets, x.out_features, x.rank, dtype=dtype),
            )
            for x in layers
        },
    )


def same(first: hn.GeneratedWeights, second: hn.GeneratedWeights) -> bool:
    """Whether layers, factors, scales and index are equal to the last bit."""

    def equal(x, y):
        return (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))

    if first.layers != second.layers or not equal(first.index, second.index) or first.dtype != second.dtype:
        return False
    return all(
        equal(first.scales(x.name), second.scales(x.name))
        and all(map(equal, first.factors(x.name), second.factors(x.name)))
        for x in first.layers
    )
