"""A part of the matrix, small enough for the tests: every kernel on three targets, some on the others."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.compiled.cases import CASES, RANKS, SPLIT, calls, grouped_calls, lowrank_calls, one_launch_calls
from benchmarks.compiled.compilation import Configuration, distinct
from hnkernels.triton.target import TARGETS, forced_route
from hnkernels.triton.tiling import candidates, forced

EVERY_KERNEL = ("sm_80", "sm_90", "gfx942")
"""The targets that get every kernel."""

ELSEWHERE = ("mlp_layer_forward_kernel", "hidden_gradient_kernel", "weight_gradient_kernel", "lowrank_forward_kernel")
"""What the other targets get."""

_WIDTH, _TOKENS = 640, 4096
_NARROW, _MANY_TOKENS = 320, 16384
"""Where a weight gradient has several parts on every target that gets every kernel."""

_OPTIONAL = ("z_ptr", "dq_ptr", "vectors_ptr", "g_ptr", "u_ptr")


@forced_route("kernels")
def sample() -> list[Configuration]:
    """One form of every kernel per target, another one on each; every way to multiply. The dtypes alternate."""
    chosen = []
    for turn, (name, target) in enumerate(TARGETS.items()):
        dtype = (torch.float16, torch.bfloat16)[turn % 2]
        captured = [(c.name, call) for c in CASES for call in calls(c, _WIDTH, _TOKENS, dtype, target)]
        with forced(replace(candidates("forward", target)[0], splits=2)):
            captured += [(c.name, call) for c in SPLIT for call in calls(c, _WIDTH, _TOKENS, dtype, target)]
        captured += [(c.name, call) for c in CASES if c.norm for call in calls(c, _NARROW, _MANY_TOKENS, dtype, target)]
        captured += list(one_launch_calls(dtype, target))
        captured += [("grouped", call) for call in grouped_calls(_WIDTH, _TOKENS, dtype, target)]
        for rank in RANKS:
            captured += [(f"rank {rank}", call) for call in lowrank_calls(_WIDTH, _TOKENS, rank, dtype, target)]
        forms: dict[tuple, list[Configuration]] = {}
        for config in distinct(captured, target):
            if name in EVERY_KERNEL or config.name in ELSEWHERE:
                forms.setdefault(_way(config), []).append(config)
        chosen += [group[turn % len(group)] for group in forms.values()]
    return chosen


def _way(config: Configuration) -> tuple:
    """What makes a kernel another program, not only another epilogue."""
    types = dict(config.signature)
    present = tuple(types.get(name, "constexpr") != "constexpr" for name in _OPTIONAL)
    flags = tuple(config.constant(name) for name in ("TRANSPOSED", "SHARED", "BASE", "SPLIT"))
    return config.name, flags, present
