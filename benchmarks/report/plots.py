"""Draws the pictures of a folder, each with a digest of its rows and of the code that draws it.

By that digest a picture is found to be stale without being drawn, whatever the version of matplotlib.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from benchmarks.report import counted, counted_plots, measured_plots, style
from benchmarks.rows import Row

_CODE = (__file__, counted.__file__, counted_plots.__file__, measured_plots.__file__, style.__file__)


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the pictures that the rows allow; returns their files."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    files = []
    look = {"svg.hashsalt": "hnkernels", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    measured = any(row.kind == "measured" for row in rows)
    for name, picture in (measured_plots if measured else counted_plots).PICTURES.items():
        with plt.rc_context(look):
            figure = picture(rows, plt)
            if figure is None:
                continue
            file = folder / f"{name}.svg"
            figure.savefig(file, bbox_inches="tight", metadata={"Date": None, "Description": digest(rows)})
            plt.close(figure)
        # matplotlib ends some lines with a blank
        file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n", encoding="utf-8")
        files.append(file)
    return files


def stale(rows: Sequence[Row], folder: Path) -> list[str]:
    """The pictures in the folder that were drawn from other rows, or by other code."""
    return [f.name for f in sorted(folder.glob("*.svg")) if digest(rows) not in f.read_text(encoding="utf-8")]


def digest(rows: Sequence[Row]) -> str:
    """Of the rows and of the code."""
    code = b"".join(Path(file).read_bytes() for file in _CODE)
    return hashlib.sha256(repr([astuple(row) for row in rows]).encode() + code).hexdigest()
