"""Small networks and models for the tests, and the reference that stands beside them."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import reference
from hnkernels import Hypernetwork, HypernetworkMLP, MLPConfig

WIDTHS = (8, 16)  # of the self-attention contexts of ``tiny_unet``
TEXT_WIDTH = 12
TOKENS = 7

# design.md §9: what fp32 may differ from float64, as relative Frobenius error.
FORWARD_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 1e-5

UNET_TOLERANCE = 10 * FORWARD_TOLERANCE  # some fifty layers one after another


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of ``expected``, in float64; the norm itself where that is zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale if scale > 0 else 1.0)


def make_mlp(dim: int = 8, *, std: float = 0.3, dtype: torch.dtype = torch.float32, **options) -> HypernetworkMLP:
    """An MLP with random parameters of a size at which every one of them matters."""
    mlp = HypernetworkMLP(dim, MLPConfig(**options))
    randomise(mlp, std)
    return mlp.to(dtype)


def make_net(sizes: tuple[int, ...] = (*WIDTHS, TEXT_WIDTH), *, std: float = 0.3, **options) -> Hypernetwork:
    """A hypernetwork in eval mode with random parameters of a size at which every one of them matters."""
    net = Hypernetwork(sizes, **options)
    randomise(net, std)
    return net.eval()


@torch.no_grad()
def randomise(module: nn.Module, std: float = 0.3) -> None:
    """Draws every parameter from N(0, std), the biases and LayerNorm vectors included."""
    for parameter in module.parameters():
        parameter.normal_(std=std)


def reference_of(mlp: HypernetworkMLP, dtype: torch.dtype = torch.float64) -> reference.MLP:
    """``reference.MLP`` with the options, the weights, the mode and the multiplier of ``mlp``."""
    c = mlp.config
    ref = reference.MLP(
        mlp.dim, c.layer_structure, c.activation, c.layer_norm, c.dropout_structure, c.activate_output
    )  # fmt: skip
    ref.to(dtype).load_state_dict(mlp.state_dict(), strict=True)
    ref.multiplier = mlp.multiplier
    return ref.train(mlp.training)


def copied(model: nn.Module) -> nn.Module:
    """What ``copy.deepcopy`` gives, in a third of the time for a model without hooks: the tests copy thousands."""
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules()):
        return copy.deepcopy(model)
    return _copied(model, {})


_PLAIN = {bool, int, float, str, type(None)}


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if _of_attributes(kind):
        twin = memo[id(value)] = kind.__new__(kind)
        vars(twin).update({name: _copied(item, memo) for name, item in vars(value).items()})
    elif kind in (dict, OrderedDict):
        twin = memo[id(value)] = kind()
        twin.update({name: _copied(item, memo) for name, item in value.items()})
    elif kind is set and all(type(item) in _PLAIN for item in value):
        twin = memo[id(value)] = set(value)
    else:
        twin = copy.deepcopy(value, memo)
    return twin


@functools.cache
def _of_attributes(kind: type) -> bool:
    """Whether this is a class of modules whose instances are their attributes and nothing else."""
    own = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
    theirs = [c for c in kind.__mro__ if c is not object and not c.__module__.startswith("torch.nn.modules")]
    return issubclass(kind, nn.Module) and not any(name in vars(c) for c in theirs for name in own)


def tiny_unet(dtype: torch.dtype = torch.float32, **options):
    """A real diffusers UNet: 7 attn1 and 7 attn2 layers, contexts of the widths 8, 16 and 12."""
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
    }
    unet = UNet2DConditionModel(**{**config, **options})
    unet = unet if dtype == torch.float32 else nn.Module.to(unet, dtype)  # diffusers' own .to() logs a warning
    return unet.eval().requires_grad_(False)


FEWER_LAYERS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""For ``tiny_unet``, where every layer takes long: 4 attn1 and 4 attn2 layers."""

ONE_WIDTH = {
    "block_out_channels": WIDTHS[:1],
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D",),
}
"""For ``tiny_unet``, where all else is enough: 3 attn1 and 3 attn2 layers, contexts of the widths 8 and 12."""


def attention_layers(unet: nn.Module, kind: str | None = None) -> dict[str, nn.Module]:
    """The attention layers by name, all or those named ``kind``."""
    kinds = (kind,) if kind else ("attn1", "attn2")
    return {n: m for n, m in unet.named_modules() if n.rsplit(".", 1)[-1] in kinds}


def noise(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input picture of ``tiny_unet``."""
    return torch.randn(batch, 4, 4, 4, dtype=dtype)


def prompt(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """A text context of ``tiny_unet``."""
    return torch.randn(batch, TOKENS, TEXT_WIDTH, dtype=dtype)


def denoise(unet: nn.Module, x: Tensor, context: Tensor, t: int = 10) -> Tensor:
    """The UNet's output."""
    return unet(x, torch.tensor(t), encoder_hidden_states=context).sample


class WebUIProcessor:
    """An attention processor that runs hypernetworks the way the web UIs do: modules called in every layer."""

    def __init__(self, nets: list[Hypernetwork], kinds=("attn1", "attn2"), dtype: torch.dtype = torch.float64):
        self.kinds = kinds
        self.pairs = [{size: [reference_of(mlp, dtype) for mlp in net[size]] for size in net} for net in nets]

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        kind = "attn1" if encoder_hidden_states is None else "attn2"
        pairs = [p[context.shape[-1]] for p in self.pairs if context.shape[-1] in p and kind in self.kinds]
        return reference.attention(
            hidden_states,
            context,
            [k for k, _ in pairs],
            [v for _, v in pairs],
            attn.to_q.weight,
            attn.to_k.weight,
            attn.to_v.weight,
            attn.to_out[0].weight,
            attn.to_out[0].bias,
            attn.heads,
        )
