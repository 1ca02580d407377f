"""The work of all attention layers of a model in which a network acts, a row per shape: counted and modelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hnkernels.accounting.comparison import Comparison, compare
from hnkernels.accounting.eager import Account
from hnkernels.accounting.layers import LayerShape
from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.ops.explanation import Explanation


@dataclass(frozen=True)
class LayerWork:
    """What the layers of one shape take, the keys and values of all of them together.

    Attributes:
        shape: of the layers.
        rows: of the context of one layer: pictures times tokens.
        one: of one layer.
    """

    shape: LayerShape
    rows: int
    one: Comparison

    def to_json(self) -> dict[str, Any]:
        """Counts of both sides over all layers of the shape; seconds are modelled, ``None`` for fp32."""
        count = self.shape.count
        sides: dict[str, Any] = {}
        both: tuple[tuple[str, Explanation | Account], ...] = (("hnkernels", self.one.ours), ("eager", self.one.eager))
        for place, (name, side) in enumerate(both):
            sides[name] = {
                "launches": count * len(side.launches),
                "bytes_moved": count * side.bytes_moved,
                "flops": count * side.flops,
                "saved_bytes": count * self.one.saved[place],
                "modelled_seconds": None if self.one.seconds is None else count * self.one.seconds[place],
            }
        return {**asdict(self.shape), "rows": self.rows, **sides}


def work_of(
    net: Hypernetwork,
    shapes: Sequence[LayerShape],
    pictures: int = 2,
    *,
    train: bool = False,
    dtype: torch.dtype = torch.float16,
    target: str = "sm_80",
) -> list[LayerWork]:
    """The work of each shape of layers that the network has MLPs for.

    Every layer is counted by itself. ``attach`` does less: the layers that see the same text share its MLPs, and while
    sampling their results are kept from step to step.

    Args:
        net: on any device; its values do not matter.
        shapes: of a model; see ``layers.layers_of`` and ``layers.KNOWN``.
        pictures: rows of the model's batch: twice the pictures with classifier-free guidance.
        train: a forward and a backward pass; else inference.
        dtype, target: as ``explain`` takes them.

    Raises:
        InputError: the network acts in none of them; or as ``explain``.
    """
    if isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 1:
        raise InputError(f"pictures must be an integer >= 1, not {pictures!r}")
    acts = [shape for shape in shapes if shape.width in net]
    if not acts:
        widths = sorted({shape.width for shape in shapes})
        raise InputError(f"the network is for widths {list(net.sizes)}, and the model has {widths}; give another")
    return [
        LayerWork(
            shape,
            rows := pictures * shape.tokens,
            compare(net[shape.width], rows, shape.out_features, train=train, dtype=dtype, target=target),
        )
        for shape in acts
    ]
