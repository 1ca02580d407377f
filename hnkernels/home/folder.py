"""The folder with everything, and the models and data outside of it that were named at the start."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hnkernels.assets import TINY_SD
from hnkernels.errors import InputError
from hnkernels.home.names import child

EMBEDDED = "embedded"
"""Name of the model that comes with the package."""

_PARTS = ("runs", "networks", "loras", "data", "models", "pictures", "bin")


class Home:
    """A folder of one's own.

    Its parts are ``runs``, ``networks``, ``loras``, ``data``, ``models``, ``pictures`` and ``bin``.

    Args:
        path: the folder. It need not exist; see ``make``.
        models: folders of diffusers pipelines outside of it.
        data: folders of pictures outside of it.

    Raises:
        ValueError: one of the folders outside does not exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        models: Iterable[str | os.PathLike[str]] = (),
        data: Iterable[str | os.PathLike[str]] = (),
    ):
        self.path = Path(path).absolute()
        self.runs, self.networks, self.loras, self.data, self.own_models, self.pictures, self.bin = (
            self.path / part for part in _PARTS
        )
        self._models = _existing("model", models)
        self._data = _existing("data", data)

    def make(self) -> None:
        """Makes what is missing.

        Raises:
            ValueError: the folder cannot be written to.
        """
        try:
            for part in _PARTS:
                (self.path / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.path} cannot be written to: {reason}; name another folder") from error

    def models(self) -> dict[str, Path]:
        """The pipelines that can be trained on and drawn with, by name; the embedded one first."""
        own = [path for path in _folders(self.own_models) if (path / "model_index.json").is_file()]
        return _named([(EMBEDDED, TINY_SD), *((path.name, path) for path in [*self._models, *own])])

    def datasets(self) -> dict[str, Path]:
        """The folders of pictures that can be trained on, by name."""
        return _named([(path.name, path) for path in [*self._data, *_folders(self.data)]])

    def model(self, name: object) -> Path:
        """The folder of a model.

        Raises:
            ValueError: there is no model of that name.
        """
        return _one_of("model", name, self.models())

    def dataset(self, name: object) -> Path:
        """The folder of a data set.

        Raises:
            ValueError: there is no data set of that name.
        """
        return _one_of("data set", name, self.datasets())


def _existing(what: str, folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    paths = [Path(folder).absolute() for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise InputError(f"--{what} {path} is not a folder; name one that exists")
    return paths


def _folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, without links out of it; none if it is gone."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if child(folder, path.name).is_dir():
                found.append(path)
        except ValueError:
            continue
    return found


def _named(folders: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Paths by name; of equal names the later ones get a number."""
    named: dict[str, Path] = {}
    for name, path in folders:
        unique, number = name or str(path), 1
        while unique in named:
            number += 1
            unique = f"{name}-{number}"
        named[unique] = path
    return named


def _one_of(what: str, name: object, known: dict[str, Path]) -> Path:
    if isinstance(name, str) and name in known:
        return known[name]
    raise InputError(f"there is no {what} {name!r}; there are: {', '.join(known) or 'none'}")
