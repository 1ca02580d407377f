"""One attention layer under hypernetworks: what its ``to_k`` and ``to_v`` return now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hnkernels.adapter.contexts import Chain, Chains, rewrite
from hnkernels.adapter.sites import AdapterError, AttentionSpec
from hnkernels.folding import fold_projection, is_affine
from hnkernels.functional import hyper_kv, hyper_qkv
from hnkernels.memo import Memo, version_of
from hnkernels.mlp import HypernetworkMLP
from hnkernels.portable import project
from hnkernels.triton.support import why_not

if TYPE_CHECKING:
    from hnkernels.adapter.host import Host

STREAMS = ("k", "v")
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
        module.forward = self

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
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
        return self.module.__dict__.get("forward") is self

    def remove(self) -> None:
        """Gives the module back as it was."""
        self.site = None
        if self.in_place:
            del self.module.__dict__["forward"]
            if self.wrapped is not None:
                self.module.forward = self.wrapped


class Link(NamedTuple):
    """What one adapter does at one site."""

    mlp_k: HypernetworkMLP
    mlp_v: HypernetworkMLP
    strength: float
    fused: bool

    def stream(self, stream: str) -> tuple[HypernetworkMLP, float]:
        """The MLP of stream ``"k"`` or ``"v"`` with the strength."""
        return (self.mlp_k if stream == "k" else self.mlp_v), self.strength


Links = tuple[Link, ...]


class Site:
    """One attention layer with its taps: on ``to_k`` and ``to_v``, and in self-attention on ``to_q`` too."""

    def __init__(self, spec: AttentionSpec, host: Host):
        self.name, self.kind, self.width, self.attention = spec.name, spec.kind, spec.width, spec.module
        self.host = host
        self._reached: set[str] = set()
        self._pending: tuple[Tensor, int, dict[str, Tensor]] | None = None
        self._rides = True
        self.links_in_call: tuple[int, Links] = (0, ())
        self._folded: dict[str, Memo[Projection]] = {s: Memo() for s in STREAMS}
        tapped = (*STREAMS, "q") if self.kind == "attn1" else STREAMS
        self._taps = {s: Tap(self, s, getattr(self.attention, f"to_{s}")) for s in tapped}
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

    def clear(self) -> None:
        """Forgets the weights that networks are folded into."""
        for memo in self._folded.values():
            memo.clear()

    def run(self, tap: Tap, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """The output of ``to_q``, ``to_k`` or ``to_v`` for the layer's context x. Shape: [..., d] → [..., n]."""
        self._reached.add(tap.stream)
        links = self.host.links(self)
        if not links:
            return tap.inner(x, *args, **kwargs)
        bare = not args and not kwargs and self._plain()
        if tap.stream == "q":
            q = self._all_three(x, links) if bare and tap.plain else None
            return tap.inner(x, *args, **kwargs) if q is None else q
        entry = self.host.shared(x) if self.kind == "attn2" and not torch.compiler.is_compiling() else None
        if not bare:
            chains = _chains(links)
            pair = entry.rewritten(chains, self.host.contexts)[0] if entry else self._pair(tap.stream, x, chains)
            return tap.inner(pair[STREAMS.index(tap.stream)], *args, **kwargs)
        links, folded = self._split(links)
        if entry is None:
            traced = self.host.traced
            if traced is not None and traced.source() is x:
                y = traced.rewritten(_chains(links))[STREAMS.index(tap.stream)]
                return project(y, *self._projection(tap.stream, folded))
            return self._both(tap.stream, x, links, folded)
        if not folded:
            together = self.host.grouped(self.width, entry, _chains(links)).get((self.name, tap.stream))
            if together is not None:
                return together
        pair, token = entry.rewritten(_chains(links), self.host.contexts)
        weight, bias = self._projection(tap.stream, folded)
        compute = partial(project, pair[STREAMS.index(tap.stream)], weight, bias, few_rows=True)
        if torch.is_grad_enabled():
            return compute()
        return entry.projected((self.name, tap.stream), [t for t in (weight, bias) if t is not None], token, compute)

    def chains(self) -> Chains:
        """What is to be computed of a context now, for K and for V."""
        links = self.host.links(self)
        if self._plain():
            links, _ = self._split(links)
        return _chains(links)

    def bare_projections(self) -> dict[str, Projection]:
        """``to_k`` and ``to_v`` by stream; none where a network is folded into them or somebody else has a hand in."""
        if not self._plain() or self._split(self.host.links(self))[1]:
            return {}
        return {stream: self._projection(stream, ()) for stream in STREAMS}

    def _plain(self) -> bool:
        return all(self._taps[stream].plain for stream in STREAMS)

    def _all_three(self, x: Tensor, links: Links) -> Tensor | None:
        """Q, with K and V in the same operation, where that saves something: on the Triton backend."""
        links, folded = self._split(links)
        if not links or not self._rides or why_not(x, [mlp for link in links for mlp in link[:2]]) is not None:
            return None
        mlps_k, mlps_v, strengths, _ = zip(*links, strict=True)
        to_q = cast(nn.Linear, self._taps["q"].module)
        (w_k, b_k), (w_v, b_v) = (self._projection(s, folded) for s in STREAMS)
        q, k, v = hyper_qkv(
            x, mlps_k, mlps_v, to_q.weight, w_k, w_v, to_q.bias, b_k, b_v, strength=strengths
        )  # fmt: skip
        self._pending = (x, version_of(x), {"k": k, "v": v})
        return q

    def _both(self, stream: str, x: Tensor, links: Links, folded: Links) -> Tensor:
        """K and V in one operation when ``to_k`` is called; ``to_v`` then finds its half waiting."""
        if not links:
            return project(x, *self._projection(stream, folded))
        waiting = self._take(stream, x)
        if waiting is not None:
            return waiting
        (w_k, b_k), (w_v, b_v) = (self._projection(s, folded) for s in STREAMS)
        mlps_k, mlps_v, strengths, _ = zip(*links, strict=True)
        k, v = hyper_kv(x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strengths)
        if stream == "v":  # on its own, or of another tensor than to_k's
            return v
        self._pending = (x, version_of(x), {"v": v})
        return k

    def _pair(self, stream: str, x: Tensor, chains: Chains) -> tuple[Tensor, Tensor]:
        """The context for K and for V, computed when ``to_k`` is called."""
        if stream == "v":
            waiting = self._take("v", x)
            if waiting is not None:
                return x, waiting
        pair = rewrite(x, chains)
        if stream == "k":
            self._pending = (x, version_of(x), {"v": pair[1]})
        return pair

    def _take(self, stream: str, x: Tensor) -> Tensor | None:
        """What was computed of x before it was asked for."""
        if self._pending is None or stream not in self._pending[2]:
            return None
        if self._pending[0] is not x or self._pending[1] != version_of(x):
            self._rides = self._rides and stream != "k"  # to_q and to_k see different tensors here
            return None
        return self._pending[2].pop(stream)

    def _split(self, links: Links) -> tuple[Links, Links]:
        """The links to compute, and those behind them that ``fuse()`` allows to live in the projection's weights."""
        count = len(links)
        while count and self._foldable(links[count - 1]):
            count -= 1
        return links[:count], links[count:]

    def _foldable(self, link: Link) -> bool:
        if not (link.fused and is_affine(link.mlp_k) and is_affine(link.mlp_v)):
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
        chain = tuple((mlp, mlp.multiplier_at(s)) for mlp, s in _chain(folded, stream))
        tensors = [weight, *([] if bias is None else [bias]), *(p for mlp, _ in chain for p in mlp.parameters())]
        return self._folded[stream].get(
            tensors, lambda: fold_projection(weight, bias, chain), tuple((id(mlp), m) for mlp, m in chain)
        )

    def _before(self, *_: object) -> None:
        self._reached.clear()
        self._pending = None
        for stream, tap in self._taps.items():
            module = getattr(self.attention, f"to_{stream}")
            if module is not tap.module:  # LoRA and quantisation put another module in its place
                tap.remove()
                self._taps[stream] = Tap(self, stream, module)

    def _after(self, *_: object) -> None:
        lost = [self._taps[stream] for stream in STREAMS if stream not in self._reached]
        self._reached.clear()
        self._pending = None
        # A processor may do without one of the two; a tap that another tool threw away is another matter.
        if (len(lost) == len(STREAMS) or not all(tap.in_place for tap in lost)) and self.host.links(self):
            names = " and ".join(f"to_{tap.stream}" for tap in lost)
            raise AdapterError(
                f"{self.name} computed its attention without the hypernetwork's {names} (processor: "
                f"{type(getattr(self.attention, 'processor', None)).__name__}); call unfuse_qkv_projections(), set "
                "another attention processor, or attach again if another tool has reset their forward"
            )


def _chain(links: Links, stream: str) -> Chain:
    return tuple(link.stream(stream) for link in links)


def _chains(links: Links) -> Chains:
    return _chain(links, "k"), _chain(links, "v")
