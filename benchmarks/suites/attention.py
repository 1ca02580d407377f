"""K and V of all cross-attention layers of a UNet, which see one text, without the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.baseline import patch, reference_net
from benchmarks.place import Place
from benchmarks.registry import Sides, Way, benchmark


@dataclass(frozen=True)
class Layers:
    """``to_k`` and ``to_v`` of layers with so many channels, over contexts [rows, tokens, width].

    Attributes:
        networks: hypernetworks one after another.
    """

    name: str
    channels: Sequence[int]
    width: int
    tokens: int = 77
    rows: int = 1
    networks: int = 1

    def __str__(self) -> str:
        return self.name


SD15 = Layers("16 layers of SD 1.5", (320,) * 5 + (640,) * 5 + (1280,) * 6, 768)
SD21 = Layers("16 layers of SD 2.1", SD15.channels, 1024)
SDXL = Layers("70 layers of SDXL", (640,) * 10 + (1280,) * 60, 2048)
TINY = Layers("3 layers", (8, 16, 16), 24, tokens=7)
PROVIDERS = ("reference", "eager", "compile", "portable", "triton", "bare")


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

    def __init__(self, channels: Sequence[int] = SD15.channels, width: int = SD15.width) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"layer{i}": nn.ModuleDict({"attn2": _Attention(c, width)}) for i, c in enumerate(channels)}
        )

    def forward(self, encoder_hidden_states: Tensor) -> list[Tensor]:
        return [t for layer in self.layers.values() for t in layer["attn2"](encoder_hidden_states)]


@benchmark("cross-attention", modes=("new prompt", "forward + backward"), providers=PROVIDERS, seconds=5,
           shapes={"cpu": (SD15, SD21), "cuda": (SD15, SD21, SDXL), "interpreter": (TINY,)})  # fmt: skip
def cross_attention(shape: Layers, place: Place, mode: str) -> Sides:
    return sides(shape, place, mode)


@benchmark("cross-attention, kept", modes=("same prompt",), providers=PROVIDERS, seconds=3,
           shapes={"cpu": (SD15,), "cuda": (SD15, SDXL), "interpreter": (TINY,)})  # fmt: skip
def kept(shape: Layers, place: Place, mode: str) -> Sides:
    """From the second denoising step on: hnkernels keeps K and V until the prompt changes."""
    return sides(shape, place, mode)


@benchmark("cross-attention, SDXL", modes=("new prompt",), providers=PROVIDERS, shapes={"cpu": (SDXL,)}, seconds=10,
           rounds=3)  # fmt: skip
def cross_attention_xl(shape: Layers, place: Place, mode: str) -> Sides:
    """On a CPU without what takes Inductor minutes to compile."""
    return sides(shape, place, mode, compiled=False)


def sides(shape: Layers, place: Place, mode: str, compiled: bool = True) -> Sides:
    training = mode == "forward + backward"
    like = place.tensor(0)
    nets = [hn.Hypernetwork((shape.width,), activation="relu") for _ in range(shape.networks)]
    for net in nets:
        net.to(like).train(training).requires_grad_(training)
    model = CrossAttentions(shape.channels, shape.width).to(like).requires_grad_(False)

    def another() -> CrossAttentions:
        """The model once more, on the same weights."""
        with torch.device("meta"):
            copy = CrossAttentions(shape.channels, shape.width)
        copy.load_state_dict(model.state_dict(), assign=True)
        return copy.requires_grad_(False)

    prompt = place.tensor(shape.rows, shape.tokens, shape.width)
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
    ways = {
        "reference": Way(lambda: patched(fresh()), leaves(chains["reference"])),
        "eager": Way(partial(_wide(model, chains["eager"]), fresh), leaves(chains["eager"])),
        place.library: Way(lambda: ours(fresh()), leaves(nets)),
    }
    if not training:  # nothing in it takes a gradient
        ways["bare"] = Way(lambda: model(fresh()))
    if compiled:
        run = torch.compile(theirs("compile"), dynamic=False)
        ways["compile"] = Way(lambda: run(fresh()), leaves(chains["compile"]))
    upstream = [place.tensor(*prompt.shape[:2], c) for c in shape.channels for _ in "kv"] if training else []
    absent = {} if place.library == "triton" else {"triton": "needs a GPU, or TRITON_INTERPRET=1"}
    return Sides(ways, upstream=upstream, absent=absent)


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
