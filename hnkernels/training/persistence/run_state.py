"""What a run goes on from: everything that a step changes."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.average import Average
from hnkernels.training.persistence.state import Checkpoint


class RunState:
    """The network and all that a checkpoint has to hold beside it.

    Args:
        net: the network.
        optimizer: of its parameters.
        scaler: of the loss, in half precision.
        average: of the network, if one is kept.

    Attributes:
        step: steps done.
        recent_losses: of the last steps.
        best: the lowest held-out loss so far.
    """

    def __init__(
        self,
        net: Hypernetwork | WeightHypernetwork,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        average: Average | None,
    ):
        self.net, self.optimizer, self.scaler, self.average = net, optimizer, scaler, average
        self.step = 0
        self.recent_losses: list[float] = []
        self.best = math.inf

    @property
    def mean_loss(self) -> float:
        """Of the last steps; NaN before the first one."""
        return sum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else math.nan

    def averaged(self) -> AbstractContextManager[None]:
        """The network's average, if one is kept, in its place inside."""
        return nullcontext() if self.average is None else self.average.in_place_of(self.net)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it beside the network."""
        return {
            "step": self.step,
            "recent_losses": self.recent_losses,
            "optimizer": self.optimizer.state_dict(),
            "parameters": self._names(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "best": self.best,
        }

    def restore(self, checkpoint: Checkpoint, same_optimizer: bool) -> None:
        """Goes on from a checkpoint of the same network.

        Args:
            checkpoint: which has been checked.
            same_optimizer: whether its run had this optimiser; otherwise the new one is fresh, under a warning.
        """
        state = checkpoint.state
        self.step, self.recent_losses, self.best = state["step"], state["recent_losses"], state.get("best", math.inf)
        self.net.load_state_dict(checkpoint.net.state_dict())
        groups, own = (
            [len(group["params"]) for group in one["param_groups"]]
            for one in (state["optimizer"], self.optimizer.state_dict())
        )
        if same_optimizer and groups == own and state["parameters"] == self._names():
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            warnings.warn(f"{checkpoint.path} has another optimiser; this run begins with a fresh one", stacklevel=4)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state.get("average"):
            self.average.load_state_dict(state["average"])

    def _names(self) -> list[str]:
        """The names of the parameters as the optimiser numbers them."""
        names = {p: name for name, p in self.net.named_parameters()}
        return [names[p] for group in self.optimizer.param_groups for p in group["params"]]
