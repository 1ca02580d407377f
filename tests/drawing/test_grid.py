"""Grids differ in what their axes say, keep what is drawn when they are stopped, and are labelled."""

import threading
from dataclasses import replace

import pytest
from PIL import ImageChops

import hnkernels as hn
from hnkernels.drawing.grid import MOST_CELLS, Axis, Grid, numbers
from hnkernels.drawing.request import NetworkUse
from hnkernels.drawing.stages import Stage, stages_of


def same(a, b):
    return ImageChops.difference(a, b).getbbox() is None


def test_a_grid_of_strengths_and_seeds_is_the_pictures_drawn_one_by_one(artist, asks):
    grid = Grid(asks, Axis.strengths("ink", [0, 1.0]), Axis.seeds([5, 6])).draw(artist)
    assert (grid.shape, grid.cells, grid.stopped, len(grid.pictures)) == ((2, 2), 4, False, 4)
    one = artist.draw(replace(asks.with_network("ink", strength=0.0), seed=6))[0]
    assert same(grid.pictures[1, 0], one)
    assert not same(grid.pictures[1, 1], one)
    assert grid.columns.labels == ("strength 0", "strength 1")
    assert grid.rows.labels == ("seed 5", "seed 6")


def test_a_strength_of_the_grid_goes_before_that_of_a_tag(artist, asks):
    tagged = replace(asks, prompt="digit seven <hypernet:ink:0.3>")
    grid = Grid(tagged, Axis.strengths("ink", [0.0])).draw(artist)
    assert same(grid.pictures[0, 0], artist.draw(replace(asks, networks=()))[0])


def test_a_strip_goes_from_one_style_to_the_other(artist, asks, styles):
    with_styles = replace(asks, networks=(NetworkUse(styles, "styles"),))
    axis = Axis.mixtures("styles", "oil", "pen", 3)
    assert axis.labels == ("oil", "50%", "pen")
    grid = Grid(with_styles, axis).draw(artist)
    ends = [artist.draw(with_styles.with_network("styles", styles={name: 1.0}))[0] for name in ("oil", "pen")]
    assert same(grid.pictures[0, 0], ends[0])
    assert same(grid.pictures[0, 2], ends[1])
    assert not same(grid.pictures[0, 1], ends[0])
    with pytest.raises(ValueError, match="count must be an integer of at least 2, not 1"):
        Axis.mixtures("styles", "oil", "pen", 1)


@pytest.fixture
def run(ink, tmp_path):
    """The folder of a run with a start and a checkpoint."""
    folder = tmp_path / "run"
    for name in ("step-000010", "step-000002", "step-000030"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    for name in ("step-000010", "step-000002"):
        (folder / "checkpoints" / name / "hypernetwork.safetensors").write_bytes(ink.read_bytes())
    hn.save_hypernetwork(
        hn.Hypernetwork((48, 80, 96), activation="relu", init="identity"), folder / "start.safetensors"
    )
    return folder


def test_the_stages_of_a_run_are_its_start_and_the_checkpoints_that_are_there(run, tmp_path):
    assert [stage.step for stage in stages_of(run)] == [0, 2, 10]
    assert stages_of(tmp_path / "none") == []


def test_a_grid_over_training_puts_each_stage_in_the_place_of_the_network(artist, asks, run):
    for base in (asks, replace(asks, networks=())):
        grid = Grid(base, Axis.training("ink", stages_of(run))).draw(artist)
        assert grid.columns.labels == ("step 0", "step 2", "step 10")
        assert same(grid.pictures[0, 1], grid.pictures[0, 2])
        assert same(grid.pictures[0, 0], artist.draw(replace(asks, networks=()))[0])  # it starts at identity
        assert same(grid.pictures[0, 1], artist.draw(asks)[0])


def test_a_stopped_grid_keeps_what_is_drawn(artist, asks):
    stop = threading.Event()

    def progress(drawn, one):
        if drawn == 1:
            stop.set()

    grid = Grid(asks, Axis.seeds(range(4))).draw(artist, stop, progress)
    assert grid.stopped
    assert list(grid.pictures) == [(0, 0)]
    assert grid.sheet().width > 4 * 32


def test_a_sheet_has_labels_and_enlarges_small_pictures(artist, asks):
    grid = Grid(asks, Axis.seeds([1, 2]), Axis.strengths("ink", [0.0]))
    with pytest.raises(ValueError, match="no picture of the grid is drawn yet"):
        grid.sheet()
    sheet = grid.draw(artist).sheet()
    assert sheet.width >= 2 * 128
    for box in ((60, 0, sheet.width, 22), (60, 22, sheet.width, 44), (0, 44, 55, sheet.height)):
        assert sheet.crop(box).convert("L").getextrema()[0] < 128, f"nothing is written in {box}"
    kept = grid.to_json()["grid"]
    assert kept == {
        "columns": {"title": "seed", "labels": ["seed 1", "seed 2"]},
        "rows": {"title": "strength of ink", "labels": ["strength 0"]},
    }


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (Axis.seeds([]), "at least one value along each side"),
        (Axis.seeds(range(MOST_CELLS + 1)), "the grid would have 101 pictures; 100 are accepted: give fewer"),
        (Axis.strengths("oil", [1.0]), "there is no network 'oil' in the picture; there are: ink"),
        (Axis.strengths("ink", [1.0, float("nan")]), "strength must be a finite number"),
        (Axis.seeds([1, -1]), "seed must be an integer from 0"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_refused_before_its_first_picture(axis, message, asks):
    with pytest.raises(ValueError, match=r"^") as refused:
        Grid(asks, axis).draw(None)
    assert message in str(refused.value)


def test_numbers_are_read():
    assert numbers("0, 0.5 ,1,") == [0.0, 0.5, 1.0]
    assert numbers("-0.5") == [-0.5]
    assert numbers("1, 3-5", whole=True) == [1, 3, 4, 5]
    assert numbers("") == []
    assert len(numbers(f"0-{10**15}", whole=True)) == MOST_CELLS + 1


@pytest.mark.parametrize(("text", "whole"), [("a", False), ("1-2", False), ("1.5", True), ("1-x", True), ("-", True)])
def test_what_is_not_a_number_is_refused(text, whole):
    with pytest.raises(ValueError, match=r"values must be (numbers|integers) such as"):
        numbers(text, whole)


def test_a_stage_is_a_step_and_a_file(run):
    assert stages_of(run)[0] == Stage(0, run / "start.safetensors")
