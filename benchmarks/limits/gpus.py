"""The GPUs of the model, by their data sheets.

Every figure is the best that its maker claims: no kernel reaches the matrix rate or the bandwidth of a data sheet, and
a launch costs more where the CPU does not keep ahead. A predicted time is therefore a lower estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

_LAUNCHES = (
    "A. Gray, Getting Started with CUDA Graphs, developer.nvidia.com/blog/cuda-graphs, 2019: a kernel of 2.9 µs takes "
    "3.8 µs each where many are launched without waiting, and 3.4 µs each in a graph"
)
_ELSEWHERE = f"none published for this GPU was found; that of a V100 is taken: {_LAUNCHES}"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: of rows and tables.
        target: the architecture that Triton compiles for.
        processors: streaming multiprocessors, or compute units.
        matrix_rate: dense products of fp16 or bf16, added up in fp32, FLOP/s. fp32 is not modelled.
        bandwidth: of the device's memory, B/s.
        launch_cost: what a kernel costs besides its own time, launched from a stream that never runs empty, s.
        graph_cost: the same of a kernel in a CUDA graph, s; ``None`` where nothing is published.
        sources: where each figure comes from, by the attribute's name.
    """

    name: str
    target: str
    processors: int
    matrix_rate: float
    bandwidth: float
    launch_cost: float
    graph_cost: float | None
    sources: dict[str, str]


def _sources(rate: str, memory: str, processors: str, graphs: bool = True) -> dict[str, str]:
    sources = {"matrix_rate": rate, "bandwidth": memory, "processors": processors, "launch_cost": _ELSEWHERE}
    return sources | ({"graph_cost": _ELSEWHERE} if graphs else {})


_A100 = "NVIDIA A100 Tensor Core GPU data sheet (80 GB SXM): FP16 and BF16 Tensor Core 312 TFLOPS, 2,039 GB/s"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet (SXM): FP16 and BF16 Tensor Core 1,979 TFLOPS with sparsity, 3.35 TB/s"
_ADA = "NVIDIA Ada GPU Architecture white paper, appendix A, GeForce RTX 4090"
_MI300X = "AMD Instinct MI300X accelerator data sheet"

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "A100", "sm_80", 108, 312e12, 2.039e12, 0.9e-6, 0.5e-6,
            _sources(_A100, _A100, "NVIDIA A100 Tensor Core GPU Architecture white paper: 108 SMs"),
        ),
        Gpu(
            "H100", "sm_90", 132, 989.4e12, 3.35e12, 0.9e-6, 0.5e-6,
            _sources(f"{_H100}; dense is half of that", _H100,
                     "NVIDIA H100 Tensor Core GPU Architecture white paper: 132 SMs (SXM5)"),
        ),
        Gpu(
            "RTX 4090", "sm_89", 128, 165.2e12, 1.008e12, 0.9e-6, 0.5e-6,
            _sources(f"{_ADA}: peak FP16 and BF16 Tensor TFLOPS with FP32 accumulate 165.2, dense",
                     f"{_ADA}: 1,008 GB/s", f"{_ADA}: 128 SMs"),
        ),
        Gpu(
            "MI300X", "gfx942", 304, 1307.4e12, 5.3e12, 0.9e-6, None,
            _sources(f"{_MI300X}: FP16 and BF16 matrix 1,307.4 TFLOPS, dense", f"{_MI300X}: 5.3 TB/s",
                     f"{_MI300X}: 304 compute units", graphs=False),
        ),
    )
}  # fmt: skip


def gpu_named(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        ValueError: the table has none; names those that it has.
    """
    if name not in GPUS:
        raise ValueError(f"GPU {name!r} is unknown; accepted are {', '.join(GPUS)}")
    return GPUS[name]
