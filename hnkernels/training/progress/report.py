"""A page that shows a run: what is wrong with it in words, curves, previews and settings, in one file."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming
from hnkernels.training.progress.curves import curves
from hnkernels.training.progress.findings import findings
from hnkernels.training.progress.history import History

REPORT = "report.html"

_MOST_PREVIEWS = 20
_PREVIEW_SIDE = 768  # pixels
_PREVIEW_BYTES = 60_000  # 20 of them as base64 are 1.6 MB, which leaves room for the curves in 2 MB
_LEAST_SIDE = 64
_LONGEST_SETTING = 1000  # characters

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } figure { margin: 1rem 0; } img, svg { max-width: 100%; height: auto; }
.found { border-left: .3rem solid #c50; padding-left: .8rem; } .none { color: #555; }
"""


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` into the folder of a run, made of what lies there, whole or not at all.

    It needs no network and no other file. What a run has not measured is left out. The same folder gives the same
    bytes. With 20 previews, which is the most that are shown, evenly over the steps, it is smaller than 2 MB.

    Args:
        folder: with any of ``log.csv``, ``validation.csv``, ``health.csv``, ``run.json`` and ``previews/*.png``.

    Returns:
        The file.

    Raises:
        ImportError: matplotlib or Pillow is not installed.
        CheckpointError: the file cannot be written, or there is no such folder.
    """
    history = History.read(folder)
    title = history.name or "Training run"
    sections = [
        _summary(history),
        _found(history),
        _section("Curves", curves(history)),
        _section("Previews", "".join(_previews(folder / "previews"))),
        _section("Settings", _table(history.settings)),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    )
    path = folder / REPORT
    with naming(path), replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))  # names of files may hold what is not text
    return path


def _summary(history: History) -> str:
    rows: dict[str, str] = {}
    if steps := history.log.get("step"):
        rows["steps"] = f"{steps[-1]:g}" + (f" of {history.end}" if history.end else "")
        rows["training loss (mean of the last steps)"] = f"{history.log['mean_loss'][-1]:.4g}"
    if steps := history.validation.get("step"):
        last = {key: values[-1] for key, values in history.validation.items()}
        rows["validation loss"] = f"{last['loss']:.4g} ± {last['standard_error']:.2g} at step {steps[-1]:g}"
        rows["less the base model's"] = f"{last['difference']:.2g} ± {last['difference_standard_error']:.2g}"
        losses = [loss if math.isfinite(loss) else math.inf for loss in history.validation["loss"]]
        best = min(range(len(losses)), key=lambda i: losses[i])
        rows["best validation loss"] = f"{losses[best]:.4g} at step {steps[best]:g}"
    if not rows:
        return '<p class="none">There are no steps yet.</p>\n'
    return _table(rows) + '<p class="none">± is one standard error, over pictures.</p>\n'


def _found(history: History) -> str:
    said = "".join(f'<p class="found">{html.escape(sentence)}</p>\n' for sentence in findings(history))
    nothing = '<p class="none">Nothing in the numbers of this run looks wrong.</p>\n' if history.log else ""
    return _section("Findings", said or nothing)


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}\n" if content else ""


def _table(rows: Any) -> str:
    lines = [f"<tr><th>{html.escape(str(key))}</th><td>{html.escape(_written(rows[key]))}</td></tr>" for key in rows]
    return f"<table>{''.join(lines)}</table>\n" if lines else ""


def _written(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SETTING else text[:_LONGEST_SETTING] + "…"


def _previews(folder: Path) -> Iterator[str]:
    """One figure per preview, and a sentence about those that are left out."""
    paths = sorted(folder.glob("*.png"), key=lambda path: (_step(path), path.name))
    shown = _evenly(paths, _MOST_PREVIEWS)
    if len(shown) < len(paths):
        yield f'<p class="none">{len(shown)} of {len(paths)} previews.</p>\n'
    for path in shown:
        step = _step(path)
        name = html.escape(path.stem if step < 0 else f"step {step}")
        uri = _data_uri(path)
        if uri is None:
            yield f'<p class="none">{html.escape(path.name)} is damaged.</p>\n'
        else:
            yield f'<figure><figcaption>{name}</figcaption><img src="{uri}" alt="{name}"></figure>\n'


def _step(path: Path) -> int:
    match = re.fullmatch(r"step-([0-9]{1,18})", path.stem)
    return int(match[1]) if match else -1


def _evenly(paths: list[Path], most: int) -> list[Path]:
    """At most so many of them, the first and the last included."""
    if len(paths) <= most:
        return paths
    return [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]


def _data_uri(path: Path) -> str | None:
    """A picture, smaller if need be, as what a page can hold; ``None`` if it is damaged."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as file:
            kind, picture = file.format, file.convert("RGB")
    except Exception:  # Pillow's decoders raise whatever they come upon
        return None
    if kind == "PNG" and len(data) <= _PREVIEW_BYTES:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"
    side = _PREVIEW_SIDE
    while True:
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        if buffer.tell() <= _PREVIEW_BYTES or side <= _LEAST_SIDE:
            return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        side = side * 3 // 4
