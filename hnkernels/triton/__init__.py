"""The GPU backend: fused Triton kernels for hypernetwork MLPs inside the K and V projections, and low-rank weights.

From the device upwards:

- ``_compat``, ``activations``, ``dropout``, ``tiles``: device code that the kernels share.
- ``layer_forward``, ``rows``, ``project``, ``layer_backward``, ``norm_backward``, ``weight_gradient``,
  ``lowrank_slices``, ``lowrank_forward``, ``lowrank_backward``: the kernels.
- ``tiling``, ``autotune``: how they are cut up. ``launch``: where they are started and counted.
- ``launchers/``: a function on tensors for each of them.
- ``mlps``, ``mlps_backward``: which of these make up an MLP, in which order, and what is kept in between.
- ``ops``, ``functions``: as operators of PyTorch, and with gradients.
- ``derived``, ``composition``: what inference computes once.
- ``backend``, ``lowrank_backend``: what ``hnkernels.ops.hyper`` and ``hnkernels.ops.lowrank`` call, where ``support``
  finds that it can run.
"""
