"""The tab From a picture: the settings of a PNG, or of a picture that was drawn before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hnkernels.drawing.png import settings_in
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.names import child
from hnkernels.ui.events import FAULTS, PRIVATE, refused, sentence
from hnkernels.ui.trying.asked import Asked
from hnkernels.ui.trying.shown import LEAST, large

_EARLIER = 24  # pictures


class FromPictureTab:
    """A place for a PNG, and the earlier pictures.

    Attributes:
        lists: the event that shows the earlier pictures.
    """

    def __init__(self, home: Home, asked: Asked, said: gr.HTML):
        self._folder, self._asked = home.pictures, asked
        gr.Markdown("A PNG that was drawn here, or by A1111, brings its settings along.")
        png = gr.File(label="PNG with settings", file_types=[".png"], elem_id="png")
        earlier = gr.Gallery(
            label="Earlier pictures: choose one for its settings", columns=6, height=260, allow_preview=False,
            interactive=False, object_fit="contain", buttons=[], elem_id="earlier",
        )  # fmt: skip
        names = gr.State([])
        self.lists: dict[str, Any] = {
            "fn": self._earlier, "outputs": [earlier, names], **PRIVATE, "show_progress": "hidden"
        }  # fmt: skip
        filled = [*asked.fields, said]
        png.upload(self._from_file, inputs=png, outputs=filled, **PRIVATE)
        earlier.select(self._from_earlier, inputs=names, outputs=filled, **PRIVATE)

    def _earlier(self) -> tuple[list[Image.Image], list[str]]:
        """The pictures that were drawn last, and the names of their files."""
        try:
            files = sorted(self._folder.glob("[!.]*.png"), key=lambda file: file.stat().st_mtime, reverse=True)
        except OSError:
            files = []
        shown, names = [], []
        for file in files[:_EARLIER]:
            try:
                with Image.open(child(self._folder, file.name), formats=["PNG"]) as image:
                    image.thumbnail((LEAST, LEAST))
                    shown.append(large(image.convert("RGB")))
                    names.append(file.name)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
        return shown, names

    def _from_earlier(self, names: list[str], event: gr.SelectData) -> list[Any]:
        return self._filled(lambda: child(self._folder, names[int(event.index)]))

    def _from_file(self, file: str | None) -> list[Any]:
        return self._filled(lambda: _sent(file))

    def _filled(self, picture: Callable[[], Path]) -> list[Any]:
        """The page with the settings of a picture."""
        try:
            file = picture()
            updates, left_out = self._asked.filled(settings_in(file))
        except (*FAULTS, IndexError) as error:
            return [*[gr.skip()] * len(self._asked.fields), refused(error)]
        left = f" Not here, and left out: {', '.join(left_out)}." if left_out else ""
        return [*updates, sentence(f"Took the settings of {file.name}.{left}")]


def _sent(file: str | None) -> Path:
    if not file:
        raise InputError("no file was sent; choose a PNG")
    return Path(file)
