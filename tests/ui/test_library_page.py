"""The page Library in a browser: what a person clicks and types, and what lies in the folder then."""

import json
import pickle
import shutil
import urllib.request

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.convert.model_files import read_unet
from hnkernels.home.library import Library

WIDTHS = (48, 80, 96)  # of the embedded model


@pytest.fixture
def add(home):
    """Writes a network among the home's, or into a folder."""

    def write(name, extension=".safetensors", folder=None, step=0, **options):
        net = hn.Hypernetwork(**{"sizes": WIDTHS, "activation": "linear", "name": name} | options)
        net.provenance.step = step
        folder = folder or home.networks
        folder.mkdir(exist_ok=True)
        hn.save_hypernetwork(net, folder / f"{name}{extension}")
        return folder / f"{name}{extension}"

    return write


@pytest.fixture
def library(home, page_at):
    """The page, opened; with what the tests do again and again."""
    return lambda: Opened(page_at(home, "/library"))


class Opened:
    def __init__(self, page):
        self.page = page
        page.wait_for_selector("#networks table, #networks .empty")

    def names(self):
        return self.page.locator("#networks tbody th").all_inner_texts()

    def choose(self, name):
        self.page.locator("#networks").get_by_role("button", name=name, exact=True).click()
        expect(self.page.locator("#network h2")).to_have_text(name)
        self.page.wait_for_timeout(300)  # a person takes a moment before the next click

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()

    def fill(self, label, value):
        self.page.get_by_label(label, exact=True).locator("visible=true").fill(str(value))

    def pick(self, label, *options):
        for option in options:
            self.page.get_by_label(label, exact=True).locator("visible=true").click()
            self.page.get_by_role("option", name=option, exact=True).click()
        self.page.keyboard.press("Escape")

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def says(self, sentence, fault=False):
        expect(self.page.locator(f"#said [role={'alert' if fault else 'status'}]")).to_contain_text(
            sentence, timeout=15_000
        )


def test_a_library_with_nothing_in_it(library):
    page = library().page
    expect(page.locator("#networks")).to_have_text("No network here yet: train one, or drop a file here.")
    expect(page.locator("#network")).to_be_hidden()


def test_searching_and_sorting(library, add, home):
    add("anna", step=3, activation="relu")
    add("bert", step=20)
    add("carl", step=5, folder=home.runs / "first")
    (home.networks / "broken.pt").write_bytes(b"x")
    opened = library()
    assert opened.names() == ["anna", "bert", "carl", "broken"]
    expect(opened.page.locator("#networks")).to_contain_text("broken.pt: is damaged")
    steps = opened.page.get_by_role("columnheader", name="Steps")
    steps.get_by_role("button").focus()
    opened.page.keyboard.press("Enter")
    expect(steps).to_have_attribute("aria-sort", "ascending")
    assert opened.names() == ["anna", "carl", "bert", "broken"]
    expect(steps.get_by_role("button")).to_be_focused()
    opened.page.keyboard.press("Enter")
    expect(steps).to_have_attribute("aria-sort", "descending")
    opened.fill("Search", "RELU")
    expect(opened.page.locator("#networks tbody tr")).to_have_count(1)
    assert opened.names() == ["anna"]
    opened.fill("Search", "nothing")
    expect(opened.page.locator("#networks")).to_have_text("No network matches these words; try fewer.")


def test_a_name_is_text_whatever_is_in_it(library, add):
    add("${1+1} {{value}} <b>x")
    opened = library()
    assert opened.names() == ["${1+1} {{value}} <b>x"]
    opened.choose("${1+1} {{value}} <b>x")


def test_with_the_keyboard_alone(library, add, home):
    add("style")
    opened = library()
    page = opened.page
    page.get_by_label("Search", exact=True).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.key") == "networks/style":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#network h2")).to_have_text("style")
    page.get_by_label("New name").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("ink")
    page.keyboard.press("Enter")
    opened.says(
        "Renamed style to ink.",
    )
    assert [path.name for path in home.networks.iterdir()] == ["ink.safetensors"]


def test_renaming_and_copying(library, add, home):
    add("style")
    add("style", ".pt")
    add("other")
    opened = library()
    opened.choose("style")
    for name, sentence in (("other", "There is a other.safetensors in networks already"), ("../x", "is not a name")):
        opened.fill("New name", name)
        opened.press("Rename")
        opened.says(sentence, fault=True)
    opened.fill("New name", "ink")
    opened.press("Rename")
    opened.says("Renamed style to ink.")
    expect(opened.page.locator("#network h2")).to_have_text("ink")
    opened.press("Copy")
    opened.says("Copied ink to ink-2.")
    names = sorted(path.name for path in home.networks.iterdir())
    assert names == ["ink-2.pt", "ink-2.safetensors", "ink.pt", "ink.safetensors", "other.safetensors"]


