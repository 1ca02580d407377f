"""The server of the page, on this machine alone unless told otherwise."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hnkernels.errors import InputError

# Before Gradio is imported: it asks its own host for news, and Hugging Face's for themes, otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fastapi
import gradio as gr
import uvicorn

from hnkernels.home.folder import Home
from hnkernels.home.sample_data import write_sample_data
from hnkernels.ui import style
from hnkernels.ui.app import build
from hnkernels.ui.guard import Guard
from hnkernels.ui.joining import LateJoining

LARGEST_UPLOAD = 2 * 2**30
"""Bytes of a file that a browser may send."""

LOCAL = frozenset(("127.0.0.1", "localhost", "[::1]"))
"""Names of this machine, for ``application``."""

_LOOKS = 0.05  # seconds between two looks for work; Gradio's millisecond takes a twentieth of a core
_SERVER = ".server"  # the address of the server that runs on a home; locked while it does


def application(home: Home, hosts: frozenset[str], auth: tuple[str, str] | None = None) -> Any:
    """The ASGI application; of one home per process.

    Args:
        home: what it shows.
        hosts: names under which it is reached; empty for any.
        auth: user and password that are asked for.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(home.path / ".page")  # files on their way between browser and handlers
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build(home)
    page.has_launched = True  # a mounted page has not by itself, and Gradio takes any path from a client until then
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode is not supported")  # Gradio says so of any app that is mounted
        mounted = gr.mount_gradio_app(
            app,
            page,
            path="/",
            auth=auth,
            allowed_paths=[],
            max_file_size=LARGEST_UPLOAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=style.theme(),
            css=style.CSS,
            head=style.HEAD,
        )
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = _LOOKS
    return Guard(LateJoining(mounted), hosts, LARGEST_UPLOAD + 2**20)


def serve(
    home: Home,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    open_browser: bool = True,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        home: what it shows; made if it does not exist, with pictures to train on.
        host: the address that it binds to. Any but this machine's own needs ``auth``.
        port: the port; the next free one if it is taken.
        auth: user and password.
        open_browser: shows the page.

    Raises:
        ValueError: the home cannot be written to, or a server runs on it already.
    """
    local = host in ("127.0.0.1", "localhost", "::1")
    if not local and auth is None:
        raise InputError("--listen lets other machines in; give --auth USER:PASSWORD with it")
    home.make()
    listener = _listener(host, port)
    port = listener.getsockname()[1]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with listener, _alone(home.path, address):
        write_sample_data(home)
        app = application(home, LOCAL if local else frozenset(), auth)
        print(f"The page is at {address}\nCtrl-C ends it; runs go on.", flush=True)
        if open_browser:
            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in [*range(port, port + 20), 0] if port else [0]:
        try:
            return socket.create_server((host, tried), family=family)
        except OSError:
            continue
    raise InputError(f"no port can be opened at {host}; name an address of this machine")


@contextmanager
def _alone(home: Path, address: str) -> Iterator[None]:
    """Inside, no other server runs on this home."""
    descriptor = os.open(home / _SERVER, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            raise InputError(f"a server runs on {home} already: open {there}, or end it first") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{address}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
