"""The page, served for a test, and a browser that looks at it."""

import os
import shutil
import socket
import threading

import gradio
import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright

from hnkernels.home.folder import Home
from hnkernels.home.runs.runs import Runs
from hnkernels.home.sample_data import write_sample_data
from hnkernels.ui.server import LOCAL, application

# At every ``with`` Gradio makes an application that it soon throws away, which took a third of what a test takes.
_App = gradio.blocks.App


class _OneApp:
    @staticmethod
    def create_app(blocks, **options):
        return getattr(blocks, "app", None) or _App.create_app(blocks, **options)


gradio.blocks.App = _OneApp

# The flags keep Chromium from calling its maker.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LEAVING = "signal is aborted", "Connection errored out"
"""What Gradio's own script says of a page that is left while it waits for news."""


expect.set_options(timeout=20_000)


@pytest.fixture
def home(tmp_path):
    """A new home, with nothing in it. Runs that a test leaves behind are ended."""
    made = Home(tmp_path / "home")
    made.make()
    yield made
    for run in Runs(made).all():
        process = run.process.running() if run.process else None
        if process is not None and process.pid != os.getpid():
            process.kill()


@pytest.fixture
def started_home(home):
    """A new home with the handwriting to train on."""
    write_sample_data(home)
    return home


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def serve():
    """Serves homes, and says at which addresses; each home once."""
    servers = {}

    def served(home):
        if home.path not in servers:
            listener = socket.create_server(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(application(home, LOCAL), log_level="warning"))
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
            thread.start()
            servers[home.path] = server, thread, listener.getsockname()[1]
        return f"http://127.0.0.1:{servers[home.path][2]}"

    yield served
    for server, thread, _ in servers.values():
        server.should_exit = True
        server.force_exit = True
        thread.join()


@pytest.fixture
def page_at(browser, serve):
    """Opens a page of a home. What the browser complains of, or asks another host for, fails the test."""
    contexts, complaints = [], []

    def opened(home, path, **options):
        address = serve(home)
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: None if own(asked.url, address) else complaints.append(f"asked {asked.url}"))
        page.goto(address + path)
        page.get_by_role("heading", level=1).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [one for one in complaints if not any(words in one for words in LEAVING)] == []


def chromium():
    """The browser of this machine; Playwright would take one that it has fetched."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium") or shutil.which("google-chrome")


def own(url, address):
    """Whether a browser asks the page's own server, or itself, for something."""
    return url.startswith((address, "data:", "blob:"))
