"""The same calls as CUDA graphs: what is left when launching costs the host nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from benchmarks.timing import Runs

WARMUP = 3


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Replays the kernels of a call.

    Raises:
        RuntimeError: the call does something that a graph cannot hold.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> None:
        assert results is not None  # its memory is the graph's to write, as long as there is a graph
        graph.replay()

    return replay


def with_graphs(providers: Mapping[str, Runs]) -> tuple[dict[str, Runs], dict[str, str]]:
    """The providers with ``"<name>, graph"`` for each that can be captured, and why the others cannot."""
    both, absent = dict(providers), {}
    for name, runs in providers.items():
        try:
            both[f"{name}, graph"] = [captured(run) for run in runs]
        except RuntimeError as fault:
            absent[f"{name}, graph"] = f"cannot be captured: {str(fault).splitlines()[0]}"
            torch.cuda.synchronize()
    return both, absent
