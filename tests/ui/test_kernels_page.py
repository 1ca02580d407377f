"""Kernels: what a layer would launch is shown as counted or modelled, and follows what is chosen."""

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import hnkernels as hn
from hnkernels.home.folder import Home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = Home(tmp_path_factory.mktemp("kernels") / "home")
    made.make()
    hn.save_hypernetwork(hn.Hypernetwork((48, 96), activation="relu"), made.networks / "ink.safetensors")
    (made.networks / "broken.safetensors").write_bytes(b"no network")  # is not offered
    return made


def said(page, words):
    expect(page.locator("#kernels-said")).to_contain_text(words, timeout=120_000)


def choose(page, element, option):
    page.click(f"#{element} input")
    page.get_by_role("option", name=option, exact=True).click()


def test_it_shows_at_once_what_a_well_known_layer_takes(home, page_at):
    page = page_at(home, "/kernels")
    said(page, "Counted: ")
    said(page, "Modelled by the data sheet of H100 (sm_90): at least ")
    whole = page.locator("main, .gradio-container").first.inner_text()
    assert "easured" not in whole
    expect(page.get_by_role("img", name="Bytes read and written, counted: hnkernels: 17.8 MB; eager")).to_be_visible()
    expect(page.get_by_role("img", name="Least time on H100 (sm_90), modelled")).to_be_visible()
    expect(page.locator("#kernels-table tbody tr")).not_to_have_count(0)


def test_it_follows_what_is_chosen(home, page_at):
    page = page_at(home, "/kernels")
    said(page, "Counted: 1 launch instead of 10")
    page.get_by_label("training").click()
    said(page, "kept for the backward pass")
    page.get_by_label("fp32").click()
    said(page, "For fp32 no time is modelled.")
    choose(page, "card", "A100 (sm_80)")
    page.get_by_label("fp16").click()
    said(page, "Modelled by the data sheet of A100 (sm_80)")
    choose(page, "layer", "cross-attention 768 → 320")
    expect(page.get_by_label("Tokens of one picture")).to_have_value("77")


def test_a_network_of_the_home_acts_in_the_layers_that_it_knows(home, page_at):
    page = page_at(home, "/kernels?network=ink")
    said(page, "Counted: ")
    expect(page.locator("#network input")).to_have_value("ink")
    page.click("#network input")
    expect(page.get_by_role("option")).to_contain_text(["silu", "relu", "without activation", "ink"])
    page.keyboard.press("Escape")
    page.click("#layer input")
    expect(page.get_by_role("option")).to_contain_text(
        ["self-attention 48 → 48, 64 tokens", "cross-attention 96 → 48", "cross-attention 96 → 80"]
    )


def test_what_cannot_be_counted_is_said(home, page_at):
    page = page_at(home, "/kernels")
    said(page, "Counted: ")
    page.get_by_label("Tokens of one picture").fill("99999999999")
    page.get_by_label("Tokens of one picture").press("Tab")
    said(page, "Tokens must be an integer from 1 to 16777216, not 99999999999.")
    choose(page, "network", "ink")
    said(page, "choose another")


def test_there_is_no_measuring_without_a_gpu(home, page_at):
    page = page_at(home, "/kernels")
    expect(page.locator("#measure")).to_be_visible(visible=torch.cuda.is_available())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_it_is_accessible_and_fits(home, page_at, scheme, size):
    page = page_at(home, "/kernels", color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    page.get_by_label("training").click()
    said(page, "kept for the backward pass")
    page.get_by_role("button", name="What eager PyTorch launches").click()
    expect(page.locator("#eager-table table")).to_be_visible()
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
