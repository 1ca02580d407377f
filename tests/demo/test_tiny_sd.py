"""The embedded model is a real pipeline, small, and draws what it is asked for."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hnkernels.adapter.layers import find_attention
from hnkernels.assets import TINY_SD
from hnkernels.demo.glyphs import handwritten_digits, printed_glyphs
from hnkernels.demo.job import draw_digits
from hnkernels.demo.run import Settings
from hnkernels.demo.scores import train_judges
from hnkernels.pipeline import load_pipeline


@pytest.fixture(scope="module")
def pipeline():
    pipe = load_pipeline(TINY_SD)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judges(pipeline):
    torch.set_num_threads(1)  # as in the tests; two threads among other processes wait for each other
    return train_judges(pipeline.vae)


def test_it_is_at_most_six_megabytes_of_fp16():
    assert sum(p.stat().st_size for p in TINY_SD.rglob("*") if p.is_file()) <= 6_000_000
    for path in TINY_SD.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


def test_every_version_of_transformers_finds_the_weights_of_the_text_encoder():
    with safe_open(TINY_SD / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118


def test_it_loads_without_a_network():
    code = (
        "import socket; socket.socket.connect = None\n"
        "from diffusers import StableDiffusionPipeline\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({str(TINY_SD)!r})\n"
        "print(type(pipe).__name__, pipe.unet.dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "StableDiffusionPipeline torch.float32"


def test_it_has_both_kinds_of_attention_at_two_widths(pipeline):
    widths = {(spec.kind, spec.width) for spec in find_attention(pipeline.unet)}
    assert widths == {("attn1", 48), ("attn1", 80), ("attn2", 96)}


@pytest.mark.parametrize("text", ["", "digit seven", "Ünïcödé 猫 🐈", "a" * 500])
def test_any_text_can_be_asked_for(pipeline, text):
    embeddings, _ = pipeline.encode_prompt(text, "cpu", 1, False)
    assert embeddings.isfinite().all()


def test_it_draws_the_digit_it_is_asked_for_in_print(pipeline, judges):
    pictures = draw_digits(pipeline, Settings(), seeds=4, seed=5)
    assert judges.content_accuracy(pictures, np.repeat(np.arange(10), 4)) >= 0.95
    assert judges.style_score(pictures) <= 0.05


def test_the_judges_know_what_they_judge(judges):
    assert judges.style_accuracy >= 0.97
    assert judges.content_accuracy_held_out >= 0.97


def test_the_pictures_are_a_function_of_the_seed():
    a, b, c = printed_glyphs(5, 1), printed_glyphs(5, 1), printed_glyphs(5, 2)
    assert np.array_equal(a.images, b.images)
    assert not np.array_equal(a.images, c.images)
    assert a.captions == b.captions


def test_held_out_handwriting_is_not_trained_on():
    train, held_out = handwritten_digits("train"), handwritten_digits("held_out")
    assert len(train) + len(held_out) == 1797
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in held_out.images) == 0
    with pytest.raises(ValueError, match="held_out"):
        handwritten_digits("test")


def test_the_folder_says_how_it_was_made():
    assert "seed" in json.loads((TINY_SD / "training.json").read_text())
