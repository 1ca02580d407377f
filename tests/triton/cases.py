"""The combinations that values are tested for: every value of every field, and every pair of values of two fields."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch

from hnkernels.network.activations import ACTIVATIONS
from tests.accuracy import Call


@dataclass(frozen=True)
class Case:
    """One network with one context.

    Attributes:
        tokens: rows of the context.
        width: columns of the context.
        structure: widths of the layers relative to it.
        strength: multiplier in eval mode; ``None`` is training mode, which has none.
        bias: whether the projections have one.
        trained: whether they take gradients.
        length: MLPs in the chain of each stream.
        query: whether ``to_q`` rides along.
    """

    tokens: int
    width: int
    structure: tuple[float, ...]
    activation: str | None
    layer_norm: bool
    activate_output: bool
    dtype: torch.dtype
    strength: float | None
    bias: bool
    trained: bool
    length: int
    query: bool
    recompute: bool

    def draw(self) -> Call:
        """Random tensors for it, of sizes that half precision can hold through all layers."""
        widths = (self.width, self.width + 5, 24)
        return Call.make(
            dim=self.width,
            shape=(self.tokens,),
            n=widths if self.query else widths[:2],
            dtype=self.dtype,
            bias=self.bias,
            trained=self.trained,
            length=self.length,
            train=self.strength is None,
            strength=1.0 if self.strength is None else self.strength,
            recompute=self.recompute,
            std=self.width**-0.5,
            layer_structure=self.structure,
            activation=self.activation,
            layer_norm=self.layer_norm,
            activate_output=self.activate_output,
        )

    def __str__(self) -> str:
        flags = [f.name for f in fields(self) if getattr(self, f.name) is True]
        structure = "-".join(map(str, self.structure))
        mode = "train" if self.strength is None else f"m={self.strength}"
        words = [str(self.dtype).removeprefix("torch."), f"{self.tokens}x{self.width}", structure, self.activation]
        return " ".join([*map(str, words), mode, f"chain={self.length}", *flags])


VALUES = {
    "width": (40, 8, 64, 4, 76, 96, 128),
    "activation": (None, *(row.name for row in ACTIVATIONS.values() if row.device is not None)),
    "tokens": (16, 128, 33, 77, 3, 1),
    "structure": ((1, 2, 1), (1, 1), (1, 0.5, 1), (1, 1.5, 2.25, 1), (1, 2, 4, 2, 1)),
    "dtype": (torch.float32, torch.float16, torch.bfloat16),
    "strength": (None, 1.0, 0.6, -1.3),
    "length": (1, 2),
    "layer_norm": (False, True),
    "activate_output": (False, True),
    "bias": (False, True),
    "trained": (False, True),
    "query": (False, True),
    "recompute": (False, True),
}

_COSTLY = ("tokens", "width", "structure", "length", "dtype")
_WIDEST_HIDDEN = 290  # in the interpreter wider ones take too long

Pair = tuple[tuple[str, object], tuple[str, object]]


def possible(chosen: dict[str, object]) -> bool:
    """Whether a case may have these values."""
    width, structure = chosen.get("width", 1), chosen.get("structure", (1,))
    return int(width * max(structure)) <= _WIDEST_HIDDEN


def pairs_of(chosen: dict[str, object]) -> Iterator[Pair]:
    """Every pair of values in the order of ``VALUES``."""
    return itertools.combinations([(name, chosen[name]) for name in VALUES if name in chosen], 2)


def all_pairs() -> list[Pair]:
    """Every pair of values that a case may have."""
    return [
        ((a, x), (b, y))
        for a, b in itertools.combinations(VALUES, 2)
        for x, y in itertools.product(VALUES[a], VALUES[b])
        if possible({a: x, b: y})
    ]


def covering() -> list[Case]:
    """Few cases that have every pair among them: each begins with one not met yet and takes what meets most others.

    Of equally good values it takes any, always the same; of those that decide how long a case takes the first in the
    row, since large ones need time and small ones show little.
    """
    missing = dict.fromkeys(all_pairs())
    dice = random.Random(0)
    cases = []
    while missing:
        chosen = dict(next(iter(missing)))

        def merit(name: str, value: object, chosen: dict[str, object] = chosen) -> tuple[int, float]:
            met = sum((name, value) in pair and pair in missing for pair in pairs_of({**chosen, name: value}))
            return met, 0 if name in _COSTLY else dice.random()

        for name, values in VALUES.items():
            if name not in chosen:
                options = [value for value in values if possible({**chosen, name: value})]
                chosen[name] = max(options, key=partial(merit, name))
        for pair in pairs_of(chosen):
            missing.pop(pair, None)
        cases.append(Case(**chosen))
    return cases


CASES = covering()
