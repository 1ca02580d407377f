"""What the model predicts against what the GPU takes, kernel by kernel, and how far the model is off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks.accounting.cases import Network
from benchmarks.gpu_check.journal import FIGURE, SKIPPED, Finding
from benchmarks.gpu_check.session import Session, Task
from benchmarks.limits import stricter
from benchmarks.limits.gpus import Gpu
from hnkernels import explain, hyper_kv
from hnkernels.triton import vendor
from hnkernels.triton.cards import CARDS
from hnkernels.triton.cost import LAUNCH
from hnkernels.triton.launch import Launch
from hnkernels.triton.target import TARGETS, Target, target_of

PHASE = "predicted"

SHAPES = (
    (320, 4096, 320, Network("relu")), (1280, 1024, 1280, Network("silu")), (640, 4096, 640, Network("silu", True)),
    (768, 77, 1280, Network("relu")),
)  # fmt: skip
"""Width, tokens, columns of the projections, and the network."""

ROUNDS = 20

LIBRARY = "the vendor's library"


def tasks() -> Iterator[tuple[str, Task]]:
    """A training step and a call at inference of every shape."""
    for width, tokens, n, network in SHAPES:
        for training in (True, False):
            what = f"{width} x {tokens}, {network.name}, {'training' if training else 'inference'}"
            yield what, partial(_predict, what, width, tokens, n, network, training)


def _predict(
    what: str, width: int, tokens: int, n: int, network: Network, training: bool, session: Session
) -> Iterator[Finding]:
    target = TARGETS["sm_80"] if session.rehearsed else target_of(session.place.device)
    if target.name not in TARGETS:
        yield Finding(PHASE, what, SKIPPED, note=f"the model does not know {target.name}")
        return
    # Planned without data: those of a backward pass on a GPU are made in a thread where nobody would note them.
    told = explain(*network.mlps(width), tokens=tokens, out_features=n, training=training, target=target.name)
    modelled = predicted(told.launches, target)
    if session.rehearsed:
        for name, seconds in modelled.items():
            yield Finding(PHASE, f"{what}: {name}", FIGURE, seconds, "s", "modelled; needs a GPU to be compared")
        return
    mlps = [mlp.to_empty(device="cuda").half().train(training) for mlp in network.mlps(width)]
    for p in (p for mlp in mlps for p in mlp.parameters()):
        torch.nn.init.normal_(p, std=width**-0.5)
    x = session.place.tensor(1, tokens, width).half().requires_grad_(training)
    w = [session.place.tensor(n, width, scale=width**-0.5).half() for _ in "kv"]

    def run() -> None:
        results = hyper_kv(x, *mlps, *w, backend="triton")
        if training:
            torch.autograd.backward(results, [torch.ones_like(t) for t in results])

    with torch.set_grad_enabled(training):
        for _ in range(3):
            run()
        found = measured(run, set(modelled))
    for name, seconds in modelled.items():
        if name in found:
            note = f"measured {found[name] * 1e6:.1f} µs, modelled {seconds * 1e6:.1f}"
            yield Finding(PHASE, f"{what}: {name}", FIGURE, found[name] / seconds, "x modelled", note)
    if not found:
        yield Finding(PHASE, what, SKIPPED, note="the profiler sees no kernels here")


def predicted(launches: Sequence[Launch], target: Target) -> dict[str, float]:
    """Seconds by kernel, all its launches together; without what a launch costs besides."""
    card = CARDS[target.name]
    gpu = Gpu(
        target.name, target.name, target.processors, card.matrix_rate, card.bandwidth, LAUNCH, None, {}
    )  # fmt: skip
    seconds: Counter[str] = Counter()
    for launch in launches:
        name = LIBRARY if launch.kernel.startswith(vendor.PREFIX) else launch.kernel
        seconds[name] += stricter.launch_seconds(launch, gpu)
    return dict(seconds)


def measured(run: Callable[[], None], kernels: set[str]) -> dict[str, float]:
    """Seconds by kernel of one run, by the profiler; what is not among these kernels is the library's and PyTorch's."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(ROUNDS):
            run()
        torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    for event in profile.key_averages():
        time = getattr(event, "self_device_time_total", 0) * 1e-6 / ROUNDS
        if time > 0:
            seconds[event.key if event.key in kernels else LIBRARY] += time
    return dict(seconds)
