"""What a host has to have for the integrations: hnkernels' core, and nothing that only training needs."""

import subprocess
import sys

import pytest

_TRAINING = ("accelerate", "diffusers", "matplotlib", "peft", "psutil", "rich", "sklearn", "transformers", "typer")
_OF_WEB_UIS = ("numpy", "PIL", "tqdm")


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        ("hnkernels.integrations.comfyui", (*_TRAINING, "gradio", *_OF_WEB_UIS)),
        ("hnkernels.files, hnkernels.integrations.training.trainer", _TRAINING),
    ],
)
def test_it_loads_without_what_only_training_needs(modules, missing):
    for package in set(_OF_WEB_UIS) - set(missing):
        pytest.importorskip(package)
    code = f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\nimport {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
