"""The example script, as somebody runs it."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD

SCRIPT = Path(__file__).parents[2] / "examples" / "train_hypernetwork.py"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (100 * number, 0, 0)).save(tmp_path / "images" / f"digit {number}.png")
    main = runpy.run_path(str(SCRIPT))["main"]

    def with_options(*options):
        main(
            [
                f"--pretrained_model_name_or_path={TINY_SD}",
                f"--train_data_dir={tmp_path / 'images'}",
                f"--output_dir={tmp_path / 'my-style'}",
                *("--train_batch_size=2", "--learning_rate=1e-3", "--lr_scheduler=cosine", "--checkpointing_steps=2"),
                *options,
            ]
        )
        return tmp_path / "my-style"

    return with_options


@pytest.mark.parametrize("kind", ["context", "weights"])
def test_it_trains_draws_and_describes(run, kind):
    folder = run(
        "--max_train_steps=2", "--validation_prompt=digit", "--num_validation_images=1", f"--kind={kind}", "--rank=2"
    )
    load = hn.load_hypernetwork if kind == "context" else hn.WeightHypernetwork.load
    assert load(folder / "my-style.safetensors").provenance.step == 2
    assert (folder / "image_0.png").is_file()
    assert "image_0.png" in (folder / "README.md").read_text(encoding="utf-8")


def test_it_goes_on_where_it_was(run):
    run("--max_train_steps=2", "--lr_scheduler=constant")
    folder = run("--max_train_steps=4", "--lr_scheduler=constant", "--resume_from_checkpoint=latest")
    assert hn.load_hypernetwork(folder / "my-style.pt").provenance.step == 4
