"""One attention layer under hypernetworks: what its ``to_k`` and ``to_v`` return now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hnkernels.adapter import changes as changes_on
from hnkernels.adapter.changes import Change, Together, changed_linears
from hnkernels.adapter.links import Links, acting, arguments, in_one_operation, rewrite
from hnkernels.adapter.sites import AdapterError, AttentionSpec
from hnkernels.adapter.strength import STREAMS, Level
from hnkernels.ops.folding import fold_projection, is_affine
from hnkernels.ops.hyper import hyper_kv, hyper_qkv
from hnkernels.ops.memo import Memo, version_of
from hnkernels.ops.portable import project
from hnkernels.triton.support import why_not

if TYPE_CHECKING:
    from hnkernels.adapter.adapter import Adapter
    from hnkernels.adapter.host import Host
    from hnkernels.adapter.links import Link

Projection = tuple[Tensor, Tensor | None]


class Tap:
    """Stands in the place of ``forward`` on the instance of one ``to_k`` or ``to_v``.

    The module stays where it is and keeps its class, parameters, hooks and state-dict keys. If somebody wraps the tap
    and it is taken off while inside that wrapper, it stays there and passes everything through.
    """

    def __init__(self, site: Site, stream: str, module: nn.Module):
        self.site: Site | None = site
        self.stream = stream
        self.module = module
        self.wrapped = module.__dict__.get("forward")  # another tool's instance forward, or None
        # A bound method: PyTorch's compiler compares its function, and one compiled block can serve all its like.
        module.forward = self.forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.site is None:
            return self.inner(x, *args, **kwargs)
        return self.site.run(self, x, args, kwargs)

    def inner(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the module does without us."""
        if self.wrapped is not None:
            return self.wrapped(x, *args, **kwargs)
        return type(self.module).forward(self.module, x, *args, **kwargs)

    @property
    def plain(self) -> bool:
        """Whether the module is a linear whose weight and bias say all there is to say, before it is called too."""
        alone = self.wrapped is None and self.in_place and not self.module._forward_pre_hooks
        # A subclass of a parameter may be quantised.
        return alone and type(self.module) is nn.Linear and type(self.module.weight) in (Tensor, nn.Parameter)

    @property
    def in_place(self) -> bool:
        """Whether the tap is what the module calls: neither wrapped by another tool nor thrown away by it."""
        return getattr(self.module.__dict__.get("forward"), "__self__", None) is self

    def changed(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the module does with the generated weights that act on it."""
        changes = () if self.site is None else self.site.acting(self.stream)
        if changes and self.plain and not args and not kwargs:
            return changes_on.linear(x, self.module.weight, self.module.bias, changes)  # type: ignore[arg-type]
        return changes_on.add(self.inner(x, *args, **kwargs), x, changes)

    def remove(self) -> None:
        """Gives the module back as it was."""
        self.site = None
        if self.in_place:
            del self.module.__dict__["forward"]
            if self.wrapped is not None:
                self.module.forward = self.wrapped
            return
        outer = getattr(self.module.__dict__.get("forward"), "__self__", None)
        while isinstance(outer, Tap):  # of another model that this one is a part of, or that is a part of this one
            inner = getattr(outer.wrapped, "__self__", None)
            if inner is self:
                outer.wrapped = self.wrapped
            outer = inner


class Action(NamedTuple):
    """One adapter at one site, and how strong it is there."""

    adapter: Adapter
    level: Level | None  # None where it does not reach


class Site:
    """One attention layer with its taps: on the linears of K and V, and where it sees the same tensor of Q too.

    Generated weights have it tap the linears that they change as well.
    """

    def __init__(self, spec: AttentionSpec, host: Host):
        self.spec = spec
        self.name, self.width, self.shared = spec.name, spec.width, spec.shared
        self.attention, self.projections = spec.module, spec.projections
        self.host = host
        self.actions: list[Action] = []  # in the order of the host's adapters
        self.changes: dict[str, list[Change]] = {}  # by stream
        self._paths = dict(self.projections)  # of what is tapped
        self._ready: tuple[Tensor, Tensor, Tensor] | None = None
        self._reached: set[str] = set()
        self._pending: tuple[Tensor, int, dict[str, Tensor]] | None = None
        self._rides = True
        self._links_in_call: tuple[int, Links] = (0, ())
        self._split_in_call: tuple[object, tuple[Links, Links]] = (None, ((), ()))
        self._folded: dict[str, Memo[Projection]] = {s: Memo() for s in STREAMS}
        self._taps: dict[str, Tap] = {}
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Puts the taps in place."""
        for stream, path in self._paths.items():
            self._taps[stream] = Tap(self, stream, self.attention.get_submodule(path))
        self._hooks = [
            self.attention.register_forward_pre_hook(self._before),
            self.attention.register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Gives the layer back as it was."""
        for tap in self._taps.values():
            tap.remove()
        for hook in self._hooks:
            hook.remove()

    def begin_arranging(self) -> None:
        """The adapters say anew what they do here."""
        self.actions, self.changes = [], {}
        self._links_in_call = (0, ())
        self._paths = dict(self.projections)

    def add_change(self, stream: str, path: str, change: Change) -> None:
        """A change of the linear at this path below the layer."""
        self.changes.setdefault(stream, []).append(change)
        self._paths[stream] = path

    def end_arranging(self) -> None:
        """Taps what is changed now, and nothing else but what it always taps."""
        for stream in [stream for stream in self._taps if stream not in self._paths]:
            self._taps.pop(stream).remove()
        for stream, path in self._paths.items():
            if stream not in self._taps:
                self._taps[stream] = Tap(self, stream, self.attention.get_submodule(path))

    def acting(self, stream: str) -> tuple[Change, ...]:
        """The changes that act on a linear now."""
        return tuple(change for change in self.changes.get(stream, ()) if change.acting() is not None)

    def clear(self) -> None:
        """Forgets the weights that networks are folded into."""
        for memo in self._folded.values():
            memo.clear()

    def prepare(self, x: Tensor | None) -> None:
        """Computes K and V of this context before the layer runs; ``None`` forgets them.

        For layers inside a part of the model that is compiled by itself: what is shared and kept lies outside of it.
        """
        self._ready = None
        if x is not None and (self.changes or any(action.level for action in self.actions)) and self._plain():
            k, v = (self.run(self._taps[stream], x, (), {}) for stream in STREAMS)
            # Whether a tensor is a view, and of what, would be one more thing that compiled code depends on.
            k, v = (t.clone() if t._is_view() else t for t in (k, v))
            self._ready = x, k, v

    def links(self) -> Links:
        """What the adapters do here now, in order of application."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self.host.contexts.running and self._links_in_call[0] == self.host.contexts.call:
            return self._links_in_call[1]
        links = acting([(a.adapter.link(self.width, a.level), a.adapter.beside) for a in self.actions])
        if not compiling:
            self._links_in_call = (self.host.contexts.call, links)
        return links

    def run(self, tap: Tap, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """The output of the linear for Q, K or V for the layer's context x. Shape: [..., d] → [..., n]."""
        self._reached.add(tap.stream)
        if not torch.compiler.is_compiling():
            self.host.follow(x)  # a model's own forward may have moved it
        links, changes = self.links(), self.acting(tap.stream)
        if not (links or changes) or tap.stream not in self.projections:
            return tap.changed(x, *args, **kwargs)
        bare = not args and not kwargs and self._plain()
        if tap.stream == "q":
            q = self._all_three(x, links) if bare and tap.plain else None
            return tap.changed(x, *args, **kwargs) if q is None else q
        index = STREAMS.index(tap.stream)
        if bare and self._ready is not None and self._ready[0] is x:
            return self._ready[1 + index]
        entry = self.host.shared(x) if self.shared and not torch.compiler.is_compiling() else None
        if not bare:
            pair = entry.rewritten(links, self.host.contexts)[0] if entry else self._pair(tap.stream, x, links)
            return tap.changed(pair[index], *args, **kwargs)
        links, folded = self._split(links)
        if entry is None:
            traced = self.host.traced
            if self.shared and traced is not None and traced.source() is x:
                return self._projected(tap.stream, traced.rewritten(links)[index], folded)
            return self._both(tap.stream, x, links, folded)
        if not folded:
            layers, kept = self.host.grouped(self.width, entry, links)
            together = layers.get((self.name, tap.stream))
            if together is not None:
                if not torch.is_grad_enabled():
                    self.host.contexts.count(kept)
                return together
        pair, token = entry.rewritten(links, self.host.contexts)
        compute = partial(self._projected, tap.stream, pair[index], folded, few_rows=True)
        if torch.is_grad_enabled():
            return compute()
        weight, bias = self._projection(tap.stream, folded)
        rows = [change.rows(x) for change in changes]
        weights = [t for t in (weight, bias) if t is not None] + [t for r in rows for t in (r.a, r.b)]
        tokens = (token, *(r.token for r in rows))
        return entry.projected((self.name, tap.stream), weights, tokens, self.host.contexts, compute)

    def computed_links(self) -> Links:
        """What is to be computed of a context now: all links but those that live in the projections' weights."""
        links = self.links()
        return self._split(links)[0] if self._plain() else links

    def bare_projections(self) -> dict[str, Projection]:
        """Those of K and V by stream; none where a network is folded into them or somebody else has a hand in."""
        if not self._plain() or self._split(self.links())[1]:
            return {}
        return {stream: self._projection(stream, ()) for stream in STREAMS}

    def _plain(self) -> bool:
        return all(self._taps[stream].plain for stream in STREAMS)

    def _all_three(self, x: Tensor, links: Links) -> Tensor | None:
        """Q, with K and V in the same operation, where that saves something: on the Triton backend, or where generated
        weights change them all."""
        links, folded = self._split(links)
        if self.changes:
            return None if links or folded else self._all_changed(x)
        mlps = [mlp for link in links for mlp in (link.mlp_k, link.mlp_v)]
        if not links or not self._rides or not in_one_operation(links) or why_not(x, mlps) is not None:
            return None
        mlps_k, mlps_v, strength = arguments(links)
        to_q = cast(nn.Linear, self._taps["q"].module)
        (w_k, b_k), (w_v, b_v) = (self._projection(s, folded) for s in STREAMS)
        q, k, v = hyper_qkv(
            x, mlps_k, mlps_v, to_q.weight, w_k, w_v, to_q.bias, b_k, b_v, strength=strength
        )  # fmt: skip
        self._pending = (x, version_of(x), {"k": k, "v": v})
        return q

    def _all_changed(self, x: Tensor) -> Tensor | None:
        together = {s: Together(*self._projection(s, ()), self.acting(s)) for s in ("q", *STREAMS)}
        if not self._rides or not all(t.changes for t in together.values()):
            return None
        q, k, v = changed_linears([(x, t) for t in together.values()])
        self._pending = (x, version_of(x), {"k": k, "v": v})
        return q

    def _both(self, stream: str, x: Tensor, links: Links, folded: Links) -> Tensor:
        """K and V in one operation when K is asked for; V then finds its half waiting."""
        waiting = self._take(stream, x)
        if waiting is not None:
            return waiting
        if not links:
            return self._projected(stream, x, folded)
        if in_one_operation(links) and not self.changes:
            mlps_k, mlps_v, strength = arguments(links)
            (w_k, b_k), (w_v, b_v) = (self._projection(s, folded) for s in STREAMS)
            k, v = hyper_kv(x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strength)
        else:
            k, v = (self._projected(s, y, folded) for s, y in zip(STREAMS, rewrite(x, links), strict=True))
        if stream == "v":  # on its own, or of another tensor than K's
            return v
        self._pending = (x, version_of(x), {"v": v})
        return k

    def _projected(self, stream: str, y: Tensor, folded: Links, few_rows: bool = False) -> Tensor:
        """K or V of its context after the links."""
        weight, bias = self._projection(stream, folded)
        changes = self.acting(stream)
        return changes_on.linear(y, weight, bias, changes) if changes else project(y, weight, bias, few_rows=few_rows)

    def _pair(self, stream: str, x: Tensor, links: Links) -> tuple[Tensor, Tensor]:
        """The context for K and for V, computed when K is asked for."""
        if stream == "v":
            waiting = self._take("v", x)
            if waiting is not None:
                return x, waiting
        if not links:
            return x, x
        pair = rewrite(x, links)
        if stream == "k":
            self._pending = (x, version_of(x), {"v": pair[1]})
        return pair

    def _take(self, stream: str, x: Tensor) -> Tensor | None:
        """What was computed of x before it was asked for."""
        if self._pending is None or stream not in self._pending[2]:
            return None
        if self._pending[0] is not x or self._pending[1] != version_of(x):
            self._rides = self._rides and stream != "k"  # Q and K see different tensors here
            return None
        return self._pending[2].pop(stream)

    def _split(self, links: Links) -> tuple[Links, Links]:
        """The links to compute, and those behind them that ``fuse()`` allows to live in the projection's weights."""
        if torch.compiler.is_compiling():  # a folded weight would be built into the graph, with its strength
            return links, ()
        if self.changes:  # they act on what the links make of the context
            return links, ()
        now = (self.host.contexts.call, torch.is_grad_enabled(), id(links)) if self.host.contexts.running else None
        if now is not None and self._split_in_call[0] == now:
            return self._split_in_call[1]
        count = len(links)
        while count and self._foldable(links[count - 1]):
            count -= 1
        self._split_in_call = (now, (links[:count], links[count:]))
        return self._split_in_call[1]

    def _foldable(self, link: Link) -> bool:
        if not (link.fused and is_affine(link.mlp_k) and is_affine(link.mlp_v)):
            return False
        if link.beside or isinstance(link.k, tuple) or isinstance(link.v, tuple):
            return False
        if not torch.is_grad_enabled():
            return True
        modules = (link.mlp_k, link.mlp_v, *(tap.module for tap in self._taps.values()))
        return not any(p.requires_grad for module in modules for p in module.parameters())

    def _projection(self, stream: str, folded: Links) -> Projection:
        linear = cast(nn.Linear, self._taps[stream].module)
        weight, bias = linear.weight, linear.bias
        if not folded:
            return weight, bias
        chain = tuple((mlp, mlp.multiplier_at(cast(float, s))) for mlp, s in (link.stream(stream) for link in folded))
        tensors = [weight, *([] if bias is None else [bias]), *(p for mlp, _ in chain for p in mlp.parameters())]
        return self._folded[stream].get(
            tensors, lambda: fold_projection(weight, bias, chain), tuple((id(mlp), m) for mlp, m in chain)
        )

    def refresh(self) -> None:
        """Taps the modules that are there now: LoRA and quantisation put others in their place."""
        for stream, tap in self._taps.items():
            module = self.attention.get_submodule(self._paths[stream])
            if module is not tap.module:
                tap.remove()
                self._taps[stream] = Tap(self, stream, module)

    def forget_call(self) -> None:
        """Drops what an exception inside the layer has left behind: results, and with them what they were made of."""
        self._reached.clear()
        self._pending = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a call: a copy begins none in the middle."""
        return {
            **self.__dict__, "_ready": None, "_pending": None, "_reached": set(), "_links_in_call": (0, ()),
            "_split_in_call": (None, ((), ())),
        }  # fmt: skip

    def _before(self, *_: object) -> None:
        self.forget_call()
        self.refresh()

    def _after(self, *_: object) -> None:
        lost = [self._taps[stream] for stream in STREAMS if stream not in self._reached]
        changed = [tap for stream, tap in self._taps.items() if stream not in self._reached and self.acting(stream)]
        self.forget_call()
        # A processor may do without one of the two; a tap that another tool threw away is another matter.
        if changed or ((len(lost) == len(STREAMS) or not all(tap.in_place for tap in lost)) and self.links()):
            names = " and ".join(self._paths[tap.stream] for tap in changed or lost)
            raise AdapterError(
                f"{self.name} computed its attention without the hypernetwork's {names} (processor: "
                f"{type(getattr(self.attention, 'processor', None)).__name__}); call unfuse_qkv_projections(), set "
                "another attention processor, or attach again if another tool has reset their forward"
            )
