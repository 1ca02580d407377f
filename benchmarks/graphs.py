"""The same calls as CUDA graphs: what is left when launching costs the host nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.checking import largest_error
from benchmarks.modes import Call
from benchmarks.timing import Runs

WARMUP = 3

SAME = 1e-2
"""Relative error between a call and its replay: a vendor's kernels may add up in another order, nothing more."""


def captured(call: Call) -> Callable[[], None]:
    """Replays the kernels of a call.

    Raises:
        RuntimeError: the call does something that a graph cannot hold, or its replay gives something else.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()  # computes nothing yet
    graph.replay()
    error = largest_error(results, call())
    if not error <= SAME:
        raise RuntimeError(f"its replay is wrong by {error:.1e}")

    def replay() -> None:
        assert results  # their memory is the graph's to write, as long as there is a graph
        graph.replay()

    return replay


def with_graphs(providers: Mapping[str, Sequence[Call]]) -> tuple[dict[str, Runs], dict[str, str]]:
    """The providers with ``"<name>, graph"`` for each that can be captured, and why the others cannot."""
    both: dict[str, Runs] = dict(providers)
    absent = {}
    for name, runs in providers.items():
        try:
            both[f"{name}, graph"] = [captured(run) for run in runs]
        except RuntimeError as fault:
            absent[f"{name}, graph"] = f"cannot be captured: {str(fault).splitlines()[0]}"
            torch.cuda.synchronize()
    return both, absent
