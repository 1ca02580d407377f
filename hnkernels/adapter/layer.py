"""One attention layer under hypernetworks: its taps, what acts on it, and whether its attention reaches the taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from hnkernels.adapter.call import Call
from hnkernels.adapter.deltas import WeightDelta
from hnkernels.adapter.layers import AdapterError, AttentionSpec
from hnkernels.adapter.links import Action, Chain, Links
from hnkernels.adapter.plan import acting_deltas
from hnkernels.adapter.projecting import Projection, RunLayer
from hnkernels.adapter.proof import Watch
from hnkernels.adapter.run import tapped
from hnkernels.adapter.shared import Shared
from hnkernels.adapter.strength import STREAMS
from hnkernels.adapter.taps import TAPPED, Tap
from hnkernels.adapter.trace import TracedContext, traced

_SIGNATURE = ("forward", "processor", "fused_projections")
"""What of an attention module says whether it calls its projections: its class, and these attributes."""


class TappedLayer:
    """One attention layer with its taps: on the linears of K and V, and where it sees the same tensor of Q too.

    Generated weights have it tap the linears that they change as well. A layer that no adapter reaches has no taps.

    Some attention processors compute K and V without ``to_k`` and ``to_v``. Hooks on the module see that. They are
    there until a call has reached the taps, and again after one that has not. A layer whose taps a call does not reach
    must have the class, forward and processor that it had when one did.
    """

    def __init__(self, spec: AttentionSpec, number: int, shared: Shared, model: nn.Module):
        self.spec = spec
        self.model = model
        self.number = number
        self.name, self.width, self.shared_context = spec.name, spec.width, spec.shared
        self.attention, self.projections = spec.module, spec.projections
        self.shared = shared
        self.peers: Sequence[RunLayer] = ()
        self.chain = Chain(spec.width, ())
        self.deltas: dict[str, list[WeightDelta]] = {}  # by stream
        self.taps: dict[str, Tap] = {}
        self.watched: dict[str, Tensor] = {}
        self.folds: dict[tuple[str, Links], Projection] = {}
        self.fits: tuple[object, bool] = (None, False)
        self.prepared: tuple[Tensor, Tensor, Tensor] | None = None
        self.waiting: tuple[Tensor, dict[str, Tensor]] | None = None
        self.together = True
        self.unrecorded = False
        self._actions: list[Action] = []  # of the chain
        self._paths: dict[str, str] = {}  # of what is tapped
        self._hooks: list[Any] = []
        self._hooked = False
        self._reached: set[str] = set()  # in traced code
        self._verified: object = None

    def run(self, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """What a tapped linear returns."""
        return tapped(self, tap, x, args, kwargs)

    def trace(self, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The same while PyTorch's compiler is watching."""
        if self._hooked:
            self._reached.add(tap.stream)
        return traced(self, tap, x, args, kwargs)

    @property
    def traced(self) -> TracedContext | None:
        """The model's context, while that is traced."""
        return self.shared.traced

    @property
    def plain(self) -> bool:
        """Whether no other tool has a hand in K and V."""
        return all(self.taps[stream].plain for stream in STREAMS if stream in self.taps)

    @property
    def reached(self) -> bool:
        """Whether an adapter acts on it while that is enabled."""
        return bool(self._paths)

    def begin_arranging(self) -> None:
        """The adapters say once more what they do here."""
        self._actions, self.deltas, self._paths = [], {}, {}

    def add_action(self, action: Action) -> None:
        """An adapter that rewrites the layer's context."""
        self._actions.append(action)
        if action.level is not None:
            streams = STREAMS if action.adapter.fused else self.projections  # Q gains nothing from folded weights
            self._paths.update({stream: self.projections[stream] for stream in streams})

    def add_delta(self, stream: str, path: str, delta: WeightDelta) -> None:
        """A change of the linear at this path below the layer."""
        self.deltas.setdefault(stream, []).append(delta)
        self._paths.update({**self.projections, stream: path})

    def end_arranging(self, chains: dict[tuple, Chain]) -> None:
        """Taps what is changed now, and nothing else. ``chains`` has those of the layers before, for it to share."""
        key = (self.width, *((id(action.adapter), id(action.level)) for action in self._actions))
        self.chain = chains.setdefault(key, Chain(self.width, self._actions))
        for stream in [stream for stream in self.taps if stream not in self._paths]:
            self.taps.pop(stream).remove()
        for stream, path in self._paths.items():
            if stream not in self.taps:
                self._tap(stream, self.attention.get_submodule(path))
        if not self._paths:
            self._remove_hooks()
            self._verified = None
        elif self._verified is None:
            self._put_hooks()

    def remove(self) -> None:
        """Gives the layer back as it was."""
        for tap in self.taps.values():
            tap.remove()
        self.taps = {}
        self._remove_hooks()

    def refresh(self) -> None:
        """Taps the modules that are there now, and outside of what another tool has put around the taps.

        LoRA and quantisation put other modules in their place, wrap the forward of those that are there, or put back
        the forward that they found before the taps.
        """
        for stream, tap in list(self.taps.items()):
            module = self.attention.get_submodule(self._paths[stream])
            if module is not tap.module:
                tap.remove()
                self._tap(stream, module)
            elif not tap.in_place or tap.runs is None:
                tap.remove()  # where another tool holds on to it, it passes everything through
                self._tap(stream, module)
        if self._paths and self._signature() != self._verified:
            self._put_hooks()

    def watch(self, watch: Watch) -> None:
        """Says what it depends on."""
        self.watched = {}
        for stream, tap in self.taps.items():
            watch.path(self.attention, self._paths[stream])
            watch.module(tap.module)
            if tap.plain:
                watch.parameters(tap.module)
                weight = tap.module._parameters["weight"]
                if weight is not None and not weight.is_inference():
                    self.watched[stream] = weight
        for deltas in self.deltas.values():
            for delta in deltas:
                if delta.state is not None:
                    watch.factors(delta.state)

    def forget_all(self) -> None:
        """Forgets what was kept of all layers of the model."""
        self.shared.contexts.clear()
        for layer in self.peers:
            layer.folds = {}
        self.shared.replan()

    def forget(self) -> None:
        """Forgets the weights that networks are folded into."""
        self.folds = {}

    def prepare(self, x: Tensor | None) -> None:
        """Computes K and V of this context before the layer runs; ``None`` forgets them.

        For layers inside a part of the model that is compiled by itself: what is shared and kept lies outside of it.
        """
        self.prepared = None
        if x is not None and self.taps and self.plain:  # also at strength 0, where compiled code still asks for it
            k, v = (self.run(self.taps[stream], x, (), {}) for stream in STREAMS)
            # Whether a tensor is a view, and of what, would be one more thing that compiled code depends on.
            k, v = (t.clone() if t._is_view() else t for t in (k, v))
            self.prepared = x, k, v

    def settle(self) -> None:
        """Takes the hooks off: the attention has reached its taps, and will while it is what it is."""
        self._verified = self._signature()
        self._remove_hooks()

    def missed(self, call: Call) -> None:
        """After a call that has not reached every tap: raises if the attention is not the one that was verified.

        If it is, it was skipped, as caching tools do at some steps, or goes past its taps though it looks as it did.
        The next call will tell.
        """
        reached = self._reached_in(call)
        if len(reached) == len(self.taps):
            return
        if self._replaced():
            raise AdapterError(
                f"{self.name} is another module than when the hypernetwork was attached; detach it and attach it again"
            )
        if self._verified is not None and self._signature() != self._verified:
            self._check(reached)
        self.doubt()

    def _replaced(self) -> bool:
        """Whether another attention of its class is in its place, and it is nowhere else in the model."""
        try:
            there = self.model.get_submodule(self.spec.path)
        except AttributeError:
            return False
        if there is self.attention or type(there) is not type(self.attention):
            return False
        return all(module is not self.attention for module in self.model.modules())

    def doubt(self) -> None:
        """Has the next call verify the attention once more."""
        if self._paths:
            self._put_hooks()

    def _tap(self, stream: str, module: Any) -> None:
        number = len(TAPPED) * self.number + TAPPED.index(stream)
        self.taps[stream] = Tap(self, self.shared.calls, stream, number, module)

    def _signature(self) -> object:
        module = self.attention
        in_place = [self.taps[stream].in_place for stream in STREAMS if stream in self.taps]
        attributes = [module.__dict__.get(name, module._modules.get(name)) for name in _SIGNATURE]
        return type(module), attributes, in_place

    def _put_hooks(self) -> None:
        if not self._hooks:
            self._hooks = [
                self.attention.register_forward_pre_hook(self._before),
                self.attention.register_forward_hook(self._after),
            ]
            self._hooked = True

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._hooked = [], False

    def _before(self, *_: object) -> None:
        if is_compiling():
            self._reached.clear()
            self.waiting = None
            return
        call = self.shared.calls.current
        if call is None:
            self.refresh()
            call = self.shared.calls.loose
        if call is not None:
            for tap in self.taps.values():
                call.reached[tap.number] = False
            call.forget_waiting([tap.number for tap in self.taps.values()])

    def _after(self, *_: object) -> None:
        if is_compiling():
            reached = {stream for stream in self.taps if stream in self._reached}
            self._reached.clear()
            self.waiting = None
            call = None
        else:
            call = self.shared.calls.current or self.shared.calls.loose
            reached = set() if call is None else self._reached_in(call)
            if call is not None:
                call.forget_waiting([tap.number for tap in self.taps.values()])
        self._check(reached)
        if call is not None and not call.loose and not {*STREAMS} & (self.taps.keys() - reached):
            call.used.append(self)

    def _reached_in(self, call: Call) -> set[str]:
        return {stream for stream, tap in self.taps.items() if call.reached[tap.number]}

    def _check(self, reached: set[str]) -> None:
        """Raises if the attention cannot have computed what the adapters ask of it."""
        lost = [self.taps[stream] for stream in STREAMS if stream in self.taps and stream not in reached]
        changed = [tap for s, tap in self.taps.items() if s not in reached and acting_deltas(self.deltas.get(s, ()))]
        # A processor may do without one of the two; a tap that another tool threw away is another matter.
        if changed or ((len(lost) == len(STREAMS) or not all(tap.in_place for tap in lost)) and self.chain.links()):
            names = " and ".join(self._paths[tap.stream] for tap in changed or lost)
            raise AdapterError(
                f"{self.name} computed its attention without the hypernetwork's {names} (processor: "
                f"{type(getattr(self.attention, 'processor', None)).__name__}); call unfuse_qkv_projections(), set "
                "another attention processor, or attach again if another tool has reset their forward"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a call or is kept."""
        nothing: dict[str, Any] = {"prepared": None, "waiting": None, "watched": {}, "folds": {}, "fits": (None, False)}
        return {**self.__dict__, **nothing, "_reached": set()}
