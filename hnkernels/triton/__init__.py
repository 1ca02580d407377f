"""The GPU backend: fused Triton kernels for hypernetwork MLPs inside the K and V projections.

From the device upwards: ``_compat``, ``activations``, ``dropout`` and ``tiles`` are device code that the kernels share;
``layer_forward``, ``rows``, ``project``, ``layer_backward`` and ``weight_gradient`` are the kernels; ``tiling`` and
``autotune`` cut them up; ``launch`` starts and counts them; ``launchers`` gives each of them a function on tensors;
``mlps`` puts these in order; ``ops`` and ``functions`` make them PyTorch operators with gradients; ``backend`` is what
``hnkernels.functional`` calls where ``support`` finds that it can run.
"""
