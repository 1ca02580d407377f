"""What is found, one line of CSV each, on disk before anything else is tried: a kill at any moment loses nothing."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

RIGHT, WRONG, SKIPPED, FIGURE = "right", "wrong", "skipped", "figure"


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
