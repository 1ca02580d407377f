"""What every attached network has in common: a name, a strength, a way off."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hnkernels.adapter.contexts import CacheStats
from hnkernels.adapter.host import Host
from hnkernels.adapter.layer import TappedLayer
from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.pipelines import Groups, calling_groups, in_groups
from hnkernels.adapter.proof import Watch
from hnkernels.adapter.strength import STREAMS, Level, Place, Strength, resolve
from hnkernels.errors import InputError
from hnkernels.ops import derived, onednn

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


@dataclass
class _Rewind:
    """The strength with which a schedule's next run begins, and the scheduler's steps in this one."""

    scheduler: Any
    timesteps: Any
    strength: Strength

    def due(self) -> bool:
        """Whether the scheduler has begun another run: each has a new tensor of timesteps."""
        return self.scheduler.timesteps is not self.timesteps


class Handle(ABC):
    """One network on one model.

    Args:
        name: by which ``hnkernels.adapters`` finds it.
        strength: see ``Adapter``.
        places: where it may act.
        streams: on what there.
    """

    fused = False  # whether it may live in the model's weights

    def __init__(self, name: str, strength: Strength, places: Sequence[Place], streams: Sequence[str] = STREAMS):
        self._host: Host | None = None
        self._name = name
        self._enabled = True
        self._places, self._streams = list(places), streams
        self._levels: dict[tuple, Level] = {}
        self._level_of: dict[int, Level] = {}  # by the number of the place, where it acts
        self._strength: Strength = strength
        self._by_row = False
        self._groups: Groups | None = None  # of the batches that come in, as the calling pipeline says
        self._rewind: _Rewind | None = None
        self._resolve(strength)

    @property
    def name(self) -> str:
        return self._name

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._here()
        self._enabled = value
        self._tell()

    def _tell(self) -> None:
        if self._host is not None:
            self._host.changed()

    @property
    def strength(self) -> Strength:
        return copy.deepcopy(self._strength)

    @strength.setter
    def strength(self, value: Strength) -> None:
        self._here()
        self._resolve(value)
        self._rewind = None

    def _resolve(self, strength: Strength) -> None:
        """Finds out how strong it is at every place, and tells the host."""
        everywhere = resolve(strength, self._places, self._streams)  # raises before anything has changed
        self._strength = copy.deepcopy(strength)
        self._by_row = any(isinstance(value, tuple) for place in everywhere for value in place.values.values())
        levels: dict[tuple, Level] = {}
        for resolved in everywhere:
            # Layers that the same entries speak of keep one level, whose tensors a compiled model holds on to.
            level = levels[resolved.origin] = self._levels.get(resolved.origin) or Level()
            values = {stream: in_groups(value, self._groups) for stream, value in resolved.values.items()}
            level.set(values, self._device())
        self._levels = levels
        self._level_of = {i: levels[everywhere[i].origin] for i in self._reached()}
        if self._host is not None:
            self._host.arrange()

    @abstractmethod
    def _reached(self) -> Iterable[int]:
        """The numbers of the places where it acts while it is enabled."""

    @abstractmethod
    def _device(self) -> torch.device:
        """Where its tensors are."""

    @abstractmethod
    def _move(self, device: torch.device) -> None:
        """Brings its tensors to a device."""

    @abstractmethod
    def arrange(self, layers: Sequence[TappedLayer]) -> None:
        """Tells the layers what it does there."""

    def watch(self, watch: Watch) -> None:  # noqa: B027 (what is generated is watched where it acts)
        """Says what it depends on."""

    def situation(self) -> object:
        """Follows the pipeline that is calling, before a call. Returns what else its effect depends on."""
        if self._rewind is not None and self._rewind.due():
            self.strength = self._rewind.strength
        if self._by_row:
            groups = None if torch.is_grad_enabled() else calling_groups()
            if groups != self._groups:
                self._groups = groups
                self._resolve(self._strength)
        return None

    def renew(self) -> None:  # noqa: B027 (most have nothing to do)
        """After the model's own weights have changed, their dtype maybe as well."""

    @abstractmethod
    def parameters(self) -> Iterable[nn.Parameter]:
        """What it has to train."""

    def follow(self, device: torch.device) -> None:
        """Brings the network to a device."""
        here = self._device()
        if here.type == "meta":
            return
        if here != device:
            # Parameters that inference mode has touched could not be trained any more.
            with torch.inference_mode(False), torch.no_grad():
                self._move(device)
        for level in self._levels.values():
            if any(t.device != device for t in level.tensors.values()):
                level.to(device)

    @property
    def attached(self) -> bool:
        """Whether the network is still on the model."""
        return self._host is not None

    def sites(self) -> list[str]:
        """Names of the attention layers that it reaches while it is enabled."""
        self._here()
        return [self._places[i].name for i in self._reached()]

    def schedule(self, strengths: Sequence[Strength] | Callable[[float], Strength]) -> Callable[..., dict]:
        """Lets the strength follow the denoising steps: give the result to a pipeline as ``callback_on_step_end``.

        The first step's strength is set at once, again after the last step, and when the scheduler's next run begins,
        should one end before its last step. A network that is detached during a run is left alone from then on.

        Args:
            strengths: one per step, of which the last also serves all later steps; or a function of the progress, from
                0.0 at the first step to 1.0 at the last.
        """
        if not callable(strengths):
            if not isinstance(strengths, Sequence):
                raise InputError(f"strengths must be a list or a function of the progress, not {strengths!r}")
            strengths = list(strengths)
            if not strengths:
                raise InputError("strengths must have at least one entry")
            for strength in strengths:
                resolve(strength, self._places, self._streams)

        def at(step: int, steps: int) -> Strength:
            if callable(strengths):
                return strengths(step / max(steps - 1, 1))
            return strengths[min(step, len(strengths) - 1)]

        def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
            if not self.attached:
                return tensors
            steps = pipeline.num_timesteps
            self.strength = at(step + 1 if step + 1 < steps else 0, steps)
            scheduler: Any = getattr(pipeline, "scheduler", None)
            if hasattr(scheduler, "timesteps") and step + 1 < steps:
                self._rewind = _Rewind(scheduler, scheduler.timesteps, at(0, steps))
            return tensors

        self.strength = at(0, 1)
        return on_step_end

    def stats(self) -> CacheStats:
        """What the cache of this model's prompts holds, and how often it has served; all its adapters share it."""
        return self._here().contexts.stats()

    def clear_cache(self) -> None:
        """Forgets everything computed for this model's prompts, and all fused, prepacked and composed weights."""
        self._here().clear()
        onednn.forget()
        derived.forget()

    def detach(self) -> None:
        """Takes the network off the model. Without further adapters the model is as it was before, bit for bit.

        Raises:
            AdapterError: it is off already.
        """
        host = self._here()
        self._host = None
        host.discard(self)
        onednn.forget()  # what was made of the model's own weights, which nobody watches from now on
        derived.forget()

    def _here(self) -> Host:
        if self._host is None:
            raise AdapterError("this hypernetwork is detached already; attach it again with hnkernels.attach")
        return self._host

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.attached:
            self.detach()

    def __repr__(self) -> str:
        where = f"on {len(self.sites())} attention layers" if self.attached else "detached"
        strength = f"{self._strength:g}" if isinstance(self._strength, (int, float)) else self._strength
        return f"<{type(self).__name__} {self.name!r} at strength {strength}, {where}>"
