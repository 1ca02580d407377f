"""The command line: a file for what its commands are about, each a thin layer over the library."""

from __future__ import annotations

import sys
import warnings

import typer

from hnkernels.cli.drawing import sample
from hnkernels.cli.home import library, runs, ui
from hnkernels.cli.machine import doctor, explain
from hnkernels.cli.models import export_lora, merge
from hnkernels.cli.networks import convert, generate, info, interpolate
from hnkernels.cli.terminal import complain, warn
from hnkernels.cli.training import demo, study, train
from hnkernels.cli.training import read_config as _read_config  # noqa: F401  scripts know it by this name
from hnkernels.errors import HNKernelsError

app = typer.Typer(
    help="Stable Diffusion hypernetworks: look at files, convert them, train and sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (
    (demo, ui, train, sample),
    (runs, library, info, convert, interpolate, generate, merge, export_lora),
    (explain, doctor, study),
):
    for command in commands:
        app.command()(command)


def main() -> None:
    """Runs the command line.

    Exit codes: 0, all is well; 1, it cannot be done, or ``doctor`` has found something wrong, with one line on stderr;
    2, the command or an option does not exist; 130, interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that it cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            app(prog_name="hnkernels")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (HNKernelsError, ValueError, OSError) as error:
        complain(error)
        sys.exit(1)
    except ImportError as error:
        said = str(error)
        if "pip install" not in said:
            said += "; install what this needs with: pip install 'hnkernels[train]'"
        complain(said)
        sys.exit(1)