def test_a_network_of_a_run_can_only_be_copied(library, add, home):
    add("style", folder=home.runs / "first")
    opened = library()
    opened.choose("style")
    for tab in ("Notes", "Delete"):
        expect(opened.page.get_by_role("tab", name=tab, exact=True)).to_have_count(0)
    opened.fill("Name of a copy", "mine")
    opened.press("Copy")
    opened.says("Copied style to mine.")
    assert (home.networks / "mine.safetensors").exists()


def test_notes_are_there_after_a_reload(library, add):
    add("style")
    opened = library()
    opened.choose("style")
    opened.tab("Notes")
    opened.fill("Notes", "For the exhibition.\nBest at 0.7")
    opened.press("Save notes")
    opened.says("Saved the notes on style.")
    opened.page.reload()
    opened.page.wait_for_selector("#networks table")
    opened.fill("Search", "exhibition")
    opened.choose("style")
    opened.tab("Notes")
    expect(opened.page.get_by_label("Notes", exact=True).locator("visible=true")).to_have_value(
        "For the exhibition.\nBest at 0.7"
    )


def test_deleting_asks_first_and_has_a_way_back(library, add, home):
    file = add("style")
    opened = library()
    opened.choose("style")
    opened.tab("Delete")
    opened.press("Delete …")
    opened.press("Keep")
    expect(opened.page.get_by_role("button", name="Move to the bin")).to_be_hidden()
    assert file.exists()
    opened.press("Delete …")
    opened.press("Move to the bin")
    opened.says("Moved style to the bin")
    assert not file.exists()
    expect(opened.page.locator("#networks")).to_contain_text("No network here yet")
    expect(opened.page.locator("#network")).to_be_hidden()
    opened.page.get_by_text("Bin", exact=True).click()
    opened.press("Bring back")
    opened.says("Brought back style.safetensors.")
    assert file.exists()
    expect(opened.page.locator("#networks tbody tr")).to_have_count(1)


def test_the_bin_is_emptied_of_networks_after_a_question(library, add, home):
    add("style")
    (home.runs / "first").mkdir()
    Library(home).bin.put("first", [home.runs / "first"])
    opened = library()
    opened.page.get_by_text("Bin", exact=True).click()
    opened.press("Empty the bin …")
    opened.press("Remove for good")
    opened.says("There is nothing in the bin", fault=True)
    opened.choose("style")
    opened.tab("Delete")
    opened.press("Delete …")
    opened.press("Move to the bin")
    opened.says("Moved style to the bin")
    opened.press("Empty the bin …")
    opened.press("Keep them")
    expect(opened.page.get_by_role("button", name="Remove for good")).to_be_hidden()
    opened.press("Empty the bin …")
    opened.press("Remove for good")
    opened.says("Removed style for good.")
    assert [one.name for one in Library(home).bin.all()] == ["first"]


def test_converting_and_mixing(library, add, home):
    for name in ("a", "b", "c"):
        add(name)
    opened = library()
    opened.choose("a")
    opened.tab("Convert")
    opened.press("Convert")
    opened.says("Wrote a.pt.")
    opened.press("Convert")
    opened.says("There is a a.pt in networks already", fault=True)
    opened.tab("Mix")
    opened.pick("Mix it with", "b")
    opened.press("Mix")
    opened.says("Wrote a-b-0.5.safetensors.")
    opened.choose("a")
    opened.tab("Mix")
    opened.pick("Mix it with", "c")
    opened.fill("Shares", "1, two")
    opened.press("Mix")
    opened.says("Shares are numbers", fault=True)
    opened.fill("Shares", "1, 2, 1")
    opened.fill("Name", "three")
    opened.press("Mix")
    opened.says("Wrote three.safetensors.")
    nets = [hn.load_hypernetwork(home.networks / f"{name}.safetensors") for name in ("a", "b", "c", "three")]
    expected = hn.average(nets[:3], [1, 2, 1]).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in nets[3].state_dict().items())


def test_merging_and_exporting_a_lora(library, add, home):
    add("style")
    add("tint")
    add("curved", activation="relu")
    opened = library()
    opened.choose("style")
    opened.tab("Merge")
    opened.press("Merge")
    opened.says("is not a name", fault=True)
    opened.fill("Name of the new model", "merged")
    opened.press("Merge")
    opened.says("Made the model merged: embedded with style in its weights.")
    assert "merged" in home.models()
    opened.pick("After it", "tint")
    opened.fill("Strengths", "1")
    opened.fill("Name of the new model", "both")
    opened.press("Merge")
    opened.says("1 strengths are given for 2 networks; give one each, or none", fault=True)
    opened.fill("Strengths", "1, 0.5")
    opened.press("Merge")
    opened.says("Made the model both: embedded with style and tint in its weights, in this order.")
    nets = [hn.load_hypernetwork(home.networks / f"{name}.safetensors") for name in ("style", "tint")]
    expected = hn.merge_state_dict(read_unet(TINY_SD), nets, [1.0, 0.5])
    made = read_unet(home.models()["both"])
    assert all(torch.equal(made[key], value) for key, value in expected.items())
    opened.tab("LoRA")
    opened.pick("For the model", "merged")
    opened.fill("Rank", 4)
    opened.press("Export as LoRA")
    opened.says("Wrote loras/style.safetensors.")
    expect(opened.page.get_by_role("region", name="Error of every layer").locator("tbody tr")).to_have_count(28)
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="style.safetensors").or_(opened.page.locator("a[download]")).first.click()
    assert download.value.path().read_bytes() == (home.loras / "style.safetensors").read_bytes()
    opened.choose("curved")
    opened.tab("LoRA")
    opened.press("Export as LoRA")
    opened.says("Only an affine hypernetwork can become part of a model's weights", fault=True)


