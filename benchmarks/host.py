"""What the library costs the host: calls, ``python -m benchmarks host``; the trainer's loop, ``… loop``.

Calls are measured on a pretended device, whose launches return at once; about three minutes. The first run compiles the
kernels, which takes longer. ``--counted`` leaves out all that is timed. ``host_calls.py`` builds what is compared; here
it is held to its targets.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

import hnkernels as hn
from benchmarks import host_calls
from benchmarks.host_calls import HERE, compare
from benchmarks.measuring import resident_bytes, resident_peak
from benchmarks.rows import RESULTS, Line, table, today, versions
from hnkernels.adapter.layers import find_attention
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from hnkernels.training.families import family_of
from hnkernels.training.noising import Diffusion
from hnkernels.training.step import frozen
from hnkernels.triton.testing import pretend_device

TARGET = "sm_90"

WIDTHS = (320, 16)
"""Of one token. At 320 the modules' time is mostly their arithmetic, which ours leaves out; at 16 it is dispatch."""

_CASES = [*product((False, True), (False, True))]
"""Whether there is a query, and whether there is a LayerNorm."""

_SECONDS = {"projection": 1.5, "launch": 3.0, "unet": 150.0}
"""To spend on a comparison."""

_MODULES = "the web UIs' way: modules"
_BARE = "the UNet without one"
_HOOKS = "what hooks add, the web UIs' way"

_BATCH, _STEPS, _ROUNDS = 8, 30, 7
_TEXTS = ("digit one", "digit two", "letter a", "letter b")
"""Of the trainer's loop."""


@contextmanager
def host_alone() -> Iterator[None]:
    """Within it kernels cost nothing and nothing else gets in the way: one thread, no garbage collector.

    Raises:
        ValueError: see ``pretend_device``.
    """
    with pretend_device(TARGET, poison=False):
        threads, collecting = torch.get_num_threads(), gc.isenabled()
        torch.set_num_threads(1)
        # What kernels should have written is whatever lay there, and PyTorch's own operations are slow on denormals.
        torch.set_flush_denormal(True)
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
            if collecting:
                gc.enable()


def counted() -> list[Line]:
    """The calls of functions: exact, and the same on any machine with these versions. Within ``host_alone``."""
    lines = []
    with torch.no_grad():
        for query, layer_norm in _CASES:
            operation = host_calls.operation(WIDTHS[0], layer_norm, query)
            operation.warm()
            lines.append(Line(f"{_name(query, layer_norm)}, inference", "–", operation.calls(), "calls", 120))
        model = host_calls.Model()
        calls = {name: model.calls(put) for name, put in model.ours.items()}

    def more(text: str, name: str, layers: int, at_most: float | None = None) -> Line:
        return Line(text, _BARE, (calls[name] - calls["bare"]) / layers, "calls more per layer", at_most)

    both = sum(host_calls.LAYERS.values())
    return [
        *lines,
        more("UNet call, self-attention alone", "self-attention", host_calls.LAYERS["attn1"], 200),
        more("UNet call, text alone, K and V kept", "kept", host_calls.LAYERS["attn2"], 15),
        more("UNet call, affine network, fused", "fused", both, 15),
        more("UNet call, all layers", "all", both),
        more("UNet call, generated weights", "generated", both),
    ]


def timed() -> list[Line]:
    """The ratios and differences of processor time. Within ``host_alone``."""
    return list(tqdm(_timed(), unit="line", desc="host"))


