"""The one schema of every figure, and the environment that figures are found in.

A ``Row`` says what was done by whom, what it came to, and how that is known; a ``Line`` holds a figure against what is
promised. An ``Environment`` is a device with the dtype of what runs there.
"""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from hnkernels.triton.support import HAS_TRITON, interpreting

RESULTS = Path(__file__).with_name("results")
"""A folder of rows for every machine, and ``any`` for what is the same on all."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
THREADS = 2
"""On a CPU; what the table was measured with can be had on any machine."""

KINDS = ("measured", "counted", "compiled", "modelled")
"""Timed on the machine; exact on any machine; read from compiled code; computed from counts and data sheets."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        kind: how it is known, one of ``KINDS``.
        benchmark: what was done: ``"projection"``, ``"lowrank"``, ``"unet"`` …
        mode: which part of it: ``"forward"``, ``"backward"``, ``"forward + backward"``, ``"inference"`` …
        shape: the name of the shape: ``"320 x 4096"``.
        dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``.
        provider: who did it: ``"reference"``, ``"eager"``, ``"compile"``, ``"portable"``, ``"triton"``, ``"bound"`` …
        quantity: ``"time"``, ``"launches"``, ``"flops"``, ``"bytes"``, ``"saved"``, ``"peak"`` …
        value: in ``unit``; of timings the median.
        unit: ``"s"``, ``"B"``, ``"FLOP"``, ``"FLOP/s"``, ``"B/s"``, ``"1"``.
        low, high: quartiles of a timing; elsewhere the value.
        samples: over how many rounds.
        target: what a modelled or compiled figure is for: ``"A100"``; else empty.
        machine, versions, date: where, with what and when the command ran that printed it.
    """

    kind: str
    benchmark: str
    mode: str
    shape: str
    dtype: str
    provider: str
    quantity: str
    value: float
    unit: str
    low: float = float("nan")
    high: float = float("nan")
    samples: int = 1
    target: str = ""
    machine: str = "any"
    versions: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; accepted are {', '.join(KINDS)}")
        if self.low != self.low:  # nan
            object.__setattr__(self, "low", self.value)
            object.__setattr__(self, "high", self.value)


@dataclass(frozen=True)
class Line:
    """A figure held against a target, as a line of a table.

    Attributes:
        text: what was done.
        against: what it is compared with.
        figure: in ``unit``.
        unit: ``"x"`` is a ratio of medians; ``"GB"``, ``"µs more"``, ``"calls"`` …
        at_most, at_least: the target; neither where there is only a figure.
        digits: after the point; what suits the unit if not given.
    """

    text: str
    against: str
    figure: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    digits: int | None = None

    def __str__(self) -> str:
        digits = {"x": 3, "µs more": 2, "calls": 0}.get(self.unit, 1) if self.digits is None else self.digits
        target, met = "none", "–"
        if self.at_least is not None:
            target, met = f"≥ {self.at_least:g}", "yes" if self.figure >= self.at_least else "no"
        elif self.at_most is not None:
            target, met = f"≤ {self.at_most:g}", "yes" if self.figure <= self.at_most else "no"
        return f"| {self.text} | {self.against} | {self.figure:.{digits}f} {self.unit} | {target} | {met} |"


def table(lines: Iterable[Line], what: str = "benchmark") -> list[str]:
    """As lines of Markdown; ``what`` is above the first column."""
    return [f"| {what} | against | figure | target | met |", "| --- | --- | --- | --- | --- |", *map(str, lines)]


def write(rows: Iterable[Row], file: Path) -> None:
    """Writes a CSV of these rows, in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read(file: Path) -> list[Row]:
    """The rows of a CSV that ``write`` made.

    Raises:
        ValueError: it has other columns, with their names.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        expected = [f.name for f in fields(Row)]
        if reader.fieldnames != expected:
            raise ValueError(f"{file} has the columns {reader.fieldnames}; expected are {expected}: run it again")
        return [_parse(line) for line in reader]


def select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def stamped(rows: Sequence[Row], machine: str, versions: str, date: str) -> list[Row]:
    """The rows with where, with what and when."""
    return [replace(row, machine=machine, versions=versions, date=date) for row in rows]


def _parse(line: dict[str, str]) -> Row:
    numbers = {name: float(line[name]) for name in ("value", "low", "high")}
    return Row(**{**line, **numbers, "samples": int(line["samples"])})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Environment:
    """A device to run on.

    Attributes:
        kind: ``"cpu"``, ``"cuda"``, or ``"interpreter"``: CPU tensors, with the kernels in Triton's interpreter.
        dtype: of the networks and their inputs: a key of ``DTYPES``.
    """

    kind: str
    dtype: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.kind == "cuda" else "cpu")

    @property
    def library(self) -> str:
        """The provider that ``backend="auto"`` is here."""
        return "portable" if self.kind == "cpu" else "triton"

    @property
    def name(self) -> str:
        """Of the folder for its results: ``"amd-epyc-2-threads"``, ``"nvidia-h100-80gb-hbm3"``."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.machine.lower()).split())

    @property
    def machine(self) -> str:
        """What its maker calls it; of a CPU with the threads that are used."""
        return torch.cuda.get_device_name() if self.kind == "cuda" else f"{_cpu()}, {THREADS} threads"

    def tensor(self, *shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
        """Normally distributed numbers."""
        values = torch.randn(shape, device=self.device) * scale
        return values.to(DTYPES[self.dtype]).requires_grad_(grad)


def here(device: str = "cpu", dtype: str | None = None) -> Environment:
    """The environment that a command is to run in.

    Raises:
        ValueError: there is no such device here, or the dtype is unknown.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; accepted are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for and PyTorch finds no CUDA or ROCm device here; `make bench` runs on the CPU"
        )
    if device == "cuda" and interpreting():
        raise ValueError("TRITON_INTERPRET=1 is set, and the interpreter takes CPU tensors; unset it to run on a GPU")
    dtype = dtype or ("fp16" if device == "cuda" else "fp32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; accepted are {', '.join(DTYPES)}")
    return Environment("interpreter" if device == "cpu" and interpreting() else device, dtype)


def versions() -> str:
    """Of what the figures depend on: ``"hnkernels 0.1.0, torch 2.13.0+cpu, triton 3.9.0, Python 3.11.9"``."""
    import hnkernels

    words = [f"hnkernels {hnkernels.__version__}", f"torch {torch.__version__}"]
    words += [f"triton {version('triton')}"] if HAS_TRITON else []
    return ", ".join([*words, f"Python {platform.python_version()}"])


def today() -> str:
    return date.today().isoformat()


def _cpu() -> str:
    """The model's name where the system tells it, else the architecture's."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"
