"""The page Watch in a browser: the truth about every run, in a sentence, and curves of what was measured."""

import dataclasses
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from hnkernels.home.runs.output import OUTPUT
from hnkernels.home.runs.process import Phase, RunProcess
from hnkernels.home.runs.request import RunRequest
from hnkernels.home.runs.run import ALIVE
from hnkernels.home.runs.runs import Runs
from hnkernels.home.runs.waiting import TURN
from hnkernels.training.progress.history import write_run
from hnkernels.training.progress.log import COLUMNS, VALIDATION_COLUMNS

NOWHERE = RunRequest(model="/nowhere", data="/nowhere", name="style")


@pytest.fixture
def runs(home):
    """The runs of a new home."""
    return Runs(home)


@pytest.fixture
def turn(runs):
    """Somebody has the turn, so that runs that are started wait."""
    descriptor = os.open(runs.path / TURN, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def written(runs, name, steps=60, stopped="finished", alive=False, end=None):
    """A run, as its folder says."""
    folder = runs.path / name
    folder.mkdir(parents=True)
    dataclasses.replace(NOWHERE, name=name).write(folder)
    if alive:
        RunProcess.current(Phase.TURN).write(folder)
    write_run(folder, name, {}, end or steps, stopped)
    rows = [f"{n},0,{0.2 + 0.1 / n:.4f},{0.2 + 0.2 / n:.4f},0.001,{1 / n:.4f},4,1.5" for n in range(1, steps + 1)]
    (folder / "log.csv").write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    values = [f"{n},{0.3 - n / 1000},0.01,0.3,0.1,0.01,0.2" for n in range(0, steps + 1, 20)]
    (folder / "validation.csv").write_text("\n".join([",".join(VALIDATION_COLUMNS), *values, ""]))
    (folder / "health.csv").write_text("step,48.k.change,48.k.dead\n0,0,0\n20,0.5,0\n")
    return folder


def facts(page):
    return page.locator("#facts")


def test_no_run_yet(home, page_at):
    page = page_at(home, "/watch")
    expect(page.locator("#runs")).to_contain_text("There is no run yet.")
    page.get_by_role("link", name="Start one.").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Train")


def test_curves_of_a_finished_run(runs, home, page_at):
    written(runs, "style")
    page = page_at(home, "/watch?run=style")
    expect(facts(page)).to_contain_text("style Finished, at step 60 of 60.")
    curves = page.locator("#curves")
    expect(curves.locator("svg")).to_have_count(7)
    for title in ("Loss", "Loss on pictures that were held out", "Learning rate", "Norm of the gradient"):
        expect(curves.locator("figcaption").get_by_text(title, exact=True)).to_be_visible()
    held_out = curves.locator("svg").nth(1)
    expect(held_out).to_have_attribute(
        "aria-label",
        "Loss on pictures that were held out: this network: 0.24 at step 60; base model: 0.3 at step 60",
    )


def test_a_run_grows_while_one_looks(runs, home, page_at):
    folder = written(runs, "style", steps=10, stopped=None, alive=True, end=100)
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Trains: step 10 of 100. 22 s left, at 4 steps per second.")
    expect(facts(page)).to_contain_text("of memory")
    with (folder / "log.csv").open("a") as file:
        file.write("11,0,0.5,0.21,0.001,1,4,1.5\n")
    expect(facts(page)).to_contain_text("step 11 of 100")
    expect(page.locator("#curves svg").first).to_have_attribute("aria-label", re.compile("0.5 at step 11"))


def test_two_runs_are_laid_over_each_other(runs, home, page_at):
    written(runs, "first")
    written(runs, "second", steps=30)
    page = page_at(home, "/watch?run=first&run=second")
    legend = page.locator("#curves .legend").first
    expect(legend).to_contain_text("first: each step")
    expect(legend).to_contain_text("second: each step")
    expect(facts(page)).to_contain_text("second Finished, at step 30 of 30.")


def test_one_that_died_shows_its_last_lines(runs, home, page_at):
    folder = written(runs, "style", steps=7, stopped=None)
    (folder / OUTPUT).write_text("reading\n\x1b[31mRuntimeError: out of <memory>\x1b[0m\n")
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Died, at step 7 of 7; resume begins again.")
    expect(facts(page).locator("pre")).to_have_text("reading\nRuntimeError: out of <memory>")
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("#resume")).to_be_enabled()


