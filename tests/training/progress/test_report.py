"""The report of a run: one file that needs nothing else, made of whatever a run's folder holds."""

import base64
import contextlib
import io
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import hnkernels as hn
from hnkernels.training.progress.history import write_run
from hnkernels.training.progress.log import VALIDATION_COLUMNS, CsvLog
from hnkernels.training.progress.report import write_report
from tests.faults import ERRORS, every_fault

HEALTH_COLUMNS = ("step", "768.k.change", "768.k.dead", "768.k.saturated", "768.v.change")


class Page(HTMLParser):
    """What a page holds, and what it would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.loaded, self.images = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset", "action", "poster"):
                self.images.append(value) if tag == "img" else self.loaded.append(value)
            elif not name.startswith("xmlns") and "://" in (value or ""):
                self.loaded.append(value)

    def handle_data(self, data):
        self.texts.append(data)


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def text_of(page):
    return " ".join(page.texts)


def write_log(folder, steps=200):
    with CsvLog(folder / "log.csv", 0) as log:
        for step in range(1, steps + 1):
            loss = 1 / step
            log.write({"step": step, "loss": loss, "mean_loss": loss, "learning_rate": 1e-4, "grad_norm": 0.5})


def write_validation(folder, losses=(0.9, 0.8, 0.7)):
    with CsvLog(folder / "validation.csv", 0, VALIDATION_COLUMNS, every_step=False) as log:
        for i, loss in enumerate(losses):
            row = {"step": 100 * i, "loss": loss, "standard_error": 0.01, "base_loss": 1.0, "difference": loss - 1}
            log.write({**row, "difference_standard_error": 0.002})


def write_health(folder, dead=0.9):
    with CsvLog(folder / "health.csv", 0, HEALTH_COLUMNS, every_step=False) as log:
        for step in (0, 100, 200):
            log.write({"step": step, "768.k.change": step / 1e4, "768.k.dead": dead, "768.v.change": step / 1e3})


def write_previews(folder, steps, size=(64, 48), noise=False):
    (folder / "previews").mkdir()
    generator = np.random.default_rng(0)
    for step in steps:
        pixels = np.full((size[1], size[0], 3), step % 256, np.uint8)
        if noise:
            pixels = generator.integers(0, 256, pixels.shape, np.uint8)
        Image.fromarray(pixels).save(folder / "previews" / f"step-{step:06d}.png")


def write_all(folder, **settings):
    write_log(folder)
    write_validation(folder)
    write_health(folder)
    write_previews(folder, (100, 200))
    write_run(folder, "my style", {"learning_rate": 1e-4, "preview_prompts": ["a cat"], **settings}, 300, "interrupted")


def test_a_whole_run_is_shown(tmp_path):
    write_all(tmp_path)
    page = page_of(tmp_path)
    text = text_of(page)
    for words in (
        *("my style", "200 of 300", "0.7 ± 0.01 at step 200", "-0.3 ± 0.002", "gradient norm", "learning rate"),
        *("validation, base model", "share of the units", "change of the weights", "step 100", "a cat"),
        "768.k: 90% of the hidden units are 0 for all contexts at step 200",
        "The run ended at step 200 of 300; continue it with resume=True",
    ):
        assert words in text
    assert page.tags.count("svg") == 1
    assert len(page.images) == 2


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    write_all(tmp_path)
    page = page_of(tmp_path)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(image.startswith("data:image/") for image in page.images)
    assert all(reference.startswith("#") for reference in page.loaded)
    text = (tmp_path / "report.html").read_text()
    assert set(re.findall(r"https?://[^\"' >]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"url\((?!#|['\"]?#)", text)
    assert "@import" not in text
    assert "<!DOCTYPE svg" not in text


def test_what_users_write_is_text(tmp_path):
    evil = '<script>alert(1)</script><img src="http://example.org/x">" onload="x'
    write_all(tmp_path, **{evil: evil, "preview_prompts": [evil], "nested": {"<b>": evil}})
    write_run(tmp_path, evil, {evil: evil, "preview_prompts": [evil]})
    (tmp_path / "previews" / "<script>alert(2)<.png").write_bytes((tmp_path / "previews/step-000100.png").read_bytes())
    (tmp_path / "previews" / "<script>broken<.png").write_bytes(b"no picture")
    page = page_of(tmp_path)
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("img") == 3
    assert "<script>alert(1)</script>" in text_of(page)


@pytest.mark.parametrize("name", ["a\udc80b", "$x$", "a" * 5000, "\x00\x1b[31m", "日本語"])
def test_names_may_be_anything(tmp_path, name):
    write_run(tmp_path, name, {name: name})
    with CsvLog(tmp_path / "health.csv", 0, ("step", "$\\frac{.change"), every_step=False) as log:
        log.write({"step": 1, "$\\frac{.change": 1.0})
    assert "Settings" in text_of(page_of(tmp_path))


def test_an_empty_folder_makes_a_report_too(tmp_path):
    page = page_of(tmp_path)
    assert "There are no steps yet." in text_of(page)
    assert not {"svg", "img", "table"} & set(page.tags)
    assert "Findings" not in text_of(page)


@pytest.mark.parametrize("write", [write_log, write_validation, write_health])
def test_half_a_run_makes_a_report(tmp_path, write):
    write(tmp_path)
    page = page_of(tmp_path)
    assert page.tags.count("svg") == 1
    assert page.images == []


def test_a_run_without_rows_makes_a_report(tmp_path):
    for name, columns in (("log.csv", None), ("validation.csv", VALIDATION_COLUMNS), ("health.csv", HEALTH_COLUMNS)):
        with CsvLog(tmp_path / name, 0, *([columns] if columns else [])):
            pass
    assert "There are no steps yet." in text_of(page_of(tmp_path))


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_numbers_that_are_not_finite_make_a_report(tmp_path):
    with CsvLog(tmp_path / "log.csv", 0) as log:
        for step in range(1, 1001):
            log.write({"step": step, "loss": (math.nan, math.inf)[step % 2]})
    write_validation(tmp_path, (math.nan, math.inf, -math.inf))
    with CsvLog(tmp_path / "health.csv", 0, HEALTH_COLUMNS, every_step=False) as log:
        log.write({"step": 1})
    assert "no longer finite" in text_of(page_of(tmp_path))


def test_a_healthy_run_says_so(tmp_path):
    write_log(tmp_path, 20)
    assert "Nothing in the numbers of this run looks wrong." in text_of(page_of(tmp_path))


def test_the_same_run_gives_the_same_bytes_in_every_process(tmp_path):
    write_all(tmp_path)
    first = write_report(tmp_path).read_bytes()
    code = "import sys, pathlib, hnkernels.training.progress.report as r; r.write_report(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "UTC-9"}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment)
    assert (tmp_path / "report.html").read_bytes() == first


def test_twenty_large_previews_and_a_long_log_stay_below_two_megabytes(tmp_path):
    write_previews(tmp_path, range(100, 2100, 100), (1024, 512), noise=True)  # noise is what compresses worst
    write_log(tmp_path, 5000)
    path = write_report(tmp_path)
    assert path.stat().st_size <= 2_000_000
    images = Page(path.read_text()).images
    assert len(images) == 20
    for image in images:
        shown = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2])))
        assert shown.width == 2 * shown.height
        assert shown.width >= 256


def test_of_many_previews_twenty_are_shown_the_first_and_last_among_them(tmp_path):
    write_previews(tmp_path, range(10, 1_000_010, 20_000), (8, 8))
    page = page_of(tmp_path)
    assert len(page.images) == 20
    assert "20 of 50 previews." in text_of(page)
    assert "step 10" in page.texts
    assert "step 980010" in page.texts


def test_previews_come_in_the_order_of_their_steps(tmp_path):
    write_previews(tmp_path, (2_000_000, 900), (8, 8))
    assert [text for text in page_of(tmp_path).texts if re.match(r"step \d", text)] == ["step 900", "step 2000000"]


def test_small_previews_are_shown_as_they_are(tmp_path):
    write_previews(tmp_path, (100,), (16, 16), noise=True)
    (image,) = page_of(tmp_path).images
    assert base64.b64decode(image.partition(",")[2]) == (tmp_path / "previews" / "step-000100.png").read_bytes()


def test_a_damaged_preview_is_named(tmp_path):
    write_previews(tmp_path, (100, 200))
    file = tmp_path / "previews" / "step-000100.png"
    file.write_bytes(file.read_bytes()[:50])
    (tmp_path / "previews" / "step-000300.png").mkdir()
    page = page_of(tmp_path)
    assert len(page.images) == 1
    assert "step-000100.png is damaged." in text_of(page)
    assert "step-000300.png is damaged." in text_of(page)


def test_a_fault_leaves_the_old_report_or_the_new_one_whole(tmp_path, monkeypatch):
    write_run(tmp_path, "new", {})
    new = write_report(tmp_path).read_bytes()
    seen = set()
    for fault in every_fault(monkeypatch, ERRORS[0]):
        (tmp_path / "report.html").write_bytes(b"old")
        with fault, contextlib.suppress(hn.CheckpointError):
            write_report(tmp_path)
        seen.add((tmp_path / "report.html").read_bytes())
        assert sorted(os.listdir(tmp_path)) == ["report.html", "run.json"]
    assert seen == {b"old", new}


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(hn.CheckpointError, match=r"report\.html: lies in a folder that does not exist"):
        write_report(tmp_path / "no")


def test_without_matplotlib_the_import_error_is_its_own(tmp_path, monkeypatch):
    write_log(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="matplotlib"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
