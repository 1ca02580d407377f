"""The page of the study: a table, a plot and what follows for every question, from the results alone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hnkernels.checkpoint.atomic import replacing
from hnkernels.study.comparison import SCORES, Row, Score, rows_of
from hnkernels.study.plots import plot
from hnkernels.study.protocol import Protocol
from hnkernels.study.questions import Question
from hnkernels.study.results import Results
from hnkernels.study.statistics import Estimate

PAGE = "recipes.md"
PLOTS = "recipes"

_INTRODUCTION = """# Recipes

What settings do to a hypernetwork, measured. `hnkernels study` trains networks on the embedded model, a Stable
Diffusion so small that a run takes seconds, and judges what they draw. All tables, plots and sentences about figures
below are made by that command from [`{results}`]({results}), which holds every run; `hnkernels study --out docs`
runs what is missing there and writes this page again.

**How.** The base model draws printed characters, and the networks learn handwriting from {many} pictures of digits.
Every run is the baseline with one thing changed. The baseline has these settings, as `hnkernels train --config` takes
them, and defaults for the rest:

```json
{settings}
```

Each is run with {seeds} seeds, which choose the pictures, the network's start, all noise in training, and the starting
noise of what is drawn; a seed is the same in all settings, so that they are compared pair by pair.

**What is measured.** *Style*: the share of {drawn} drawn pictures that a small classifier takes for handwriting and
not for print. *Content*: the share in which another one sees the digit that was asked for. Both classifiers have
learned from pictures that no network was trained on{judges}. *Both*: the share that is handwriting and the right
digit, which is what one wants. *Held-out loss*: the denoising error on {held_out} pictures that no network was trained
on, at noise and timesteps that are the same in all runs; more precise than shares of pictures, and less what one
wants. *ms* is the CPU time of a step in one thread, on a machine that had other work to do.

**How to read it.** Figures are means over the seeds with their standard errors; below, the mean of the differences to
the baseline, which is the first row, in **bold** where it is more than two standard errors from 0. Only then is it
called a difference here. With three seeds that takes all three to agree in sign, and where there is no difference at
all it still happens in about one comparison of five{count}. So a bold figure that is alone and small may be chance.
The runs are short: what is said is about the first minutes of a training, on a model whose contexts are a tenth as wide
as those of Stable Diffusion. Where an answer may not carry over is said with each.

In the plots a dot is a run, a circle the mean with its standard error, orange where it differs from the baseline
(the first row).
"""


def write_page(out: Path, questions: Sequence[Question], results: Results, seeds: Sequence[int]) -> Path:
    """Writes ``recipes.md`` and the plots of the questions that have been answered, in part at least.

    Returns:
        The page.
    """
    answers = [(question, rows_of(question, results, seeds)) for question in questions]
    answers = [(question, rows) for question, rows in answers if len(rows) > 1]
    (out / PLOTS).mkdir(exist_ok=True)
    sections = [_introduction([rows for _, rows in answers], results, len(seeds))]
    for question, rows in answers:
        plot(rows, out / PLOTS / f"{question.name}.png")
        sections.append(_section(question, rows, len(seeds)))
    answered = {question.name for question, _ in answers}
    if later := [question.title for question in questions if question.name not in answered]:
        sections.append(_filled(f"Not run yet: {'; '.join(later)}.") + "\n")
    with replacing(out / PAGE) as file:
        file.write("\n".join(sections).encode())
    return out / PAGE


def _introduction(answers: Sequence[Sequence[Row]], results: Results, seeds: int) -> str:
    protocol, judges = results.protocol, results.judges
    differences = [d for rows in answers for row in rows for d in row.differences.values()]
    real = sum(d.is_real for d in differences)
    text = _INTRODUCTION.format(
        results=results.path.name,
        many=protocol.many,
        settings=_settings(protocol),
        seeds=seeds,
        drawn=protocol.drawn,
        held_out=protocol.held_out,
        judges=f" (they are right about {judges['style']:.1%} and {judges['content']:.1%} of others)" if judges else "",
        count=f"; of the {len(differences)} comparisons here {real} are bold" if differences else "",
    )
    return "\n\n".join(block if block.startswith("```") else _filled(block) for block in text.split("\n\n")) + "\n"


def _filled(text: str) -> str:
    """A paragraph in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _settings(protocol: Protocol) -> str:
    """As JSON, a line per object."""
    training, network = json.dumps(dict(protocol.training)), json.dumps(dict(protocol.network))
    return f'{{"training": {training},\n "network": {network}}}'


