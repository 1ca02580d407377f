"""One attention layer under hypernetworks: what its ``to_k`` and ``to_v`` return now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hnkernels.adapter.contexts import Chain
from hnkernels.adapter.sites import AdapterError, AttentionSpec
from hnkernels.folding import fold_projection, is_affine
from hnkernels.functional import hyper_context, hyper_kv
from hnkernels.memo import Memo
from hnkernels.mlp import HypernetworkMLP
from hnkernels.portable import project

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
        return alone and type(self.module) is nn.Linear

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
    """One attention layer with its two taps."""

    def __init__(self, spec: AttentionSpec, host: Host):
        self.name, self.kind, self.width, self.attention = spec.name, spec.kind, spec.width, spec.module
        self.host = host
        self._reached: set[str] = set()
        self._pending: tuple[Tensor, Tensor] | None = None
        self.links_in_call: tuple[int, Links] = (0, ())
        self._folded: dict[str, Memo[Projection]] = {s: Memo() for s in STREAMS}
        self._taps = {s: Tap(self, s, getattr(self.attention, f"to_{s}")) for s in STREAMS}
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
        """The output of ``to_k`` or ``to_v`` for the layer's context x. Shape: [..., d] → [..., n]."""
        self._reached.add(tap.stream)
        links = self.host.links(self)
        if not links:
            return tap.inner(x, *args, **kwargs)
        entry = self.host.shared(x) if self.kind == "attn2" else None
        if args or kwargs or not self._plain():
            chain = _chain(links, tap.stream)
            y = entry.rewritten(chain, self.host.contexts)[0] if entry else _rewrite(x, chain)
            return tap.inner(y, *args, **kwargs)
        links, folded = self._split(links)
        if entry is None:
            return self._both(tap.stream, x, links, folded)
        y, token = entry.rewritten(_chain(links, tap.stream), self.host.contexts)
        weight, bias = self._projection(tap.stream, folded)
        compute = partial(project, y, weight, bias, few_rows=True)
        if torch.is_grad_enabled():
            return compute()
        return entry.projected((self.name, tap.stream), [t for t in (weight, bias) if t is not None], token, compute)

    def chains(self) -> list[Chain]:
        """What is to be computed of a context now, for K and for V."""
        links = self.host.links(self)
        if self._plain():
            links, _ = self._split(links)
        return [_chain(links, stream) for stream in STREAMS]

    def _plain(self) -> bool:
        return all(tap.plain for tap in self._taps.values())

    def _both(self, stream: str, x: Tensor, links: Links, folded: Links) -> Tensor:
        """K and V in one operation when ``to_k`` is called; ``to_v`` then finds its half waiting."""
        if not links:
            return project(x, *self._projection(stream, folded))
        if stream == "v" and self._pending is not None and self._pending[0] is x:
            v = self._pending[1]
            self._pending = None
            return v
        (w_k, b_k), (w_v, b_v) = (self._projection(s, folded) for s in STREAMS)
        mlps_k, mlps_v, strengths, _ = zip(*links, strict=True)
        k, v = hyper_kv(x, mlps_k, mlps_v, w_k, w_v, b_k, b_v, strength=strengths)
        if stream == "v":  # on its own, or of another tensor than to_k's
            return v
        self._pending = (x, v)
        return k

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
        lost = [tap for stream, tap in self._taps.items() if stream not in self._reached]
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


def _rewrite(x: Tensor, chain: Chain) -> Tensor:
    return hyper_context(x, [mlp for mlp, _ in chain], strength=[m for _, m in chain])
