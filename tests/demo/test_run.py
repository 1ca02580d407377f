"""The main job leaves what it promises. (Whether the style moves is for ``make demo``; it takes minutes.)"""

import json

import pytest
from PIL import Image

import hnkernels as hn
from hnkernels.demo import run, scores
from hnkernels.demo.glyphs import Pictures, handwritten_digits
from hnkernels.training.persistence.run_folder import RunFolder

SCORES = {"style_score", "content_accuracy"}


def few_digits(split):
    full = handwritten_digits(split)
    return Pictures(full.images[:8], full.captions[:8], full.labels[:8])


def test_the_demo_leaves_pictures_networks_and_a_summary(tmp_path, monkeypatch, capsys):
    untrained = scores.Judges(scores._network(2).eval(), scores._network(10).eval(), 0.5, 0.1)
    monkeypatch.setattr(run, "train_judges", lambda vae, seed: untrained)
    monkeypatch.setattr(run, "handwritten_digits", few_digits)
    monkeypatch.setattr(run, "SEEDS_PER_DIGIT", 2)
    monkeypatch.setattr(run, "SHOWN_SEEDS", 2)
    (tmp_path / "training" / "checkpoints" / "step-000009").mkdir(parents=True)  # of an earlier demo
    summary = run.run_demo(tmp_path, settings=run.Settings(steps=2, batch_size=4, inference_steps=2))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for key in SCORES:
        assert all(0 <= summary[key][when] <= 1 for when in ("before", "after"))
    assert summary["training"]["steps"] == 2
    assert summary["training"]["speedup"] > 0
    assert summary["pictures_scored"] == 20
    for suffix in (".pt", ".safetensors"):
        assert hn.load_hypernetwork(tmp_path / f"handwriting{suffix}").provenance.step == 2
    for name in ("before_after.png", "loss.png"):
        Image.open(tmp_path / name).verify()
    assert "taken for handwriting" in capsys.readouterr().out


def test_a_demo_leaves_one_that_is_training_alone(tmp_path):
    (tmp_path / "data").mkdir()
    with RunFolder(tmp_path / "training").locked(), pytest.raises(ValueError, match="another run is writing to"):
        run.run_demo(tmp_path)
    assert (tmp_path / "data").is_dir()
