"""Try: from a click to a picture, and the truth in a sentence when something is in the way."""

import json
import os
import re
import shutil
import time

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.convert.survey import model_without_weights
from hnkernels.drawing.png import OWN, settings_in
from hnkernels.home.folder import Home

SLOW = 100  # steps: some seconds, in which a test can click


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a network, a weight hypernetwork and a run, which the tests of this file share."""
    torch.manual_seed(0)
    made = Home(tmp_path_factory.mktemp("try") / "home")
    made.make()
    net = hn.Hypernetwork((48, 80, 96), activation="relu", name="ink")
    torch.nn.init.normal_(net[96][1].linear[2].weight, std=0.3)
    hn.save_hypernetwork(net, made.networks / "ink.safetensors")
    hn.save_hypernetwork(net, made.networks / "fleeting.safetensors")
    gen = hn.WeightHypernetwork(
        "attn2", embedding_dim=96, hidden_dim=8, styles=("oil", "chalk"), model=model_without_weights(TINY_SD)
    )
    gen.save(made.networks / "styles.safetensors")
    run = made.runs / "first"
    (run / "checkpoints" / "step-000010").mkdir(parents=True)
    (run / "log.csv").write_text("step,loss\n1,0.5\n")
    for file in (run / "start.safetensors", run / "checkpoints" / "step-000010" / "hypernetwork.safetensors"):
        hn.save_hypernetwork(net, file)
    return made


def said(page, words):
    """Waits until the page says something."""
    expect(page.locator("#try-said")).to_contain_text(words, timeout=60_000)


def setting(page, name, number):
    """Fills in a number of the settings."""
    if not page.get_by_label(f"number input for {name}").is_visible():
        page.get_by_role("button", name="Settings").click()
    field = page.get_by_label(f"number input for {name}")
    field.fill(str(number))
    field.press("Tab")


def choose(page, element, option):
    """Chooses from a list."""
    page.click(f"#{element} input")
    page.get_by_role("option", name=option, exact=True).click()


def saved(home):
    """The picture that was saved last."""
    return max(home.pictures.glob("*.png"), key=os.path.getmtime)


def test_two_clicks_after_the_start_there_is_a_picture(home, page_at):
    page = page_at(home, "/")
    page.get_by_role("link", name="Try", exact=True).click()
    page.click("#draw")
    said(page, "saved as")
    expect(page.locator("#pictures img").first).to_be_visible()
    settings = settings_in(saved(home))
    assert (settings["prompt"], settings["model"], settings["networks"]) == ("digit seven", "embedded", [])
    with Image.open(saved(home)) as image:
        assert image.size == (32, 32)


def test_the_keyboard_alone_is_enough(home, page_at):
    page = page_at(home, "/try")
    expect(page.locator("#try-said")).not_to_contain_text("s", timeout=25_000)  # the lists are there
    page.get_by_role("textbox", name="Prompt").first.press("Tab")
    expect(page.locator("#draw")).to_be_focused()
    page.keyboard.press("Enter")
    said(page, "saved as")


def test_networks_act_as_they_are_chosen_and_a_picture_brings_its_settings_back(home, page_at):
    page = page_at(home, "/try")
    setting(page, "Steps", 2)
    choose(page, "network-1", "ink")
    setting(page, "Strength of network 1", 0.5)
    page.get_by_role("button", name="Parts of network 1").click()
    setting(page, "1: times, cross-attention", 0.25)
    page.get_by_role("textbox", name="Prompt").first.fill("digit two <hypernet:fleeting:0.75>")
    page.click("#draw")
    said(page, "saved as")
    picture = saved(home)
    settings = settings_in(picture)
    assert settings["networks"] == [
        {"name": "ink", "strength": 0.5, "parts": {"attn2": 0.25}, "styles": {}},
        {"name": "fleeting", "strength": 0.75, "parts": {}, "styles": {}},
    ]
    page.reload()
    page.get_by_role("tab", name="From a picture").click()
    page.locator("#png input[type=file]").set_input_files(picture)
    said(page, f"Took the settings of {picture.name}.")
    expect(page.get_by_role("textbox", name="Prompt").first).to_have_value("digit two <hypernet:fleeting:0.75>")
    page.get_by_role("tab", name="Networks").click()
    expect(page.locator("#network-1 input")).to_have_value("ink")
    expect(page.get_by_label("number input for Strength of network 1")).to_have_value("0.5")
    page.click("#draw")
    said(page, "saved as")
    assert settings_in(saved(home)) == settings
    assert saved(home) != picture
    with Image.open(picture) as first, Image.open(saved(home)) as second:
        assert first.convert("RGB").tobytes() == second.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a <hypernet:nobody>", "The prompt names the hypernetwork nobody; there are:"),
        ("a <hypernet:ink:much>", "is not a hypernetwork tag"),
    ],
)
def test_what_cannot_be_drawn_is_said(home, page_at, prompt, sentence):
    page = page_at(home, "/try")
    page.get_by_role("textbox", name="Prompt").first.fill(prompt)
    page.click("#draw")
    said(page, sentence)


def test_a_grid_is_drawn_labelled_and_saved_with_its_settings(home, page_at):
    page = page_at(home, "/try?network=ink")
    setting(page, "Steps", 2)
    page.get_by_role("tab", name="Grid").click()
    page.locator("#columns").get_by_label("strength").click()
    expect(page.get_by_role("textbox", name="Values of the columns")).to_have_value("0, 0.5, 1")
    page.locator("#rows").get_by_label("step of training").click()
    page.click("#draw-grid")
    said(page, "Drawn, saved as")
    expect(page.locator("#sheet img")).to_be_visible()
    with Image.open(saved(home)) as image:
        kept = json.loads(image.text[OWN])["grid"]
    assert kept["columns"]["labels"] == ["strength 0", "strength 0.5", "strength 1"]
    assert kept["rows"]["labels"] == ["step 0", "step 10"]
    page.locator("#rows").get_by_label("strength").click()
    page.click("#draw-grid")
    said(page, "Columns and rows both differ in strength")


def test_styles_are_mixed_and_a_strip_goes_from_one_to_the_other(home, page_at):
    page = page_at(home, "/try")
    setting(page, "Steps", 2)
    page.get_by_role("tab", name="Styles").click()
    setting(page, "chalk", 0.5)
    page.click("#draw-mixture")
    said(page, "saved as")
    assert settings_in(saved(home))["networks"][0]["styles"] == {"oil": 1.0, "chalk": 0.5}
    setting(page, "Pictures of the strip", 3)
    page.click("#draw-strip")
    said(page, "Drawn, saved as")
    with Image.open(saved(home)) as image:
        assert json.loads(image.text[OWN])["grid"]["columns"]["labels"] == ["oil", "50%", "chalk"]


def test_before_and_after_are_compared_with_one_slider(home, page_at):
    page = page_at(home, "/try")
    setting(page, "Steps", 2)
    page.get_by_role("tab", name="Before and after").click()
    page.click("#compare")
    said(page, "No network is chosen; choose one under Networks")
    page.get_by_role("tab", name="Networks").click()
    choose(page, "network-1", "ink")
    page.get_by_role("tab", name="Before and after").click()
    page.click("#compare")
    said(page, "Drawn with seed 0, before and after.")
    expect(page.locator("#both img")).to_have_count(2)
    expect(page.get_by_label("range slider for Where before ends")).to_be_visible()


def test_a_picture_that_is_being_drawn_is_stopped(home, page_at):
    page = page_at(home, "/try")
    before = set(home.pictures.iterdir())
    setting(page, "Steps", SLOW)
    setting(page, "Pictures", 8)
    page.click("#draw")
    said(page, "Step ")
    page.click("#stop")
    said(page, "Stopped.")
    assert set(home.pictures.iterdir()) == before
    page.click("#stop")
    said(page, "Nothing is being drawn.")


def test_a_stopped_grid_leaves_what_is_drawn(home, page_at):
    page = page_at(home, "/try")
    setting(page, "Steps", 20)
    page.get_by_role("tab", name="Grid").click()
    page.get_by_role("textbox", name="Values of the columns").fill("1-40")
    page.click("#draw-grid")
    said(page, re.compile(r"Picture ([2-9]|[1-4]\d) of 40"))
    page.click("#stop")
    said(page, "Stopped after ")
    said(page, "of 40 pictures, saved as")
    expect(page.locator("#sheet img")).to_be_visible()


def test_a_model_that_fails_is_said(home, page_at, monkeypatch):
    def fails(*given):
        raise KeyError("down_blocks")

    page = page_at(home, "/try")
    monkeypatch.setattr("hnkernels.drawing.artist._drawn", fails)
    page.click("#draw")
    said(page, "The model could not draw this: 'down_blocks'.")


def test_a_second_tab_waits_and_says_so(home, page_at):
    first, second = page_at(home, "/try"), page_at(home, "/try")
    setting(first, "Steps", SLOW)
    setting(first, "Pictures", 8)
    setting(second, "Steps", 2)
    first.click("#draw")
    said(first, "Step ")
    second.click("#draw")
    said(second, "Waits: another picture is being drawn.")
    first.click("#stop")
    said(first, "Stopped.")
    said(second, "saved as")


def test_after_a_reload_the_page_says_what_is_still_drawn_and_stops_it(home, page_at):
    page = page_at(home, "/try")
    setting(page, "Steps", SLOW)
    setting(page, "Pictures", 8)
    page.click("#draw")
    said(page, "Step ")
    page.reload()
    said(page, "A picture is being drawn still")
    page.click("#stop")
    said(page, "Stops what another tab, or this page before, has begun.")


def test_a_network_that_is_deleted_meanwhile_is_said(home, page_at):
    page = page_at(home, "/try")
    choose(page, "network-1", "fleeting")
    file = home.networks / "fleeting.safetensors"
    file.rename(home.bin / "fleeting.safetensors")
    try:
        page.click("#draw")
        said(page, "There is no network 'fleeting' any more; choose another, or reload the page for the list.")
    finally:
        (home.bin / "fleeting.safetensors").rename(file)


def test_a_full_disk_is_said(home, page_at, monkeypatch):
    page = page_at(home, "/try")
    setting(page, "Steps", 2)
    monkeypatch.setattr("hnkernels.drawing.png.replacing", _full)
    page.click("#draw")
    said(page, "The picture could not be saved: No space left on device; make room and draw again.")
    expect(page.locator("#pictures img").first).to_be_visible()


def _full(path):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(1000), b"\x80\x04cos\nsystem\n."])
def test_a_file_that_is_not_a_png_is_refused(home, page_at, tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    page = page_at(home, "/try")
    page.get_by_role("tab", name="From a picture").click()
    page.locator("#png input[type=file]").set_input_files(tmp_path / "a.png")
    said(page, "a.png has no settings that can be read: it is not a PNG, or is damaged.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_it_is_accessible_and_fits(home, page_at, scheme, size):
    page = page_at(home, "/try", color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    setting(page, "Steps", 2)
    page.click("#draw")
    said(page, "saved as")
    for name in ("Grid", "Styles", "Before and after", "From a picture"):
        tab = page.get_by_role("tab", name=name)
        if not tab.is_visible():
            page.locator(".overflow-menu button").first.click()
            tab = page.locator(".overflow-dropdown button", has_text=name)
        tab.click()
        time.sleep(0.5)  # until what fades in has faded in
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_a_home_that_is_deleted_is_made_anew_for_the_picture(page_at, tmp_path):
    # The last test of the file: a process has one place for what browsers send, that of the home it served last.
    gone = Home(tmp_path / "gone")
    gone.make()
    page = page_at(gone, "/try")
    shutil.rmtree(gone.path)
    page.reload()
    setting(page, "Steps", 2)
    page.click("#draw")
    said(page, "saved as")
    assert settings_in(saved(gone))["prompt"] == "digit seven"
