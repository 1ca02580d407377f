"""What is made of networks: right, whole, and in the place of nothing."""

import math
import os

import pytest
import safetensors.torch
import torch

import hnkernels as hn
from hnkernels import CheckpointError
from hnkernels.adapter.layers import AdapterError
from hnkernels.home.folder import EMBEDDED
from hnkernels.home.library.making import average, convert, export_lora, generate_lora, interpolate, merge
from tests.checkpoint.nets import assert_same_tensors
from tests.home.library.conftest import WIDTHS, contents


@pytest.fixture
def two(add):
    """Two networks of one structure."""
    return add("a"), add("b")


@pytest.fixture
def affine(add):
    """A network that can become part of the embedded model."""
    return add("affine", sizes=WIDTHS)


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_converting_there_and_back_under_another_name(library, add, home):
    key = add("style", activation="relu")
    file = convert(library, key, ".pt")
    assert file == home.networks / "style.pt"
    assert len(library.all()) == 1
    assert library.entry(key).facts.a1111 == ""
    other = convert(library, key, ".safetensors", "again")
    assert_same_tensors(hn.load_hypernetwork(file), hn.load_hypernetwork(other))
    with pytest.raises(ValueError, match=r"there is a style\.pt in networks already"):
        convert(library, key, ".pt")
    with pytest.raises(ValueError, match=r"converted to \.pt or \.safetensors, not '\.ckpt'"):
        convert(library, key, ".ckpt")


def test_a_pt_file_that_a1111_refuses_is_written_anew(library, add, home):
    key = add("style", ".pt")
    torch.save(torch.load(home.networks / "style.pt"), home.networks / "style.pt")
    assert library.entry(key).facts.a1111
    convert(library, key, ".pt", "mended")
    assert library.entry("networks/mended").facts.a1111 == ""


def test_a_network_of_a_run_is_converted_into_the_networks(library, add, home):
    key = add("style", folder=home.runs / "first")
    add("style")
    assert convert(library, key, ".pt").name == "style-2.pt"


def test_networks_of_the_softmax_family_are_converted_too(library, add):
    key = add("old", activation="softmax", allow_legacy_activations=True)
    assert convert(library, key, ".pt").exists()


def test_interpolating_and_averaging(library, two, home):
    a, b = (hn.load_hypernetwork(home.networks / f"{name}.safetensors") for name in "ab")
    assert_same_tensors(hn.load_hypernetwork(interpolate(library, *two, 0.25)), hn.interpolate(a, b, 0.25))
    assert_same_tensors(hn.load_hypernetwork(average(library, two, [1, 3], "mean")), hn.average([a, b], [1, 3]))
    assert interpolate(library, *two, 0.25).name == "a-b-0.25-2.safetensors"
    assert average(library, two).name == "a-and-1-more.safetensors"


def test_mixtures_that_are_none(library, two, add, add_weights, home):
    other, weights = add("other", sizes=(16,)), add_weights()
    before = contents(home.networks)
    for attempt, message in [
        (lambda: interpolate(library, two[0], other, 0.5), "equal structure"),
        (lambda: interpolate(library, *two, math.nan), "finite number"),
        (lambda: interpolate(library, *two, 0.5, "a"), "already"),
        (lambda: interpolate(library, *two, 0.5, "../a"), "is not a name"),
        (lambda: interpolate(library, two[0], "networks/none", 0.5), "no network"),
        (lambda: average(library, two[:1]), "two or more"),
        (lambda: average(library, two, [1]), "1 weights"),
        (lambda: average(library, two, [1, -1]), "add up to 0"),
        (lambda: average(library, [two[0], weights]), "styles holds weights; this is for context"),
    ]:
        with pytest.raises(ValueError, match=message):
            attempt()
    assert contents(home.networks) == before


def test_merging_makes_a_model_of_the_home(library, affine, home):
    folder = merge(library, [affine], [0.5], EMBEDDED, "merged")
    assert folder == home.own_models / "merged"
    assert "merged" in home.models()
    with pytest.raises(ValueError, match="there is a merged in models already"):
        merge(library, [affine], [0.5], EMBEDDED, "merged")


