"""What kohya's trainers do with a network module, in their order, as their interface is documented; for the tests."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from tests.adapter.hosts import TransformerBlock

WIDTH, TEXT_WIDTH = 8, 12
KINDS = {"context": ("kind=context", "activation=silu"), "weights": ("kind=weights", "hidden_dim=16")}
USE_REENTRANT = True  # as the trainers' own module of the SDXL UNet has it


class SDXLNames(nn.Module):
    """A UNet whose attention layers have the names of the original repositories' SDXL, which checkpoints its blocks.

    Each block is one transformer at the place of SDXL's: ``input_blocks.4.1.transformer_blocks.0`` and so on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.input = nn.Linear(4, WIDTH)
        places = {"input_blocks": (4, 5, 7, 8), "output_blocks": (0, 1, 2, 3, 4, 5)}
        for half, numbers in places.items():
            blocks = nn.ModuleList(nn.Identity() for _ in range(max(numbers) + 1))
            for number in numbers:
                blocks[number] = nn.ModuleList([nn.Identity(), _Transformer()])
            self.add_module(half, blocks)
        self.middle_block = nn.ModuleList([nn.Identity(), _Transformer()])
        self.output = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        h = self.input(x.flatten(2).transpose(1, 2))  # [batch, pixels, WIDTH]
        for block in self.modules():
            if isinstance(block, TransformerBlock):
                if self.gradient_checkpointing:
                    h = torch.utils.checkpoint.checkpoint(block, h, context, use_reentrant=USE_REENTRANT)
                else:
                    h = block(h, context)
        return self.output(h).transpose(1, 2).unflatten(2, x.shape[2:])

    def enable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = True


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([TransformerBlock(WIDTH, TEXT_WIDTH)])


@torch.no_grad()
def call(unet: nn.Module, x: Tensor, text: Tensor) -> Tensor:
    """The UNet's output for two rows."""
    return unet(x, torch.tensor([10, 20]), text)


def network_args(*arguments: str) -> dict[str, str]:
    """``--network_args``, split as the trainers split them."""
    return dict(argument.split("=", 1) for argument in arguments)


def start(module: Any, unet: nn.Module, *arguments: str, dim: int | None = None, dropout: float | None = None) -> Any:
    """A network of ``--network_args``, ready for its first step, and its optimiser's parameter groups."""
    options = network_args(*arguments)
    network = module.create_network(
        1.0, dim, 1, None, object(), unet, neuron_dropout=dropout, **{"dropout": dropout, **options}
    )
    return network, ready(network, unet)


def ready(network: Any, unet: nn.Module) -> list[dict]:
    """What the trainers do between making a network and its first step; returns the parameter groups."""
    network.apply_to(object(), unet, False, True)
    network.enable_gradient_checkpointing()
    groups, descriptions = network.prepare_optimizer_params(None, None, 1e-3)
    assert len(groups) == len(descriptions)
    unet.requires_grad_(False)
    network.prepare_grad_etc(object(), unet)
    network.on_epoch_start(object(), unet)
    return groups


def step(network: Any, unet: nn.Module, x: Tensor, text: Tensor, prior: bool = False) -> Tensor:
    """The loss of a step, and its backward pass; with a prior, a call without the network comes between the two."""
    loss = unet(x.clone().requires_grad_(), torch.tensor([10, 20]), text.clone().requires_grad_()).square().mean()
    if prior:
        network.set_multiplier(0.0)
        with torch.no_grad():
            unet(x[:1], torch.tensor([10]), text[:1])
        network.set_multiplier(1.0)
    loss.backward()
    return loss.detach()


def gradients(network: Any) -> Tensor:
    """All gradients in one vector; they are forgotten."""
    flat = [p.grad.flatten() for p in network.get_trainable_params() if p.grad is not None]
    for parameter in network.parameters():
        parameter.grad = None
    return torch.cat(flat)


def metadata(**entries: str) -> dict[str, str]:
    """What the trainers hand to ``save_weights``."""
    return {
        "ss_output_name": "ink",
        "ss_steps": "30",
        "ss_sd_model_name": "model.safetensors",
        "ss_new_sd_model_hash": "ab" * 32,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "ink",
        **entries,
    }


def diffusers_names(unet: nn.Module) -> list[str]:
    """The attention layers of ``SDXLNames`` as diffusers would call them, in the order of its modules."""
    names = [name for name, _ in unet.named_modules() if re.search(r"attn[12]$", name)]
    table = {
        "input_blocks.4.1": "down_blocks.1.attentions.0",
        "input_blocks.5.1": "down_blocks.1.attentions.1",
        "input_blocks.7.1": "down_blocks.2.attentions.0",
        "input_blocks.8.1": "down_blocks.2.attentions.1",
        "middle_block.1": "mid_block.attentions.0",
        **{f"output_blocks.{i}.1": f"up_blocks.{i // 3}.attentions.{i % 3}" for i in range(6)},
    }
    return [
        table[name.partition(".transformer")[0]] + ".transformer" + name.partition(".transformer")[2] for name in names
    ]