def test_a_run_is_stopped_resumed_deleted_and_brought_back(runs, turn, home, page_at):
    runs.start(NOWHERE)
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Waits until it is its turn.")
    page.locator("#stop").click()
    expect(facts(page)).to_contain_text("Stopped, at step 0")
    page.locator("#resume").click()
    expect(facts(page)).to_contain_text("Waits until it is its turn.")
    page.locator("#delete").click()
    expect(page.locator("#delete")).to_have_text("Click once more to delete")
    page.locator("#delete").click()
    expect(page.locator("#watch-said")).to_contain_text("style is queued; stop it first")
    page.locator("#stop").click()
    expect(facts(page)).to_contain_text("Stopped, at step 0")
    page.locator("#delete").click()
    expect(page.locator("#delete")).to_have_text("Click once more to delete")
    assert [run.name for run in runs.all()] == ["style"]
    page.locator("#delete").click()
    expect(page.locator("#runs")).to_contain_text("There is no run yet.")
    page.locator("button.label-wrap", has_text="Bin").click()
    page.locator("#restore").click()
    expect(page.locator("#watch-said")).to_contain_text("Brought back style.")
    expect(page.locator("#runs")).to_contain_text("style")
    assert [run.name for run in runs.all()] == ["style"]
    expect(page.locator("#delete")).to_have_text("Delete")
    page.locator("#delete").click()
    expect(page.locator("#delete")).to_have_text("Click once more to delete")
    page.locator("#delete").click()
    expect(page.locator("#runs")).to_contain_text("There is no run yet.")
    page.get_by_role("button", name="Empty the bin …").click()
    page.get_by_role("button", name="Remove for good").click()
    expect(page.locator("#watch-said")).to_contain_text("Removed style for good.")
    assert runs.bin.all() == []


def test_previews_are_looked_through(runs, home, page_at):
    folder = written(runs, "style")
    (folder / "previews").mkdir()
    for step, colour in ((20, "red"), (40, "green"), (60, "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / "previews" / f"{step:08d}.png")
    page = page_at(home, "/watch")
    expect(page.locator("#preview img")).to_have_attribute("alt", "Preview at step 60")
    expect(page.locator("#all-previews figure")).to_have_count(3)
    page.locator("#preview-at input[type=number]").fill("1")
    expect(page.locator("#preview img")).to_have_attribute("alt", "Preview at step 20")


def test_the_report_is_a_file(runs, home, page_at):
    written(runs, "style")
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Finished")
    page.locator("#report").click()
    with page.expect_download() as download:
        page.locator("#report-file a").first.click()
    assert "<svg" in Path(download.value.path()).read_text(encoding="utf-8")


def test_a_folder_that_is_deleted_beneath_it(runs, home, page_at):
    folder = written(runs, "style")
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Finished")
    shutil.rmtree(folder)
    expect(page.locator("#runs")).to_contain_text("There is no run yet.")
    page.locator("#report").click()
    expect(page.locator("#watch-said")).to_contain_text("There is no run 'style' in")
    shutil.rmtree(home.path)
    page.reload()
    expect(page.locator("#runs")).to_contain_text("There is no run yet.")


def test_names_are_never_markup(runs, home, page_at):
    name = "<img src=x onerror=alert(1)>"
    (runs.path / name).mkdir()
    (runs.path / name / "log.csv").write_text(",".join(COLUMNS) + "\n")
    page = page_at(home, "/watch")
    expect(page.locator("#runs")).to_contain_text(name)
    assert page.locator("img[src=x]").count() == 0


def test_a_reload_in_the_middle_and_two_tabs(runs, turn, home, page_at):
    runs.start(NOWHERE)
    page, other = page_at(home, "/watch"), page_at(home, "/watch")
    expect(facts(other)).to_contain_text("Waits until")
    page.reload()
    expect(facts(page)).to_contain_text("Waits until")
    page.locator("#stop").click()
    expect(facts(other)).to_contain_text("Stopped")
    other.locator("#resume").click()
    expect(facts(page)).to_contain_text("Waits until")


def test_a_server_that_is_killed_stops_nothing_and_the_next_one_finds_it(runs, turn, home, page_at):
    code = (
        "import sys, os, signal; from hnkernels.home.folder import Home; from hnkernels.home.runs.runs import Runs\n"
        "from hnkernels.home.runs.request import RunRequest\n"
        "Runs(Home(sys.argv[1])).start(RunRequest('/nowhere', '/nowhere', 'style'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(home.path)])
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Waits until it is its turn.")
    page.locator("#stop").click()
    expect(facts(page)).to_contain_text("Stopped")


def test_a_million_steps_are_drawn_thinned_with_their_extremes(runs, home, page_at):
    folder = written(runs, "style", stopped=None)
    numbers = np.full((1_000_000, len(COLUMNS)), 0.25)
    numbers[:, 0] = np.arange(1, 1_000_001)
    numbers[123_456, 2] = 7.75
    with (folder / "log.csv").open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        np.savetxt(file, numbers, fmt="%.6g", delimiter=",")
    page = page_at(home, "/watch")
    loss = page.locator("#curves svg").first
    expect(loss).to_have_attribute("aria-label", re.compile("0.25 at step 1000000"))
    expect(loss.locator("text[text-anchor=end]").last).to_have_text("6")  # of the axis, which reaches 7.75
    assert len(loss.inner_html()) < 100_000


def test_nothing_is_sent_where_nothing_changes(runs, home, page_at):
    """An idle page asks once in ten seconds, and nothing on it changes."""
    written(runs, "style")
    page = page_at(home, "/watch")
    expect(facts(page)).to_contain_text("Finished")
    time.sleep(4)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    before = page.locator("#curves .curves").inner_html()
    page.wait_for_timeout(9000)
    assert sum("queue/join" in url for url in asked) <= 1
    assert page.locator("#curves .curves").inner_html() == before
    assert all(run.state not in ALIVE for run in runs.all())
