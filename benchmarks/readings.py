"""What the machine code of a shape's launches says: read from what was compiled, not measured.

Every launch of the plan is looked up in ``benchmarks/results/compiled.csv``, by target, kernel, form, tiles and dtype;
of several readings that agree in these the lowest counts. What is not there is ``"not compiled"``. The share of matrix
instructions says nothing across architectures: one ``wgmma`` does the work of dozens of ``mma``.

Besides, for every product: the bytes that its loads keep in flight on one multiprocessor,

    resident programs · (stages − 1) · bytes of both operands' tiles,

where as many programs are resident as registers, shared memory and the launch's own number of them allow, and a
pipeline of n stages works on one of them while n − 1 are being loaded. By Little's law these bytes cover a latency of

    bytes in flight · multiprocessors / bandwidth

at the full bandwidth: where the memory answers later than that, the bandwidth is not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.accounting import named
from benchmarks.compilation import Configuration, configuration
from benchmarks.counting import work
from benchmarks.roofline import SUMMED, Gpu, compiled_lines
from benchmarks.rows import Row
from benchmarks.shapes import Shape
from hnkernels.triton import vendor
from hnkernels.triton.cards import occupancy, resident
from hnkernels.triton.launch import capturing, recording
from hnkernels.triton.target import TARGETS, planned_for

_ELEMENT = 2


@dataclass(frozen=True)
class Reading:
    """One launch.

    Attributes:
        kernel, variant, tiles: what is launched.
        programs: how many.
        matrix_share: of matrix instructions among those of the main loop; ``None`` if there are no products.
        occupancy: share of the warps that fit at once.
        in_flight: bytes per multiprocessor; ``None`` if there are no products.
        covered: the latency that these cover at full bandwidth, s.
        found: whether it has been compiled; if not, the figures are ``None``.
    """

    kernel: str
    variant: str
    tiles: str
    programs: int
    matrix_share: float | None
    occupancy: float | None
    in_flight: int | None
    covered: float | None
    found: bool


def readings(shape: Shape, mode: str, gpu: Gpu) -> list[Reading]:
    """The launches of our kernels at a shape, at ``"inference"`` or ``"forward + backward"``, on a GPU."""
    target, training = TARGETS[gpu.target], mode != "inference"
    with planned_for(target), torch.set_grad_enabled(training):
        run = work(shape, "triton", training).run
        run()  # folds, composes and casts what is kept from then on
        with recording() as launches, capturing() as calls:
            results = run()
            if training:
                torch.autograd.backward(list(results), [torch.empty_like(t) for t in results])
    programs = [launch.programs for launch in launches if not launch.kernel.startswith(vendor.PREFIX)]
    return [_reading(configuration(call, target), count, gpu) for call, count in zip(calls, programs, strict=True)]


def rows(shape: Shape, mode: str, found: Sequence[Reading], gpu: Gpu) -> list[Row]:
    """The figures of launches that have been compiled; a quantity begins with the launch's number and kernel."""
    listed = []
    benchmark, size = named(shape)
    for number, reading in enumerate(found, 1):
        figures = {
            "matrix share": (reading.matrix_share, "1"),
            "occupancy": (reading.occupancy, "1"),
            "bytes in flight": (reading.in_flight, "B"),
            "latency covered": (reading.covered, "s"),
        }
        for name, (value, unit) in figures.items():
            if value is not None:
                quantity = f"{number} {reading.kernel}: {name}"
                what = ("compiled", benchmark, mode, size, "fp16", "triton", quantity)
                listed.append(Row(*what, float(value), unit, target=gpu.name))
    return listed


def _reading(config: Configuration, programs: int, gpu: Gpu) -> Reading:
    what = (config.name.removesuffix("_kernel"), config.variant, config.tiles, programs)
    found = compiled_lines().get((config.target.name, config.name, config.variant, config.tiles, config.dtype), [])
    if not found:
        return Reading(*what, None, None, None, None, False)
    shares = [
        occupancy(config.target, int(line["registers"]), int(line["shared_bytes"]), config.warps) for line in found
    ]
    share = min(shares)
    if not config.is_product:
        return Reading(*what, None, share, None, None, True)
    matrix = min(int(line["matrix_percent"]) for line in found) / 100
    fit = min(
        resident(config.target, int(line["registers"]), int(line["shared_bytes"]), config.warps) for line in found
    )
    in_flight = (
        min(fit, -(-programs // gpu.processors)) * (dict(config.options)["num_stages"] - 1) * _step_bytes(config)
    )
    return Reading(*what, matrix, share, in_flight, in_flight * gpu.processors / gpu.bandwidth, True)


def _step_bytes(config: Configuration) -> int:
    """Of both operands' tiles in one step of the main loop."""
    m, n, k = (config.constant(f"BLOCK_{axis}") for axis in "MNK")
    n = n or config.constant("BLOCK_R")  # a product whose columns are ranks
    if config.name == "hidden_and_projection_kernel":  # its own rows stay, and both products' weights are loaded
        return _ELEMENT * 2 * k * (n + n // 4)
    return _ELEMENT * (m * (n + k) if config.name in SUMMED else k * (m + n))
