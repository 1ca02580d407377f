"""Which projections of a model weights are generated for, and of which rank."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from hnkernels.adapter.projections import Projection
from hnkernels.adapter.strength import PROJECTIONS, Place
from hnkernels.errors import InputError
from hnkernels.ops.checks import HIGHEST_RANK

Shape = tuple[int, int, int]
"""Of a layer's weight and factors: n, d, rank."""

_KEYWORD = re.compile(r"down|mid|up|block_\d+|attn1|attn2|q|k|v|out")
_REGEX = "re:"
_FLOW = {"down": 0, "mid": 1, "up": 2}

_ACCEPTED = (
    "accepted are down, mid, up, block_<n>, attn1, attn2, q, k, v, out, several of them joined by dots as in "
    "'down.block_1', patterns of dotted paths as in 'down_blocks.1.*', and 're:' with a regular expression"
)


@dataclass(frozen=True)
class TargetLayer(Projection):
    """A projection that weights are generated for.

    Attributes:
        name, attention, kind, projection, out_features, in_features: see ``Projection``.
        rank: r of the factors, A [r, d] and B [n, r].
    """

    rank: int

    @property
    def shape(self) -> Shape:
        """n, d and rank: layers that agree in them share a head, and are generated together."""
        return self.out_features, self.in_features, self.rank


P = TypeVar("P", bound=Projection)


def fits(layer: Projection, selector: str) -> bool:
    """Whether a selector speaks of this projection.

    A selector is one of these:

    - ``"attn1"``, ``"attn2"``; ``"q"``, ``"k"``, ``"v"``, ``"out"``; ``"down"``, ``"mid"``, ``"up"``; ``"block_1"``;
    - several of them joined by dots, which must all fit: ``"down.block_1"``, ``"up.attn2.v"``;
    - a pattern of the projection's or the attention layer's whole dotted path: ``"down_blocks.1.*"``, ``"*.to_v"``;
    - ``"re:"`` and a regular expression that the projection's whole dotted path matches.
    """
    if selector.startswith(_REGEX):
        return re.fullmatch(selector.removeprefix(_REGEX), layer.name) is not None
    parts = selector.split(".")
    if all(map(_KEYWORD.fullmatch, parts)):
        place = Place.of(layer.attention, layer.kind)
        return all(part == layer.projection if part in PROJECTIONS else place.fits(part, "") for part in parts)
    return fnmatchcase(layer.name, selector) or fnmatchcase(layer.attention, selector)


def check_selectors(selectors: Iterable[Any], layers: Sequence[Projection], argument: str) -> None:
    """Refuses a selector that fits none of the layers.

    Raises:
        ValueError: names it, what is accepted, and what it is near to.
    """
    for selector in selectors:
        if not isinstance(selector, str):
            raise InputError(f"{argument} has {selector!r}, which is not a string; {_ACCEPTED}")
        try:
            if any(fits(layer, selector) for layer in layers):
                continue
        except re.error as error:
            raise InputError(f"{argument} has {selector!r}, which is not a regular expression: {error}") from error
        known = {"down", "mid", "up", "attn1", "attn2", *PROJECTIONS}
        known |= {f"{p.half}.block_{p.block}" for p in (Place.of(x.attention, x.kind) for x in layers) if p.half}
        known |= {name for layer in layers for name in (layer.name, layer.attention)}
        near = difflib.get_close_matches(selector, sorted(known), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise InputError(f"{argument} has {selector!r}, which fits none of the {len(layers)} layers; {hint}{_ACCEPTED}")


def select_layers(
    found: Sequence[Projection],
    target_layers: str | Sequence[str],
    rank: int | Mapping[str, int] | None,
    projections: str | Sequence[str] = PROJECTIONS,
) -> tuple[TargetLayer, ...]:
    """The projections that a selector fits, with their ranks, in the order of the data: down, mid, up.

    Args:
        found: a model's.
        target_layers: selectors, see ``fits``; a projection is taken if one of them fits.
        rank: one for all; or selector → rank, of which the first that fits counts (``"*"`` fits the rest); ``None``
            for full rank, the smaller side of every layer.
        projections: some of ``PROJECTIONS``; others are left out.

    Raises:
        ValueError: a selector fits nothing, a projection is unknown, or a layer's rank is not given, below 1, above
            64 or larger than a side of the layer.
    """
    projections = _several(projections, "projections")
    unknown = [p for p in projections if p not in PROJECTIONS]
    if unknown:
        raise InputError(f"projections must be some of {', '.join(PROJECTIONS)}, not {unknown[0]!r}")
    selectors = _several(target_layers, "target_layers")
    narrowed = [layer for layer in found if layer.projection in projections]
    check_selectors(selectors, narrowed, "target_layers")
    chosen = [layer for layer in narrowed if any(fits(layer, selector) for selector in selectors)]
    chosen.sort(key=lambda layer: _FLOW.get(Place.of(layer.attention, layer.kind).half or "", 1))
    if isinstance(rank, Mapping):
        check_selectors(rank, chosen, "rank")
    return tuple(TargetLayer(**asdict(layer), rank=_rank_of(layer, rank)) for layer in chosen)


def _several(given: Any, argument: str) -> tuple[Any, ...]:
    several = (given,) if isinstance(given, str) else given
    if isinstance(several, Mapping) or not isinstance(several, Iterable) or not (several := tuple(several)):
        raise InputError(f"{argument} must be one or more strings, not {given!r}")
    return several


def _rank_of(layer: Projection, rank: Any) -> int:
    side = min(layer.out_features, layer.in_features)
    if rank is None:
        return side
    if isinstance(rank, Mapping):
        ranks = [value for selector, value in rank.items() if fits(layer, selector)]
        if not ranks:
            raise InputError(f"rank says nothing of {layer.name}; add '*' with the rank of all other layers")
        rank = ranks[0]
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(side, HIGHEST_RANK):
        raise InputError(
            f"rank is {rank!r} at {layer.name}, a weight [{layer.out_features}, {layer.in_features}]; it must be an "
            f"integer from 1 to {min(side, HIGHEST_RANK)} there"
        )
    return rank


def by_shape(layers: Iterable[TargetLayer]) -> dict[Shape, list[TargetLayer]]:
    """The layers grouped by shape, groups and layers in the order in which they come."""
    groups: dict[Shape, list[TargetLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.shape, []).append(layer)
    return groups


def listing(layers: Sequence[TargetLayer]) -> str:
    """The layers as a table, one a line, with their number and that of the values generated for one condition."""
    width = max(len(layer.name) for layer in layers)
    lines = [f"{'layer':{width}}  kind   proj  {'weight':>11}  rank"]
    values = 0
    for layer in layers:
        n, d, rank = layer.shape
        values += rank * (n + d)
        lines.append(f"{layer.name:{width}}  {layer.kind}  {layer.projection:4}  {n:>4} × {d:<4}  {rank:>4}")
    lines.append(f"{len(layers)} layers, {values:,} generated values")
    return "\n".join(lines)
