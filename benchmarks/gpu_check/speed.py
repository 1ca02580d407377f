"""How fast it is: against eager PyTorch, ``torch.compile`` and CUDA graphs of each; whether the model was right; and
whether the tiles and the route that it chooses are the fastest here.

The comparisons are the benchmarks of this folder, which are checked before they are timed. In a rehearsal the smallest
shapes run.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.cases import Case, cases
from benchmarks.gpu_check import FIGURE, RIGHT, SKIPPED, WRONG, Finding, Session, Task
from benchmarks.measuring import cpu_seconds, measure
from benchmarks.roofline import gpu_of, launch_seconds, tiles_text
from benchmarks.rows import Environment
from benchmarks.shapes import FIRST_TEXTS, PAIR, SAMPLES_ON_GPU, SD15, SD15_TEXT, SDXL, TEXTS, Layers, Network, sd15
from hnkernels import explain, hyper_kv
from hnkernels.triton import autotune, vendor
from hnkernels.triton.cost import FIRST_LOAD, LAUNCH
from hnkernels.triton.kernels import linear, weight_gradient  # noqa: F401  # say how their products are timed
from hnkernels.triton.launch import Launch
from hnkernels.triton.route import by_library
from hnkernels.triton.target import TARGETS, Target, target_of
from hnkernels.triton.tiling import PRODUCTS, by_model, modelled, proven

FAST, PREDICTED, TUNED = "fast", "predicted", "tuned"
"""The phases."""

SECONDS = 1.5
"""To spend on timing a case. Warming it up, and compiling, comes on top."""

EAGER, WITH_COMPILE = ("reference", "einsum", "triton"), ("reference", "einsum", "compile", "triton")

HEADLINES: tuple[tuple[str, Any, str, tuple[str, ...]], ...] = (
    ("projection", PAIR, "inference", WITH_COMPILE),
    ("projection", SD15[0].of(Network("silu", True)), "forward + backward", WITH_COMPILE),
    ("cross-attention", SD15_TEXT, "new prompt", EAGER),
    ("UNet call", sd15(512), "new prompt", EAGER),
    ("projection", SDXL[1], "forward + backward", EAGER),
    ("projection", SDXL[0], "inference", EAGER),
    ("lowrank", SAMPLES_ON_GPU[0], "inference", EAGER),
    ("projection", SDXL[0], "forward + backward", EAGER),
    ("projection", SD15[2], "forward + backward", EAGER),
    ("projection", FIRST_TEXTS[0], "forward + backward", EAGER),
    ("projection", FIRST_TEXTS[2], "inference", EAGER),
    ("training step", sd15(512, rows=4), "training step", EAGER),
)
"""Benchmark, shape, mode, and who is timed; most telling first."""

COMPARED_WITH_MODEL = (SD15[0], SDXL[1].of(Network("silu")), SDXL[0].of(Network("silu", True)), TEXTS[0])
"""Shapes at which the model's prediction is compared with what is measured."""

ROUNDS = 20

LIBRARY = "the vendor's library"

TUNED_PRODUCTS = (
    *((s.tokens, 2 * s.width, s.width) for s in (SD15[0], SD15[1], SDXL[1], SDXL[0])),
    (TEXTS[0].tokens, 1280, TEXTS[0].width), (PAIR.tokens, 2 * PAIR.width, PAIR.width),
)  # fmt: skip
"""M, N and K of products, as ``tiling`` has them: first linears, and the projection of a prompt."""

KINDS = {"forward": "linear", "backward": "backward", "gradient": "gradient"}


def comparisons(environment: Environment) -> Iterator[tuple[str, Task]]:
    """One for every headline."""
    known = cases(environment)
    for name, shape, mode, providers in HEADLINES:
        what = f"{name}, {mode}, {shape}"
        of_kind = [c for c in known if (c.benchmark.name, c.mode) == (name, mode)]
        chosen = [c for c in of_kind if c.shape == shape] if environment.kind == "cuda" else of_kind[:1]
        yield what, partial(_compare, what, chosen, providers)


def _compare(what: str, chosen: list[Case], providers: tuple[str, ...], session: Session) -> Iterator[Finding]:
    if not chosen:
        yield Finding(FAST, what, SKIPPED, note="needs a GPU")
        return
    if chosen[0].benchmark.name in ("UNet call", "training step") and not importlib.util.find_spec("diffusers"):
        yield Finding(FAST, what, SKIPPED, note="diffusers is not installed")
        return
    (case,) = chosen
    left = tuple(p for p in case.benchmark.providers if p in providers)
    case = replace(case, benchmark=replace(case.benchmark, providers=left, resident=False))
    measurement = measure(case, session.environment, min(SECONDS, session.clock.left_in_phase()))
    wrong = {provider: verdict for provider, verdict in measurement.verdicts.items() if not verdict.green}
    for provider, verdict in wrong.items():
        note = f"{provider} errs by {verdict.error:.1e}, above {verdict.allowed:.1e}"
        yield Finding(FAST, what, WRONG, note=note)
    for provider, why in measurement.absent.items():
        yield Finding(FAST, f"{what}: {provider}", SKIPPED, note=why)
    if session.rehearsed and not wrong:
        yield Finding(FAST, what, RIGHT, note=f"{case.name}: runs; its times mean nothing here")
    if session.rehearsed:
        return
    times = measurement.timings
    for provider in times.seconds:
        yield Finding(FAST, f"{what}: {provider}", FIGURE, times.median(provider), "s")
        graph = ", graph" if provider.endswith(", graph") else ""
        ours = f"triton{graph}"
        if provider != ours and ours in times.seconds:
            ratio = times.median(provider) / times.median(ours)
            yield Finding(FAST, f"{what}: {ours} against {provider}", FIGURE, ratio, "x")


