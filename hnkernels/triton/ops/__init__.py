"""The operators, each beside its gradients; importing this registers them with PyTorch."""

from hnkernels.triton.ops import grouped, kv, linear, lowrank, mlp  # noqa: F401
