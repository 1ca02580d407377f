"""The kernels, each beside the function on tensors that launches it."""