def _timed() -> Iterator[Line]:
    for training, width, (query, layer_norm) in product((False, True), WIDTHS, _CASES):
        build = host_calls.training if training else host_calls.inference
        with torch.set_grad_enabled(training):
            found = compare(build(width, layer_norm, query), _SECONDS["projection"])
        mode = "forward + backward" if training else "inference"
        ratio = found.median("ours") / found.median("modules")
        yield Line(f"{_name(query, layer_norm)}, {width} wide, {mode}", _MODULES, ratio, "x", 0.7 if training else 0.4)

    found = compare(host_calls.launch(), _SECONDS["launch"])
    for text, name, at_most in (
        ("a launch of a program", "bound", 2.0),
        ("a program of one launch, as an operator runs it", "program", None),
    ):
        difference = found.median(name) - found.median("by hand")
        yield Line(text, "the compiled kernel, called by hand", 1e6 * difference, "µs more", at_most)

    with torch.no_grad():
        times = host_calls.ratios(_SECONDS["unet"])
    for text, name, at_most in (
        ("UNet call, text alone, K and V kept", "kept", 1.01),
        ("UNet call, affine network, fused", "fused", 1.01),
        ("UNet call, all layers", "all", 1.1),
        ("UNet call, generated weights", "generated", 1.2),
        ("UNet call, all layers, the web UIs' hooks", "all, hooks", None),
        ("UNet call without one: the noise", "bare again", None),
    ):
        yield Line(text, _BARE, times[name], "x", at_most)
    for text, name, against, at_most in (
        ("what self-attention adds", "self-attention", _HOOKS, 0.5),
        ("what kept K and V add", "kept", _HOOKS, 0.05),
        ("what a fused network adds", "fused", _HOOKS, 0.05),
        ("what generated weights add", "generated", "what two einsums per linear add, by hooks", 0.5),
    ):
        yield Line(text, against, (times[name] - 1) / (times[f"{name}, hooks"] - 1), "x", at_most)


def _name(query: bool, layer_norm: bool) -> str:
    return f"`{'hyper_qkv' if query else 'hyper_kv'}`, relu{' + LayerNorm' if layer_norm else ''}"


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 2 where there is no device to be pretended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks host", description=__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--counted", action="store_true", help="only the calls of functions, which are exact")
    only.add_argument("--write", action="store_true", help="write this machine's page in benchmarks/results/, too")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        try:
            stack.enter_context(host_alone())
        except ValueError as fault:
            print(fault, file=sys.stderr)
            return 2
        if options.counted:
            print("\n".join(table(counted(), "host")))
            return 0
        text = page([*timed(), *counted()])
    if options.write:
        (RESULTS / HERE.name / "host.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def page(lines: Sequence[Line]) -> str:
    """The page of a machine."""
    machine = HERE.machine.rsplit(",", 1)[0]
    parts = [
        "# What calls cost the host",
        "",
        f"Measured on {today()}: {machine}, one thread; {versions()}. Measured on a CPU with a pretended device "
        f"({TARGET}): host time only; no kernel has run. Ratios and differences of medians of processor time (of the "
        "UNet medians of ratios), providers interleaved in one process, the garbage collector off. Calls of functions, "
        "in Python and in C, are counted.",
        "",
        "The web UIs' way computes in earnest. With one token 320 wide that is most of its time, which flatters "
        "kernels that do nothing; 16 wide it is next to nothing, and dispatch is compared with dispatch. The UNet has "
        "the structure of Stable Diffusion 1.5's (16 transformer blocks) with 4 and 8 channels; everything is put on "
        f"one and the same, by turns, and compared with its steps right before and after; the mean over "
        f"{host_calls.UNETS} such UNets counts, for where one lies in memory makes a difference of a percent. What a "
        "network adds is compared with what hooks add that run the same network on the same layers.",
        "",
        *table(lines, "host"),
    ]
    return "\n".join(parts) + "\n"


def loop(arguments: Sequence[str]) -> int:
    """The trainer's loop beside a bare loop over the same adapter, on the embedded model.

    Both take the same number of steps in one process, by turns, on one thread; what is compared is processor time per
    step (medians) and peak memory up to the last step (a process of its own each; what matplotlib takes for the report
    comes after it). The bare loop draws noise and timesteps for a whole batch at once, steps the same optimiser, clips,
    and reads its loss after every step; it logs, saves and checks nothing. And a training step with a network for the
    text alone is compared with one for all widths.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks loop", description=loop.__doc__)
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
    medians = {name: median(found[1:]) for name, found in seconds.items()}  # the first round warms up
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
