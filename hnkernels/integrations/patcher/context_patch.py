"""The patch that lets a context hypernetwork act: it rewrites what attention is about to make K and V of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.integrations.patcher.spots import Spot, call_of
from hnkernels.integrations.patcher.timing import Clock
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.ops.hyper import hyper_context, hyper_context_pair

ROWS = {"all": None, "positive": 0, "negative": 1}
"""Rows of a batch that a network acts on, and how samplers mark them in ``"cond_or_uncond"``."""

Streams = Mapping[str, float]
"""A strength for ``"k"`` and one for ``"v"``."""


class ContextPatch:
    """One network in the attention layers of one kind: what ``set_model_attn1_patch`` and ``..._attn2_patch`` take.

    Its copies are itself: patchers copy their options deeply with every clone, and the network is not changed by use.

    Args:
        net: the network, in eval mode.
        strengths: the strength where it acts.
        clock: follows the denoising steps; ``None`` for 1 throughout.
        rows: of ``ROWS``.
        shared: many layers receive the same context, so that it is rewritten once per call of the model.
    """

    def __init__(
        self,
        net: Hypernetwork,
        strengths: Mapping[Spot, Streams],
        clock: Clock | None = None,
        rows: str = "all",
        shared: bool = False,
    ):
        self.net = net
        self.strengths = dict(strengths)
        self.clock = clock
        self.rows = rows
        self.shared = shared
        self.level = 1.0
        """A factor on all strengths, for programs that set it from step to step."""
        self.reached = False
        """Whether it has been called, for programs that clear it before a call of the model."""
        self._kept: tuple[Any, ...] = ()

    @torch.compiler.disable  # a compiled model would be compiled again at every call: what it is told is new each time
    def __call__(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, extra_options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The query, and the contexts of K and V after the network.

        Args:
            q: [B, queries, d].
            k, v: [B, tokens, width], one tensor or two; ``None`` where attention is to use ``q``, or K's for V.
            extra_options: what the model says of the layer and of the call.
        """
        self.reached = True
        spot = Spot.told(extra_options)
        strength = None if spot is None else self.strengths.get(spot)
        factor = self.level if strength is None or self.clock is None else self.level * self.clock.factor(extra_options)
        if strength is None or factor == 0:
            return q, k, v
        acting = ROWS[self.rows]
        chunks = None if acting is None else [kind == acting for kind in extra_options["cond_or_uncond"]]
        if chunks is not None and not any(chunks):  # samplers short of memory call the model once per prompt
            return q, k, v
        k = q if k is None else k
        v = k if v is None else v
        scaled = {stream: factor * value for stream, value in strength.items()}
        return q, *self._rewritten(k, v, scaled, chunks, call_of(extra_options))

    def _rewritten(
        self, k: Tensor, v: Tensor, strength: Streams, chunks: Sequence[bool] | None, call: object
    ) -> tuple[Tensor, Tensor]:
        key, kept = (k, v, call, tuple(strength.values())), self._kept
        same = bool(kept) and kept[0] is k and kept[1] is v and kept[2] is call and kept[3] == key[3]
        if same and call is not None:
            return kept[4]
        pair = self._computed(k, v, strength)
        if chunks is not None:
            pair = _where(chunks, pair[0], k), _where(chunks, pair[1], v)
        if self.shared:
            self._kept = (*key, pair)
        return pair

    def _computed(self, k: Tensor, v: Tensor, strength: Streams) -> tuple[Tensor, Tensor]:
        self._follow(k.device)
        if k is v and k.shape[-1] in self.net and all(strength.values()):
            return hyper_context_pair(k, *self.net[k.shape[-1]], strength=strength)
        return self._stream(k, 0, strength["k"]), self._stream(v, 1, strength["v"])

    def _stream(self, context: Tensor, stream: int, strength: float) -> Tensor:
        width = context.shape[-1]
        if strength == 0 or width not in self.net:
            return context
        return hyper_context(context, self.net[width][stream], strength=strength)

    def _follow(self, device: torch.device) -> None:
        if next(self.net.parameters()).device != device:
            self.net.to(device)
            self._kept = ()

    def to(self, target: Any) -> ContextPatch:
        """Moves the network to a device. A dtype, which patchers ask for too, leaves it as it is: it is computed in the
        context's, and a model's storage may be in one that nothing is computed in."""
        if isinstance(target, (str, torch.device)):
            self._follow(torch.device(target))
        return self

    def __deepcopy__(self, memo: dict) -> ContextPatch:
        return self


def _where(chunks: Sequence[bool], acted: Tensor, plain: Tensor) -> Tensor:
    """``acted`` in the rows of the marked ones of as many equal parts of the batch, ``plain`` in the others."""
    pairs = zip(chunks, acted.chunk(len(chunks)), plain.chunk(len(chunks)), strict=True)
    return torch.cat([a if marked else b for marked, a, b in pairs])
