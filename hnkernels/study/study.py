"""The whole study: runs what has not been run yet, in several processes, and writes the page."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hnkernels.demo.scores import Judges
from hnkernels.errors import InputError
from hnkernels.study.bench import Bench, held_out_judges, pipeline_on_cpu
from hnkernels.study.page import write_page
from hnkernels.study.protocol import Cell, Protocol
from hnkernels.study.questions import QUESTIONS, Question
from hnkernels.study.results import Result, Results
from hnkernels.study.run import run
from hnkernels.wording import shown

SEEDS = (0, 1, 2)
RESULTS = "recipes.jsonl"

Task = tuple[Cell, int]


def run_study(
    out: Path,
    questions: Sequence[Question],
    minutes: float | None = None,
    processes: int | None = None,
    protocol: Protocol | None = None,
) -> Path:
    """Answers questions by training and judging networks; what has been finished before is not run again.

    Writes into ``out``: ``recipes.jsonl``, a line per run; ``recipes.md``, a page of all questions that runs there
    answer; and ``recipes/``, its plots.

    Args:
        out: a folder, which may hold an earlier part of the study.
        questions: those to answer now, in this order.
        minutes: no run is begun after so many; ``None`` for no limit.
        processes: that run side by side, each in one thread; ``None`` for one per core.
        protocol: another protocol than the study's own, for a quick trial.

    Returns:
        The page.

    Raises:
        ValueError: ``minutes`` or ``processes`` is out of range, the folder holds another study, or peft is missing.
    """
    protocol = protocol or Protocol()
    if minutes is not None and (not isinstance(minutes, Real) or not 0 < minutes < math.inf):
        raise InputError(f"minutes must be a number above 0, not {shown(minutes)}")
    if processes is not None and processes < 1:
        raise InputError(f"processes must be an integer >= 1, not {shown(processes)}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder; name another place for the study with --out")
    results = Results(out / RESULTS, protocol)
    cells = list({cell.name: cell for question in questions for cell in question.cells}.values())
    tasks = [(cell, seed) for cell in cells for seed in SEEDS if results.of(cell, seed) is None]
    if any(cell.kind == "lora" for cell, _ in tasks) and importlib.util.find_spec("peft") is None:
        raise InputError(
            "the LoRAs of question 'kinds' need peft; install it with pip install peft, or leave that question out"
        )
    out.mkdir(parents=True, exist_ok=True)
    if tasks:
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        _run_all(tasks, results, protocol, deadline, min(processes or os.cpu_count() or 1, len(tasks)))
    return write_page(out, QUESTIONS, results, SEEDS)


def _run_all(tasks: Sequence[Task], results: Results, protocol: Protocol, deadline: float, processes: int) -> None:
    """Runs the tasks in order until all are done or the time is over, and keeps each result as it comes."""
    torch.set_num_threads(1)  # as every process of the pool: others get in each other's way
    judges = held_out_judges(pipeline_on_cpu().vae, protocol)
    results.add_judges({"style": judges.style_accuracy, "content": judges.content_accuracy_held_out})
    with tempfile.TemporaryDirectory() as cache, _workers(processes, protocol, judges, Path(cache)) as submit:
        waiting = list(reversed(tasks))
        running: dict[Future[Result], Task] = {}
        with tqdm(total=len(tasks), desc="runs", mininterval=1, disable=None) as bar:
            while running or (waiting and time.monotonic() < deadline):
                while waiting and len(running) < processes and time.monotonic() < deadline:
                    task = waiting.pop()
                    running[submit(*task)] = task
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    results.add(*running.pop(future), future.result())
                    bar.update()


@contextmanager
def _workers(
    processes: int, protocol: Protocol, judges: Judges, cache: Path
) -> Iterator[Callable[..., Future[Result]]]:
    """What starts a run: in a process of a pool, or in this one if there is to be one alone."""
    if processes == 1:
        bench = Bench(protocol, judges, cache)
        yield lambda cell, seed: _done(_run_quietly(bench, cell, seed))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (protocol, judges, cache))
    try:
        yield lambda cell, seed: pool.submit(_run, cell, seed)
    finally:
        pool.shutdown(cancel_futures=True)


_own: list[Bench] = []  # of a process of the pool


def _start(protocol: Protocol, judges: Judges, cache: Path) -> None:
    torch.set_num_threads(1)
    _own.append(Bench(protocol, judges, cache))


def _run(cell: Cell, seed: int) -> Result:
    return _run_quietly(_own[0], cell, seed)


def _run_quietly(bench: Bench, cell: Cell, seed: int) -> Result:
    """Some cells are there to show what is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(bench, cell, seed)


def _done(result: Result) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
