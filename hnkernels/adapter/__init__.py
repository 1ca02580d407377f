"""Puts hypernetworks into existing models, and takes them out again.

One ``Host`` per model holds the adapters in their order and the attention ``Site``s; a ``Tap`` on the instance of each
``to_k`` and ``to_v`` hands their input to the site. Contexts that all cross-attention sites share are rewritten once.
Generated weights are a ``Change`` on the tap of their linear.
"""

from hnkernels.adapter.adapter import Adapter
from hnkernels.adapter.attaching import attach
from hnkernels.adapter.collection import Adapters, adapters
from hnkernels.adapter.sites import AdapterError
from hnkernels.adapter.strength import PerRow
from hnkernels.adapter.weight_adapter import WeightAdapter

__all__ = ["Adapter", "AdapterError", "Adapters", "PerRow", "WeightAdapter", "adapters", "attach"]
