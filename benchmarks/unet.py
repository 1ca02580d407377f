"""A whole UNet of Stable Diffusion 1.5's shape (random weights), 256 px: sampling with a fused network, training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hnkernels as hn
from benchmarks.baseline import patch, reference_net
from benchmarks.result import Result
from benchmarks.timing import interleave

SIZES = (320, 640, 768, 1280)


def build() -> Any:
    """The UNet, with the default configuration of diffusers, which is Stable Diffusion 1.5's, at 256 px."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=32, cross_attention_dim=768)


def inputs(rows: int) -> dict[str, torch.Tensor]:
    """One call's arguments: latents [rows, 4, 32, 32], timesteps, text [rows, 77, 768]."""
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(rows, 4, 32, 32, generator=generator),
        "timestep": torch.full((rows,), 500),
        "encoder_hidden_states": torch.randn(rows, 77, 768, generator=generator),
    }


def run_sampling(steps: int = 20) -> list[Result]:
    """Twenty denoising steps with classifier-free guidance: what a network costs, against what it costs the A1111 way.

    All sides take each step in turn. A first step computes what later ones find; the total is made of both.
    """
    unet = build().eval().requires_grad_(False)
    networks = {"all widths": hn.Hypernetwork(SIZES, activation="relu").eval()}
    networks["768 alone"] = hn.Hypernetwork((768,), activation="relu").eval()
    for name, net in networks.items():
        hn.attach(unet, net, name=name)
    mlps = reference_net(networks["all widths"])

    def side(name: str) -> Callable[[], Tensor]:
        call = inputs(rows=2)  # a prompt of its own, of which K and V are kept

        def run() -> Tensor:
            hn.adapters(unet).set([name] if name in networks else [])
            undo = patch(unet, mlps) if name == "a1111" else lambda: None
            output = unet(**call).sample
            undo()
            return output

        return run

    names = ("bare", "a1111", *networks)
    with torch.no_grad():
        check = {name: side(name)() for name in names}  # the first call of all is nobody's cost
        torch.testing.assert_close(check["all widths"], check["a1111"], rtol=1e-3, atol=1e-3)
        sides = {name: side(name) for name in names}  # new prompts
        first = interleave(sides, 1, warmup=0)
        rest = interleave(sides, steps - 1, warmup=0)
    total = {name: first.median(name) + (steps - 1) * rest.median(name) for name in sides}
    share = (total["all widths"] - total["bare"]) / (total["a1111"] - total["bare"])
    cost = total["768 alone"] / total["bare"]
    a1111 = "what it costs the A1111 way"
    return [
        Result(f"{steps} steps, what a network costs", a1111, share, "x its cost", "≤ 0.7", share <= 0.7, steps),
        Result(
            f"{steps} steps, network for 768 alone", "the UNet without one", cost, "x its time", "≤ 1.01",
            cost <= 1.01, steps,
        ),
    ]  # fmt: skip


def run_fused(rounds: int = 12) -> list[Result]:
    """An affine network inside the projections' weights, against the UNet without one."""
    unet = build().eval()
    adapter = hn.attach(unet, hn.Hypernetwork(SIZES, activation=None).eval())
    adapter.fuse()
    call = inputs(rows=2)

    def bare() -> None:
        adapter.enabled = False
        unet(**call)

    def fused() -> None:
        adapter.enabled = True
        unet(**call)

    with torch.no_grad():
        comparison = interleave({"bare": bare, "fused": fused}, rounds)
    cost = 1 / comparison.speedup("bare", "fused")
    name = "UNet call with an affine network, fused"
    return [Result(name, "the UNet without one", cost, "x its time", "≤ 1.02", cost <= 1.02, rounds)]


def run_training(rounds: int = 5) -> list[Result]:
    """One training step at batch 1, networks at all widths: time, and peak memory in a process of its own each."""
    unet = build()
    steps = {way: make(unet) for way, make in _WAYS.items()}
    comparison = interleave(steps, rounds, warmup=1)
    baseline_peak = _peak("a1111")
    results = []
    for way, label in (("hnkernels", ""), ("hnkernels, checkpointing", ", gradient checkpointing")):
        name, against = f"training step of the UNet, batch 1{label}", "the A1111 way, base not frozen"
        ratio = comparison.speedup("a1111", way)
        saved = (baseline_peak - _peak(way)) / 1e9
        results += [
            Result(name, against, ratio, "x", "≥ 1.5", ratio >= 1.5, rounds),
            Result(f"{name}: peak memory saved", against, saved, "GB", "≥ 3.4", saved >= 3.4, 1),
        ]
    return results


def _a1111(unet: Any) -> Callable[[], None]:
    call, mlps = inputs(rows=1), reference_net(hn.Hypernetwork(SIZES).train())

    def step() -> None:
        unet.requires_grad_(True)
        undo = patch(unet, mlps)
        unet(**call).sample.square().mean().backward()
        undo()
        unet.zero_grad(set_to_none=True)
        mlps.zero_grad(set_to_none=True)

    return step


def _hnkernels(unet: Any, checkpointing: bool = False) -> Callable[[], None]:
    call, net = inputs(rows=1), hn.Hypernetwork(SIZES).train()

    def step() -> None:
        unet.requires_grad_(False)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        with hn.attach(unet, net):
            unet(**call).sample.square().mean().backward()
        unet.disable_gradient_checkpointing()
        net.zero_grad(set_to_none=True)

    return step


_WAYS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "a1111": _a1111,
    "hnkernels": _hnkernels,
    "hnkernels, checkpointing": partial(_hnkernels, checkpointing=True),
}


def _peak(way: str) -> int:
    """Peak resident bytes of two training steps in a fresh process."""
    code = f"from benchmarks.unet import print_peak; print_peak({way!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(way: str) -> None:
    """Prints the peak resident bytes of this process after two steps. Linux only."""
    step = _WAYS[way](build())
    step()
    step()
    # Not getrusage: its figure starts from that of the parent process, which holds a UNet too.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(int(line.split()[1]) * 1024))
