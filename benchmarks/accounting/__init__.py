"""Accounting: what every way of computing K and V launches, computes, moves and keeps, exact on any machine.

``eager`` counts PyTorch's operations, ``ours`` the kernels' launches, ``inductor`` what ``torch.compile`` makes of the
reference, and ``bound`` says what none of them can go below. ``cases`` lists what is counted;
``python -m benchmarks.accounting`` counts it all.
"""

from hnkernels.accounting.eager import Account, Counting, saved_bytes

__all__ = ["Account", "Counting", "saved_bytes"]
