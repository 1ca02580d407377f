"""From a click to what is drawn in the background, followed, and stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from hnkernels.drawing.artist import Artist, Stopped
from hnkernels.drawing.background import Drawing
from hnkernels.errors import InputError
from hnkernels.ui.events import FAULTS, PRIVATE, refused
from hnkernels.ui.trying.asked import Asked
from hnkernels.ui.trying.jobs import Job

FOLLOWED: dict[str, Any] = {**PRIVATE, "concurrency_limit": None, "show_progress": "hidden"}
"""Arguments of an event that shows by itself how far it is, and waits for no other."""


class Drawings:
    """What is being drawn: one thing at a time for each tab of a browser. It goes on when nobody looks.

    Args:
        asked: what all drawings begin with.
        said: where is told what becomes of them.
    """

    def __init__(self, asked: Asked, said: gr.HTML):
        self._asked, self._said, self._artist = asked, said, Artist()
        self._by_session: dict[str, Drawing] = {}

    def on(
        self,
        trigger: Any,
        job: Callable[..., Job],
        inputs: list[Any],
        output: Any,
        shown: Callable[[list[Image.Image]], Any],
    ) -> Any:
        """Ties events to what they draw.

        Args:
            trigger: an event or more.
            job: gives what is to be done; called with what gives the request of the page, and with the values of
                ``inputs``. Its faults are shown as sentences.
            inputs: components that matter to this job alone.
            output: where the pictures are shown.
            shown: pictures → what ``output`` shows.

        Returns:
            What the next event is tied to with ``then``.
        """

        def drawn(request: gr.Request, *values: Any) -> Iterator[tuple[Any, str]]:
            own, asked = values[: len(inputs)], values[len(inputs) :]
            session = request.session_hash or ""
            yield from self._followed(session, lambda: job(partial(self._asked.request, asked), *own), shown)

        fields, outputs = [*inputs, *self._asked.fields], [output, self._said]
        return gr.on(trigger, drawn, inputs=fields, outputs=outputs, **FOLLOWED)

    @property
    def busy(self) -> bool:
        """Whether something is being drawn, for any tab."""
        return any(drawing.running for drawing in self._by_session.values())

    def stop(self, request: gr.Request) -> Any:
        """Stops what this tab has begun, or else what the others have."""
        running = {session: drawing for session, drawing in self._by_session.items() if drawing.running}
        if not running:
            return "Nothing is being drawn."
        own = running.get(request.session_hash or "")
        for drawing in [own] if own is not None else running.values():
            drawing.stop()
        # What is said of this tab's own goes the way of all that is said of it, and so in order.
        return gr.skip() if own else "Stops what another tab, or this page before, has begun."

    def _followed(
        self, session: str, job: Callable[[], Job], shown: Callable[[list[Image.Image]], Any]
    ) -> Iterator[tuple[Any, str]]:
        """Begins a drawing, and shows what becomes of it."""
        try:
            if (own := self._by_session.get(session)) is not None and own.running:
                raise InputError("this page is drawing already; wait, or press Stop first")
            self._by_session = {key: drawing for key, drawing in self._by_session.items() if drawing.running}
            drawing = self._by_session[session] = Drawing(partial(job(), self._artist))
        except FAULTS as error:
            yield gr.skip(), refused(error)
            return
        for told in drawing.follow():
            words = "Stops after this step." if told is None or drawing.stopping else told.words
            yield gr.skip() if told is None or told.pictures is None else shown(told.pictures), words
        try:
            pictures, words = drawing.result()
        except Stopped:
            yield gr.skip(), "Stopped."
        except FAULTS as error:
            yield gr.skip(), refused(error)
        except Exception as error:  # whatever the code of a model raises
            logging.getLogger(__name__).exception("a picture could not be drawn")
            yield gr.skip(), refused(ValueError(f"the model could not draw this: {error}"))
        else:
            yield shown(pictures), words
