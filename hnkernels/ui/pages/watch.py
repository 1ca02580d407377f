"""Watch: all runs, what becomes of them, their curves laid over each other, and their previews."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from PIL import Image

from hnkernels.checkpoint import CheckpointError
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.runs.figures import RunFigures
from hnkernels.home.runs.run import ALIVE, QUEUED, Run
from hnkernels.home.runs.runs import Runs
from hnkernels.training.progress.report import write_report
from hnkernels.ui.bin import BinPanel
from hnkernels.ui.charts import Series, chart
from hnkernels.ui.downloads import offered
from hnkernels.ui.events import PRIVATE, refused, said
from hnkernels.ui.pictures import element
from hnkernels.units import duration, size

_SECONDS, _IDLE = 3.0, 10.0  # between two looks at the runs: while one lives, and while none does
_SHOWN = 24  # previews side by side
_CLICK = "Click once more to delete"


def build(home: Home) -> None:
    """The page."""
    _Page(home)


class _Page:
    """The page's components and what they do."""

    def __init__(self, home: Home):
        self.runs = Runs(home)
        self.read: dict[str, RunFigures] = {}
        gr.Markdown("# Watch\nRuns go on by themselves, whether this page is open or not.")
        self.table = gr.HTML(elem_id="runs")
        self.chosen = gr.Dropdown([], value=[], multiselect=True, label="Shown runs", info="Laid over each other.")
        self.facts = gr.HTML(elem_id="facts")
        with gr.Row():
            self.stop = gr.Button("Stop", size="sm", elem_id="stop")
            self.resume = gr.Button("Resume", size="sm", elem_id="resume")
            self.delete = gr.Button("Delete", size="sm", variant="stop", elem_id="delete")
            self.report = gr.Button("Report as a file", size="sm", elem_id="report")
        self.said = gr.HTML(elem_classes="sentence", elem_id="watch-said")
        self.file = gr.File(label="Report", visible=False, elem_id="report-file")
        self.curves = gr.HTML(elem_id="curves")
        with gr.Group(visible=False) as self.previews:
            self.at = gr.Slider(1, 2, value=1, step=1, label="Preview", elem_id="preview-at")
            self.preview = gr.HTML(elem_id="preview", padding=True)
            self.all_previews = gr.HTML(elem_id="all-previews", padding=True)
        self.bin = BinPanel(self.runs.bin, "runs")
        self.seen, self.asked, self.timer = gr.State(), gr.State(0.0), gr.Timer(_SECONDS)
        self._connect()

    def _connect(self) -> None:
        shown = [self.table, self.facts, self.curves, self.previews, self.at, self.preview, self.all_previews]
        shown += [self.stop, self.resume, self.seen, self.timer]
        looking: dict[str, Any] = {"inputs": [self.chosen, self.seen], "outputs": shown, **PRIVATE}
        hidden = {**PRIVATE, "show_progress": "hidden"}
        page: Any = gr.context.Context.root_block
        page.load(self._opened, outputs=[self.chosen, self.bin.deleted], **PRIVATE).then(self._anew, **looking)
        self.chosen.change(self._anew, **looking)
        self.timer.tick(self._look, **{**looking, **hidden})
        self.at.input(self._one_preview, inputs=[self.chosen, self.at], outputs=self.preview, **hidden)
        for button, act in ((self.stop, self._stop), (self.resume, self._resume)):
            button.click(act, inputs=self.chosen, outputs=self.said, **PRIVATE).then(self._anew, **looking)
        self.delete.click(
            self._delete, inputs=[self.chosen, self.asked], outputs=[self.said, self.delete, self.asked], **PRIVATE
        ).then(self._listed, inputs=self.chosen, outputs=[self.chosen, self.bin.deleted], **PRIVATE).then(
            self._anew, **looking
        )
        for button, act, inputs in (
            (self.bin.restore, self.bin.bring_back, self.bin.deleted),
            (self.bin.confirm, self.bin.empty, None),
        ):
            button.click(said(act), inputs=inputs, outputs=self.said, **PRIVATE).then(
                self._listed, inputs=self.chosen, outputs=[self.chosen, self.bin.deleted], **PRIVATE
            ).then(self._anew, **looking)
        self.report.click(self._report, inputs=self.chosen, outputs=[self.said, self.file], **PRIVATE)

    def _opened(self, request: gr.Request) -> tuple[Any, Any]:
        """The runs, with those of the address chosen, or the latest."""
        names = [run.name for run in self.runs.all()]
        asked = [name for name in request.query_params.getlist("run") if name in names]
        return self._choices(names, asked or names[:1]), self.bin.listing()

    def _listed(self, chosen: Sequence[str]) -> tuple[Any, Any]:
        names = [run.name for run in self.runs.all()]
        return self._choices(names, [name for name in chosen if name in names] or names[:1]), self.bin.listing()

    def _choices(self, names: list[str], chosen: list[str]) -> Any:
        return gr.Dropdown(names, value=chosen)

    def _anew(self, chosen: Sequence[str], seen: Any) -> list[Any]:
        return self._look(chosen, None)

    def _look(self, chosen: Sequence[str], seen: Any) -> list[Any]:
        """The page as it is now; nothing at all where nothing has changed."""
        runs = self.runs.all()
        shown = [run for name in chosen for run in runs if run.name == name]
        figures = [self._figures(run) for run in shown]
        now = (
            tuple((run.name, run.state, run.step) for run in runs),
            tuple(one.version() for one in figures),
            tuple(len(run.previews) for run in shown[:1]),
        )
        if now == seen:
            return [gr.skip()] * 11
        previews = shown[0].previews if shown else []
        before = len(seen[2]) and seen[2][0] if seen else None
        drawn: list[Any] = [gr.skip()] * 4
        if before != len(previews):
            drawn = [
                gr.Group(visible=bool(previews)),
                gr.Slider(1, max(2, len(previews)), value=len(previews) or 1, visible=len(previews) > 1),
                element(_picture(previews[-1]), f"Preview at step {_step(previews[-1].stem)}") if previews else "",
                _strip(previews[-_SHOWN:]),
            ]
        can_stop = any(run.state in ALIVE for run in shown)
        can_resume = any(run.resumable for run in shown)
        return [
            _table(self.runs, runs),
            "".join(_facts(self.runs, run) for run in shown),
            _curves([run.name for run in shown], figures),
            *drawn,
            gr.Button(interactive=can_stop),
            gr.Button(interactive=can_resume),
            now,
            gr.Timer(_SECONDS if any(run.state in ALIVE for run in runs) else _IDLE),
        ]

    def _figures(self, run: Run) -> RunFigures:
        return self.read.setdefault(run.name, RunFigures(run.folder))

    def _one_preview(self, chosen: Sequence[str], at: float) -> str:
        previews = self.runs[chosen[0]].previews if chosen else []
        if not previews:
            return ""
        path = previews[min(int(at), len(previews)) - 1]
        return element(_picture(path), f"Preview at step {_step(path.stem)}")

    @said
    def _stop(self, chosen: Sequence[str]) -> str:
        return " ".join(f"{run.name}: {run.sentence()}" for run in [self.runs.stop(name) for name in _some(chosen)])

    @said
    def _resume(self, chosen: Sequence[str]) -> str:
        return " ".join(f"{run.name}: {run.sentence()}" for run in [self.runs.resume(name) for name in _some(chosen)])

    def _delete(self, chosen: Sequence[str], asked: float) -> tuple[str, Any, float]:
        """Deletes at the second click within some seconds."""
        if time.monotonic() - asked > 10:
            return "", gr.Button(_CLICK), time.monotonic()
        return self._deleted(chosen), gr.Button("Delete"), 0.0

    @said
    def _deleted(self, chosen: Sequence[str]) -> str:
        names = [self.runs.delete(name).name for name in _some(chosen)]
        return f"Deleted {', '.join(names)}; the bin below brings them back."

    def _report(self, chosen: Sequence[str]) -> tuple[str, Any]:
        try:
            path = write_report(self.runs[_some(chosen)[0]].folder)
        except (ValueError, OSError, CheckpointError) as error:
            return refused(error), gr.skip()
        return "", gr.File(offered([path])[0], visible=True)


