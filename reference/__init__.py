"""The ground truth: Stable Diffusion hypernetworks in plain PyTorch, written for reading.

Nothing here is fast and nothing here imports ``hnkernels``. Every function works in any floating dtype; tests run
it in float64 and hold the library to it. Used one call per attention layer it is also the eager baseline of the
benchmarks, because that is the way the web UIs run a hypernetwork.
"""

from reference.attention import attention, project_kv
from reference.lowrank import by_einsum, by_loop, by_token, lowrank_linear
from reference.mlp import MLP, chain

__all__ = ["MLP", "attention", "by_einsum", "by_loop", "by_token", "chain", "lowrank_linear", "project_kv"]