def predictions() -> Iterator[tuple[str, Task]]:
    """A training step and a call at inference of every shape."""
    for shape in COMPARED_WITH_MODEL:
        for training in (True, False):
            mode = "training" if training else "inference"
            what = f"{shape.width} x {shape.tokens}, {shape.network.name}, {mode}"
            yield what, partial(_predict, what, shape, training)


def _predict(what: str, shape: Layers, training: bool, session: Session) -> Iterator[Finding]:
    width, tokens, (n,), network = shape.width, shape.tokens, shape.outs, shape.network
    target = TARGETS["sm_80"] if session.rehearsed else target_of(session.environment.device)
    if target.name not in TARGETS:
        yield Finding(PREDICTED, what, SKIPPED, note=f"the model does not know {target.name}")
        return
    # Planned without data: those of a backward pass on a GPU are made in a thread where nobody would note them.
    told = explain(*network.mlps(width), tokens=tokens, out_features=n, training=training, target=target.name)
    modelled = predicted(told.launches, target)
    if session.rehearsed:
        for name, seconds in modelled.items():
            yield Finding(PREDICTED, f"{what}: {name}", FIGURE, seconds, "s", "modelled; needs a GPU to be compared")
        return
    mlps = [mlp.to_empty(device="cuda").half().train(training) for mlp in network.mlps(width)]
    for p in (p for mlp in mlps for p in mlp.parameters()):
        torch.nn.init.normal_(p, std=width**-0.5)
    x = session.environment.tensor(1, tokens, width).half().requires_grad_(training)
    w = [session.environment.tensor(n, width, scale=width**-0.5).half() for _ in "kv"]

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
            yield Finding(PREDICTED, f"{what}: {name}", FIGURE, found[name] / seconds, "x modelled", note)
    if not found:
        yield Finding(PREDICTED, what, SKIPPED, note="the profiler sees no kernels here")


def predicted(launches: Sequence[Launch], target: Target) -> dict[str, float]:
    """Seconds by kernel, all its launches together; without what a launch costs besides."""
    gpu = gpu_of(target.name, target.name, None, {})
    seconds: Counter[str] = Counter()
    for launch in launches:
        name = LIBRARY if launch.kernel.startswith(vendor.PREFIX) else launch.kernel
        seconds[name] += launch_seconds(launch, gpu)
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


def tunings(environment: Environment) -> Iterator[tuple[str, Task]]:
    """Every product of every shape; in the interpreter of a small one."""
    for shape in TUNED_PRODUCTS if environment.kind == "cuda" else ((20, 16, 16),):
        for product in PRODUCTS:
            what = f"{product} {' x '.join(map(str, shape))}"
            yield what, partial(_tune, what, product, *shape)


def _tune(what: str, product: str, M: int, N: int, K: int, session: Session) -> Iterator[Finding]:
    target, dtype = target_of(session.environment.device), torch.float16
    timer: autotune.Timer = (lambda run: cpu_seconds([run])) if session.rehearsed else autotune.median_seconds
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, HNKERNELS_CACHE=folder):
        found = autotune.tune(product, M, N, K, dtype, target, timer)
    yield Finding(TUNED, f"{what}: fastest", FIGURE, found.kernel, "s", tiles_text(found.tiles))
    yield Finding(TUNED, f"{what}: the vendor's library", FIGURE, found.library, "s")
    yield from _against_the_model(what, KINDS[product], (M, N, K), found, target)


def _against_the_model(
    what: str, kind: str, shape: tuple[int, int, int], found: autotune.Measured, target: Target
) -> Iterator[Finding]:
    chosen = by_model(kind, *shape, target)
    if chosen is None:
        yield Finding(TUNED, f"{what}: by the model", SKIPPED, note=f"it has no tiles for {target.name}")
        return
    here = LAUNCH + FIRST_LOAD
    M, N, K = shape
    multiplied = (N, K, M) if kind == "gradient" else shape
    for who, seconds, predicted in (
        ("fastest tiles", found.kernel, here + modelled(kind, found.tiles, *shape, target)),
        ("the vendor's library", found.library, by_library([multiplied] * 2, target)),
    ):
        yield Finding(TUNED, f"{what}: {who}, measured / modelled", FIGURE, seconds / predicted, "x")
    same = "the same" if chosen == found.tiles else f"{tiles_text(chosen)} instead of {tiles_text(found.tiles)}"
    fit = len(proven(target.name).get(kind, {}))
    yield Finding(TUNED, f"{what}: by the model", FIGURE, note=f"{same}, of {fit}")
