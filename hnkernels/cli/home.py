"""The commands of a home: ``hnkernels ui``, the page itself, and ``runs`` and ``library``, which show what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hnkernels.cli.arguments import print_json
from hnkernels.cli.terminal import printable, say, show
from hnkernels.errors import InputError

HOME = Path("hnkernels-home")
"""The folder that the page and these commands take if no other is named."""


def ui(
    home: Annotated[Path, typer.Argument(help="The folder with everything; it is made if it does not exist.")] = HOME,
    model: Annotated[
        list[Path] | None, typer.Option(help="A diffusers pipeline outside of it; several options for several.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="A folder of pictures outside of it; several options for several.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; the next free one if it is taken.")] = 7860,
    listen: Annotated[
        str | None, typer.Option(help="An address of this machine, 0.0.0.0 for all: others may come in, with --auth.")
    ] = None,
    auth: Annotated[str | None, typer.Option(help="USER:PASSWORD, which the page then asks for.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Open the page: train, watch, manage and try hypernetworks in a browser."""
    from hnkernels.home.folder import Home

    try:
        from hnkernels.ui.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}; install it with: pip install 'hnkernels[ui]'") from error
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise InputError("--auth must be USER:PASSWORD, both not empty")
    serve(
        Home(home, model or (), data or ()),
        host=listen or "127.0.0.1",
        port=port,
        auth=(user, password) if auth else None,
        open_browser=browser,
    )


def runs(
    name: Annotated[str | None, typer.Argument(help="A run, whose last lines are shown too.")] = None,
    home: Annotated[Path, typer.Option(help="The folder with everything.")] = HOME,
    stop: Annotated[bool, typer.Option("--stop", help="Ask the run to save and stop.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Put the run, which ended early, into the queue again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs of a home and what becomes of them; stop or resume one."""
    from hnkernels.home.folder import Home
    from hnkernels.home.runs.runs import Runs

    _check_home(home)
    known = Runs(Home(home))
    if name is None and (stop or resume):
        raise InputError("name the run to stop or to resume; hnkernels runs lists them")
    if stop and resume:
        raise InputError("--stop and --resume contradict each other; give one of them")
    if name is not None and (stop or resume):
        known.stop(name) if stop else known.resume(name)
    listed = known.all() if name is None else [known[name]]
    if as_json:
        found = [{"name": r.name, "state": r.state, "step": r.step, "end": r.end, "said": r.sentence()} for r in listed]
        print_json(found)
        return
    for run in listed:
        say((printable(run.name), "bold"), " ", printable(run.sentence()))
    if not listed:
        say(f"no runs in {home}")
    if name is not None:
        for line in listed[0].last_lines():
            say("  ", printable(line))


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

    _check_home(home)
    everything = Library(Home(home)).all()
    entries = ordered(matching(everything, search), sort, descending)
    if as_json:
        print_json([entry.to_json() for entry in entries])
        return
    if not entries:
        say(f"no network here matches {printable(search)}" if everything else f"no networks in {home}")
        return
    headings = ("run", "kind", "base", "widths", "structure", "activation", "step", "MB", "hash", "A1111")
    table = Table("name", *headings, box=None)
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
        show(table)
    for entry in entries:
        if entry.facts.problem:
            say((printable(entry.facts.problem), "red"))


def _check_home(home: Path) -> None:
    if not home.is_dir():
        raise InputError(f"there is no folder {home}; name one with --home, or make one with: hnkernels ui")
