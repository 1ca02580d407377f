"""What several commands are given: files to write, strengths, styles, models."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hnkernels.errors import InputError


def check_target(path: Path, force: bool, make_parents: bool = False) -> None:
    """Raises ``ValueError`` if ``path`` could not be written in the end."""
    if path.exists() and not force:
        raise InputError(f"{path} exists already; overwrite it with --force")
    folder = path.absolute().parent
    while make_parents and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: {folder} is not a folder; create it first, or name another place")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written: access to {folder} is denied; name another place")


def mixture(styles: list[str]) -> dict[str, float]:
    """Style → weight of ``STYLE`` or ``STYLE:WEIGHT``."""
    mixture: dict[str, float] = {}
    for text in styles:
        name, colon, weight = text.rpartition(":")
        name = name if colon else text
        if name in mixture:
            raise InputError(f"--style {name} is given twice; give it once, with its weight")
        try:
            mixture[name] = float(weight) if colon else 1.0
        except ValueError:
            raise InputError(f"--style must be STYLE or STYLE:WEIGHT, not {text!r}") from None
    return mixture


def one_each(strengths: list[float] | None, files: list[Path]) -> list[float]:
    """A strength per file, 1 where none is given."""
    if strengths and len(strengths) != len(files):
        raise InputError(
            f"--strength is given {len(strengths)} times and --hypernetwork {len(files)} times; give one each"
        )
    if bad := [factor for factor in strengths or () if not math.isfinite(factor)]:
        raise InputError(f"--strength must be a finite number, not {bad[0]}")
    return strengths or [1.0] * len(files)


def model_folder(text: str) -> Path:
    """The folder of a model; ``tiny-sd`` is the embedded one, if there is not a folder of that name."""
    from hnkernels.assets import TINY_SD

    return TINY_SD if text == TINY_SD.name and not Path(text).exists() else Path(text)


Model = Annotated[
    Path,
    typer.Argument(
        parser=model_folder, metavar="MODEL", help="Folder of a diffusers pipeline; tiny-sd is the embedded one."
    ),
]


def print_json(found: object) -> None:
    """Prints what a program reads."""
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")
