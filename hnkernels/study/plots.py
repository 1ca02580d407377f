"""A question's answer as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hnkernels.checkpoint.atomic import replacing
from hnkernels.study.comparison import SCORES, Row

_COLOURS = 32  # of a file, which is a third as large then


def plot(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG with a panel per score: every run, the mean with its standard error, the baseline's as a line.

    The same rows give the same bytes.

    Args:
        rows: the baseline's first.
        path: of the file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    scores = [score for score in SCORES if score.name in rows[0].means]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(dpi=80, figsize=(11, 1.0 + 0.28 * len(rows)), layout="constrained")
        panels: Any = figure.subplots(1, len(scores), sharey=True)
        for score, axes in zip(scores, panels, strict=True):
            axes.axvline(rows[0].means[score.name].mean, color="0.8", linewidth=1)
            for place, row in enumerate(rows):
                if score.name not in row.means:
                    continue
                mean, error = row.means[score.name]
                runs = list(row.values[score.name].values())
                axes.plot(runs, [place] * len(runs), ".", color="0.6", markersize=4)
                colour = "C1" if _is_real(row, score.name) else "C0"
                axes.errorbar(mean, place, xerr=error if len(runs) > 1 else None, fmt="o", color=colour, markersize=4)
            axes.set_title(f"{score.label} ({'more' if score.sign > 0 else 'less'} is better)", fontsize=9)
        panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
        panels[0].invert_yaxis()
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with replacing(path) as file:
        picture.quantize(_COLOURS).save(file, "PNG", optimize=True)


def _is_real(row: Row, score: str) -> bool:
    return score in row.differences and row.differences[score].is_real
