"""The scripts of examples/ run as they are, in an empty folder."""

import runpy
import sys
from pathlib import Path

import pytest
import safetensors.torch

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITES = {
    "use_a_file": ["strengths.png", "style.pt"],
    "train_a_style": ["seven.png", "runs/ink/ink.pt", "runs/ink/report.html"],
    "mix_styles": ["ink.png", "between.png", "oil.png"],
    "merge_into_a_model": ["merged/model_index.json"],
    "layer_of_your_own": [],
    "count_without_a_gpu": [],
}
ARGUMENTS = {"train_a_style": ["digits", "2"]}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def ran(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return ran


@pytest.mark.parametrize("name", WRITES)
def test_it_runs_and_writes_what_it_says(run, name):
    run(name, *ARGUMENTS.get(name, ()))
    assert all(Path(file).exists() for file in WRITES[name])


def test_every_script_is_run_by_a_test():
    tested = {*WRITES, "train_hypernetwork"}  # the last one in test_train_hypernetwork.py
    assert {file.stem for file in EXAMPLES.glob("*.py")} <= tested


def test_a_picture_changes_with_strength(run):
    from PIL import Image

    run("use_a_file")
    with Image.open("strengths.png") as sheet:
        third = sheet.width // 3
        parts = [sheet.crop((third * i, 0, third * (i + 1), sheet.height)).tobytes() for i in range(3)]
    assert len(set(parts)) == 3


def test_what_is_merged_draws_what_was_attached(run):
    said = run("merge_into_a_model")
    assert float(said.rsplit(maxsplit=1)[1]) < 1e-4
    assert safetensors.torch.load_file("merged/unet/diffusion_pytorch_model.safetensors")


def test_the_layer_learns(run):
    losses = [float(line.rsplit(maxsplit=1)[1]) for line in run("layer_of_your_own").splitlines()]
    assert losses == sorted(losses, reverse=True)
