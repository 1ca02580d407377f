"""What every phase gets: where it runs, how long it may take, and where its findings go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

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
        wait: for all that the GPU has been given.
        stopped_at: the task after which it computes nothing more, if there is one.
    """

    place: Place
    clock: Clock
    journal: Journal
    wait: Callable[[], None] = lambda: None
    stopped_at: list[str] = field(default_factory=list)

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
