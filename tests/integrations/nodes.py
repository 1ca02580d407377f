"""Nodes of ComfyUI's as the tests call them, and what they are held to."""

from __future__ import annotations

import warnings

import torch

import hnkernels as hn
from hnkernels.integrations.comfyui import NODE_CLASS_MAPPINGS
from tests.models import TEXT_WIDTH, TOKENS, randomise, tiny_unet

NEUTRAL = {"down": 1, "mid": 1, "up": 1, "attn1": 1, "attn2": 1, "k": 1, "v": 1, "table": ""}


def node(name):
    return NODE_CLASS_MAPPINGS[f"Hnkernels{name}"]()


def apply(patcher, net, strength=1.0, **options):
    return node("ApplyHypernetwork").apply(patcher, net, strength, **options)[0]


def where(**given):
    return node("Strengths").strengths(**{**NEUTRAL, **given})[0]


def inputs(rows=2):
    return torch.randn(rows, 4, 4, 4), torch.randn(rows, TOKENS, TEXT_WIDTH)


def attached(patcher, nets, x, context, strengths=(1.0,)):
    """What ``attach`` computes on the patcher's UNet, or on a copy of it that has been changed."""
    unet = patcher.model.diffusion_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        adapters = [hn.attach(unet, net, strength) for net, strength in zip(nets, strengths, strict=True)]
    with torch.no_grad():
        result = unet(x, context)
    for adapter in adapters:
        adapter.detach()
    return result


def weight_net(**options):
    net = hn.WeightHypernetwork(hidden_dim=8, rank=2, styles=("ink", "oil"), model=tiny_unet(), **options)
    randomise(net)
    return net.eval()
