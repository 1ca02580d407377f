"""The networks of a picture, read from their files, and whether they fit its model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from hnkernels.adapter import attach
from hnkernels.checkpoint.errors import naming
from hnkernels.drawing.request import NetworkUse, SettingError
from hnkernels.files import load_hypernetwork
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.checks import check_conditions
from hnkernels.training.families import family_of

Net = Hypernetwork | WeightHypernetwork

_KEPT = 8


class Networks:
    """Networks by file; the last ones stay in memory, until their files change."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, int], Net] = OrderedDict()

    def of(self, uses: Sequence[NetworkUse]) -> list[Net]:
        """The networks, in their order.

        Raises:
            CheckpointError: a file is gone, or cannot be read.
            SettingError: styles are asked of a network that has none.
        """
        nets = [self._read(use.file) for use in uses]
        for use, net in zip(uses, nets, strict=True):
            if use.styles and not isinstance(net, WeightHypernetwork):
                raise SettingError(
                    "style", f"is for weight hypernetworks, and {use.name} is not one; leave its styles out"
                )
        return nets

    def _read(self, file: Path) -> Net:
        with naming(file):
            stat = file.stat()
        key = (file, stat.st_mtime_ns, stat.st_size)
        if key not in self._kept:
            self._kept[key] = load_hypernetwork(file).eval()
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def check_fit(uses: Sequence[NetworkUse], nets: Sequence[Net], model: torch.nn.Module) -> None:
    """Refuses networks that are not for a model, before its weights are loaded.

    Args:
        uses, nets: as they will act.
        model: its UNet or transformer, without data.

    Raises:
        AdapterError: a network is for another model.
        ValueError: its strength has a key that fits no layer, or its styles are none that it knows.
    """
    for use, net in zip(uses, nets, strict=True):
        attach(model, net, use.acting).detach()
        if isinstance(net, WeightHypernetwork):
            styles = [dict(use.styles)] if use.styles else []
            try:
                check_conditions(net, styles, family_of(model).text_width, "style")
            except ValueError as error:
                raise SettingError("style", str(error).removeprefix("style ")) from None
