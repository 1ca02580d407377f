"""Puts hypernetworks into existing models, and takes them out again.

``attach`` finds the attention layers (``layers``) and gives the model a ``Host``, which holds the adapters in order.
A ``Tap`` on the instance of each ``to_k`` and ``to_v`` that an adapter reaches takes over its ``forward``. Then:

- plan: per layer, what acts, what is folded into the projection and what is computed; kept until something changes.
- call: per call of the model and thread. A forward pre-hook proves in one pass (``proof``) that plans and kept values
  still hold, and opens the context that cross-attention layers share (``contexts``); a forward hook closes the call.
- run: what a tap returns, given both. What is ready, the tap hands out before it asks anything else.

Generated weights are a ``WeightDelta`` on the tap of their linear (``deltas``). Under PyTorch's compiler there are
neither plans nor calls (``trace``). Imports go one way: attaching, handles, host, layer, run, plan and call, taps.
"""

from hnkernels.adapter.adapter import Adapter
from hnkernels.adapter.attaching import attach
from hnkernels.adapter.collection import Adapters, adapters
from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.strength import PerRow
from hnkernels.adapter.weight_adapter import WeightAdapter

__all__ = ["Adapter", "AdapterError", "Adapters", "PerRow", "WeightAdapter", "adapters", "attach"]
