"""A model with attention layers and nothing else."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 4


class Attention(nn.Module):
    """No more than what is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_q(x) + self.to_k(context) * self.to_v(context)


class Model(nn.Module):
    """Attention layers with the names of a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        places = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")
        for place in places:
            owner: nn.Module = self
            for part in (*place.split("."), "attentions", "0"):
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.attn1, owner.attn2 = Attention(), Attention()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for name, layer in self.named_modules():
            if isinstance(layer, Attention):
                x = x + layer(x, x if context is None or name.endswith("attn1") else context)
        return x
