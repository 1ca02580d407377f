"""What the launches of low-rank linears share: the samples, the factors of every slice, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import triton
from torch import Tensor

from hnkernels.triton.kernels.arguments import table_on

POINTERS = 3
"""So many slices travel as arguments: q, k and v. More of them go through a table in the device's memory."""


@dataclass(frozen=True)
class LowRank:
    """The samples and the factors of every slice, all contiguous but x. With a table all begin at 16 bytes.

    Attributes:
        x: [S, T, d], rows contiguous.
        a, b: [G, r_p, d] and [G, n_p, r_p].
        scale: [slices, S], rows contiguous, or None for 1.
        index: [S] int64, or None where every set serves as many consecutive samples.
    """

    x: Tensor
    a: Sequence[Tensor]
    b: Sequence[Tensor]
    scale: Tensor | None
    index: Tensor | None

    @property
    def widths(self) -> list[int]:
        """n of every slice."""
        return [t.shape[1] for t in self.b]

    @property
    def ranks(self) -> list[int]:
        """r of every slice."""
        return [t.shape[2] for t in self.b]

    @property
    def sets(self) -> int:
        """G."""
        return self.a[0].shape[0]

    @property
    def tabled(self) -> bool:
        """Whether the slices are too many to be passed as arguments."""
        return len(self.a) > POINTERS

    @property
    def aligned(self) -> bool:
        """Whether every n is a multiple of 16."""
        return all(n % 16 == 0 for n in self.widths)

    @property
    def block_r(self) -> int:
        """What ranks are filled up to."""
        return max(16, triton.next_power_of_2(max(self.ranks)))

    @property
    def rows(self) -> int:
        """By which tiles are chosen. A tile has tokens of one sample: few of them fill no large one."""
        samples, tokens, _ = self.x.shape
        return tokens if tokens < 128 else samples * tokens

    @property
    def elements(self) -> list[int]:
        """Of a set's factors, in every slice."""
        d = self.x.shape[2]
        return [r * (d + n) for n, r in zip(self.widths, self.ranks, strict=True)]

    def through_ranks(self, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for [S, T, r_p] of every slice, one after another."""
        samples, tokens, _ = self.x.shape
        return self.x.new_empty(samples * tokens * sum(self.ranks), dtype=dtype)

    def arguments(self) -> dict[str, Any]:
        """Those that every kernel has."""
        return {
            "T": self.x.shape[1],
            **_numbers("N", self.widths),
            **_numbers("r", self.ranks),
            "scale_ptr": self.scale,
            "stride_scale": 0 if self.scale is None else self.scale.stride(0),
            "samples": self.x.shape[0],
        }

    def sets_arguments(self) -> dict[str, Any]:
        """How a kernel finds the set of a sample."""
        return {"index_ptr": self.index, "samples_per_set": self.x.shape[0] // max(self.sets, 1)}

    def alignment(self) -> dict[str, Any]:
        """What the compiler cannot see of widths and ranks that are chosen at run time."""
        multiple = next(m for m in (16, 8, 4, 2, 1) if all(r % m == 0 for r in self.ranks))
        return {"MULTIPLE": multiple, "ALIGNED": self.aligned}

    def pointers(self, name: str, tensors: Sequence[Tensor | None]) -> dict[str, Any]:
        """One tensor per slice as three arguments, which no slice uses where there is a table."""
        chosen = (None,) * POINTERS if self.tabled else _three(tensors)
        return {f"{name}_{i}_ptr": t for i, t in enumerate(chosen)}

    def addressed(self, *tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Those that a kernel reads by their addresses in the table: none where they are arguments."""
        return [t for each in tensors for t in each] if self.tabled else []

    def table(
        self,
        each: Sequence[Tensor] = (),
        w: Sequence[Tensor] = (),
        bias: Sequence[Tensor | None] = (),
        keep: bool = False,
    ) -> Tensor | None:
        """The slices' table, with a tensor of each (dy, or what is added to); None if the slices are arguments.

        ``keep`` keeps it for the next call with the same addresses: of tensors that stay where they are.
        """
        if not self.tabled:
            return None
        count = len(self.a)
        none = [None] * count
        columns: list[Sequence[int]] = [
            [0 if t is None else t.data_ptr() for t in tensors or none] for tensors in (each, w, bias, self.a, self.b)
        ]
        columns += [self.widths, self.ranks]
        columns += [[0, *accumulate(sizes)][:count] for sizes in (self.widths, self.ranks, self.elements)]
        rows = tuple(zip(*columns, strict=True))
        return kept_table(rows, self.x.device) if keep else table_on(self.x.device, rows)


@lru_cache(maxsize=64)
def kept_table(rows: tuple[tuple[int, ...], ...], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """A table holds nothing but its arguments, so keeping it is safe."""
    return table_on(device, rows, dtype)


def _three(values: Sequence[Any]) -> list[Any]:
    """Padded to three by the last one, which no program looks at."""
    return [*values, *[values[-1]] * (POINTERS - len(values))]


def _numbers(name: str, values: Sequence[int]) -> dict[str, int]:
    """The first three, or 0 for those that there are not."""
    padded = [*values[:POINTERS], *[0] * (POINTERS - len(values))]
    return {f"{name}_{i}": value for i, value in enumerate(padded)}


def outputs(slices: LowRank) -> tuple[list[Tensor], dict[str, Any]]:
    """[S, T, n_p] for every slice, or with a table one flat tensor; and the arguments."""
    samples, tokens, _ = slices.x.shape
    if slices.tabled:
        flat = slices.x.new_empty(samples * tokens * sum(slices.widths))
        return [flat], {"out_0_ptr": flat, "out_1_ptr": None, "out_2_ptr": None}
    outs = [slices.x.new_empty(samples, tokens, n) for n in slices.widths]
    return outs, slices.pointers("out", outs)
