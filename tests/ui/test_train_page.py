"""The page Train in a browser: what it fills in, shows, refuses and starts."""

import fcntl
import os
import time

import pytest
from PIL import Image
from playwright.sync_api import expect

from hnkernels.home.runs.runs import Runs
from hnkernels.home.runs.waiting import TURN
from hnkernels.training.data.folder import read_folder


@pytest.fixture
def turn(started_home):
    """Runs that are started wait in the queue."""
    descriptor = os.open(started_home.runs / TURN, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


@pytest.fixture
def page(started_home, page_at):
    opened = page_at(started_home, "/")
    expect(opened.locator("#cost")).to_contain_text("200 steps", timeout=60_000)
    return opened


def field(page, name):
    """The input of a setting, or another of the page's fields."""
    return (
        page.locator(f"#setting-{name.replace(' ', '_')}, #{name.replace(' ', '-')}").locator("input, textarea").first
    )


def fill(page, name, value):
    """Fills in a setting as a person would, who takes a moment before the next click."""
    field(page, name).fill(value)
    field(page, name).press("Tab")
    page.wait_for_timeout(500)


def open_group(page, title):
    page.locator("button.label-wrap", has_text=title).click()


def test_it_begins_with_what_takes_seconds_and_says_what_it_will_cost(page):
    assert field(page, "learning rate").input_value() == "0.005"
    assert field(page, "batch size").input_value() == "8"
    expect(page.locator("#cost")).to_contain_text("144,704 parameters")
    expect(page.locator("#cost")).to_contain_text("a file of 579 kB")
    expect(page.locator("#cost")).to_contain_text("256 pictures, 200 steps")


def test_a_recipe_fills_in_its_settings(page):
    page.locator("#recipe").get_by_label("style", exact=True).check()
    expect(field(page, "learning rate")).to_have_value("0.0005")
    expect(field(page, "max steps")).to_have_value("800")
    expect(page.locator("#cost")).to_contain_text("800 steps")
    page.get_by_label("Own settings").check()
    expect(field(page, "max steps")).to_have_value("800")


@pytest.mark.parametrize(
    ("group", "name", "value", "said"),
    [
        (None, "batch size", "0", "batch_size must be an integer >= 1, not 0"),
        (None, "batch size", "2.5", "batch_size must be an integer >= 1, not 2.5"),
        (None, "learning rate", "fast", "cannot read 'fast' in the schedule"),
        ("Captions", "tag dropout", "2", "tag_dropout must be a number in [0, 1], not 2"),
        ("Optimiser", "optimizer args", "{", "optimizer_args must be JSON"),
        ("Optimiser", "optimizer", "adamx", "adamx"),
        ("Objective", "max timestep", "0", "max_timestep must be an integer >= 1, not 0"),
    ],
)
def test_a_fault_stands_beside_its_field_and_nothing_starts(started_home, page, group, name, value, said):
    if group:
        open_group(page, group)
    fill(page, name, value)
    page.locator("#start").click()
    faulty = page.locator(".faulty")
    expect(faulty).to_contain_text(said)
    expect(faulty).to_contain_text(name)
    expect(page.locator("#train-said")).to_contain_text(said)
    assert Runs(started_home).all() == []


def test_the_group_of_a_fault_opens(page):
    open_group(page, "Captions")
    fill(page, "tag dropout", "2")
    open_group(page, "Captions")
    expect(field(page, "tag dropout")).to_be_hidden()
    page.locator("#start").click()
    expect(field(page, "tag dropout")).to_be_visible()


def test_the_mark_moves_and_what_is_typed_meanwhile_stays(page):
    open_group(page, "Captions")
    fill(page, "tag dropout", "2")
    page.locator("#start").click()
    field(page, "batch size").fill("0")  # before Start has answered
    expect(page.locator(".faulty")).to_contain_text("tag dropout")
    expect(field(page, "batch size")).to_have_value("0")
    fill(page, "tag dropout", "0.5")
    page.locator("#start").click()
    expect(page.locator(".faulty")).to_contain_text("batch size")
    expect(page.locator(".faulty")).to_have_count(1)
    expect(field(page, "tag dropout")).to_have_value("0.5")


def test_a_name_that_is_none(started_home, page):
    for name, said in (("", "The network needs a name"), ("../up", "is not a name")):
        field(page, "name").fill(name)
        page.locator("#start").click()
        expect(page.locator("#train-said")).to_contain_text(said)
    assert Runs(started_home).all() == []


def test_start_queues_the_run_and_shows_it(started_home, page, turn):
    field(page, "name").fill("first style")
    page.locator("#start").click()
    page.wait_for_url("**/watch?run=first%20style", wait_until="commit")
    expect(page.locator("#facts")).to_contain_text("first style Waits until it is its turn.")
    run = Runs(started_home)["first style"]
    assert run.request.training["learning_rate"] == 0.005
    assert run.request.training["cache_dir"] == str(started_home.path / ".cache")
    assert run.request.network["activation"] == "silu"


def test_the_keyboard_alone_starts_a_run(started_home, page, turn):
    focused = "document.activeElement.id"
    for _ in range(60):
        if page.evaluate(focused) == "start":
            break
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "start"
    page.keyboard.press("Enter")
    page.wait_for_url("**/watch?run=my-style", wait_until="commit")
    assert [run.name for run in Runs(started_home).all()] == ["my-style"]


def test_a_caption_is_edited(started_home, page):
    page.locator("#pictures button").nth(2).click()
    expect(field(page, "number")).to_have_value("2")
    expect(field(page, "caption")).not_to_have_value("")
    field(page, "caption").fill("digit <b>nine</b>, crossed")
    page.get_by_role("button", name="Save the caption").click()
    expect(page.locator("#data-said")).to_contain_text("Saved the caption of picture 2.")
    captions = [example.caption for example in read_folder(started_home.dataset("handwriting")).rows]
    assert captions[2] == "digit <b>nine</b>, crossed"


def test_what_is_cropped_is_shown(started_home, page_at):
    folder = started_home.data / "wide"
    folder.mkdir()
    Image.new("RGB", (64, 32)).save(folder / "a.png")
    page = page_at(started_home, "/")
    expect(page.locator("#cost")).to_contain_text("steps")
    field(page, "data").click()
    page.get_by_role("option", name="wide").click()
    expect(page.locator("#data-said")).to_contain_text("1 picture")
    page.locator("#pictures button").first.click()
    expect(page.locator("#data-said")).to_have_text("64 × 32 pixels, trained at 32 × 32; 50% of it is cropped.")
    expect(page.locator("#crop img")).to_have_attribute(
        "alt", "64 × 32 pixels, trained at 32 × 32; 50% of it is cropped."
    )


def test_pictures_of_ones_own_become_a_data_set_that_can_be_trained_on(started_home, page, turn, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a thing {name}")
    page.get_by_role("button", name="Add pictures of your own").click()
    field(page, "new data").fill("things")
    files = [tmp_path / name for name in ("a.png", "a.txt", "b.png", "b.txt")]
    page.locator("#new-files input[type=file]").set_input_files(files)
    expect(page.locator("#new-files tr")).to_have_count(4)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(field(page, "data")).to_have_value("things")
    page.locator("#recipe").get_by_label("fast", exact=True).check()
    expect(page.locator("#cost")).to_contain_text("2 pictures")
    page.locator("#start").click()
    page.wait_for_url("**/watch?run=my-style", wait_until="commit")
    assert Runs(started_home)["my-style"].request.data == str(started_home.data / "things")


def test_a_file_that_is_not_a_picture_is_refused(started_home, page, tmp_path):
    (tmp_path / "evil.exe").write_bytes(b"MZ")
    page.get_by_role("button", name="Add pictures of your own").click()
    page.locator("#new-files input[type=file]").set_input_files([tmp_path / "evil.exe"])
    expect(page.locator("#new-files tr")).to_have_count(1)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#data-said")).to_contain_text("evil.exe is neither a picture nor a caption")
    assert list(started_home.datasets()) == ["handwriting"]


def test_data_that_vanished_is_told(started_home, page):
    os.rename(started_home.data / "handwriting", started_home.path / "elsewhere")
    page.locator("#start").click()
    expect(page.locator("#train-said")).to_contain_text("There is no data set 'handwriting'; there are: none.")


def test_a_full_disk_is_told(started_home, page, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    page.locator("#start").click()
    expect(page.locator("#train-said")).to_contain_text("The run my-style cannot be started: No space left on device.")
    assert Runs(started_home).all() == []


def test_two_tabs_start_two_runs(started_home, page, page_at, turn):
    other = page_at(started_home, "/")
    expect(other.locator("#cost")).to_contain_text("200 steps")
    page.locator("#start").click()
    page.wait_for_url("**/watch?run=my-style", wait_until="commit")
    other.locator("#start").click()
    other.wait_for_url("**/watch?run=my-style-2", wait_until="commit")
    time.sleep(0.1)
    assert [run.name for run in Runs(started_home).all()] == ["my-style-2", "my-style"]


def test_back_leads_to_the_form_again(page, turn):
    page.locator("#start").click()
    page.wait_for_url("**/watch?run=my-style", wait_until="commit")
    expect(page.locator("#facts")).to_contain_text("my-style")
    page.go_back()
    expect(page.locator("#cost")).to_contain_text("200 steps")


def test_a_step_is_measured(page):
    field(page, "batch size").fill("1")
    page.get_by_role("button", name="Measure how long a step takes").click()
    expect(page.locator("#train-said")).to_contain_text("here, measured:", timeout=300_000)
