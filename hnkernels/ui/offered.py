"""The networks that a page offers, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hnkernels.generator import files as kinds
from hnkernels.generator.hypernetwork import WeightHypernetwork
from hnkernels.generator.summary import kind_of
from hnkernels.home.folder import Home
from hnkernels.home.names import child

_START = "start"


def networks(home: Home) -> dict[str, Path]:
    """The files of networks by name: those of the home first, then those that its runs have finished."""
    found: dict[str, Path] = {}
    for folder in (home.networks, *_folders(home.runs)):
        for file in _files(folder):
            name, number = file.stem, 1
            if folder != home.networks and name == _START:
                continue
            while name in found and found[name].with_suffix("") != file.with_suffix(""):
                number += 1
                name = f"{file.stem}-{number}"
            found.setdefault(name, file)
    return found


def weight_networks(home: Home) -> dict[str, Path]:
    """Those that generate weights."""
    return {name: file for name, file in networks(home).items() if _generates(file)}


def styles_of(file: Path) -> tuple[str, ...]:
    """The styles that a weight hypernetwork knows.

    Raises:
        CheckpointError: it cannot be read.
    """
    return getattr(WeightHypernetwork.load(file).encoder, "styles", ())


def _generates(file: Path) -> bool:
    try:
        return kind_of(file) == kinds.NETWORK
    except Exception:  # whatever is wrong with a file: here it is not one of them
        return False


def _folders(folder: Path) -> list[Path]:
    return [path for path in _inside(folder) if path.is_dir()]


def _files(folder: Path) -> list[Path]:
    """Safetensors before ``.pt``."""
    files = [path for path in _inside(folder) if path.suffix in (".safetensors", ".pt") and path.is_file()]
    return sorted(files, key=lambda path: (path.suffix == ".pt", path.name))


def _inside(folder: Path) -> Iterator[Path]:
    """What is visible in a folder, without links out of it; nothing if it is gone."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for name in names:
        try:
            yield child(folder, name)
        except ValueError:
            continue
