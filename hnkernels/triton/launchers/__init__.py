"""One function per kernel: tensors in, tensors out; it allocates, chooses the tiles and launches.

Tensors are 2-D [M, width] with contiguous rows, one per stream, or stacked [streams, M, width] with K first. There are
two streams, or one.
"""

from hnkernels.triton.launchers.arguments import Dropout, Streams, acc_dtype, row_programs
from hnkernels.triton.launchers.backward import hidden_gradient, input_gradient, layer_output_backward, normed_gradient
from hnkernels.triton.launchers.forward import LayerOutput, NormIn, layer_forward, linear, norm_forward, norm_vectors
from hnkernels.triton.launchers.grouped import Groups, grouped_input_gradient, grouped_linear, groups
from hnkernels.triton.launchers.weights import WeightGradients, sum_rows

__all__ = [
    "Dropout",
    "Groups",
    "LayerOutput",
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
    "norm_forward",
    "norm_vectors",
    "normed_gradient",
    "row_programs",
    "sum_rows",
]
