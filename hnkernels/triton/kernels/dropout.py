"""Dropout as a function of its coordinates, so that backward and recomputation replay it and nothing is stored.

Philox-4x32-10 (Salmon et al., SC 2011), keyed by a 64-bit seed from torch's generator, at the counter
(column, row, layer and stream).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dropout_scale(seed_ptr, p, rows, cols, layer_id):
    """0 where the element is dropped, 1/(1-p) where it is kept.

    Shape: seed_ptr [1] int64, rows [R] int64, cols [C], layer_id a number per layer and stream → [R, C] fp32.
    """
    seed = tl.load(seed_ptr)
    column = cols[None, :].to(tl.uint32)
    row = rows[:, None]
    random, _, _, _ = tl.philox(
        seed, column, (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32).to(tl.uint32), (column * 0 + layer_id).to(tl.uint32)
    )
    return tl.where(tl.random.uint_to_uniform_float(random) < p, 0.0, 1.0 / (1.0 - p))
