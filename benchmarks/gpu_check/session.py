"""What every phase gets: where it runs, how long it may take, and where its findings go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.journal import SKIPPED, WRONG, Finding, Journal
from benchmarks.place import Place

Task = Callable[["Session"], Iterable[Finding]]


@dataclass(frozen=True)
class Session:
    """One check.

    Attributes:
        place: a GPU, or the interpreter, in which all of it is rehearsed at small sizes.
        clock, journal: see there.
    """

    place: Place
    clock: Clock
    journal: Journal

    @property
    def rehearsed(self) -> bool:
        """Whether there is no GPU."""
        return self.place.kind != "cuda"

    def run(self, phase: str, share: float, tasks: Iterable[tuple[str, Task]]) -> None:
        """One task after the other, as long as there is time; one that fails is a finding, not the end.

        Args:
            phase: its name.
            share: of the time that is left.
            tasks: by what they find out, most telling first.
        """
        self.clock.begin(share)
        for what, task in tasks:
            if self.clock.left_in_phase() <= 0:
                self.journal.add(Finding(phase, what, SKIPPED, note="no time left"))
                continue
            try:
                for finding in task(self):
                    self.journal.add(finding)
            except Exception as fault:
                text = str(fault).strip()
                self.journal.add(Finding(phase, what, WRONG, note=f"{type(fault).__name__}: {text[:400]}"))
