"""The trackers of accelerate, such as TensorBoard and Weights & Biases, beside a run's own log."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hnkernels.errors import InputError
from hnkernels.wording import shown

_PROJECT = "hnkernels"
_FOLDER = "trackers"
_PACKAGES = {"comet_ml": "comet-ml"}  # the others are called as their tracker
_ONE_PICTURE = ("aim", "clearml")  # take a picture, where the others take a list of pictures


def check_trackers(names: Sequence[str]) -> None:
    """Raises ``ValueError`` for a tracker that accelerate does not know, or whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(str(name), LOGGER_TYPE_TO_CLASS, n=1)
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            hint = f"did you mean {near[0]!r}?" if near else f"accepted are {known}"
            raise InputError(f"trackers has the unknown {shown(name)}; {hint}")
        if name not in available:
            package = _PACKAGES.get(name, name)
            raise InputError(f"the tracker {name!r} is not installed; install it with: pip install {package}")


class Trackers:
    """Several trackers as one; a context manager that closes them.

    A tracker that fails later, because its service cannot be reached, is left out from then on under a warning: it
    does not end the run.

    Args:
        names: of ``accelerate.tracking``; a name that stands there twice counts once.
        folder: of the run. Trackers that write files do so in its folder ``trackers``; its name is the run's there. For
            the others the project is called hnkernels.
        settings: of the run, which the trackers show; what is neither a number nor a text becomes JSON.
        first_step: steps done before. TensorBoard hides what an earlier process logged of later ones.

    Raises:
        ValueError: see ``check_trackers``; or one of them cannot be started.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], first_step: int = 0):
        self._active: dict[str, Any] = {}
        if not names:
            return
        check_trackers(names)
        shown_settings = {key: _plain(value) for key, value in settings.items()}
        for name in dict.fromkeys(names):
            try:
                self._active[name] = _started(name, folder, shown_settings, first_step)
            except Exception as error:  # whatever its package raises
                self.close()
                raise InputError(
                    f"the tracker {name!r} cannot be started: {error}; log in to it as its documentation says, or "
                    "leave it out of trackers"
                ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers by name; ``step`` itself is left out."""
        numbers = {key: float(value) for key, value in values.items() if key != "step"}
        self._each(lambda name, tracker: tracker.log(numbers, step=step))

    def log_image(self, title: str, image: Any, step: int) -> None:
        """Logs a picture where the tracker takes pictures.

        Args:
            title: what it shows.
            image: of PIL.
            step: optimiser steps done.
        """
        pixels = np.asarray(image.convert("RGB"))  # [height, width, 3]

        def log(name: str, tracker: Any) -> None:
            if not hasattr(tracker, "log_images"):
                return
            layout = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            tracker.log_images({title: image if name in _ONE_PICTURE else pixels[None]}, step=step, **layout)

        self._each(log)

    def close(self) -> None:
        """Writes out what is left, and closes all of them."""
        self._each(lambda name, tracker: tracker.finish())
        self._active = {}

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _each(self, act: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                act(name, tracker)
            except Exception as error:
                del self._active[name]
                warnings.warn(f"the tracker {name!r} failed and is left out from here on: {error}", stacklevel=3)


def _started(name: str, folder: Path, settings: dict[str, Any], first_step: int) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers log what they do through accelerate, which refuses that until it knows the processes
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        directory = folder.resolve() / _FOLDER
        directory.mkdir(parents=True, exist_ok=True)
        options = {"purge_step": first_step + 1} if name == "tensorboard" and first_step else {}
        tracker = kind(folder.resolve().name, str(directory), **options)
    else:
        tracker = kind(_PROJECT)
    if hasattr(tracker, "start"):  # older versions of accelerate start when they are made
        tracker.start()
    tracker.store_init_configuration(settings)
    return tracker


def _plain(value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)
