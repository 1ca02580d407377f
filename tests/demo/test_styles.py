"""The styles' pictures are what they are called, and the job leaves what it promises.

(Whether the styles are learned is for ``hnkernels demo --kind weight``; it takes minutes.)
"""

import json

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

import hnkernels as hn
from hnkernels.demo import scores, styles
from hnkernels.demo.measures import ink_share, slant, stroke_width
from hnkernels.demo.style_pictures import SLANT, STYLES, styled_digits
from hnkernels.training import read_image_folder


@pytest.fixture(scope="module")
def pictures():
    return {style: styled_digits(style, 60, seed=0) for style in STYLES}


def test_slanted_and_leaning_digits_lean_as_much_to_either_side(pictures):
    assert slant(pictures["slanted"].images) == pytest.approx(SLANT, abs=3)
    assert slant(pictures["leaning"].images) == pytest.approx(-SLANT, abs=3)
    assert abs(slant(pictures["bold"].images)) < 3


def test_bold_digits_have_the_widest_strokes_and_the_most_ink(pictures):
    for measure in (stroke_width, ink_share):
        measured = {style: measure(pictures[style].images) for style in STYLES}
        assert max(measured, key=measured.get) == "bold"


def test_the_pictures_are_a_function_of_the_seed(pictures):
    for style in STYLES:
        again, other = styled_digits(style, 60, seed=0), styled_digits(style, 60, seed=1)
        assert np.array_equal(again.images, pictures[style].images)
        assert not np.array_equal(other.images, pictures[style].images)
        assert not any("," in text for text in again.captions)


def test_held_out_handwriting_is_not_among_what_is_taught():
    taught = {image.tobytes() for image in styled_digits("handwriting", 2000, seed=0).images}
    held_out = styled_digits("handwriting", 2000, seed=0, split="held_out")
    assert not any(image.tobytes() in taught for image in held_out.images)


def test_another_style_is_refused():
    with pytest.raises(ValueError, match="'italic'; it must be one of handwriting, slanted"):
        styled_digits("italic", 1, seed=0)


def test_a_training_folder_says_the_style_of_every_picture(pictures, tmp_path):
    few = {style: styled_digits(style, 2, seed=0) for style in STYLES}
    styles.write_styles(few, tmp_path / "data")
    examples = read_image_folder(tmp_path / "data")
    assert [example.condition for example in examples] == [style for style in STYLES for _ in range(2)]
    assert [example.caption for example in examples] == [text for part in few.values() for text in part.captions]


@pytest.mark.parametrize(
    ("values", "monotonic", "between"),
    [
        ([1, 2, 3, 4, 5], True, True),
        ([5, 4, 3, 2, 1], True, True),
        ([1, 3, 2, 4, 5], False, True),
        ([1, 2, 6, 4, 5], False, False),
        ([1, 1, 1, 1, 1], False, False),
    ],
)
def test_a_course_is_judged(values, monotonic, between):
    assert styles.is_monotonic(values) is monotonic
    assert styles.lies_between(values) is between


def test_the_demo_leaves_pictures_networks_and_a_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    untrained = scores.Judges(scores._network(len(STYLES) + 1).eval(), scores._network(10).eval(), 0.2, 0.1)
    monkeypatch.setattr(styles, "train_style_judges", lambda vae, seed: untrained)
    monkeypatch.setattr(styles, "TAUGHT", dict.fromkeys(STYLES, 3))
    monkeypatch.setattr(styles, "SEEDS_PER_DIGIT", 1)
    monkeypatch.setattr(styles, "SHOWN_SEEDS", 1)
    monkeypatch.setattr(styles, "PAIRS", {("slanted", "bold"): ("slant", "stroke_width")})
    (tmp_path / "training" / "checkpoints" / "step-000009").mkdir(parents=True)  # of an earlier demo
    settings = styles.Settings(steps=2, batch_size=4, inference_steps=2, rank=2, hidden_dim=8)
    summary = styles.run_styles_demo(tmp_path, settings=settings)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    assert set(summary["styles"]) == set(STYLES)
    for style in STYLES:
        assert all(0 <= summary["styles"][style]["style_accuracy"][when] <= 1 for when in ("before", "after"))
        assert sum(summary["styles"][style]["taken_for"].values()) == pytest.approx(1)
    mixed = summary["mixtures"]["slanted to bold"]
    assert len(mixed["at"]) == len(mixed["course"]["slant"]["values"]) == len(styles.SWEEP)
    assert mixed["at"]["0"]["slant"] == summary["styles"]["slanted"]["slant"]
    assert (summary["training"]["steps"], summary["pictures_scored"]) == (2, 10)

    net = hn.WeightHypernetwork.load(tmp_path / "styles.safetensors")
    assert (net.encoder.styles, net.provenance.step) == (STYLES, 2)
    lora = safetensors.torch.load_file(tmp_path / "slanted-lora.safetensors")
    assert lora.keys() == net.generate_weights("slanted").to_lora_state_dict().keys()
    for name in ("styles.png", "interpolation.png", "loss.png"):
        Image.open(tmp_path / name).verify()
    printed = capsys.readouterr().out
    assert "what was taught" in printed
    assert "slanted to bold" in printed
