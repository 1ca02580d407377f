"""Whether gradients reach the networks from blocks that are computed once more in a backward pass.

PyTorch's own checkpointing hands gradients to everything that took part. The autograd function that the original
repositories have for it knows the inputs and the block's own parameters, and lets all other gradients fall.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from hnkernels.adapter.layers import AdapterError

_LOST = (
    "no gradient has reached the hypernetwork: the model computes its blocks once more in the backward pass with an "
    "autograd function of its own, which gives gradients to its own parameters only; switch that checkpointing off in "
    "the model (in the original repositories checkpoint=False of every transformer block), or use "
    "torch.utils.checkpoint instead"
)


class Arrivals:
    """One per model. A copy or a pickle expects nothing."""

    def __init__(self) -> None:
        self._task = -1

    def expect(self, parameters: Iterable[nn.Parameter]) -> None:
        """Has the backward pass that is under way raise at its end if it has given none of these a gradient.

        Raises:
            AdapterError: from ``backward()``.
        """
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        self._task = task
        arrived: list[nn.Parameter] = []
        hooks = [p.register_post_accumulate_grad_hook(arrived.append) for p in parameters if p.requires_grad]

        def check() -> None:
            for hook in hooks:
                hook.remove()
            if hooks and not arrived:
                raise AdapterError(_LOST)

        torch.autograd.Variable._execution_engine.queue_callback(check)

    def __reduce__(self):
        return Arrivals, ()
