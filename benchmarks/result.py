"""What a benchmark found, and the table of it."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

import torch

_BEGIN, _END = "<!-- benchmarks: written by `make bench` -->", "<!-- /benchmarks -->"


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        benchmark: what was done.
        baseline: what it is compared with.
        figure: the ratio, or another number in ``unit``.
        unit: ``"x"`` for a ratio of medians (above 1: hnkernels is faster), or what else the figure is.
        target: the bound it is held to, as text.
        met: whether it keeps within it.
        rounds: how many interleaved rounds the medians are over.
    """

    benchmark: str
    baseline: str
    figure: float
    unit: str
    target: str
    met: bool
    rounds: int


def machine() -> str:
    """What the figures were measured on."""
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Writes ``cpu.csv`` and ``cpu.md`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in results)
    (folder / "cpu.md").write_text("\n".join(markdown(results)) + "\n", encoding="utf-8")


def update_readme(results: Sequence[Result], readme: Path) -> None:
    """Puts the table between the README's benchmark marks."""
    replace_between(readme, _BEGIN, _END, markdown(results))


def replace_between(file: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Puts lines between two marks of a text file."""
    before, rest = file.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    text = "\n".join(lines)
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def markdown(results: Iterable[Result]) -> list[str]:
    """The table as lines of Markdown."""
    lines = [
        f"Measured on {date.today().isoformat()}: {machine()}. Ratios of medians, sides interleaved in one process.",
        "",
        "| benchmark | against | figure | target | met |",
        "| --- | --- | --- | --- | --- |",
    ]
    for r in results:
        lines.append(
            f"| {r.benchmark} | {r.baseline} | {r.figure:.2f} {r.unit} | {r.target} | {'yes' if r.met else 'no'} |"
        )
    return lines