def test_mergers_that_are_none(library, affine, add, home):
    curved, narrow = add("curved", sizes=WIDTHS, activation="relu"), add("narrow")
    for attempt, error, message in [
        (lambda: merge(library, [], [], EMBEDDED, "x"), ValueError, "one or more"),
        (lambda: merge(library, [curved], [1.0], EMBEDDED, "x"), ValueError, "only an affine"),
        (lambda: merge(library, [affine], [1.0, 2.0], EMBEDDED, "x"), ValueError, "2 strengths"),
        (lambda: merge(library, [affine], [math.inf], EMBEDDED, "x"), ValueError, "finite"),
        (lambda: merge(library, [affine], [1.0], "/etc", "x"), ValueError, "there is no model"),
        (lambda: merge(library, [affine], [1.0], EMBEDDED, "../x"), ValueError, "is not a name"),
        (lambda: merge(library, [narrow], [1.0], EMBEDDED, "x"), AdapterError, "width"),
    ]:
        with pytest.raises(error, match=message):
            attempt()
    assert contents(home.own_models) == {}


def test_a_lora_with_the_error_of_every_layer(library, affine, home):
    file, report = export_lora(library, affine, EMBEDDED, 4)
    assert file == home.loras / "affine.safetensors"
    assert report.rank == 4
    assert len(report.layers) == 28
    assert len(safetensors.torch.load_file(file)) == 56
    assert export_lora(library, affine, EMBEDDED, 4)[0].name == "affine-2.safetensors"
    assert len(library.all()) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 0}, "rank must be"),
        ({"rank": 1.5}, "rank must be"),
        ({"strength": 0.0}, "does nothing"),
        ({"model": "none"}, "there is no model 'none'"),
        ({"name": "a/b"}, "is not a name"),
        ({"key": "networks/none"}, "there is no network"),
    ],
)
def test_loras_that_are_none(library, affine, home, changed, message):
    with pytest.raises(ValueError, match=message):
        export_lora(library, **{"key": affine, "model": EMBEDDED, "rank": 4} | changed)
    assert contents(home.loras) == {}


def test_a_style_as_a_lora(library, add_weights, home):
    key = add_weights()
    file = generate_lora(library, key, {"ink": 0.5, "oil": 0.5})
    assert file == home.loras / "styles.safetensors"
    assert any("lora_A" in name for name in safetensors.torch.load_file(file))


def test_styles_that_are_none(library, add_weights, affine):
    key = add_weights()
    with pytest.raises(ValueError, match="choose a style of styles: ink, oil"):
        generate_lora(library, key, {})
    with pytest.raises(ValueError, match="chalk"):
        generate_lora(library, key, {"chalk": 1.0})
    with pytest.raises(ValueError, match="knows no styles"):
        generate_lora(library, affine, {"ink": 1.0})


def test_a_full_disk_leaves_nothing_half_done(library, two, affine, add_weights, home, monkeypatch):
    styles = add_weights()
    library.all()
    before = contents(home.path)
    monkeypatch.setattr(os, "fsync", full)
    for attempt in (
        lambda: convert(library, two[0], ".pt"),
        lambda: interpolate(library, *two, 0.5),
        lambda: merge(library, [affine], [1.0], EMBEDDED, "merged"),
        lambda: export_lora(library, affine, EMBEDDED, 2),
        lambda: generate_lora(library, styles, {"ink": 1.0}),
    ):
        with pytest.raises(CheckpointError, match="No space left on device"):
            attempt()
    assert contents(home.path) == before


def test_a_folder_deleted_beneath_it(library, two, affine, home):
    for folder in (home.own_models, home.loras):
        folder.rmdir()
    with pytest.raises(CheckpointError, match="lies in a folder that does not exist"):
        export_lora(library, affine, EMBEDDED, 2)
    with pytest.raises(CheckpointError, match="lies in a folder that does not exist"):
        merge(library, [affine], [1.0], EMBEDDED, "merged")
