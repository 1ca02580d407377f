"""A UNet's cross-attention layers together, which see one text; and the whole UNet: a call, 20 steps, a training step.

The weights are random. The networks of whole UNets rewrite contexts of all widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks import shapes
from benchmarks.baselines import patch, reference_net
from benchmarks.cases import AT_MOST, Comparison, Provider, benchmark
from benchmarks.rows import Environment
from benchmarks.shapes import SD15_TEXT, SD21_TEXT, SDXL_TEXT, TINY_TEXT, Layers, UNet, sd15, sd21, sdxl

STEPS = 20
OF_LAYERS = ("reference", "eager", "compile", "portable", "triton", "bare")
OF_UNETS = ("reference", "compile", "portable", "triton", "bare")


class _Attention(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(width, channels, bias=False)
        self.to_v = nn.Linear(width, channels, bias=False)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(context), self.to_v(context)


class CrossAttentions(nn.Module):
    """The projections of all cross-attention layers."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"layer{i}": nn.ModuleDict({"attn2": _Attention(c, width)}) for i, c in enumerate(channels)}
        )

    def forward(self, encoder_hidden_states: Tensor) -> list[Tensor]:
        return [t for layer in self.layers.values() for t in layer["attn2"](encoder_hidden_states)]


@benchmark("cross-attention", modes=("new prompt", "forward + backward"), providers=OF_LAYERS, seconds=5,
           shapes={"cpu": (SD15_TEXT, SD21_TEXT), "cuda": (SD15_TEXT, SD21_TEXT, SDXL_TEXT),
                   "interpreter": (TINY_TEXT,)})  # fmt: skip
def cross_attention(shape: Layers, environment: Environment, mode: str) -> Comparison:
    return over_one_text(shape, environment, mode)


@benchmark("cross-attention, kept", modes=("same prompt",), providers=OF_LAYERS, seconds=3,
           shapes={"cpu": (SD15_TEXT,), "cuda": (SD15_TEXT, SDXL_TEXT), "interpreter": (TINY_TEXT,)})  # fmt: skip
def kept(shape: Layers, environment: Environment, mode: str) -> Comparison:
    """From the second denoising step on: hnkernels keeps K and V until the prompt changes."""
    return over_one_text(shape, environment, mode)


@benchmark("cross-attention, SDXL", modes=("new prompt",), providers=OF_LAYERS, shapes={"cpu": (SDXL_TEXT,)},
           seconds=10, rounds=3)  # fmt: skip
def cross_attention_xl(shape: Layers, environment: Environment, mode: str) -> Comparison:
    """On a CPU without what takes Inductor minutes to compile."""
    return over_one_text(shape, environment, mode, compiled=False)


def over_one_text(shape: Layers, environment: Environment, mode: str, compiled: bool = True) -> Comparison:
    """K and V of all layers over one text by every provider."""
    training = mode == "forward + backward"
    like = environment.tensor(0)
    nets = [hn.Hypernetwork((shape.width,), activation=shape.network.activation) for _ in range(shape.networks)]
    for net in nets:
        net.to(like).train(training).requires_grad_(training)
    model = CrossAttentions(shape.outs, shape.width).to(like).requires_grad_(False)

    def another() -> CrossAttentions:
        """The model once more, on the same weights."""
        with torch.device("meta"):
            copy = CrossAttentions(shape.outs, shape.width)
        copy.load_state_dict(model.state_dict(), assign=True)
        return copy.requires_grad_(False)

    prompt = environment.tensor(shape.rows, shape.tokens, shape.width)
    fresh: Callable[[], Tensor] = prompt.clone if mode == "new prompt" else lambda: prompt
    chains = {
        name: nn.ModuleList(reference_net(net).to(like).requires_grad_(training) for net in nets)
        for name in ("reference", "eager", "compile")
    }

    def theirs(name: str) -> CrossAttentions:
        copy = another()
        for mlps in chains[name]:
            patch(copy, mlps)
        return copy

    def leaves(modules: Iterable[nn.Module]) -> list[Tensor]:
        return [p for module in modules for p in module.parameters()]

    patched, ours = theirs("reference"), another()
    for net in nets:
        hn.attach(ours, net)
    providers = {
        "reference": Provider(lambda: patched(fresh()), leaves(chains["reference"])),
        "eager": Provider(partial(_wide(model, chains["eager"]), fresh), leaves(chains["eager"])),
        environment.library: Provider(lambda: ours(fresh()), leaves(nets)),
    }
    if not training:  # nothing in it takes a gradient
        providers["bare"] = Provider(lambda: model(fresh()))
    if compiled:
        run = torch.compile(theirs("compile"), dynamic=False)
        providers["compile"] = Provider(lambda: run(fresh()), leaves(chains["compile"]))
    upstream = [environment.tensor(*prompt.shape[:2], c) for c in shape.outs for _ in "kv"] if training else []
    return Comparison(providers, upstream=upstream)


