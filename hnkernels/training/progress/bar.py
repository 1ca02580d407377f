"""How far a run has come, on stderr: a bar on a terminal, a line every ten seconds anywhere else."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from tqdm import tqdm

_SECONDS = 10.0  # between lines


class Progress:
    """A context manager that shows the steps of a run.

    Where the stream is not a terminal (a file, a pipe, a notebook), a line is written every ten seconds, and one at the
    end, so that logs stay short. A stream that is closed or broken ends the display, not the run.

    Args:
        total: the step at which the run ends.
        initial: steps done before.
        enabled: ``False`` shows nothing at all, notes neither.
        stream: ``None`` for stderr.
        clock: seconds; one that jumps back delays the next line by ten seconds at most.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream: TextIO | None = sys.stderr if stream is None else stream  # none under pythonw
        self._enabled = enabled and self._stream is not None
        self._total, self._step, self._clock = total, initial, clock
        self._metrics: dict[str, float] = {}
        self._bar: tqdm | None = None
        if self._enabled and self._is_terminal():
            with self._guarded():
                self._bar = tqdm(total=total, initial=initial, unit="step", file=self._stream, dynamic_ncols=True)
        self._shown_step, self._shown_at = initial, clock()

    def update(self, metrics: Mapping[str, float]) -> None:
        """One more step is done.

        Args:
            metrics: of these, ``mean_loss`` or else ``loss``, ``learning_rate`` and ``validation_loss`` are shown;
                what is missing is as it was before, so that the last validation stays in view. ``step``, if given, is
                how many steps are done.
        """
        before = self._step
        self._step = int(metrics.get("step", before + 1))
        self._metrics |= metrics
        if not self._enabled:
            return
        now = self._clock()
        if self._bar is not None:
            with self._guarded():
                self._bar.set_postfix_str(", ".join(self._shown()), refresh=False)
                self._bar.update(self._step - before)
        elif now < self._shown_at:  # it jumped back
            self._shown_step, self._shown_at = self._step, now
        elif now - self._shown_at >= _SECONDS:
            self._write_line(now)

    def note(self, text: str) -> None:
        """Writes a line of its own, above the bar."""
        with self._guarded():
            if self._bar is not None:
                self._bar.write(text, file=self._stream)
            elif self._enabled:
                print(text, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._guarded():
            if self._bar is not None:
                self._bar.close()
        if self._bar is None and self._enabled and self._step != self._shown_step:
            self._write_line(self._clock())

    def _write_line(self, now: float) -> None:
        seconds = now - self._shown_at
        rate = [f"{(self._step - self._shown_step) / seconds:.2f} step/s"] if seconds > 0 else []
        self._shown_step, self._shown_at = self._step, now
        with self._guarded():
            line = ", ".join([f"step {self._step}/{self._total}", *rate, *self._shown()])
            print(line, file=self._stream, flush=True)

    def _shown(self) -> list[str]:
        """What the metrics say."""
        metrics = self._metrics
        values = {
            "loss": (metrics.get("mean_loss", metrics.get("loss")), ".4f"),
            "lr": (metrics.get("learning_rate", math.nan), ".1e"),
            "validation": (metrics.get("validation_loss", math.nan), ".4f"),
        }
        # A loss that is not a number is shown: it is news. What is None, or NaN elsewhere, is not there yet.
        return [
            f"{name} {value:{form}}"
            for name, (value, form) in values.items()
            if value is not None and (name == "loss" or value == value)
        ]

    def _is_terminal(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no real stream
            return self._stream is not None and self._stream.isatty()
        return False

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # a broken pipe, a full disk, a stream that was closed
            if self._bar is not None:
                self._bar.disable = True  # or it would try again when it is collected
            self._enabled, self._bar = False, None
