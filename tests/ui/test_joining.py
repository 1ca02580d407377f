"""An event's number comes later than the news that the stream of events is closed."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from hnkernels.ui import joining


@pytest.mark.parametrize(
    ("path", "waits"), [("/gradio_api/queue/join", 1), ("/gradio_api/queue/data", 0), ("/gradio_api/upload", 0)]
)
def test_only_the_answer_to_a_beginning_event_waits(monkeypatch, path, waits):
    happened = []

    async def sleep(seconds):
        happened.append("waited")

    async def send(message):
        happened.append(message["type"])

    async def app(scope, receive, send):
        await send({"type": "http.response.start"})
        await send({"type": "http.response.body"})

    monkeypatch.setattr(joining.asyncio, "sleep", sleep)
    answering = joining.LateJoining(app)({"type": "http", "path": path}, None, send)
    with ThreadPoolExecutor() as other:  # this thread may have a loop already, that of a browser
        other.submit(asyncio.run, answering).result()
    assert happened == ["waited"] * waits + ["http.response.start", "http.response.body"]