def _section(question: Question, rows: Sequence[Row], seeds: int) -> str:
    lines = [f"## {question.title}", "", _filled(question.asked), "", *_table(rows), ""]
    if notes := _notes(question, rows, seeds):
        lines += [_filled(notes), ""]
    lines += [f"![{question.title}]({PLOTS}/{question.name}.png)", "", _filled(f"**What was seen.** {_seen(rows)}"), ""]
    lines += [_filled(f"**What follows.** {_follows(rows)}"), ""]
    lines += [_filled(f"**Where it may not carry over.** {question.caveat}"), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    scores = [score for score in SCORES if score.name in rows[0].means]
    head = ["", "parameters", "steps", "ms", *(score.label for score in scores)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        counts = (f"{row.parameters:,.0f}", f"{row.steps:.0f}", f"{row.step_ms:.0f}")
        cells = [row.label, *(counts if row.seeds else ("", "", ""))]
        for score in scores:
            mean, difference = row.means.get(score.name), row.differences.get(score.name)
            parts = ["diverged" if mean is None else _shown(mean, score.digits)]
            if difference is not None:
                parts.append(_shown(difference, score.digits, "+", difference.is_real))
            cells.append("<br>".join(parts))
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _shown(estimate: Estimate, digits: int, sign: str = "", bold: bool = False) -> str:
    mean, error = estimate
    text = f"{mean:{sign}.{digits}f}" + (f" ± {error:.{digits}f}" if error == error else "")
    return f"**{text}**" if bold else text


def _notes(question: Question, rows: Sequence[Row], seeds: int) -> str:
    """What is missing."""
    labels = {row.label for row in rows}
    notes = [
        f"{row.label}: {row.diverged} of {row.seeds + row.diverged} runs diverged." for row in rows if row.diverged
    ]
    notes += [
        f"{row.label}: {row.seeds + row.diverged} of {seeds} seeds have been run."
        for row in rows
        if row.seeds + row.diverged < seeds
    ]
    if missing := [entry.label for entry in question.entries if entry.label not in labels]:
        notes.append(f"Not run yet: {', '.join(missing)}.")
    return " ".join(notes)


def _seen(rows: Sequence[Row]) -> str:
    """Which rows differ from the baseline, score by score."""
    sentences = []
    for score in SCORES:
        if score.name not in rows[0].means:
            continue
        name = score.label[0].upper() + score.label[1:]
        better, worse = (_differing(rows, score, better) for better in (True, False))
        parts = [f"{word} with {_listed(rows)}" for word, rows in (("better", better), ("worse", worse)) if rows]
        sentences.append(f"{name}: {'; '.join(parts)}." if parts else f"{name}: no difference is shown.")
    return " ".join(sentences)


def _follows(rows: Sequence[Row]) -> str:
    """Advice by one rule for all questions: by the pictures that are both, then by what else differs."""
    baseline = f"`{rows[0].label}`"
    both, loss, spill = (next(score for score in SCORES if score.name == name) for name in ("both", "loss", "spill"))
    if better := _differing(rows, both, True):
        best = max(better, key=lambda row: row.means["both"].mean)
        difference = _shown(best.differences["both"], both.digits, "+")
        sentences = [f"More pictures are handwriting and the right digit with `{best.label}` ({difference})"]
        others = [row for row in better if row is not best]
        sentences[0] += f", and with {_listed(others)}, than with {baseline}." if others else f" than with {baseline}."
    else:
        sentences = [f"Nothing here makes more pictures handwriting and the right digit than {baseline}."]
    if worse := _differing(rows, both, False):
        sentences.append(f"Fewer are with {_listed(worse)}.")
    if less := _differing(rows, spill, True):
        sentences.append(f"The other digits are changed less with {_listed(less)}.")
    if lower := [row for row in _differing(rows, loss, True) if row not in better]:
        sentences.append(f"The held-out loss is lower with {_listed(lower)}, which the pictures do not show.")
    if same := [row for row in rows[1:] if not row.changed(True) and not row.changed(False) and row.seeds]:
        sentences.append(f"No difference in anything is shown for {_listed(same)}.")
    if diverged := [row for row in rows if row.diverged]:
        sentences.append(f"Do not use {_listed(diverged)} like this: runs diverged.")
    return " ".join(sentences)


def _differing(rows: Sequence[Row], score: Score, better: bool) -> list[Row]:
    """The rows that are better, or worse, than the baseline in a score."""
    return [row for row in rows[1:] if score.label in row.changed(better)]


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(f"`{row.label}`" for row in rows)
