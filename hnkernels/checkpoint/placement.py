"""Where the dropouts of a file are, read off the positions of its weights.

Files of October 2022 have dropouts at other places than later ones. A dropout has no weights, but it moves the index
of everything after it: between two linears lie an activation (if there is one), a LayerNorm (if there is one) and a
dropout (if there is one), so what the first two do not fill is the dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hnkernels.checkpoint.errors import Fault
from hnkernels.checkpoint.sublayers import Kind
from hnkernels.network.mlp import derive_dropout_structure

UNSTATED_RATE = 0.3
"""A1111's rate at the time when files did not say it."""

_REMEDY = "correct the options stored in the file, or save it again with the program that made it"


def output_is_activated(sublayers: dict[int, Kind], activation: str | None) -> bool:
    """Whether the activation follows the last linear, for a file that does not say.

    True, as A1111 assumes, unless a LayerNorm directly after the linear, or a PReLU missing there, shows otherwise.
    """
    last = _linears(sublayers)[-1]
    after = sublayers.get(last + 1)
    return after is Kind.SCALAR if activation == "prelu" else after is not Kind.NORM


def dropout_structure(
    where: str,
    sublayers: dict[int, Kind],
    *,
    between: int,
    layer_count: int,
    stated: Sequence[float] | None,
    use_dropout: bool,
    last_layer_dropout: bool,
) -> tuple[tuple[float, ...], bool]:
    """The dropout list that explains the indices.

    Args:
        where: which MLP, for messages.
        sublayers: its sub-layers with parameters; as many linears as ``layer_count`` says.
        between: sub-layers after each hidden linear that are not dropout: activation and LayerNorm, 0 … 2.
        layer_count: ``len(layer_structure)``.
        stated: the file's own list, ``None`` if it has none.
        use_dropout: the file's own word.
        last_layer_dropout: likewise.

    Returns:
        The list, with ``layer_count`` entries, and whether positions had to be taken from the weights because they
        contradict the file's options. Rates are the stated ones, and 0.3 where the file names none. A dropout after
        the last linear leaves no trace; there the options decide.

    Raises:
        Fault: no placement of dropouts explains the indices, or the file has no dropout by its own account.
    """
    if stated is not None and len(stated) != layer_count:
        raise Fault(
            f"has a dropout_structure of {len(stated)} entries and a layer_structure of {layer_count}; "
            "they must be as many",
            _REMEDY,
        )
    rates = list(derive_dropout_structure(layer_count, use_dropout, last_layer_dropout) if stated is None else stated)
    linears = _linears(sublayers)
    moved = False
    for number, (here, following) in enumerate(pairwise(linears)):
        spare = following - here - 1 - between
        if spare not in (0, 1):
            raise Fault(
                f"{where} has {following - here - 1} sub-layers between linear.{here} and linear.{following}, where "
                f"its options mean {between}, or {between + 1} with a dropout",
                _REMEDY,
            )
        if (rates[number + 1] > 0) != bool(spare):
            moved = True
            rates[number + 1] = UNSTATED_RATE if spare else 0.0
    if moved and any(rates[1:-1]) and not (use_dropout or any(stated or ())):
        raise Fault(
            f"{where} has a sub-layer that is neither activation nor LayerNorm nor dropout by its options", _REMEDY
        )
    return tuple(rates), moved


def _linears(sublayers: dict[int, Kind]) -> list[int]:
    return [index for index, kind in sublayers.items() if kind is Kind.LINEAR]
