"""Is everything right on this GPU, and how fast? One command, eight minutes: ``python -m benchmarks.gpu_check``.

``__main__`` is the command, and its first phase: what there is. ``correctness`` and ``speed`` are the others. Here is
what every phase gets and leaves: how much time is left, what it finds, and a page to read at any moment.

A finding is one line of CSV, on disk before anything else is tried: a kill at any moment loses nothing. The page,
``gpu-check.md``, is one file to read and to send; it is rewritten after every finding.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path

import torch

from benchmarks.rows import Environment

RIGHT, WRONG, SKIPPED, FIGURE = "right", "wrong", "skipped", "figure"

PAGE = "gpu-check.md"

TITLES = {
    "machine": "The machine",
    "right": "Is it right?",
    "fast": "How fast is it?",
    "predicted": "Is the model right?",
    "tuned": "Are the tiles the fastest?",
}


class Clock:
    """Counts down from the start of a check.

    Args:
        seconds: for all of it.
        now: the time, in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._now, self._ends = now, now() + seconds
        self._phase_ends = self._ends

    def begin(self, share: float) -> None:
        """A phase begins, which may take this share of the time that is left."""
        self._phase_ends = self._now() + share * self.left()

    def left(self) -> float:
        """Seconds until all of it has to end."""
        return self._ends - self._now()

    def left_in_phase(self) -> float:
        """Seconds until the phase has to end."""
        return min(self._phase_ends - self._now(), self.left())


@dataclass(frozen=True)
class Finding:
    """One thing that was found out.

    Attributes:
        phase: of the check.
        what: which case of it.
        outcome: ``"right"``, ``"wrong"``, ``"skipped"``, or ``"figure"``, which is neither.
        value: in ``unit``; nan where there is none.
        unit: ``"s"``, ``"x"`` (so many times), ``"B/s"`` …
        note: why it is wrong, or was skipped; with what it was compared.
    """

    phase: str
    what: str
    outcome: str
    value: float = float("nan")
    unit: str = ""
    note: str = ""


class Journal:
    """Findings in a folder: ``findings.csv``, and whatever ``after`` makes of them each time.

    Args:
        folder: made if it does not exist. What an earlier check has left there is overwritten.
        after: called with all findings after each.
    """

    def __init__(self, folder: Path, after: Callable[[list[Finding]], None] = lambda _: None):
        folder.mkdir(parents=True, exist_ok=True)
        self.findings: list[Finding] = []
        self._after = after
        self._stream = (folder / "findings.csv").open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, [f.name for f in fields(Finding)], lineterminator="\n")
        self._writer.writeheader()

    def add(self, finding: Finding) -> None:
        """Takes a finding, writes it to disk and says it."""
        self.findings.append(finding)
        self._writer.writerow(asdict(finding))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        print(line_of(finding), flush=True)
        self._after(self.findings)

    @property
    def wrong(self) -> list[Finding]:
        """What is not as it should be."""
        return [f for f in self.findings if f.outcome == WRONG]


def read(file: Path) -> list[Finding]:
    """The findings of a file that a ``Journal`` wrote, without a last line that was cut off."""
    with file.open(newline="", encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if None not in line.values()]
    return [Finding(**{**line, "value": float(line["value"])}) for line in lines]


def line_of(finding: Finding) -> str:
    """For a reader who waits."""
    value = "" if finding.value != finding.value else f" {finding.value:.4g} {finding.unit}"
    note = f" ({finding.note})" if finding.note else ""
    return f"{finding.outcome:>7}  {finding.phase}: {finding.what}{value}{note}"


Task = Callable[["Session"], Iterable[Finding]]


@dataclass(frozen=True)
class Session:
    """One check.

    Attributes:
        environment: a GPU, or the interpreter, in which all of it is rehearsed at small sizes.
        clock, journal: see there.
        wait: for all that the GPU has been given.
        stopped_at: the task after which it computes nothing more, if there is one.
    """

    environment: Environment
    clock: Clock
    journal: Journal
    wait: Callable[[], None] = lambda: None
    stopped_at: list[str] = field(default_factory=list)

    @property
    def rehearsed(self) -> bool:
        """Whether there is no GPU."""
        return self.environment.kind != "cuda"

    def run(self, phase: str, share: float, tasks: Iterable[tuple[str, Task]]) -> None:
        """One task after the other, as long as there is time; one that fails is a finding, not the end.

        Args:
            phase: its name.
            share: of the time that is left.
            tasks: by what they find out, most telling first.
        """
        self.clock.begin(share)
        for what, task in tasks:
            if self.stopped_at:
                self.journal.add(Finding(phase, what, SKIPPED, note=f"the GPU has stopped at {self.stopped_at[0]}"))
                continue
            if self.clock.left_in_phase() <= 0:
                self.journal.add(Finding(phase, what, SKIPPED, note="no time left"))
                continue
            torch.manual_seed(0)  # whatever ran before, and however far it came
            try:
                for finding in task(self):
                    self.journal.add(finding)
            except Exception as fault:
                text = str(fault).strip()
                self.journal.add(Finding(phase, what, WRONG, note=f"{type(fault).__name__}: {text[:400]}"))
            self._settle(phase, what)

    def _settle(self, phase: str, what: str) -> None:
        """Waits for the GPU: after a fault, which it may tell of late, it computes nothing more for this process."""
        try:
            self.wait()
        except RuntimeError as fault:
            self.journal.add(Finding(phase, what, WRONG, note=str(fault).strip()[:400]))
            self.stopped_at.append(what)


def write_page(findings: Sequence[Finding], folder: Path, ended: bool) -> None:
    """Writes the page; a reader never sees half of one."""
    temporary = folder / f".{PAGE}"
    temporary.write_text("\n".join(page_lines(findings, ended)) + "\n", encoding="utf-8")
    temporary.replace(folder / PAGE)


def page_lines(findings: Sequence[Finding], ended: bool) -> list[str]:
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
