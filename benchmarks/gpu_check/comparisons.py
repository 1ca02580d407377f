"""How fast, against eager PyTorch, ``torch.compile`` and CUDA graphs of each: the benchmarks that say most.

They are those of ``benchmarks/suites``, which check what they time. In a rehearsal their smallest shapes run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.gpu_check.journal import FIGURE, RIGHT, SKIPPED, WRONG, Finding
from benchmarks.gpu_check.session import Session, Task
from benchmarks.measuring import measure
from benchmarks.place import Place
from benchmarks.registry import Case, cases

PHASE = "fast"

SECONDS = 1.5
"""To spend on timing a case. Warming it up, and compiling, comes on top."""

EAGER, WITH_COMPILE = ("reference", "einsum", "triton"), ("reference", "einsum", "compile", "triton")

HEADLINES = (
    ("projection", "320 x 8192", "inference", WITH_COMPILE),
    ("projection", "320 x 4096, silu, LayerNorm", "forward + backward", WITH_COMPILE),
    ("cross-attention", "16 layers of SD 1.5", "new prompt", EAGER),
    ("UNet call", "SD 1.5, 512 px", "new prompt", EAGER),
    ("projection", "1280 x 1024", "forward + backward", EAGER),
    ("projection", "640 x 4096", "inference", EAGER),
    ("lowrank", "320 x 4096, 8 of rank 4", "inference", EAGER),
    ("projection", "640 x 4096", "forward + backward", EAGER),
    ("projection", "1280 x 256", "forward + backward", EAGER),
    ("projection", "768 x 77", "forward + backward", EAGER),
    ("projection", "2048 x 77", "inference", EAGER),
    ("training step", "SD 1.5, 512 px", "training step", EAGER),
)
"""Benchmark, shape, mode, and who is timed; most telling first."""


def tasks(place: Place) -> Iterator[tuple[str, Task]]:
    """One for every headline."""
    known = cases(place)
    for name, shape, mode, providers in HEADLINES:
        what = f"{name}, {mode}, {shape}"
        of_kind = [c for c in known if (c.benchmark.name, c.mode) == (name, mode)]
        chosen = [c for c in of_kind if str(c.shape) == shape] if place.kind == "cuda" else of_kind[:1]
        yield what, partial(_compare, what, chosen, providers)


def _compare(what: str, chosen: list[Case], providers: tuple[str, ...], session: Session) -> Iterator[Finding]:
    if not chosen:
        yield Finding(PHASE, what, SKIPPED, note="needs a GPU")
        return
    if chosen[0].benchmark.name in ("UNet call", "training step") and not importlib.util.find_spec("diffusers"):
        yield Finding(PHASE, what, SKIPPED, note="diffusers is not installed")
        return
    (case,) = chosen
    left = tuple(p for p in case.benchmark.providers if p in providers)
    case = replace(case, benchmark=replace(case.benchmark, providers=left, resident=False))
    measurement = measure(case, session.place, min(SECONDS, session.clock.left_in_phase()))
    wrong = {provider: verdict for provider, verdict in measurement.verdicts.items() if not verdict.green}
    for provider, verdict in wrong.items():
        note = f"{provider} errs by {verdict.error:.1e}, above {verdict.allowed:.1e}"
        yield Finding(PHASE, what, WRONG, note=note)
    for provider, why in measurement.absent.items():
        yield Finding(PHASE, f"{what}: {provider}", SKIPPED, note=why)
    if session.rehearsed and not wrong:
        yield Finding(PHASE, what, RIGHT, note=f"{case.name}: runs; its times mean nothing here")
    if session.rehearsed:
        return
    times = measurement.comparison
    for provider in times.seconds:
        yield Finding(PHASE, f"{what}: {provider}", FIGURE, times.median(provider), "s")
        graph = ", graph" if provider.endswith(", graph") else ""
        ours = f"triton{graph}"
        if provider != ours and ours in times.seconds:
            ratio = times.median(provider) / times.median(ours)
            yield Finding(PHASE, f"{what}: {ours} against {provider}", FIGURE, ratio, "x")
