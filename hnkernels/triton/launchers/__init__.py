"""One function per kernel: tensors in, tensors out; it allocates, chooses the tiles and launches.

Tensors are 2-D [M, width] with contiguous rows, one per stream, or stacked [streams, M, width] with K first. There are
two streams, or one. Low-rank weights have samples: theirs are 3-D, and there are as many slices as one likes.
"""

from hnkernels.triton.launchers.arguments import Dropout, Streams, acc_dtype, row_programs
from hnkernels.triton.launchers.backward import hidden_gradient, input_gradient, layer_output_backward, normed_gradient
from hnkernels.triton.launchers.forward import LayerOutput, NormIn, layer_forward, linear, norm_forward, norm_vectors
from hnkernels.triton.launchers.grouped import Groups, grouped_input_gradient, grouped_linear, groups
from hnkernels.triton.launchers.lowrank import (
    POINTERS,
    LowRank,
    lowrank_add,
    lowrank_factor_gradients,
    lowrank_input_gradient,
    lowrank_linear,
    lowrank_shrink,
    lowrank_sums,
)
from hnkernels.triton.launchers.weights import WeightGradients, sum_rows

__all__ = [
    "POINTERS",
    "Dropout",
    "Groups",
    "LayerOutput",
    "LowRank",
    "NormIn",
    "Streams",
    "WeightGradients",
    "acc_dtype",
    "grouped_input_gradient",
    "grouped_linear",
    "groups",
    "hidden_gradient",
    "input_gradient",
    "layer_forward",
    "layer_output_backward",
    "linear",
    "lowrank_add",
    "lowrank_factor_gradients",
    "lowrank_input_gradient",
    "lowrank_linear",
    "lowrank_shrink",
    "lowrank_sums",
    "norm_forward",
    "norm_vectors",
    "normed_gradient",
    "row_programs",
    "sum_rows",
]