def test_a_lora_of_a_style(library, home):
    net = hn.WeightHypernetwork(
        ("attn2",), embedding_dim=8, hidden_dim=8, rank=2, projections=("k",), styles=("ink", "oil"), name="styles"
    )
    net.save(home.networks / "styles.safetensors")
    opened = library()
    opened.choose("styles")
    opened.tab("LoRA of a style")
    opened.press("Generate LoRA")
    opened.says("Choose a style of styles: ink, oil", fault=True)
    opened.pick("Styles", "oil", "ink")
    opened.fill("Shares", "0.3 0.7")
    opened.press("Generate LoRA")
    opened.says("Wrote loras/styles.safetensors.")
    assert (home.loras / "styles.safetensors").exists()


def test_files_are_brought_in_and_hostile_ones_refused(library, add, home, tmp_path):
    class Runs:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    good = add("good", ".pt", folder=tmp_path / "arrived")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Runs()))
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    opened = library()
    uploading = opened.page.locator("input[type=file]").first
    uploading.set_input_files(good)
    opened.says("Took in good.pt as good.")
    expect(opened.page.locator("#network h2")).to_have_text("good")
    uploading.set_input_files([tmp_path / "evil.pt", tmp_path / "damaged.safetensors", good])
    opened.says("evil.pt: ")
    opened.says("damaged.safetensors: is damaged")
    opened.says("Took in good.pt as good-2.")
    uploading.set_input_files(tmp_path / "evil.pt")
    opened.says("evil.pt: ", fault=True)
    assert sorted(path.name for path in home.networks.iterdir()) == ["good-2.pt", "good.pt"]
    assert not (tmp_path / "ran").exists()


def test_a_file_that_no_browser_has_sent_is_not_taken_in(home, serve, tmp_path, add):
    """A program that speaks Gradio's protocol may name any path of the machine."""
    secret = add("secret", ".pt", folder=tmp_path / "elsewhere")
    address = serve(home)

    def ask(path, data):
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    config = json.loads(ask("/config", None))
    (uploading,) = (
        one
        for one in config["dependencies"]
        if any(event == "upload" for _, event in one["targets"]) and len(one["inputs"]) == 4
    )
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    data = {"data": [None, None, "", [file]], "fn_index": uploading["id"], "session_hash": "s"}
    ask("/gradio_api/queue/join", data)
    request = urllib.request.Request(f"{address}/gradio_api/queue/data?session_hash=s")
    with urllib.request.urlopen(request, timeout=30) as events:
        told = events.read().decode()
    assert '"success":false' in told.replace(" ", "")
    assert list(home.networks.iterdir()) == []
    assert secret.exists()


def test_downloading(library, add):
    file = add("style", ".pt")
    opened = library()
    opened.choose("style")
    opened.tab("Download")
    with opened.page.expect_download() as download:
        opened.page.locator("a[download]").locator("visible=true").first.click()
    assert download.value.suggested_filename == "style.pt"
    assert download.value.path().read_bytes() == file.read_bytes()


def test_two_tabs_and_a_folder_that_goes(library, add, home):
    add("style")
    first, second = library(), library()
    first.choose("style")
    second.choose("style")
    first.fill("New name", "ink")
    first.press("Rename")
    first.says("Renamed style to ink.")
    second.fill("New name", "oil")
    second.press("Rename")
    second.says("There is no network 'style' any more; choose another.", fault=True)
    assert second.names() == ["ink"]
    expect(second.page.locator("#network")).to_be_hidden()
    shutil.rmtree(home.path)
    first.press("Copy")
    first.says("There is no network 'ink' any more", fault=True)
    first.page.reload()
    first.says("networks is gone; bring it back.", fault=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(library, add, scheme):
    add("style")
    opened = library()
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.reload()
    opened.page.wait_for_selector("#networks table")
    opened.choose("style")
    for width in (1280, 390):
        opened.page.set_viewport_size({"width": width, "height": 800})
        opened.page.wait_for_timeout(500)
        found = Axe().run(opened.page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
