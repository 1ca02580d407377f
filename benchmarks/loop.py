"""``python -m benchmarks loop``: the trainer's loop beside a bare loop over the same adapter, on the embedded model.

Both take the same number of steps in one process, by turns, on one thread; what is compared is processor time per step
(medians) and peak memory up to the last step (a process of its own each; what matplotlib takes for the report comes
after it). The bare loop draws noise and timesteps for a whole batch at
once, steps the same optimiser, clips, and reads its loss after every step; it logs, saves and checks nothing. And a
training step with a network for the text alone is compared with one for all widths.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import hnkernels as hn
from benchmarks.measuring import resident_bytes, resident_peak
from benchmarks.rows import Line, table
from hnkernels.adapter.layers import find_attention
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from hnkernels.training.families import family_of
from hnkernels.training.noising import Diffusion
from hnkernels.training.step import frozen

_BATCH, _STEPS, _ROUNDS = 8, 30, 7
_TEXTS = ("digit one", "digit two", "letter a", "letter b")


def main(arguments: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks loop", description=__doc__)
    parser.add_argument("--peak", choices=sorted(_LOOPS), help="take one round of this loop and print the peak memory")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak:
        _LOOPS[options.peak](_Job())
        print(_peaks[-1])
        return 0
    job = _Job()
    seconds: dict[str, list[float]] = {name: [] for name in _LOOPS}
    for round_ in range(_ROUNDS + 1):
        for name in sorted(_LOOPS, reverse=bool(round_ % 2)):
            seconds[name].append(_LOOPS[name](job))
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}  # the first round warms up
    peaks = {name: resident_peak("benchmarks", "loop", "--peak", name) for name in ("trainer", "bare")}
    step, memory = medians["trainer"] / medians["bare"], peaks["trainer"] / peaks["bare"]
    lines = [
        Line("a step of the trainer", "a bare loop over the same adapter", step, "x", 1.03),
        Line("peak memory of the trainer", "the bare loop's", memory, "x", 1.02),
        Line("a step, network for the text alone", "a step, all widths", medians["text alone"] / medians["bare"], "x"),
    ]
    print("\n".join(table(lines, "training loop")))
    return 0


_peaks: list[int] = []
"""Peak memory of this process as every step begins."""


class _Job:
    """The embedded model and encoded data for it."""

    def __init__(self) -> None:
        self.pipeline = load_pipeline(TINY_SD)
        self.unet = self.pipeline.unet.requires_grad_(False)
        family = family_of(self.pipeline)
        with torch.no_grad():
            text = family.text(list(_TEXTS))["encoder_hidden_states"]
        generator = torch.Generator().manual_seed(0)
        side = self.unet.config["sample_size"]
        latents = torch.randn(64, family.latent_channels, side, side, generator=generator)
        self.rows = [{"latents": x, "encoder_hidden_states": text[i % len(text)]} for i, x in enumerate(latents)]
        self.widths = {spec.width for spec in find_attention(self.unet)}
        self.text_width = text.shape[-1]

    def net(self, sizes: set[int]) -> hn.Hypernetwork:
        torch.manual_seed(0)
        return hn.Hypernetwork(sorted(sizes), init="identity")


def _trainer(job: _Job) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "max_steps": _STEPS, "batch_size": _BATCH, "progress": False, "output_dir": folder, "checkpoint_every": 0,
            "learning_rate": 1e-3,
        }  # fmt: skip
        steps: list[float] = []
        trainer = hn.HypernetworkTrainer(job.net(job.widths), job.unet, config, job.rows)
        trainer.loss = _Watch(steps, trainer.loss)
        trainer.train()
        with (Path(folder) / "log.csv").open() as file:
            assert len(list(csv.reader(file))) == _STEPS + 1
    return (steps[-1] - steps[0]) / (len(steps) - 1)


class _Watch:
    """A loss that notes when it is asked for: from one step to the next is one whole step of the loop."""

    def __init__(self, times: list[float], loss: Any):
        self._times, self._loss = times, loss

    def __call__(self, step: Any) -> torch.Tensor:
        self._times.append(time.process_time())
        _peaks.append(resident_bytes())
        value: torch.Tensor = self._loss(step)
        return value


def _bare(job: _Job, sizes: set[int] | None = None) -> float:
    net = job.net(sizes or job.widths).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    noising = family_of(job.pipeline).noising()
    assert isinstance(noising, Diffusion)
    times: list[float] = []
    with frozen(job.unet), hn.attach(job.unet, net):
        for step in range(_STEPS):
            times.append(time.process_time())
            _peaks.append(resident_bytes())
            rows = [job.rows[i % len(job.rows)] for i in range(step * _BATCH, (step + 1) * _BATCH)]
            latents, text = (torch.stack([row[key] for row in rows]) for key in ("latents", "encoder_hidden_states"))
            noise, timesteps = torch.randn_like(latents), torch.randint(1000, (_BATCH,))
            prediction = job.unet(noising.noisy(latents, noise, timesteps), timesteps, text).sample
            loss = F.mse_loss(prediction, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            loss.item()
    return (times[-1] - times[0]) / (len(times) - 1)


_LOOPS: dict[str, Callable[[_Job], float]] = {
    "trainer": _trainer,
    "bare": _bare,
    "text alone": lambda job: _bare(job, {job.text_width}),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
