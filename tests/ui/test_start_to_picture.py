"""The whole way: from a click on Start to a handwritten picture."""

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from hnkernels.assets import TINY_SD
from hnkernels.demo.scores import HANDWRITING, train_judges
from hnkernels.home.runs.run import ALIVE, FINISHED
from hnkernels.home.runs.runs import Runs
from hnkernels.pipeline import load_pipeline


def test_from_a_click_on_start_to_pictures_that_are_taken_for_handwriting(started_home, page_at):
    page = page_at(started_home, "/")
    page.locator("#start").click()
    page.wait_for_url("**/watch?run=my-style", wait_until="commit")
    runs = Runs(started_home)
    expect(page.locator("#facts")).to_contain_text("Finished, at step 200 of 200.", timeout=240_000)
    assert runs["my-style"].state == FINISHED
    expect(page.locator("#preview img")).to_have_attribute("alt", "Preview at step 200")

    page.get_by_role("link", name="Library", exact=True).click()
    expect(page.locator("body")).to_contain_text("my-style")

    page.get_by_role("link", name="Try", exact=True).click()
    page.click("#network-1 input")
    page.get_by_role("option", name="my-style", exact=True).click()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("number input for Pictures").fill("8")
    page.get_by_label("number input for Pictures").press("Tab")
    page.wait_for_timeout(500)  # a person takes a moment before the next click
    page.click("#draw")
    expect(page.locator("#try-said")).to_contain_text("saved as")
    pictures = sorted(started_home.pictures.glob("*.png"))
    assert len(pictures) == 8
    pixels = np.stack([np.asarray(Image.open(picture).convert("RGB")) for picture in pictures])
    judges = train_judges(load_pipeline(TINY_SD).vae)
    # The study's share after such a run is 0.89, and 0.01 without: of eight pictures, half are never reached by chance.
    assert judges.style_score(pixels, HANDWRITING) >= 0.5
    assert all(run.state not in ALIVE for run in runs.all())
