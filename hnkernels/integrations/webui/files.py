"""Hypernetworks as prompts name them, and their files in the folder of the web UI."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hnkernels.checkpoint.optim import short_hash
from hnkernels.errors import InputError
from hnkernels.files import load_hypernetwork
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.prompt import resolve_name
from hnkernels.wording import shown

_SUFFIXES = (".pt", ".safetensors")
_KEPT = 4
"""Networks that stay in memory when others are asked for."""


@dataclass(frozen=True)
class Use:
    """What a tag asks for.

    Attributes:
        name: of the hypernetwork.
        strength: its strength.
        styles: of a weight hypernetwork, with their weights.
    """

    name: str
    strength: float = 1.0
    styles: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(items: Sequence[object]) -> Use:
        """That of ``<hypernet:name:0.7>``, or ``<hypernet:name:0.7:ink=0.4:oil=0.6>`` for a weight hypernetwork.

        Args:
            items: the parts of the tag after ``hypernet``.

        Raises:
            ValueError: the tag has no name, or something in it is not a number.
        """
        name, *rest = (str(item).strip() for item in items)
        tag = shown(f"<hypernet:{':'.join(map(str, items))}>")
        styles: dict[str, float] = {}
        strengths = []
        for part in rest:
            style, equals, weight = part.rpartition("=")
            try:
                number = float(weight)
            except ValueError:
                number = math.nan
            if not math.isfinite(number) or (equals and not style.strip()):
                raise InputError(
                    f"{tag} is not a hypernetwork tag; write <hypernet:name:0.7>, and for a weight hypernetwork "
                    "<hypernet:name:0.7:style=0.5>"
                )
            if equals:
                styles[style.strip()] = number
            else:
                strengths.append(number)
        if not name or len(strengths) > 1:
            raise InputError(f"{tag} must have one name and at most one strength, as in <hypernet:name:0.7>")
        return Use(name, strengths[0] if strengths else 1.0, styles)


class Files:
    """The hypernetworks in a folder and those below it.

    Args:
        folder: the web UI's folder of hypernetworks.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._kept: OrderedDict[tuple[Path, int, int], tuple[Hypernetwork | WeightHypernetwork, str]] = OrderedDict()

    def all(self) -> dict[str, Path]:
        """The files by name, in the order of the alphabet; of equal names the first."""
        found: dict[str, Path] = {}
        for path in sorted(self.folder.rglob("*"), key=lambda path: (path.stem.lower(), path)):
            if path.suffix.lower() in _SUFFIXES and path.stem != "None":
                found.setdefault(path.stem, path)
        return found

    def read(self, name: str) -> tuple[Hypernetwork | WeightHypernetwork, str]:
        """A network in eval mode, and the hash by which A1111 knows its file.

        Raises:
            ValueError: there is no such hypernetwork.
            CheckpointError: its file cannot be read.
        """
        known = self.all()
        path = known.get(resolve_name(name, known))
        if path is None:
            listed = ", ".join(list(known)[:20]) or "none"
            raise InputError(f"there is no hypernetwork {shown(name)} in {self.folder}; there are: {listed}")
        stat = path.stat()
        key = path, stat.st_mtime_ns, stat.st_size
        if key not in self._kept:
            # A1111 reads networks with softmax activations too.
            net = load_hypernetwork(path, allow_legacy_activations=True).requires_grad_(False)
            self._kept[key] = net, short_hash(path)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]
