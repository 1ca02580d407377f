"""A whole UNet (random weights): one call, twenty denoising steps, a training step; networks at all widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hnkernels as hn
from benchmarks.baseline import patch, reference_net
from benchmarks.checking import AT_MOST
from benchmarks.place import Place
from benchmarks.registry import Sides, Way, benchmark
from benchmarks.suites.models import TINY, Model, sd15, sd21, sdxl

STEPS = 20
PROVIDERS = ("reference", "compile", "portable", "triton", "bare")


@benchmark("UNet call", modes=("new prompt",), providers=PROVIDERS, seconds=10, rounds=2,
           shapes={"cpu": (sd21(128), sdxl(128)), "cuda": (sd15(512), sd21(768), sdxl(1024)),
                   "interpreter": (TINY,)})  # fmt: skip
def call(shape: Model, place: Place, mode: str) -> Sides:
    ways = _sampling(shape, place, "relu", every=1)
    if place.kind == "cuda":
        ways["compile"] = _compiled(shape, place)
    return Sides(ways, absent={} if place.kind == "cuda" else {"compile": "takes Inductor minutes on a CPU"})


@benchmark("20 steps", modes=("new prompt",), providers=("reference", "portable", "triton", "text alone", "bare"),
           calls=STEPS, rounds=1, seconds=1,
           shapes={"cpu": (sd15(128),), "cuda": (sd15(512), sd21(768), sdxl(1024))})  # fmt: skip
def sampling(shape: Model, place: Place, mode: str) -> Sides:
    """Classifier-free guidance. The first step computes what the later ones find; all ways take each step in turn."""
    return Sides(_sampling(shape, place, "relu", every=STEPS), unchecked=("bare", "text alone"))


@benchmark("UNet call, affine", modes=("same prompt",), providers=("reference", "portable", "triton", "bare"),
           seconds=10, shapes={"cpu": (sd15(128),), "cuda": (sd15(512), sdxl(1024))})  # fmt: skip
def fused(shape: Model, place: Place, mode: str) -> Sides:
    """An affine network inside the projections' weights."""
    return Sides(_sampling(shape, place, None, every=0))


@benchmark("training step", modes=("training step",),
           providers=("reference", "portable", "triton", "reference checkpointing", "checkpointing"),
           seconds=10, rounds=3, resident=True,
           shapes={"cpu": (sd15(256, rows=1),), "cuda": (sd15(512, rows=4),)})  # fmt: skip
def training(shape: Model, place: Place, mode: str) -> Sides:
    """Forward and backward, with and without checkpointing. The web UIs do not freeze the base model."""
    unet = shape.build(place)
    net = _network(shape, place, "relu").train().requires_grad_(True)
    mlps = reference_net(net).to(place.tensor(0)).requires_grad_(True)
    arguments = shape.inputs(place)

    def step(parameters: list[Tensor]) -> list[Tensor | None]:
        unet(**arguments).sample.float().norm().backward()
        gradients = [p.grad for p in parameters]
        for module in (unet, net, mlps):
            module.zero_grad(set_to_none=True)
        return gradients

    def theirs(checkpointing: bool) -> list[Tensor | None]:
        unet.requires_grad_(True)
        undo = patch(unet, mlps)
        gradients = checkpointed(list(mlps.parameters()), checkpointing)
        undo()
        unet.requires_grad_(False)
        return gradients

    def ours(checkpointing: bool) -> list[Tensor | None]:
        with hn.attach(unet, net):
            return checkpointed(list(net.parameters()), checkpointing)

    def checkpointed(parameters: list[Tensor], checkpointing: bool) -> list[Tensor | None]:
        if checkpointing:
            unet.enable_gradient_checkpointing()
        gradients = step(parameters)
        unet.disable_gradient_checkpointing()
        return gradients

    return Sides(
        {
            "reference": Way(lambda: theirs(False)),
            place.library: Way(lambda: ours(False)),
            "reference checkpointing": Way(lambda: theirs(True)),
            "checkpointing": Way(lambda: ours(True)),
        },
        allowed=AT_MOST[place.dtype],  # rounding decides on which side of many kinks a value is
    )


def _sampling(shape: Model, place: Place, activation: str | None, every: int) -> dict[str, Way]:
    """Ways to call one UNet: bare, with a network the web UIs' way, with ours, with one for the text alone.

    Every way's text is another tensor after ``every`` calls; with 0 it stays the same.
    """
    unet = shape.build(place)
    network = _network(shape, place, activation)
    names = {place.library: hn.attach(unet, network, name="all")}
    if activation is None:
        names[place.library].fuse()
    else:
        text = _network(shape, place, activation, sizes=(shape.text_width,))
        names["text alone"] = hn.attach(unet, text, name="text")
    mlps = reference_net(network).to(place.tensor(0)).requires_grad_(False)
    arguments = shape.inputs(place)

    def way(provider: str) -> Way:
        own = {**arguments, "encoder_hidden_states": arguments["encoder_hidden_states"].clone()}
        count = 0

        def run() -> Tensor:
            nonlocal count
            if every and count % every == 0:
                own["encoder_hidden_states"] = own["encoder_hidden_states"].clone()
            count += 1
            for name, adapter in names.items():
                adapter.enabled = name == provider
            undo = patch(unet, mlps) if provider == "reference" else _nothing
            output = unet(**own).sample
            undo()
            return output

        return Way(run)

    return {name: way(name) for name in ("reference", *names, "bare")}


def _compiled(shape: Model, place: Place) -> Way:
    """The web UIs' way under ``torch.compile``, on a UNet of its own."""
    unet = shape.build(place)
    patch(unet, reference_net(_network(shape, place, "relu")).to(place.tensor(0)).requires_grad_(False))
    arguments = shape.inputs(place)
    run: Callable[..., Any] = torch.compile(unet, dynamic=False)
    return Way(lambda: run(**arguments).sample)


def _network(
    shape: Model, place: Place, activation: str | None, sizes: tuple[int, ...] | None = None
) -> hn.Hypernetwork:
    net = hn.Hypernetwork(sizes or shape.sizes, activation=activation)
    return net.to(place.tensor(0)).eval().requires_grad_(False)


def _nothing() -> None:
    pass
