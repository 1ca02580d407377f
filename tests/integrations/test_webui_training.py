"""Training from the web UI's tab: processes of their own, followed, stopped, and their results taken over."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.integrations.training.single_file import convert
from hnkernels.integrations.training.trainer import Trainer
from hnkernels.integrations.training.wish import Wish
from tests.integrations.webui_double import running


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32), (80 * i, 40, 120)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a digit")
    return folder


def wait(trainer: Trainer, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while trainer.running and time.monotonic() < end:
        time.sleep(0.1)
    assert not trainer.running, trainer.said()


def test_a_run_trains_and_its_network_becomes_one_of_the_web_uis(tmp_path, data):
    trainer, hypernetworks = Trainer(), tmp_path / "hypernetworks"
    hypernetworks.mkdir()
    wish = Wish(Path(TINY_SD), data, "my style", steps=2, rate="1e-3")
    folder = trainer.start(wish, tmp_path / "home")
    with pytest.raises(ValueError, match="stop it first"):
        trainer.start(wish, tmp_path / "home")
    with pytest.raises(ValueError, match="no finished hypernetwork"):
        trainer.take(hypernetworks)
    wait(trainer)
    assert f"Ended: {folder}" in trainer.said()
    assert [path.name for path in trainer.take(hypernetworks)] == ["my_style.pt"]
    assert [path.name for path in trainer.take(hypernetworks)] == ["my_style-2.pt"]
    assert hn.load_hypernetwork(hypernetworks / "my_style.pt").provenance.step == 2


def test_a_run_is_stopped(tmp_path, data):
    trainer = Trainer()
    with pytest.raises(ValueError, match="nothing to stop"):
        trainer.stop()
    trainer.start(Wish(Path(TINY_SD), data, "long", steps=100_000), tmp_path)
    end = time.monotonic() + 60
    while not list((tmp_path / "runs" / "long").glob("*.csv")) and time.monotonic() < end:
        time.sleep(0.1)
    trainer.stop()
    wait(trainer)
    assert (tmp_path / "runs" / "long" / "checkpoints").is_dir(), trainer.said(40)


def test_a_run_that_cannot_begin_says_why(tmp_path, data):
    trainer = Trainer("no-such-python")
    trainer.start(Wish(Path(TINY_SD), data, "a"), tmp_path)
    wait(trainer)
    assert "no-such-python cannot be run" in trainer.said()


def test_a_checkpoint_in_one_file_becomes_a_folder_first(tmp_path, data):
    checkpoint, trainer = tmp_path / "model.safetensors", Trainer(sys.executable)
    checkpoint.write_bytes(b"nothing")
    folder = trainer.start(Wish(checkpoint, data, "a"), tmp_path)
    wait(trainer)
    assert not (folder / "checkpoints").exists()
    assert f"error: {checkpoint} is damaged" in trainer.said()


def test_only_checkpoints_of_stable_diffusion_become_folders(tmp_path):
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        convert(tmp_path / "model.ckpt", tmp_path / "folder")
    save_file({"some.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of Stable Diffusion"):
        convert(tmp_path / "other.safetensors", tmp_path / "folder")


@pytest.mark.parametrize(("key", "kind"), [("cond_stage_model.a", "Stable"), ("conditioner.embedders.0.a", "XL")])
def test_a_checkpoint_is_read_as_what_it_is(tmp_path, monkeypatch, key, kind):
    import diffusers

    asked = []

    class Pipeline:
        def __init__(self, name: str):
            self.from_single_file = lambda path, **options: asked.append((name, path, options)) or self
            self.save_pretrained = lambda folder: asked.append(folder)

    monkeypatch.setattr(diffusers, "StableDiffusionPipeline", Pipeline("Stable"))
    monkeypatch.setattr(diffusers, "StableDiffusionXLPipeline", Pipeline("XL"))
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1), key: torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "folder")
    options = {"torch_dtype": torch.float16}
    assert asked == [(kind, str(tmp_path / "model.safetensors"), options), tmp_path / "folder"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": "../up"}, "name must be"),
        ({"recipe": "quick"}, "recipe must be one of"),
        ({"steps": -1}, "steps must be"),
        ({"data": Path("nowhere")}, "not a folder"),
        ({"model": Path("nowhere")}, "does not exist"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(data, changed, says):
    given = {"model": Path(TINY_SD), "data": data, "name": "a"} | changed
    with pytest.raises(ValueError, match=says):
        Wish(**given)


def test_the_tab_offers_folders_and_checkpoints_and_says_what_is_wrong(tmp_path, data):
    with running("A1111", tmp_path) as webui:
        (content, title, name) = webui.callbacks["ui_tabs"][0]()[0]
        assert (title, name) == ("Hypernetwork training", "hnkernels")
        from hnkernels.integrations.webui import tab

        (tmp_path / "hnkernels" / "models" / "mine").mkdir(parents=True)
        (tmp_path / "hnkernels" / "models" / "mine" / "model_index.json").write_text("{}")
        checkpoints = webui.modules["modules.sd_models"].checkpoints_list
        checkpoints["v1-5.safetensors [abc]"] = SimpleNamespace(filename="v1-5.safetensors")
        assert list(tab.models()) == ["folder mine", "v1-5.safetensors [abc]"]
        assert list(tab.begin("none", "x", "a", "style", 0, "")) == [
            "Not started: choose one of the models: folder mine, v1-5.safetensors [abc]"
        ]
        assert next(tab.begin("folder mine", "", "a", "style", 0, "")).startswith("Not started: name a folder")
        assert "nothing to stop" in tab.end()
        assert "no finished hypernetwork" in tab.copy()
        assert content is not None
