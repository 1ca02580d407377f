"""What the library shows, as HTML: a table of networks, what is known about one, the errors of a LoRA."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

from hnkernels.convert.lora_export import LoraReport
from hnkernels.home.library import Entry
from hnkernels.units import size

TABLE_CSS = """
min-width: 0; padding: 0;
.scroll { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
table { border-collapse: collapse; width: 100%; font-size: var(--text-md); }
th, td { padding: 0.5rem 0.6rem; text-align: left; white-space: nowrap; vertical-align: baseline; font-weight: 400; }
thead th, tbody th { font-weight: 600; }
tbody tr { border-top: 1px solid var(--border-color-primary); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.wide { white-space: normal; min-width: 16rem; }
button { background: none; border: 0; padding: 0; font: inherit; color: inherit; cursor: pointer; }
tbody button { text-decoration: underline; text-underline-offset: 0.2em; text-align: left; }
button:focus-visible, .scroll:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
tr[data-chosen=true] { background: var(--background-fill-secondary); box-shadow: inset 3px 0 var(--color-accent); }
p { margin: 0.5rem 0; }
.empty { padding: 1.5rem; text-align: center; }
"""

TABLE_JS = """
let focused = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  focused = button.dataset.column ? 'column' : 'key';
  focused = `button[data-${focused}="${CSS.escape(button.dataset[focused])}"]`;
  if (button.dataset.column) {
    trigger('click', {column: button.dataset.column});
    return;
  }
  for (const row of element.querySelectorAll('tbody tr')) {
    row.dataset.chosen = String(row.contains(button));
  }
  trigger('select', {key: button.dataset.key});
});
watch('value', () => { if (focused) { element.querySelector(focused)?.focus(); focused = null; } });
"""
"""Says which network or column was chosen; after a new order the same button has the focus."""

DETAILS_CSS = """
padding: 0;
h2 { font-size: var(--text-xxl); font-weight: 600; margin: 0.5rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1rem; margin: 0.5rem 0; }
dt { opacity: 0.8; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: 0.25rem 0; padding-left: 1.25rem; list-style: disc; }
"""

_HEADINGS = {
    "name": "Name",
    "kind": "Kind",
    "run": "Run",
    "base": "Base model",
    "widths": "Widths",
    "activation": "Activation",
    "step": "Steps",
    "size": "Size",
    "a1111": "A1111",
    "modified": "Changed",
}
"""The columns that are shown; the rest is among the details."""

_TEMPLATES = {ord(mark): f"&#{ord(mark)};" for mark in "{}$"}

EMPTY = "No network here yet: train one, or drop a file here."


def text(value: object) -> str:
    """A text that a person wrote, as HTML that shows it; without what Gradio's templates would fill in."""
    return html.escape(str(value)).translate(_TEMPLATES)


def table(entries: Sequence[Entry], any_there: bool, chosen: str | None, column: str, descending: bool) -> str:
    """The table of networks, or a sentence in its place.

    Args:
        entries: what is shown, in order.
        any_there: whether there are networks at all, found by the search or not.
        chosen: key of the network whose details are shown.
        column: that it is sorted by.
        descending: from high to low.
    """
    if not entries:
        said = "No network matches these words; try fewer." if any_there else EMPTY
        return f'<p class="empty">{said}</p>'
    heads = "".join(_head(name, title, column, descending) for name, title in _HEADINGS.items())
    rows = "".join(_row(entry, entry.key == chosen) for entry in entries)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Networks"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def details(entry: Entry) -> str:
    """What is known about a network."""
    facts = entry.facts
    title = f"<h2>{text(entry.name)}</h2>"
    files = ", ".join(path.name for path in (*entry.files, *entry.beside))
    if facts.problem:
        return f'{title}<p class="fault">{text(facts.problem)}</p>{_listed({"Files": files})}'
    said = {
        "Kind": facts.kind,
        "Name in the file": facts.title if facts.title != entry.name else "",
        "Run": entry.run,
        "Structure": facts.structure,
        "Widths": ", ".join(map(str, facts.widths)),
        "Activation": facts.activation + (", LayerNorm" if facts.layer_norm else ""),
        "Styles": ", ".join(facts.styles),
        "Training steps": f"{facts.step:,}",
        "Base model": facts.base,
        "Parameters": f"{facts.parameters:,} in {facts.dtype}" if facts.parameters else facts.dtype,
        "Hash": facts.hash,
        "In A1111": facts.a1111 or f"Loads it; a prompt calls it <hypernet:{entry.name}:1>.",
        "Files": f"{files} ({size(entry.size)})",
    }
    warnings = "".join(f"<li>{text(warning)}</li>" for warning in facts.warnings)
    return f"{title}{_listed(said)}" + (f"<ul>{warnings}</ul>" if warnings else "")


def lora_errors(report: LoraReport) -> str:
    """How close a LoRA comes, layer by layer."""
    rows = "".join(
        f'<tr><th scope="row">{text(layer.name)}</th><td class="number">{layer.error:.2%}</td>'
        f'<td class="number">{layer.dropped:.2%}</td></tr>'
        for layer in report.layers
    )
    return (
        f"<p>Rank {report.rank}: error {report.mean:.2%} on average, {report.worst:.2%} at worst.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Error of every layer" style="max-height: 20rem">'
        '<table><thead><tr><th scope="col">Projection</th><th scope="col" class="number">Error</th>'
        f'<th scope="col" class="number">Constant lost</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def announcement(message: object, fault: bool = False) -> str:
    """What has happened, as a sentence that screen readers say."""
    said = str(message).strip()
    if said.partition(" ")[0].isalpha():  # no name of a file
        said = said[0].upper() + said[1:]
    if not said.endswith((".", "!", "?")):
        said += "."
    role = 'role="alert" class="fault"' if fault else 'role="status"'
    return f"<p {role}>{text(said)}</p>"


def _head(name: str, title: str, column: str, descending: bool) -> str:
    order = ("descending" if descending else "ascending") if name == column else "none"
    kind = ' class="number"' if name in ("step", "size") else ""
    arrow = {"ascending": " ▲", "descending": " ▼", "none": ""}[order]
    return (
        f'<th scope="col" aria-sort="{order}"{kind}><button type="button" data-column="{name}">{title}'
        f'<span aria-hidden="true">{arrow}</span></button></th>'
    )


def _row(entry: Entry, chosen: bool) -> str:
    facts = entry.facts
    name = f'<th scope="row"><button type="button" data-key="{text(entry.key)}">{text(entry.name)}</button></th>'
    head = f'<tr data-chosen="{str(chosen).lower()}">{name}'
    if facts.problem:
        return f'{head}<td class="wide fault" colspan="{len(_HEADINGS) - 1}">{text(facts.problem)}</td></tr>'
    day = time.strftime("%Y-%m-%d", time.localtime(entry.modified))
    cells = [
        facts.kind,
        entry.run,
        facts.base,
        ", ".join(map(str, facts.widths)),
        facts.activation + (" + LayerNorm" if facts.layer_norm else ""),
    ]
    return (
        head
        + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        + f'<td class="number">{facts.step:,}</td><td class="number">{size(entry.size)}</td>'
        + f"<td>{'no' if facts.a1111 else 'loads'}</td><td>{day}</td></tr>"
    )


def _listed(said: dict[str, str]) -> str:
    rows = "".join(f"<dt>{title}</dt><dd>{text(value)}</dd>" for title, value in said.items() if value)
    return f"<dl>{rows}</dl>"