def _wide(model: CrossAttentions, chain: nn.ModuleList) -> Callable[[Callable[[], Tensor]], list[Tensor]]:
    """The context rewritten once per stream, then one linear as wide as all layers together."""
    layers = [layer["attn2"] for layer in model.layers.values()]
    weights = [torch.cat([getattr(layer, name).weight for layer in layers]) for name in ("to_k", "to_v")]
    widths = [layer.to_k.out_features for layer in layers]
    pairs = [next(iter(mlps.children())) for mlps in chain]

    def run(fresh: Callable[[], Tensor]) -> list[Tensor]:
        k = v = fresh()
        for mlp_k, mlp_v in pairs:
            k, v = mlp_k(k), mlp_v(v)
        parts = [nn.functional.linear(y, w).split(widths, dim=-1) for y, w in zip((k, v), weights, strict=True)]
        return [t for pair in zip(*parts, strict=True) for t in pair]

    return run


@benchmark("UNet call", modes=("new prompt",), providers=OF_UNETS, seconds=10, rounds=2,
           shapes={"cpu": (sd21(128), sdxl(128)), "cuda": (sd15(512), sd21(768), sdxl(1024)),
                   "interpreter": (shapes.TINY_UNET,)})  # fmt: skip
def call(shape: UNet, environment: Environment, mode: str) -> Comparison:
    providers = _sampling(shape, environment, "relu", every=1)
    if environment.kind == "cuda":
        providers["compile"] = _compiled(shape, environment)
    return Comparison(
        providers, absent={} if environment.kind == "cuda" else {"compile": "takes Inductor minutes on a CPU"}
    )


@benchmark("20 steps", modes=("new prompt",), providers=("reference", "portable", "triton", "text alone", "bare"),
           calls=STEPS, rounds=1, seconds=1,
           shapes={"cpu": (sd15(128),), "cuda": (sd15(512), sd21(768), sdxl(1024))})  # fmt: skip
def sampling(shape: UNet, environment: Environment, mode: str) -> Comparison:
    """Classifier-free guidance. The first step computes what the later ones find; all take each step in turn."""
    return Comparison(_sampling(shape, environment, "relu", every=STEPS), unchecked=("bare", "text alone"))


@benchmark("UNet call, affine", modes=("same prompt",), providers=("reference", "portable", "triton", "bare"),
           seconds=10, shapes={"cpu": (sd15(128),), "cuda": (sd15(512), sdxl(1024))})  # fmt: skip
def fused(shape: UNet, environment: Environment, mode: str) -> Comparison:
    """An affine network inside the projections' weights."""
    return Comparison(_sampling(shape, environment, None, every=0))


@benchmark("training step", modes=("training step",),
           providers=("reference", "portable", "triton", "reference checkpointing", "checkpointing"),
           seconds=10, rounds=3, resident=True,
           shapes={"cpu": (sd15(256, rows=1),), "cuda": (sd15(512, rows=4),)})  # fmt: skip
def training(shape: UNet, environment: Environment, mode: str) -> Comparison:
    """Forward and backward, with and without checkpointing. The web UIs do not freeze the base model."""
    unet = shape.build(environment)
    net = _network(shape, environment, "relu").train().requires_grad_(True)
    mlps = reference_net(net).to(environment.tensor(0)).requires_grad_(True)
    arguments = shape.inputs(environment)

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

    return Comparison(
        {
            "reference": Provider(lambda: theirs(False)),
            environment.library: Provider(lambda: ours(False)),
            "reference checkpointing": Provider(lambda: theirs(True)),
            "checkpointing": Provider(lambda: ours(True)),
        },
        allowed=AT_MOST[environment.dtype],  # rounding decides on which side of many kinks a value is
    )


def _sampling(shape: UNet, environment: Environment, activation: str | None, every: int) -> dict[str, Provider]:
    """One UNet called bare, with a network the web UIs' way, with ours, with one for the text alone.

    Every provider's text is another tensor after ``every`` calls; with 0 it stays the same.
    """
    unet = shape.build(environment)
    network = _network(shape, environment, activation)
    names = {environment.library: hn.attach(unet, network, name="all")}
    if activation is None:
        names[environment.library].fuse()
    else:
        text = _network(shape, environment, activation, sizes=(shape.text_width,))
        names["text alone"] = hn.attach(unet, text, name="text")
    mlps = reference_net(network).to(environment.tensor(0)).requires_grad_(False)
    arguments = shape.inputs(environment)

    def calling(provider: str) -> Provider:
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

        return Provider(run)

    return {name: calling(name) for name in ("reference", *names, "bare")}


def _compiled(shape: UNet, environment: Environment) -> Provider:
    """The web UIs' way under ``torch.compile``, on a UNet of its own."""
    unet = shape.build(environment)
    patch(unet, reference_net(_network(shape, environment, "relu")).to(environment.tensor(0)).requires_grad_(False))
    arguments = shape.inputs(environment)
    run: Callable[..., Any] = torch.compile(unet, dynamic=False)
    return Provider(lambda: run(**arguments).sample)


def _network(
    shape: UNet, environment: Environment, activation: str | None, sizes: tuple[int, ...] | None = None
) -> hn.Hypernetwork:
    net = hn.Hypernetwork(sizes or shape.sizes, activation=activation)
    return net.to(environment.tensor(0)).eval().requires_grad_(False)


def _nothing() -> None:
    pass
