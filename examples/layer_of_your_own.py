"""The fused projection in an attention layer of one's own, trained for a few steps."""

import torch
import torch.nn.functional as F
from torch import nn

import hnkernels as hn


class Attention(nn.Module):
    """Cross-attention whose keys and values come through a hypernetwork."""

    def __init__(self, width, context_width, heads=4):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False).requires_grad_(False)
        self.to_v = nn.Linear(context_width, width, bias=False).requires_grad_(False)
        self.hypernetwork = hn.Hypernetwork((context_width,), activation="silu", init="identity")

    def forward(self, x, context):
        mlp_k, mlp_v = self.hypernetwork[context.shape[-1]]
        k, v = hn.hyper_kv(context, mlp_k, mlp_v, self.to_k.weight, self.to_v.weight)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def main():
    torch.manual_seed(0)
    layer = Attention(64, 96)
    x, context, target = torch.randn(2, 32, 64), torch.randn(2, 77, 96), torch.randn(2, 32, 64)
    optimizer = torch.optim.AdamW(layer.hypernetwork.parameters(), lr=1e-2)
    for step in range(20):
        loss = F.mse_loss(layer(x, context), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
