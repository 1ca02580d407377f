"""Takes the pictures of the page that stand in its documentation.

    python -m tests.ui.screenshots docs/guides/page

Trains on the embedded model as a newcomer would, which takes a minute, and looks at every page.
"""

import socket
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from hnkernels.home.folder import Home
from hnkernels.home.sample_data import write_sample_data
from hnkernels.ui.server import LOCAL, application
from tests.ui.conftest import FLAGS, chromium

_MINUTES = 10 * 60_000  # ms


def take(folder: Path) -> None:
    """Writes the pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        home = Home(Path(temporary) / "hnkernels-home")
        home.make()
        write_sample_data(home)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(home, LOCAL), log_level="warning"))
        threading.Thread(target=server.run, args=([listener],), daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        expect(page.locator("#cost")).to_contain_text("200 steps", timeout=_MINUTES)
        page.locator("#pictures button").first.click()
        expect(page.locator("#crop img")).to_be_visible()
        _write(page, folder / "train.png")
        page.locator("#start").click()
        expect(page.locator("#facts")).to_contain_text("Finished", timeout=_MINUTES)
        page.wait_for_timeout(4000)
        _write(page, folder / "watch.png")
        for name in ("library", "try", "kernels"):
            page.goto(f"{address}/{name}")
            page.wait_for_timeout(3000)
            if name == "try":
                page.click("#network-1 input")
                page.get_by_role("option", name="my-style", exact=True).click()
                page.click("#draw")
                expect(page.locator("#try-said")).to_contain_text("saved as", timeout=_MINUTES)
                page.wait_for_timeout(1000)
            _write(page, folder / f"{name}.png")
        browser.close()


def _write(page: Page, path: Path) -> None:
    page.screenshot(path=path, full_page=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]))
