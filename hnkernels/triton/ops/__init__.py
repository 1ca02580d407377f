"""The operators, each beside its gradients; importing this registers them with PyTorch."""

from hnkernels.triton.ops import grouped, linear, lowrank, mlp  # noqa: F401
