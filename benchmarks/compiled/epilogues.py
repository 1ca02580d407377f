"""What an activation costs in the epilogue of a product: ``python -m benchmarks.compiled.epilogues [names]``.

Prints, as CSV, the instructions outside the loop on sm_90 of three kernels in fp16 whose threads hold 64 elements each
(tiles of 128x128x64, 8 warps, 3 stages): the layer with the activation, the gradient with its derivative, and the
gradient with both, which the gradient of the weights needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.compiled.compilation import compiled, configuration
from benchmarks.compiled.machine_code import outside_loops
from hnkernels.network.activations import ACTIVATIONS
from hnkernels.triton.kernels.hidden_gradient import hidden_gradient
from hnkernels.triton.kernels.layer_forward import layer_forward
from hnkernels.triton.launch import Call, capturing
from hnkernels.triton.target import TARGETS, forced_route, planned_for
from hnkernels.triton.tiling import Tiles, forced

TARGET = TARGETS["sm_90"]
TILES = Tiles(128, 128, 64, warps=8, stages=3)
COLUMNS = ("value", "derivative", "both")
_ROWS, _WIDTH = 4096, 640


def instructions(act: str) -> tuple[int, int, int]:
    """Those of the three kernels, in the order of ``COLUMNS``."""
    value, derivative, both = (outside_loops(compiled(configuration(call, TARGET))) for call in _calls(act))
    return value, derivative, both


def _calls(act: str) -> list[Call]:
    def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = torch.empty(2, *shape, dtype=torch.float16, device="meta")
        return first, second

    x, w = pair(_ROWS, _WIDTH), pair(_WIDTH, _WIDTH)
    a = torch.empty(2, _ROWS, _WIDTH, dtype=torch.float16, device="meta")
    with planned_for(TARGET), forced(TILES), forced_route("kernels"), capturing() as captured:
        layer_forward(x, w, pair(_WIDTH), act)
        for with_h in (False, True):
            hidden_gradient(x, w, act=act, a=a, fused=True, with_h=with_h)
    return captured


def main(names: Sequence[str]) -> None:
    """Print them, of all activations that kernels take without a parameter if none are named."""
    rows = {row.device for row in ACTIVATIONS.values() if row.device not in (None, "prelu")}
    print("activation", *COLUMNS, sep=",")
    for act in names or sorted(rows):
        print(act, *instructions(act), sep=",", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
