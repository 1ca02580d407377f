"""The page that a check leaves: ``gpu-check.md``, one file to read and to send. Rewritten after every finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from benchmarks.gpu_check.journal import FIGURE, RIGHT, SKIPPED, WRONG, Finding

NAME = "gpu-check.md"

TITLES = {
    "machine": "The machine",
    "right": "Is it right?",
    "fast": "How fast is it?",
    "predicted": "Is the model right?",
    "tuned": "Are the tiles the fastest?",
}


def write(findings: Sequence[Finding], folder: Path, ended: bool) -> None:
    """Writes the page; a reader never sees half of one."""
    temporary = folder / f".{NAME}"
    temporary.write_text("\n".join(lines(findings, ended)) + "\n", encoding="utf-8")
    temporary.replace(folder / NAME)


def lines(findings: Sequence[Finding], ended: bool) -> list[str]:
    """The page: what it comes to, then phase by phase, then every finding as CSV for whoever counts."""
    wrong = [f for f in findings if f.outcome == WRONG]
    right = sum(f.outcome == RIGHT for f in findings)
    skipped = sum(f.outcome == SKIPPED for f in findings)
    verdict = f"**{len(wrong)} wrong**" if wrong else "nothing wrong"
    page = ["# hnkernels on a GPU", ""]
    page.append(f"{verdict}, {right} right, {skipped} skipped{'' if ended else '; the check was not over yet'}.")
    page += ["", *(f"- wrong: {f.phase}: {f.what}: {f.note}" for f in wrong)]
    for phase in dict.fromkeys(f.phase for f in findings):
        page += [
            "",
            f"## {TITLES.get(phase, phase)}",
            "",
            "| what | outcome | value | note |",
            "| --- | --- | --- | --- |",
        ]
        page += [
            f"| {f.what} | {'' if f.outcome == FIGURE else f.outcome} | {value(f)} | {_cell(f.note)} |"
            for f in findings
            if f.phase == phase
        ]
    page += ["", "## All of it, as CSV", "", "```"]
    page += [",".join(f'"{str(v).replace(chr(34), chr(39))}"' for v in astuple(f)).replace("\n", " ") for f in findings]
    return [*page, "```"]


def value(finding: Finding) -> str:
    """With its unit, in figures that can be read."""
    v, unit = finding.value, finding.unit
    if v != v:
        return ""
    if unit == "s":
        return f"{v * 1e6:.1f} µs" if v < 1e-3 else f"{v * 1e3:.2f} ms"
    for prefix, size in (("T", 1e12), ("G", 1e9)):
        if unit in ("B/s", "FLOP/s", "B") and v >= size:
            return f"{v / size:.2f} {prefix}{unit}"
    return f"{v:.3g} {unit}" if unit != "1" else f"{v:g}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
