"""A race in Gradio between one event's end and the next one's beginning, decided."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from hnkernels.ui.guard import Application, Receive, Scope, Send

_LATER = 0.1  # seconds: many times what a message takes to this machine's browser


class LateJoining:
    """An ASGI middleware that answers a beginning event a little later.

    The browser hears of all its events through one stream, which the server closes when none is left. An event that
    begins at that moment is lost: the server has closed the stream, the browser has not heard of it yet, takes the
    event's number and waits for news on the old stream for ever. When the number comes later than the news of the
    closed stream, the browser opens a new one.

    Args:
        app: the server.
    """

    def __init__(self, app: Application):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on."""

        async def later(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(_LATER)
            await send(message)

        joins = scope["type"] == "http" and scope["path"].endswith("/queue/join")
        await self.app(scope, receive, later if joins else send)
