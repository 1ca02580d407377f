"""What is drawn in the background: pictures, grids, and two pictures to compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from PIL import Image

from hnkernels.drawing.artist import Artist, Progress, Stopped
from hnkernels.drawing.grid import Grid
from hnkernels.drawing.png import save_picture, texts
from hnkernels.drawing.request import DrawRequest
from hnkernels.ui.events import refused, sentence


class Told(NamedTuple):
    """How far a drawing has come: in words, and pictures if there are new ones."""

    words: str
    pictures: list[Image.Image] | None = None


Tell = Callable[[Told], None]

Job = Callable[[Artist, Event, Tell], tuple[list[Image.Image], str]]
"""Draws until it is done or the event is set; returns what to show, and what to say of it."""

_READS = Told("Reads the model and the networks.")
_WAITS = Told("Waits: another picture is being drawn.")


def batch(asks: DrawRequest, folder: Path) -> Job:
    """Draws a request, and saves its pictures in a folder."""

    def draw(artist: Artist, stop: Event, tell: Tell) -> tuple[list[Image.Image], str]:
        began = time.monotonic()
        with artist.turn(stop, lambda: tell(_WAITS)):
            tell(_READS)
            pictures = artist.draw(asks, stop, _telling(tell))
        how = f"Drawn in {time.monotonic() - began:.1f} s"
        ones = [replace(asks, seed=seed, batch=1) for seed in asks.seeds()]
        drawn = list(zip(pictures, ones, strict=True))
        for picture, one in drawn:
            picture.info.update(texts(one, picture.size))
        return pictures, _saved(how, folder, drawn)

    return draw


def sheet(grid: Grid, folder: Path) -> Job:
    """Draws a grid, and saves it in a folder as one picture."""

    def draw(artist: Artist, stop: Event, tell: Tell) -> tuple[list[Image.Image], str]:
        def progress(done: int, one: Progress) -> None:
            new = [grid.sheet()] if done and one.step == 1 else None
            tell(Told(f"Picture {done + 1} of {grid.cells}, step {one.step} of {one.steps}.", new))

        tell(_READS)
        grid.draw(artist, stop, progress, lambda: tell(_WAITS))
        if not grid.pictures:
            raise Stopped
        drawn, size = grid.sheet(), next(iter(grid.pictures.values())).size
        drawn.info.update(texts(grid.request, size, grid.to_json()))
        tell(Told("Saves the grid.", [drawn]))
        how = f"Stopped after {len(grid.pictures)} of {grid.cells} pictures" if grid.stopped else "Drawn"
        return [drawn], _saved(how, folder, [(drawn, grid.request, grid.to_json(), size)])

    return draw


def comparison(before: DrawRequest, after: DrawRequest) -> Job:
    """Draws two requests of a picture each, one after the other."""

    def draw(artist: Artist, stop: Event, tell: Tell) -> tuple[list[Image.Image], str]:
        with artist.turn(stop, lambda: tell(_WAITS)):
            both = []
            for words, asks in (("Before", before), ("After", after)):
                both += artist.draw(asks, stop, _telling(tell, f"{words}: "))
            return both, sentence(f"Drawn with seed {after.seed}, before and after.")

    return draw


def _saved(how: str, folder: Path, pictures: Sequence[tuple[Any, ...]]) -> str:
    """Saves what was drawn, and says so; pictures that cannot be saved are shown all the same.

    Args:
        how: what became of the drawing.
        folder: where they are saved.
        pictures: arguments of ``save_picture`` but for the folder: the picture, then what goes with it.
    """
    try:
        names = [save_picture(picture, folder, *more).name for picture, *more in pictures]
    except ValueError as error:
        return refused(error)
    return sentence(f"{how}, saved as {', '.join(names)}.")


def _telling(tell: Tell, before: str = "") -> Callable[[Progress], None]:
    """Tells of steps, with a preview when that costs little beside the steps."""
    seen, cost = time.monotonic(), 0.0

    def progress(one: Progress) -> None:
        nonlocal seen, cost
        pictures, now = None, time.monotonic()
        if one.step < one.steps and now - seen > max(1.0, 20 * cost) and not before:
            pictures = one.preview() or None
            seen, cost = time.monotonic(), time.monotonic() - now
        tell(Told(f"{before}step {one.step} of {one.steps}.".capitalize(), pictures))

    return progress
