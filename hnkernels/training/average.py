"""An exponential moving average of a network in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Average:
    """The average of a network's parameters over the steps, by diffusers' ``EMAModel``.

    Args:
        net: the network at its start.
        decay: how much of the average each step leaves; less in the first steps.
    """

    def __init__(self, net: nn.Module, decay: float):
        from diffusers.training_utils import EMAModel

        self._model = EMAModel(net.parameters(), decay=decay)

    def update(self, net: nn.Module) -> None:
        """Takes a step into account."""
        self._model.step(net.parameters())

    @contextmanager
    def in_place_of(self, net: nn.Module) -> Iterator[None]:
        """The network holds the average inside, and its own parameters afterwards."""
        own = [p.detach().clone() for p in net.parameters()]
        self._write(net, self._model.shadow_params)
        try:
            yield
        finally:
            self._write(net, own)

    @staticmethod
    @torch.no_grad()
    def _write(net: nn.Module, values: list[torch.Tensor]) -> None:
        # Not EMAModel's copy_to: it writes through .data, which whoever keeps something of the weights cannot see.
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        state: dict[str, Any] = self._model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from there."""
        device = self._model.shadow_params[0].device
        self._model.load_state_dict(state)
        self._model.to(device)
