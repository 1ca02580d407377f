"""The same seed and the same data give the same bits in another process.

With another number of threads they do not: PyTorch then adds up in another order.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the trainer is tested on a real diffusers UNet")

RUN = """
import sys, torch
import hnkernels as hn
from tests.training.nets import make_net, make_rows, make_unet
torch.set_num_threads(2)
config = {"learning_rate": 1e-2, "batch_size": 2, "max_steps": 3, "output_dir": sys.argv[1], "progress": False}
net = make_net(activation="relu", dropout_structure=(0, 0.3, 0), layer_norm=True)
hn.HypernetworkTrainer(net, make_unet(), config, make_rows()).train()
"""

ROOT = Path(__file__).parents[2]
FILES = ("hypernetwork.safetensors", "hypernetwork.pt")


def test_a_run_gives_the_same_bytes_in_another_process(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}
    folders = [tmp_path / name for name in "ab"]
    runs = [subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=ROOT, env=environment) for folder in folders]
    assert [run.wait(timeout=600) for run in runs] == [0, 0]
    for name in FILES:
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
