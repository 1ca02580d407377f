"""The answer to a question: every setting's scores over the seeds, and their differences to the baseline's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hnkernels.study.questions import Entry, Question
from hnkernels.study.results import Result, Results
from hnkernels.study.statistics import Estimate, estimate, paired


class Score(NamedTuple):
    """Something that is measured.

    Attributes:
        name: in the results.
        label: for people.
        sign: 1 where more is better, -1 where less is.
        digits: after the decimal point.
    """

    name: str
    label: str
    sign: int
    digits: int


SCORES = (
    Score("style", "style", 1, 2),
    Score("content", "content", 1, 2),
    Score("both", "both", 1, 2),
    Score("spill", "spill", -1, 2),
    Score("loss", "held-out loss", -1, 4),
)


class Row(NamedTuple):
    """A setting and what it came to.

    Attributes:
        label: of the setting.
        parameters, steps, step_ms: means over the seeds.
        seeds: how many runs there are.
        values: score → seed → value.
        means: score → over the seeds.
        differences: score → difference to the baseline over the seeds that both have; none for the baseline itself.
        diverged: how many runs more diverged.
    """

    label: str
    parameters: float
    steps: float
    step_ms: float
    seeds: int
    values: dict[str, dict[int, float]]
    means: dict[str, Estimate]
    differences: dict[str, Estimate]
    diverged: int

    def changed(self, better: bool) -> list[str]:
        """The labels of the scores that are better, or worse, than the baseline's by more than two standard errors."""
        return [
            score.label
            for score in SCORES
            if (difference := self.differences.get(score.name)) is not None
            and difference.is_real
            and (difference.mean * score.sign > 0) == better
        ]


def rows_of(question: Question, results: Results, seeds: Sequence[int]) -> list[Row]:
    """The rows of a question for which there is a run, the baseline's first; none without a run of the baseline."""
    base = _finished(question.baseline, results, seeds)
    if not base:
        return []
    baseline = _values(question.baseline, base)
    rows = []
    for entry in question.entries:
        found = {seed: result for seed in seeds if (result := results.of(entry.cell, seed)) is not None}
        if found:
            rows.append(_row(entry, found, {} if entry is question.baseline else baseline))
    return rows


def _row(entry: Entry, found: Mapping[int, Result], baseline: Mapping[str, Mapping[int, float]]) -> Row:
    finished = {seed: result for seed, result in found.items() if result.diverged is None}
    values = _values(entry, finished)
    differences = {name: paired(of_seeds, baseline[name]) for name, of_seeds in values.items() if name in baseline}
    ran = list(finished.values())
    return Row(
        label=entry.label,
        parameters=_mean([result.parameters for result in ran]),
        steps=_mean([result.steps for result in ran]),
        step_ms=_mean([result.step_ms for result in ran]),
        seeds=len(ran),
        values=values,
        means={name: estimate(list(of_seeds.values())) for name, of_seeds in values.items()},
        differences={name: difference for name, difference in differences.items() if difference is not None},
        diverged=len(found) - len(ran),
    )


def _mean(values: Sequence[float]) -> float:
    """0 where every run diverged."""
    return statistics.fmean(values) if values else 0.0


def _finished(entry: Entry, results: Results, seeds: Sequence[int]) -> dict[int, Result]:
    found = {seed: results.of(entry.cell, seed) for seed in seeds}
    return {seed: result for seed, result in found.items() if result is not None and result.diverged is None}


def _values(entry: Entry, finished: Mapping[int, Result]) -> dict[str, dict[int, float]]:
    """Score → seed → value."""
    values: dict[str, dict[int, float]] = {}
    for seed, result in finished.items():
        for name, value in result.scores[entry.strength].items():
            values.setdefault(name, {})[seed] = value
    return values