def _some(chosen: Sequence[str]) -> Sequence[str]:
    if not chosen:
        raise InputError("no run is chosen; choose one above")
    return chosen


def _table(runs: Runs, listed: Sequence[Run]) -> str:
    if not listed:
        return '<p>There is no run yet. <a href="/">Start one.</a></p>'
    rows = "".join(
        f'<tr><td><a href="/watch?run={quote(run.name)}">{escape(run.name)}</a></td><td>{run.state}</td>'
        f"<td>{_place(runs, run)}</td><td>{_loss(run)}</td><td>{_date(run.changed)}</td></tr>"
        for run in listed
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Run", "State", "Step", "Loss", "Changed"))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _place(runs: Runs, run: Run) -> str:
    if run.state == QUEUED:
        return f"{runs.ahead_of(run)} before it"
    return f"{run.step:,} of {run.end:,}" if run.end else f"{run.step:,}"


def _loss(run: Run) -> str:
    loss = run.latest.get("mean_loss")
    return "" if loss is None else f"{loss:.4g}"


def _facts(runs: Runs, run: Run) -> str:
    """One run's state in words, with the last lines of one that died."""
    parts = [f"<strong>{escape(run.name)}</strong> {escape(run.sentence())}"]
    if (left := run.seconds_left) is not None:
        parts.append(f"{duration(left)} left, at {run.pace:.3g} steps per second.")
    if run.state in ALIVE and run.process:
        parts.append(f"{size(run.process.memory())} of memory.")
    text = f"<p>{' '.join(parts)}</p>"
    if run.state == "died" and (lines := run.last_lines()):
        text += f"<pre tabindex='0'>{escape(chr(10).join(lines))}</pre>"
    return text


def _curves(names: Sequence[str], figures: Sequence[RunFigures]) -> str:
    several = len(names) > 1

    def called(number: int, what: str) -> str:
        return f"{names[number]}: {what}" if several else what

    losses, held_out, rates, norms, paces, memory, changes = [], [], [], [], [], [], []
    for n, one in enumerate(figures):
        losses.append(Series(called(n, "each step"), one.of_steps("loss"), n, band=True))
        losses.append(Series(called(n, "mean of the last steps"), one.of_steps("mean_loss"), n + len(names)))
        held_out.append(Series(called(n, "this network"), one.of_validations("loss"), n, points=True))
        base = Series(called(n, "base model"), one.of_validations("base_loss"), n + len(names), dashed=True)
        held_out.append(base)
        rates.append(Series(called(n, "rate"), one.of_steps("learning_rate"), n))
        norms.append(Series(called(n, "norm"), one.of_steps("grad_norm"), n, band=True))
        paces.append(Series(called(n, "pace"), one.of_steps("iterations_per_second"), n, band=True))
        memory.append(Series(called(n, "gigabytes"), one.of_steps("memory_gb"), n))
        parts = list(one.changes().items())[:8]
        changes += [Series(called(n, name), curve, n + k) for k, (name, curve) in enumerate(parts)]
    charts = [
        chart("Loss", losses),
        chart("Loss on pictures that were held out", held_out),
        chart("Learning rate", rates),
        chart("Norm of the gradient", norms),
        chart("Change of the weights since the start", changes),
        chart("Steps per second", paces),
        chart("Memory", memory),
    ]
    return f'<div class="curves">{"".join(charts)}</div>'


def _strip(previews: Sequence[Path]) -> str:
    """Previews side by side, with their steps."""
    figures = (
        f"<figure>{element(_picture(path), f'Preview at step {_step(path.stem)}')}"
        f"<figcaption>step {_step(path.stem)}</figcaption></figure>"
        for path in previews
    )
    return f'<div class="strip">{"".join(figures)}</div>'


def _picture(path: Path) -> Image.Image | None:
    """A preview's pixels; nothing for one that is gone, or only half written."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError:
        return None


def _step(stem: str) -> str:
    return "".join(c for c in stem if c.isdigit()).lstrip("0") or "0"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
