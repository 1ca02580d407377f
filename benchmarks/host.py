"""``python -m benchmarks host``: what calls cost the host, on a pretended device; about three minutes.

The first run compiles the kernels, which takes longer. ``--counted`` leaves out all that is timed. ``host_calls.py``
builds what is compared; here it is held to its targets.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product

import torch
from tqdm import tqdm

from benchmarks import host_calls
from benchmarks.host_calls import HERE, compare
from benchmarks.rows import RESULTS, Line, table, today, versions
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
        "one and the same, by turns, and compared with its steps right before and after. What a network adds is "
        "compared with what hooks add that run the same network on the same layers.",
        "",
        *table(lines, "host"),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
