"""A UNet with the names of the original repositories that calls attention patches, and a patcher of it.

Written from the interface: a patch of attention is a function of the query, the contexts of K and V, and options.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import TEXT_WIDTH, WIDTHS, randomise


class Attention(nn.Module):
    def __init__(self, dim: int, context_dim: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(d, dim, bias=False) for d in (dim, context_dim, context_dim))
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.attn1, self.attn2 = Attention(dim, dim), Attention(dim, TEXT_WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        told = {key: value for key, value in options.items() if not key.startswith("patches")}
        for attention, norm, given, name in (
            (self.attn1, self.norm1, None, "attn1"),
            (self.attn2, self.norm2, context, "attn2"),
        ):
            n = norm(x)
            key = value = given
            patches = options.get("patches", {}).get(f"{name}_patch", [])
            if patches:
                key = value = n if given is None else given
                for patch in patches:
                    n, key, value = patch(n, key, value, told)
            x = x + attention(n, key, value)
        return x


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([TransformerBlock(dim) for _ in range(depth)])

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for index, block in enumerate(self.transformer_blocks):
            options["block_index"] = index
            tokens = block(tokens, context, options)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsampler(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.op = nn.Conv2d(dim, dim, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class UNet(nn.Module):
    """Two levels with one input block each: 7 attn1 and 7 attn2 layers, those of ``tests.models.tiny_unet``."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        low, high = WIDTHS

        def block(before: int, after: int) -> nn.ModuleList:
            return nn.ModuleList([nn.Conv2d(before, after, 3, padding=1), Transformer(after, depth)])

        first, smaller = nn.ModuleList([nn.Conv2d(4, low, 3, padding=1)]), nn.ModuleList([Downsampler(low)])
        self.input_blocks = nn.ModuleList([first, block(low, low), smaller, block(low, high)])
        self.middle_block = block(high, high)
        self.output_blocks = nn.ModuleList([block(high, high), block(high, high), block(high, low), block(low, low)])

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any] | None = None) -> Tensor:
        options = dict(transformer_options or {})
        options["original_shape"] = list(x.shape)
        parts = [("input", i, block) for i, block in enumerate(self.input_blocks)]
        parts += [("middle", 0, self.middle_block)]
        parts += [("output", i, block) for i, block in enumerate(self.output_blocks)]
        for half, number, layers in parts:
            options["block"] = half, number
            for layer in layers:
                x = layer(x, context, options) if isinstance(layer, Transformer) else layer(x)
        return x


class ModelPatcher:
    """The patcher's interface, of what hypernetworks need."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.patches: dict[str, list[Any]] = {}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.model_options = copy.deepcopy(self.model_options)
        other.patches = {key: list(patches) for key, patches in self.patches.items()}
        other.wrappers = {kind: {key: list(w) for key, w in keys.items()} for kind, keys in self.wrappers.items()}
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def _set(self, name: str, patch: Any) -> None:
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)

    def set_model_attn1_patch(self, patch: Any) -> None:
        self._set("attn1_patch", patch)

    def set_model_attn2_patch(self, patch: Any) -> None:
        self._set("attn2_patch", patch)

    def model_patches_to(self, target: Any) -> None:
        for patches in self.model_options["transformer_options"].get("patches", {}).values():
            patches[:] = [patch.to(target) if hasattr(patch, "to") else patch for patch in patches]

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_patches(self, patches: dict[str, Any], strength_patch: float = 1.0) -> list[str]:
        known = [key for key in patches if key in self.model.state_dict()]
        for key in known:
            self.patches.setdefault(key, []).append((strength_patch, patches[key], 1.0, None, None))
        return known

    def get_key_patches(self, prefix: str) -> dict[str, list[Any]]:
        state = self.model.state_dict()
        return {key: [(state[key], None), *self.patches.get(key, [])] for key in state if key.startswith(prefix)}

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Inside, the model has the patched weights."""
        state = self.model.state_dict()
        before = {key: state[key].clone() for key in self.patches}
        for key, patches in self.patches.items():
            state[key].copy_(calculate_weight(patches, state[key].float(), key))
        yield
        for key, value in before.items():
            state[key].copy_(value)


def calculate_weight(patches: list[Any], weight: Tensor, key: str) -> Tensor:
    """A weight with patches: ``(difference,)``, or ``("lora", (up, down, alpha))``."""
    for strength, content, *_ in patches:
        if len(content) == 1:
            weight = weight + strength * content[0]
        else:
            up, down, alpha = content[1]
            weight = weight + strength * alpha / down.shape[0] * (up @ down)
    return weight


def make_patcher(depth: int = 1) -> ModelPatcher:
    """A patched model with random weights, and ``percent_to_sigma(p) = 10 (1 - p)``."""
    unet = UNet(depth)
    randomise(unet)
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):  # as many inputs as there are: outputs near 1
                module.weight.mul_(2 * module.weight[0].numel() ** -0.5)
    model = nn.Module()
    model.diffusion_model = unet.eval().requires_grad_(False)
    sampling = SimpleNamespace(percent_to_sigma=lambda percent: 10 * (1 - percent))
    object.__setattr__(model, "model_sampling", sampling)
    return ModelPatcher(model)


def sample(patcher: ModelPatcher, x: Tensor, context: Tensor, **told: Any) -> Tensor:
    """One call of the model as a sampler makes it, with the patches and weights of the patcher."""
    options = {**patcher.model_options["transformer_options"], **told}
    with patcher.weights(), torch.no_grad():
        return patcher.model.diffusion_model(x, context, options)
