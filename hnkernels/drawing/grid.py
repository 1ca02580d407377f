"""Pictures that differ in one thing or two, in rows and columns with labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hnkernels.drawing.artist import Artist, Progress, Stopped
from hnkernels.drawing.request import DrawRequest, NetworkUse, SettingError
from hnkernels.drawing.stages import Stage
from hnkernels.errors import InputError

MOST_CELLS = 100
"""Pictures of one grid."""

_CELL = 128  # pixels that the longer side of a picture has at least, so that a label fits
_FONT, _LINE, _GAP = 14, 22, 6  # pixels
_INK = "black"


@dataclass(frozen=True)
class Axis:
    """What differs from column to column, or from row to row.

    Attributes:
        title: what it is.
        labels: what each place is called.
        changes: what becomes of a request there.
    """

    title: str
    labels: tuple[str, ...]
    changes: tuple[Callable[[DrawRequest], DrawRequest], ...]

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def strengths(name: str, values: Sequence[float]) -> Axis:
        """Strengths of a network."""
        return Axis(
            f"strength of {name}",
            tuple(f"strength {value:g}" for value in values),
            tuple(_changed(name, strength=value) for value in values),
        )

    @staticmethod
    def seeds(values: Sequence[int]) -> Axis:
        """Seeds of the noise."""
        return Axis("seed", tuple(f"seed {value}" for value in values), tuple(_seeded(value) for value in values))

    @staticmethod
    def training(name: str, stages: Sequence[Stage]) -> Axis:
        """A network as it was at steps of its training.

        Args:
            name: of the network, which is put into the picture if it is not there.
            stages: of its run.
        """
        return Axis(
            f"training of {name}",
            tuple(f"step {stage.step}" for stage in stages),
            tuple(_trained(name, stage) for stage in stages),
        )

    @staticmethod
    def mixtures(name: str, first: str, second: str, count: int) -> Axis:
        """Mixtures of two styles of a weight hypernetwork, from the one alone to the other alone.

        Raises:
            SettingError: there are fewer than two.
        """
        if type(count) is not int or count < 2:
            raise SettingError("count", f"must be an integer of at least 2, not {count!r}")
        shares = [number / (count - 1) for number in range(count)]
        return Axis(
            f"{first} to {second}, styles of {name}",
            (first, *(f"{share:.0%}" for share in shares[1:-1]), second),
            tuple(_changed(name, styles={first: 1 - share, second: share}) for share in shares),
        )


@dataclass
class Grid:
    """Pictures in rows and columns.

    Attributes:
        request: what all have in common.
        columns, rows: what differs; without ``rows`` there is one.
        pictures: by (row, column), those that are drawn.
        stopped: whether it ended before all were.
    """

    request: DrawRequest
    columns: Axis
    rows: Axis | None = None
    pictures: dict[tuple[int, int], Image.Image] = field(default_factory=dict)
    stopped: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows) if self.rows else 1, len(self.columns)

    @property
    def cells(self) -> int:
        """How many pictures it is to have."""
        return self.shape[0] * self.shape[1]

    def to_json(self) -> dict[str, Any]:
        """What is kept in its picture."""
        axes = {"columns": self.columns, "rows": self.rows}
        differing = {name: {"title": a.title, "labels": list(a.labels)} for name, a in axes.items() if a is not None}
        return {**self.request.to_json(), "grid": differing}

    def draw(
        self,
        artist: Artist,
        stop: threading.Event | None = None,
        progress: Callable[[int, Progress], object] = lambda drawn, progress: None,
        waiting: Callable[[], object] = lambda: None,
    ) -> Grid:
        """Draws all pictures; ``stop`` leaves those that are there.

        Args:
            artist: who draws.
            stop: see ``Artist.draw``.
            progress: called with how many pictures are drawn, and how far the next one has come.
            waiting: see ``Artist.turn``.

        Raises:
            ValueError, CheckpointError, AdapterError: as ``Artist.draw``, before the first picture where possible.
        """
        cells = self._requests()
        try:
            with artist.turn(stop, waiting):
                for place, request in cells.items():
                    done = len(self.pictures)
                    self.pictures[place] = artist.draw(request, stop, lambda p, n=done: progress(n, p))[0]  # type: ignore[misc]
        except Stopped:
            self.stopped = True
        return self

    def sheet(self) -> Image.Image:
        """All pictures on white, with their labels; places of those that are not drawn stay empty.

        Raises:
            ValueError: none is drawn.
        """
        if not self.pictures:
            raise InputError("no picture of the grid is drawn yet; draw it first")
        width, height = next(iter(self.pictures.values())).size
        zoom = max(1, -(-_CELL // max(width, height)))
        width, height = width * zoom, height * zoom
        font = ImageFont.load_default(_FONT)
        labels = self.rows.labels if self.rows else ()
        left = max((int(font.getlength(_short(label))) + 2 * _GAP for label in labels), default=_GAP)
        rows, columns = self.shape
        size = (left + columns * (width + _GAP), 2 * _LINE + rows * (height + _GAP))
        sheet = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(sheet)
        title = self.columns.title + (f", {self.rows.title}" if self.rows else "")
        pen.text((left, 3), _short(title, size[0] // 7), _INK, font)
        for column, label in enumerate(self.columns.labels):
            pen.text((left + column * (width + _GAP), _LINE), _short(label, width // 7), _INK, font)
        for row, label in enumerate(labels):
            pen.text((_GAP, 2 * _LINE + row * (height + _GAP) + (height - _FONT) // 2), _short(label), _INK, font)
        for (row, column), picture in self.pictures.items():
            place = left + column * (width + _GAP), 2 * _LINE + row * (height + _GAP)
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
        return sheet

    def _requests(self) -> dict[tuple[int, int], DrawRequest]:
        """The request of every place, all checked."""
        if not self.cells:
            raise InputError("a grid needs at least one value along each side")
        if self.cells > MOST_CELLS:
            raise InputError(f"the grid would have {self.cells} pictures; {MOST_CELLS} are accepted: give fewer values")
        base = replace(self.request, batch=1)
        requests = {}
        for row, down in enumerate(self.rows.changes if self.rows else (lambda request: request,)):
            for column, across in enumerate(self.columns.changes):
                requests[row, column] = across(down(base))
                requests[row, column].check()
        return requests


def numbers(text: str, whole: bool = False) -> list[Any]:
    """The numbers in a text such as ``"0, 0.5, 1"``; of whole ones also ``"1-4"``.

    Raises:
        SettingError: it has something else in it.
    """
    found: list[Any] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-") if whole else (part, "", "")
        try:
            if dash:
                span = range(int(first), int(last) + 1)
                found += span[: MOST_CELLS + 1]
            else:
                found.append(int(part) if whole else float(part))
        except ValueError:
            accepted = "integers such as 1, 2, 3 or 1-3" if whole else "numbers such as 0, 0.5, 1"
            raise SettingError("values", f"must be {accepted}, not {text!r:.100}") from None
    return found


def _changed(name: str, **changes: Any) -> Callable[[DrawRequest], DrawRequest]:
    return lambda request: request.with_network(name, **changes)


def _seeded(seed: int) -> Callable[[DrawRequest], DrawRequest]:
    return lambda request: replace(request, seed=seed)


def _trained(name: str, stage: Stage) -> Callable[[DrawRequest], DrawRequest]:
    def change(request: DrawRequest) -> DrawRequest:
        if name in (use.name for use in request.networks):
            return request.with_network(name, file=stage.file)
        return replace(request, networks=(*request.networks, NetworkUse(stage.file, name)))

    return change


def _short(text: str, longest: int = 24) -> str:
    return text if len(text) <= max(longest, 2) else text[: max(longest, 2) - 1] + "…"
