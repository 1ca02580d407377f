"""What the Triton backend launches, computes, moves and keeps, counted on the meta device, for any target.

The launches are those of ``hnkernels.triton.launch``; what PyTorch does besides, outside the operators and inside
them, counts as in ``eager``. Allocations are seen inside the operators too: on the meta device their Python
implementation runs as on a GPU, without launching.
"""

from __future__ import annotations

from typing import Any

from torch._C import DispatchKey, DispatchKeySet

from hnkernels.accounting.eager import Counting
from hnkernels.triton import vendor
from hnkernels.triton.launch import recording


class CountingKernels(Counting):
    """``Counting`` that looks into the operators of hnkernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "hnkernels":
            return super().__torch_dispatch__(func, types, args, kwargs)
        with recording() as launches, self:  # PyTorch has switched this mode off while it handles an operation
            results = func.redispatch(DispatchKeySet(DispatchKey.Meta), *args, **(kwargs or {}))
        # What PyTorch computes inside of it this mode has seen for itself.
        self.launches += [launch for launch in launches if not launch.kernel.startswith(vendor.PREFIX)]
        return results
