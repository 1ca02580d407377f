"""What ``torch.compile`` makes of the reference: kernels, FLOPs, bytes and what is kept, from Inductor's own schedule.

A launch is a node of the schedule after fusion: a generated kernel, or a call of a library's product. Its bytes are
those that Inductor counts for it (what ``torch._inductor.metrics.num_bytes_accessed`` adds up), the FLOPs PyTorch's
count of the products. Inductor compiles for no GPU that is absent, so this is its schedule for the CPU. It writes what
``exp`` and ``sigmoid`` give to memory before it is used twice, which it would not do on a GPU; so silu is left out.
How much memory is in use at once is not part of the schedule, and left out too.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

import reference
from benchmarks.accounting.cases import Accounts, Case, Projections
from hnkernels.accounting.eager import Account, saved_bytes
from hnkernels.triton.launch import Launch

SHAPES = ("320 x 4096", "640 x 1024", "768 x 77")
"""The others would tell nothing new, and every one takes seconds to compile."""


def countable(case: Case) -> TypeGuard[Projections]:
    """Whether the case is one of those that are compiled."""
    if not isinstance(case, Projections):
        return False
    return case.network.activation == "relu" and len(case.outs) == 1 and case.shape in SHAPES


def accounts(case: Projections) -> Accounts:
    """The reference, compiled for inference and for training; nothing, and a warning, without a C++ compiler."""
    if shutil.which("g++") is None:
        warnings.warn("g++ is not installed, without which torch.compile cannot be counted", stacklevel=2)
        return {}
    x = torch.zeros(case.tokens, case.width, dtype=torch.float16, requires_grad=case.input_gradient)
    mlps = case.network.references(case.width, "cpu")
    w = [torch.zeros(n, case.width, dtype=torch.float16) for n in case.outs for _ in "kv"]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return reference.project_kv(x, mlps[:1], mlps[1:], *w)

    for mlp in mlps:
        mlp.eval()
    with torch.no_grad():
        ((inference,), _) = _compiled(run, x, [])
    for mlp in mlps:
        mlp.train()
    parameters = [p for mlp in mlps for p in mlp.parameters()] + w
    (forward, backward), saved = _compiled(run, x, parameters)
    return {
        "inference": Account(inference),
        "forward": Account(forward, saved=saved),
        "backward": Account(backward),
        "forward + backward": Account(forward + backward, saved=saved),
    }


def _compiled(
    run: Callable[..., Sequence[Tensor]], x: Tensor, parameters: Sequence[Tensor]
) -> tuple[list[tuple[Launch, ...]], int]:
    """The launches of every graph that is compiled for a call, and the bytes that the call keeps for backward."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    graphs: list[tuple[Launch, ...]] = []

    def note(nodes: list[Any]) -> list[Any]:
        launches = [_launch(node) for node in nodes]
        graphs.append(tuple(launch for launch in launches if launch.bytes_written))
        return nodes

    torch._dynamo.reset()
    with (
        inductor.patch(_post_fusion_custom_pass=note, fx_graph_cache=False, compile_threads=1),
        functorch.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ):
        compiled = torch.compile(run, fullgraph=True, dynamic=False)
        saved = saved_bytes(lambda: compiled(x), parameters)
    torch._dynamo.reset()
    return graphs, saved


def _launch(node: Any) -> Launch:
    """Of a node of the schedule; without bytes if it computes nothing."""
    name = getattr(node.node, "python_kernel_name", None) or "generated"
    read, written = node.get_read_buffer_sizes(), node.get_write_buffer_sizes()
    return Launch(name, 1, None, node.estimate_flops() or 0, read, written)
