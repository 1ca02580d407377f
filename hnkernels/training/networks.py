"""The network that a command is to train: a new one for a model, and whether one fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hnkernels.adapter import attach
from hnkernels.adapter.layers import find_attention
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.data.example import Example
from hnkernels.training.families import family_of
from hnkernels.wording import shown

KINDS = ("context", "weights")
"""Networks that change the context before the projections, and those that generate weights."""


def new_network(
    kind: str, model: Any, targets: Sequence[str], name: str, settings: Mapping[str, Any], examples: Sequence[Example]
) -> Hypernetwork | WeightHypernetwork:
    """A network of all context widths of a model, or one that generates weights for its attention, at its start.

    Args:
        kind: of ``KINDS``.
        model: the UNet or transformer; its weights are not looked at.
        targets: kinds of attention.
        name: of the network.
        settings: arguments of ``Hypernetwork`` or ``WeightHypernetwork`` in place of those chosen here.
        examples: whose conditions name the styles of a network that generates weights.

    Raises:
        ValueError: a setting is unknown or out of range, or the model cannot be trained on.
    """
    family = family_of(model)
    if kind == "context":
        widths = {spec.width for spec in find_attention(model) if spec.kind in targets}
        options = {"sizes": sorted(widths), "init": "identity", "name": name, **settings}
        build: Any = Hypernetwork
    elif kind == "weights":
        options = {
            "model": model,
            "target_layers": tuple(targets),
            "embedding_dim": family.text_width or 768,
            "styles": sorted({style for example in examples for style in _styles(example.condition)}),
            "name": name,
            **settings,
        }
        build = WeightHypernetwork
    else:
        raise InputError(f"a network's kind must be one of {', '.join(KINDS)}, not {shown(kind)}")
    try:
        net: Hypernetwork | WeightHypernetwork = build(**options)
    except TypeError as error:
        raise InputError(f"'network' has a setting that {build.__name__} does not know: {error}") from None
    return net


def check_fit(net: Hypernetwork | WeightHypernetwork, model: Any, targets: Sequence[str]) -> None:
    """Raises ``AdapterError`` if a network is for another model than this one, whose weights are not looked at."""
    if isinstance(net, WeightHypernetwork):
        attach(model, net).detach()
    else:
        attach(model, net, targets=targets).detach()


def _styles(condition: Any) -> tuple[str, ...]:
    if isinstance(condition, str):
        return (condition,)
    return tuple(condition) if isinstance(condition, Mapping) else ()
