"""The GPU backend: fused Triton kernels for hypernetwork MLPs inside the K and V projections, and low-rank weights.

From the device upwards; each line imports only from those before it:

- ``target``: what the kernels run on. ``support``: whether they can. ``_compat``: what Triton's interpreter needs.
- ``cards``, ``cost``: the cards, and a model of what a product costs there. ``tiling``: the table of tiles.
- ``launch``: where a launch is said, and counted. ``vendor``: products of the vendor's library, counted alike.
- ``autotune``: tiles by measurement. ``route``: who computes a product. ``compiling``: what kernels are compiled for.
- ``kernels/``: device code, and every kernel beside the function on tensors that launches it.
- ``mlps``, ``mlps_backward``: which kernels make up an MLP, in which order, and what is kept in between.
- ``trace``, ``program``, ``bound``, ``direct``: what an operator launches, decided once, and then only run.
- ``ops/``: the operators of PyTorch, each beside its gradients.
- ``testing``: a device that is not there.

What calls this is ``hnkernels.ops``: ``fused`` for MLPs, ``lowrank`` for low-rank weights.
"""
