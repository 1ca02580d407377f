"""What a host has to have for the integrations: hnkernels' core, and nothing that only training needs."""

import subprocess
import sys

import pytest

_TRAINING = ("accelerate", "diffusers", "matplotlib", "peft", "psutil", "rich", "sklearn", "transformers", "typer")


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        ("hnkernels.integrations.comfyui", (*_TRAINING, "gradio", "numpy", "PIL", "tqdm")),
        # The web UIs have numpy, Pillow and tqdm.
        ("hnkernels.files, hnkernels.integrations.training.trainer", _TRAINING),
    ],
)
def test_it_loads_without_what_only_training_needs(modules, missing):
    code = f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\nimport {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
