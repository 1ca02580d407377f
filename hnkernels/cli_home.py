"""The commands that show a home, as the page does: ``hnkernels library``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from hnkernels.terminal import console, printable

HOME = Path("hnkernels-home")
"""The folder that the page and these commands take if no other is named."""


def library(
    search: Annotated[
        str, typer.Argument(help="Words that all have to occur in name, kind, base model, activation, hash or notes.")
    ] = "",
    home: Annotated[Path, typer.Option(help="The folder with everything.")] = HOME,
    sort: Annotated[str, typer.Option(help="The column to sort by.")] = "name",
    descending: Annotated[bool, typer.Option("--descending", help="Sort from high to low.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the networks of a home: its own, and those that its runs have finished."""
    from hnkernels.home.folder import Home
    from hnkernels.home.library import Library, matching, ordered

    if not home.is_dir():
        raise ValueError(f"there is no folder {home}; name one with --home, or make one with: hnkernels ui")
    everything = Library(Home(home)).all()
    entries = ordered(matching(everything, search), sort, descending)
    if as_json:
        json.dump([entry.to_json() for entry in entries], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    if not entries:
        console.print(f"no network here matches {printable(search)}" if everything else f"no networks in {home}")
        return
    headings = ("run", "kind", "base", "widths", "structure", "activation", "step", "MB", "hash", "A1111")
    table = Table(Column("name", overflow="fold"), *headings, box=None)
    for entry in entries:
        facts = entry.facts
        if facts.problem:
            continue
        table.add_row(
            printable(entry.name),
            printable(entry.run),
            facts.kind,
            printable(facts.base),
            " ".join(map(str, facts.widths)),
            facts.structure,
            facts.activation + (", LayerNorm" if facts.layer_norm else ""),
            str(facts.step),
            f"{entry.size / 1e6:.1f}",
            facts.hash,
            "no" if facts.a1111 else "yes",
        )
    if table.row_count:
        console.print(table)
    for entry in entries:
        if entry.facts.problem:
            console.print(f"[red]{printable(entry.facts.problem)}[/red]", highlight=False, soft_wrap=True)
