"""From a condition to a latent: text, image features, a task or a style."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnkernels.convert.merging import check_number
from hnkernels.errors import InputError
from hnkernels.generator.blocks import ResidualMLP, check_count

POOLINGS = ("perceiver", "mean")

_QUERIES = 8


class HypernetworkEncoder(nn.Module):
    """Turns conditions of several kinds into latents of one.

    Tokens are pooled to one vector, a task or a style is looked up in a table; a residual MLP follows, and a norm
    that brings every latent to a root mean square of 1.

    Args:
        embedding_dim: E, width of tokens and features.
        hidden_dim: H, width of the latent.
        pooling: ``"perceiver"``, where 8 learned queries attend to the tokens (Jaegle et al. 2021); or ``"mean"``.
        tasks: number of tasks, 0 for none.
        styles: names of styles, each with a learned vector.
        latent_norm: the norm at the end.

    Raises:
        ValueError: an option is outside its range.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_dim: int,
        pooling: str = "perceiver",
        tasks: int = 0,
        styles: Sequence[str] = (),
        latent_norm: bool = True,
    ):
        super().__init__()
        check_count("embedding_dim", embedding_dim, 1)
        check_count("hidden_dim", hidden_dim, 1)
        check_count("tasks", tasks, 0)
        if pooling not in POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        if isinstance(styles, str) or not all(isinstance(s, str) for s in styles) or len(set(styles)) != len(styles):
            raise InputError(f"styles must be different names such as ('ink', 'chalk'), not {styles!r}")
        self.config: dict[str, Any] = {
            "embedding_dim": embedding_dim,
            "hidden_dim": hidden_dim,
            "pooling": pooling,
            "tasks": tasks,
            "styles": list(styles),
            "latent_norm": bool(latent_norm),
        }
        self.styles = tuple(styles)
        self.pool = (_Perceiver if pooling == "perceiver" else _Mean)(embedding_dim, hidden_dim)
        self.task_table = nn.Parameter(torch.randn(tasks, hidden_dim))
        self.style_table = nn.Parameter(torch.randn(len(styles), hidden_dim))
        self.mlp = ResidualMLP(hidden_dim)
        self.norm = nn.RMSNorm(hidden_dim, elementwise_affine=False) if latent_norm else nn.Identity()

    def forward(self, x: Any, mask: Tensor | None = None) -> Tensor:
        """The latents of a batch of conditions.

        Args:
            x: one of

                - tokens [B, T, E], or features or pooled vectors [B, E], in any floating dtype;
                - task ids [B], integers;
                - a style's name, a mixture {style: weight} of style vectors, or a list of such, one per row.
            mask: [B, T], with tokens only: 0 (or False) for those to leave out. A row may have none left.

        Returns:
            [B, H].

        Raises:
            ValueError: x or the mask is not as described; the message says what was given and what is accepted.
        """
        if mask is not None and not (isinstance(x, Tensor) and x.ndim == 3):
            raise InputError("mask is for tokens [B, T, E]; leave it out for other conditions")
        if not isinstance(x, Tensor):
            hidden = self._mixtures(x) @ self.style_table
        elif x.is_floating_point():
            hidden = self._pooled(x, mask)
        else:
            hidden = self.task_table[self._task_ids(x)]
        return self.norm(self.mlp(hidden))

    def _pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        width = self.config["embedding_dim"]
        if x.ndim not in (2, 3):
            raise InputError(f"x must be features [B, {width}] or tokens [B, T, {width}], not {list(x.shape)}")
        if x.shape[-1] != width:
            raise InputError(
                f"x is {list(x.shape)}, {x.shape[-1]} wide, and the encoder accepts {width}; give features of that "
                f"width, or build it with embedding_dim={x.shape[-1]}"
            )
        self._check_device(x)
        x = x.to(self.style_table.dtype)
        if x.ndim == 2:
            x = x[:, None]
        if mask is None:
            kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        elif not isinstance(mask, Tensor) or mask.shape != x.shape[:2]:
            given = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"mask must be {list(x.shape[:2])} like the tokens, not {given}")
        else:
            kept = mask.to(x.device) != 0
        return self.pool(x, kept)

    def _task_ids(self, x: Tensor) -> Tensor:
        tasks = self.config["tasks"]
        if x.dtype == torch.bool or x.is_complex() or x.ndim != 1:
            raise InputError(f"x must be floating-point features or task ids [B], not {x.dtype} {list(x.shape)}")
        if not tasks:
            raise InputError("x are task ids, and the encoder has no tasks; build it with tasks=<their number>")
        self._check_device(x)
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < tasks:
            raise InputError(f"task ids must lie between 0 and {tasks - 1}, not {x.tolist()}")
        return x.long()

    def _check_device(self, x: Tensor) -> None:
        if x.device != self.style_table.device:
            raise InputError(f"x is on {x.device}, the encoder on {self.style_table.device}; move one with .to(device)")

    def _mixtures(self, x: Any) -> Tensor:
        """[B, styles] weights of the style vectors."""
        rows = [x] if isinstance(x, (str, Mapping)) else x
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, (str, Mapping)) for row in rows):
            raise InputError(
                "x must be a tensor of features, tokens or task ids, a style's name, a mixture {style: weight} or a "
                f"list of these, not {x!r:.100}"
            )
        if not self.styles:
            raise InputError("x names styles, and the encoder has none; build it with styles=(<their names>)")
        weights = torch.zeros(len(rows), len(self.styles), dtype=torch.float64)
        for weight, row in zip(weights, rows, strict=True):
            mixture = {row: 1.0} if isinstance(row, str) else row
            if not mixture:
                raise InputError("a mixture of styles must have one at least, not {}")
            for style, share in mixture.items():
                check_number(f"the weight of style {style!r}", share)
                weight[self._style(style)] = share
        return weights.to(self.style_table)

    def _style(self, style: Any) -> int:
        if style in self.styles:
            return self.styles.index(style)
        near = difflib.get_close_matches(str(style), self.styles, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no style {style!r}; {hint}the encoder has {', '.join(map(repr, self.styles))}")


class _Mean(nn.Module):
    """The mean of the tokens that a mask keeps, projected. Without any it is the projection of 0."""

    def __init__(self, embedding_dim: int, hidden_dim: int):
        super().__init__()
        self.project = nn.Linear(embedding_dim, hidden_dim)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        share = kept.to(tokens.dtype) / kept.sum(1, keepdim=True).clamp_min(1).to(tokens.dtype)
        # Not a product with the mask: what is masked may be NaN.
        return self.project((tokens.masked_fill(~kept[..., None], 0) * share[..., None]).sum(1))


class _Perceiver(nn.Module):
    """Learned queries that attend to the tokens that a mask keeps, or, without any, to a learned token."""

    def __init__(self, embedding_dim: int, hidden_dim: int):
        super().__init__()
        self.heads = math.gcd(hidden_dim, 8)
        self.queries = nn.Parameter(torch.randn(_QUERIES, hidden_dim))
        self.nothing = nn.Parameter(torch.randn(embedding_dim))
        self.to_kv = nn.Linear(embedding_dim, 2 * hidden_dim)
        self.project = nn.Linear(_QUERIES * hidden_dim, hidden_dim)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        batch = tokens.shape[0]
        tokens = torch.cat([tokens.masked_fill(~kept[..., None], 0), self.nothing.expand(batch, 1, -1)], dim=1)
        kept = torch.cat([kept, ~kept.any(1, keepdim=True)], dim=1)
        k, v = (self._split(t) for t in self.to_kv(tokens).chunk(2, dim=-1))
        q = self._split(self.queries.expand(batch, -1, -1))
        pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=kept[:, None, None])  # [B, heads, queries, H/heads]
        return self.project(pooled.transpose(1, 2).flatten(1))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
