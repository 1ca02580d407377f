"""The kernels, each beside the function on tensors that launches it.

K's and V's tensors are parameters of their own, such as ``x_k_ptr`` and ``x_v_ptr``: Triton 3.2, which we support, does
not take a tuple of them as a kernel's argument.
"""
