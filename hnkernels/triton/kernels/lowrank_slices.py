"""Linears with low-rank weights of their own for every sample: q, k and v of one x in a launch, or many layers'.

    y_p[s] = x[s] W_pᵀ + bias_p + scale_p[s]·u_p[s] B_p[i]ᵀ    with u_p[s] = x[s] A_p[i]ᵀ and i the set of sample s

A slice p is one such linear. With g_p[s] = dy_p[s] B_p[i] and sums over tokens t, and for a set over its samples s,

    dx = Σ_p dy_p W_p + scale_p·g_p A_p        dA_p[i] = Σ_s scale_p[s]·g_p[s]ᵀ x[s]
    dscale_p[s] = Σ_t g_p[s]∘u_p[s]            dB_p[i] = Σ_s scale_p[s]·dy_p[s]ᵀ u_p[s]

No tile has tokens of two samples, so a program has one scale and one set of factors. Ranks are filled up to BLOCK_R.
Up to three slices come as pointers; more of them in a table, [slices, 10] int64, whose columns are named below. A
scale of 0 leaves the programs of its sample the plain linear alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Addresses of the tensor that goes with a slice (dy, or what is added to), of w, bias (0: none), a and b; widths; and
# how many columns, ranks and elements of factors the slices before have.
AT_SLICE, AT_W, AT_BIAS, AT_A, AT_B = (tl.constexpr(i) for i in range(5))
AT_N, AT_RANK, AT_N_BEFORE, AT_RANKS_BEFORE, AT_ELEMENTS_BEFORE = (tl.constexpr(i) for i in range(5, 10))
COLUMNS_IN_TABLE = tl.constexpr(10)


@triton.jit
def pick(slice_index, first, second, third):
    """The one with this number."""
    return tl.where(slice_index == 1, second, tl.where(slice_index == 2, third, first))


@triton.jit
def before(slice_index, first, second):
    """The sum of those with lower numbers."""
    return tl.where(slice_index > 0, first, 0) + tl.where(slice_index > 1, second, 0)


@triton.jit
def entry(slice_index, table_ptr, COLUMN: tl.constexpr):
    """A slice's number in this column of the table. int64."""
    return tl.load(table_ptr + slice_index * COLUMNS_IN_TABLE + COLUMN)


@triton.jit
def tensor_of(slice_index, table_ptr, COLUMN: tl.constexpr, like_ptr, first_ptr, second_ptr, third_ptr):
    """A slice's tensor: one of the three, or where there is a table, that at the address in this column.

    Every tensor there begins at a multiple of 16 bytes; the launcher has looked. It is of the type of ``like_ptr``.
    """
    if table_ptr is None:
        tensor_ptr = pick(slice_index, first_ptr, second_ptr, third_ptr)
    else:
        tensor_ptr = tl.multiple_of(entry(slice_index, table_ptr, COLUMN).to(like_ptr.dtype), 16)
    return tensor_ptr


@triton.jit
def out_of(slice_index, table_ptr, out_0_ptr, out_1_ptr, out_2_ptr, samples, T, ALIGNED: tl.constexpr):
    """Where a slice's outputs [S, T, N] begin; where there is a table they lie one after another."""
    if table_ptr is None:
        out_ptr = pick(slice_index, out_0_ptr, out_1_ptr, out_2_ptr)
    else:
        start = entry(slice_index, table_ptr, AT_N_BEFORE) * samples * T
        if ALIGNED:
            start = tl.multiple_of(start, 16)
        out_ptr = out_0_ptr + start
    return out_ptr


@triton.jit
def width_of(slice_index, table_ptr, N_0, N_1, N_2, ALIGNED: tl.constexpr):
    """A slice's N."""
    if table_ptr is None:
        N = pick(slice_index, N_0, N_1, N_2)
    else:
        N = entry(slice_index, table_ptr, AT_N).to(tl.int32)
        if ALIGNED:
            N = tl.multiple_of(N, 16)
    return N


@triton.jit
def rank_of(slice_index, table_ptr, r_0, r_1, r_2, MULTIPLE: tl.constexpr):
    """A slice's r."""
    if table_ptr is None:
        r = pick(slice_index, r_0, r_1, r_2)
    else:
        r = entry(slice_index, table_ptr, AT_RANK).to(tl.int32)
    return tl.multiple_of(r, MULTIPLE)


@triton.jit
def ranks_before(slice_index, table_ptr, r_0, r_1, MULTIPLE: tl.constexpr):
    """Ranks of the slices before this one. int64."""
    if table_ptr is None:
        ranks = before(slice_index, r_0, r_1).to(tl.int64)
    else:
        ranks = entry(slice_index, table_ptr, AT_RANKS_BEFORE)
    return tl.multiple_of(ranks, MULTIPLE)


@triton.jit
def elements_before(slice_index, table_ptr, D, N_0, N_1, r_0, r_1):
    """Elements of the factors that a set has in the slices before this one. int64."""
    if table_ptr is None:
        elements = before(slice_index, r_0 * (D + N_0), r_1 * (D + N_1)).to(tl.int64)
    else:
        elements = entry(slice_index, table_ptr, AT_ELEMENTS_BEFORE)
    return elements


@triton.jit
def set_of(sample, index_ptr, samples_per_set):
    """Which factors serve a sample: what the index says, or each set as many consecutive samples. int64."""
    if index_ptr is None:
        set_index = (sample // samples_per_set).to(tl.int64)
    else:
        set_index = tl.load(index_ptr + sample).to(tl.int64)
    return set_index


@triton.jit
def scale_of(slice_index, sample, scale_ptr, stride_scale):
    """A sample's scale in a slice."""
    if scale_ptr is None:
        scale = 1.0
    else:
        scale = tl.load(scale_ptr + slice_index * stride_scale + sample)
    return scale


@triton.jit
def expansion(
    b_ptr,  # [N, r]
    cols,  # [BLOCK_N]
    ranks,  # [BLOCK_R]
    N,
    r,
):
    """bᵀ for these columns, 0 outside. Shape: [BLOCK_R, BLOCK_N]."""
    mask = (ranks < r)[:, None] & (cols < N)[None, :]
    return tl.load(b_ptr + cols[None, :].to(tl.int64) * r + ranks[:, None], mask=mask, other=0.0)
