"""The networks and checkpoints that a run writes into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hnkernels.checkpoint import CheckpointError
from hnkernels.checkpoint.optim import save_optimizer_state
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.persistence.description import Description
from hnkernels.training.persistence.run_folder import RunFolder
from hnkernels.training.persistence.run_state import RunState
from hnkernels.training.persistence.state import checkpoint_path, read_network, save_network, save_state


class RunFiles:
    """Writes what a run keeps. Of several processes one does; the others know what it writes.

    Args:
        folder: where.
        state: of the run, as it is at every call.
        record: what makes it the same run when it is resumed; see ``run_record``.
        description: of the run, for all files.
        writes: whether this process does.

    Attributes:
        finished: the files of the finished network.
    """

    def __init__(
        self, folder: RunFolder, state: RunState, record: Mapping[str, str], description: Description, writes: bool
    ):
        self._folder, self._state, self._record, self._description = folder, state, dict(record), description
        self._writes = writes
        self.finished = folder.files_for(state.net)

    def save_start(self) -> None:
        """Writes the network that the run begins with."""
        if self._writes:
            save_network(self._state.net, self._folder.start)

    def start(self) -> dict[str, Tensor] | None:
        """What the network began with; ``None`` where that is not known any more."""
        net = self._state.net
        if self._state.step == 0:
            return {key: value.cpu().clone() for key, value in net.state_dict().items()}
        try:
            return read_network(self._folder.start, net).state_dict()
        except (CheckpointError, ValueError):
            return None

    def save_checkpoint(self) -> Path:
        """Writes a checkpoint of the step that the run is at; returns its folder."""
        step, net = self._state.step, self._state.net
        if not self._writes:
            return checkpoint_path(self._folder.checkpoints, step)
        self._description.put_on(net, step)
        return save_state(self._folder.checkpoints, step, net, {**self._state.to_dict(), "run": self._record})

    def save_best(self) -> None:
        """Writes the network as it is, as the best one so far."""
        if self._writes:
            self._description.put_on(self._state.net, self._state.step)
            self._folder.path.mkdir(parents=True, exist_ok=True)  # whoever may have removed it
            save_network(self._state.net, self._folder.best_of(self._state.net))

    def save_finished(self) -> None:
        """Writes the finished network, and for A1111 the optimiser's state beside its file."""
        if not self._writes:
            return
        net, state = self._state.net, self._state
        self._description.put_on(net, state.step)
        with state.averaged():
            for file in self.finished:
                save_network(net, file)
        if isinstance(net, Hypernetwork) and state.average is None:  # which the state would not belong to
            save_optimizer_state(self.finished[-1], state.optimizer, net)
