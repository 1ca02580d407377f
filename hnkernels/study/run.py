"""One run of the study: a network is trained and judged."""

from __future__ import annotations

from hnkernels.study.bench import Bench
from hnkernels.study.networks import step_ms, trained
from hnkernels.study.protocol import Cell
from hnkernels.study.questions import FULL
from hnkernels.study.results import Result
from hnkernels.training import DivergenceError


def run(bench: Bench, cell: Cell, seed: int) -> Result:
    """Trains a cell's network and judges it, at all strengths of the cell."""
    steps = int({**bench.protocol.training, **cell.training}["max_steps"])
    if cell.equal_time:
        steps = max(1, round(steps * step_ms(bench, Cell(""), seed) / step_ms(bench, cell, seed)))
    try:
        with trained(bench, cell, seed, steps) as network:
            scores = {FULL: bench.scores(cell, seed)}
            for name, strength in cell.strengths.items():
                network.adapter.strength = strength
                scores[name] = bench.scores(cell, seed)
    except DivergenceError as error:
        return Result(0, steps, 0.0, {}, str(error).partition(";")[0])
    return Result(network.parameters, steps, round(network.step_ms, 1), scores)
