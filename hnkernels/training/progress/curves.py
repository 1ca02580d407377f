"""The curves of a run as one SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnkernels.training.progress.history import History, Table

_POINTS = 400  # of a curve: about one per two pixels of a page
_WIDTH, _HEIGHT = 9.0, 2.6  # inches, of one panel
_MOST_PARTS = 12  # lines of one panel that can still be told apart


def curves(history: History) -> str:
    """One panel below the other: losses, learning rate, gradient norm, and what the network says of itself.

    A curve of more steps than can be seen is the mean, and the range, of so many steps each. The same numbers give the
    same text. It refers to nothing outside of it.

    Returns:
        An ``<svg>`` element; empty if nothing has been measured.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    panels: list[Any] = []
    if history.log or history.validation:
        panels.append(_losses)
    if history.log:
        panels += [_learning_rate, _gradient]
    if _parts(history.health, "change"):
        panels.append(_change)
    if _parts(history.health, "dead") or _parts(history.health, "saturated"):
        panels.append(_units)
    if not panels:
        return ""
    # Texts as texts are a tenth of what glyphs as paths are; ids are hashes, the same in every process.
    with matplotlib.rc_context({"svg.hashsalt": "hnkernels", "svg.fonttype": "none"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for draw, axis in zip(panels, axes, strict=True):
            draw(axis, history)
            axis.set_xlabel("step")
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    # The XML declaration and the document type, which has the address of a file, are not for an element of a page.
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)


def _losses(axis: Any, history: History) -> None:
    log, validation = history.log, history.validation
    if log:
        _curve(axis, log["step"], log["loss"], "training, each step", "0.75")
        _curve(axis, log["step"], log["mean_loss"], "training, mean of the last steps", "C0")
    if validation:
        steps, losses, errors = (np.array(validation[key]) for key in ("step", "loss", "standard_error"))
        axis.errorbar(steps, losses, np.nan_to_num(errors), color="C1", marker=".", capsize=2, label="validation")
        axis.plot(steps, validation["base_loss"], color="C3", linestyle="--", label="validation, base model")
        if np.isfinite(validation["training_loss"]).any():
            axis.plot(steps, validation["training_loss"], color="C2", label="training pictures, fixed noise")
    axis.set_ylabel("loss")
    axis.legend(fontsize="small")


def _learning_rate(axis: Any, history: History) -> None:
    _curve(axis, history.log["step"], history.log["learning_rate"], "", "C0")
    axis.set_ylabel("learning rate")


def _gradient(axis: Any, history: History) -> None:
    _curve(axis, history.log["step"], history.log["grad_norm"], "", "C0")
    axis.set_ylabel("gradient norm")
    if any(value > 0 and math.isfinite(value) for value in history.log["grad_norm"]):
        axis.set_yscale("log")


def _change(axis: Any, history: History) -> None:
    _lines(axis, history.health, ("change",))
    axis.set_ylabel("change of the weights")


def _units(axis: Any, history: History) -> None:
    _lines(axis, history.health, ("dead", "saturated"))
    axis.set_ylim(-0.02, 1.02)
    axis.set_ylabel("share of the units")


def _lines(axis: Any, health: Table, quantities: Sequence[str]) -> None:
    for quantity, style in zip(quantities, ("-", "--"), strict=False):
        for number, part in enumerate(_parts(health, quantity)[:_MOST_PARTS]):
            label = f"{part} {quantity}" if len(quantities) > 1 else part
            # A dollar sign would begin a formula.
            values, label = health[f"{part}.{quantity}"], label.replace("$", r"\$")
            axis.plot(health["step"], values, color=f"C{number}", linestyle=style, label=label)
    axis.legend(fontsize="x-small", ncols=4)


def _parts(health: Table, quantity: str) -> list[str]:
    """The parts that have a finite number of this kind."""
    columns = {name.rpartition(".")[0]: values for name, values in health.items() if name.endswith(f".{quantity}")}
    return [part for part, values in columns.items() if np.isfinite(values).any()]


def _curve(axis: Any, steps: Sequence[float], values: Sequence[float], label: str, color: str) -> None:
    """A line; of many points the means of groups of them, within their ranges."""
    x, y = np.array(steps), np.array(values)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) > _POINTS:
        groups = [_group(array) for array in (x, y)]
        low, high = (np.array([pick(group) for group in groups[1]]) for pick in (np.min, np.max))
        x, y = (np.array([group.mean() for group in array]) for array in groups)
        axis.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    axis.plot(x, y, color=color, linewidth=1, label=label or None)


def _group(array: NDArray[Any]) -> list[NDArray[Any]]:
    return np.array_split(array, _POINTS)
