"""Small runs for several processes, one after the other.

``accelerate launch … -m tests.training.processes_job FOLDER SETTINGS [FOLDER SETTINGS …]``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.ops import onednn
from hnkernels.pipeline import load_pipeline
from tests.training.nets import make_net, make_rows, make_unet
from tests.training.test_pipeline import SIZES, examples


def main(*given: str) -> None:
    torch.set_num_threads(1)
    onednn.LEAST_ELEMENTS = 0  # as in the tests, whose runs are compared with this one bit for bit
    for folder, settings in zip(given[::2], given[1::2], strict=True):
        run(Path(folder), json.loads(settings))


def run(folder: Path, settings: dict) -> None:
    stop, pictures = settings.pop("stop", None), settings.pop("pictures", False)
    rank = int(os.environ.get("RANK", "0"))

    def callback(step, metrics):
        if stop == [rank, step]:
            signal.raise_signal(signal.SIGINT)

    if pictures:
        torch.manual_seed(0)
        net, model, data = hn.Hypernetwork(SIZES, init="identity"), load_pipeline(TINY_SD), examples(6)
        encode, seen = model.vae.encode, []
        model.vae.encode = lambda pixels, *args: seen.append(len(pixels)) or encode(pixels, *args)
    else:
        net, model, data = make_net(), make_unet(), make_rows(7)
    config = {"output_dir": str(folder), "learning_rate": 1e-2, "progress": False, **settings}
    watching = callback if stop and stop[0] == rank else None
    try:
        hn.HypernetworkTrainer(net, model, config, data, watching).train()
    except KeyboardInterrupt:
        print(f"{folder.name}: rank {rank} stopped", flush=True)
    if pictures:
        print(f"{folder.name}: rank {rank} encoded {sum(seen)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
