"""What one file holds, as far as a list of networks shows it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hnkernels.checkpoint import CheckpointError, describe
from hnkernels.checkpoint.a1111 import MOVED_DROPOUTS
from hnkernels.checkpoint.archive import ENTRY
from hnkernels.checkpoint.optim import short_hash
from hnkernels.generator.files import NETWORK
from hnkernels.generator.summary import describe as describe_weights

CONTEXT, WEIGHTS, GENERATED = "context", "weights", "generated weights"
"""The kinds of networks; the third is what a weight hypernetwork has generated."""

_LONGEST = 200  # characters of a text that a stranger wrote
_MOST_WARNINGS = 20


@dataclass(frozen=True)
class Facts:
    """What is in a file; of a file that cannot be read, ``problem`` alone.

    Attributes:
        kind: ``CONTEXT``, ``WEIGHTS`` or ``GENERATED``; empty for a file that cannot be read.
        title: the name inside the file, which is not always that of the file.
        step: training steps.
        widths: of the contexts that it changes, ascending; of a context hypernetwork.
        structure: of its MLPs, or of what is generated, in words.
        activation: of its MLPs; ``"linear"`` for none.
        layer_norm: whether its MLPs have LayerNorms.
        parameters: how many it has.
        dtype: of the parameters.
        base: name of the base model; empty if the file does not say.
        hash: A1111's short one, 10 hex digits.
        styles: that a weight hypernetwork knows.
        a1111: why A1111 does not load it, as a sentence; empty if it does.
        warnings: what else is to be known about the file, as sentences.
        problem: why it cannot be read, as a sentence.
    """

    kind: str = ""
    title: str = ""
    step: int = 0
    widths: tuple[int, ...] = ()
    structure: str = ""
    activation: str = ""
    layer_norm: bool = False
    parameters: int = 0
    dtype: str = ""
    base: str = ""
    hash: str = ""
    styles: tuple[str, ...] = ()
    a1111: str = ""
    warnings: tuple[str, ...] = ()
    problem: str = ""

    @property
    def affine(self) -> bool:
        """Whether it can become part of a model's weights."""
        return self.kind == CONTEXT and self.activation == "linear" and not self.layer_norm

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> Facts | None:
        """The inverse of ``to_json``; ``None`` for anything else."""
        if not isinstance(content, Mapping) or set(content) != {field.name for field in fields(cls)}:
            return None
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = content[field.name]
            if isinstance(field.default, tuple):
                kind = int if field.name == "widths" else str
                if not isinstance(value, (list, tuple)) or not all(type(one) is kind for one in value):
                    return None
                values[field.name] = tuple(value)
            elif type(value) is not type(field.default):
                return None
            else:
                values[field.name] = value
        return cls(**values)


def read_facts(path: Path) -> Facts:
    """Reads a file with the readers that trust nothing, and says what is in it.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be read at present; nothing can be said about it.
    """
    try:
        digest = short_hash(path)
        weights = describe_weights(path)
        facts = _context(path, describe(path)) if weights is None else _weights(weights)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        return Facts(problem=f"{path.name}: {str(error).removeprefix(f'{path}: ')}")
    return Facts(**facts, hash=digest)


def _context(path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    structure = " × ".join(f"{factor:g}" for factor in said["layer_structure"])
    extras = [name for name, on in (("dropout", said["dropout_structure"]), ("active output", _active(said))) if on]
    return {
        "kind": CONTEXT,
        "title": _short(said["name"]),
        "step": said["step"],
        "widths": tuple(said["sizes"]),
        "structure": ", ".join([structure, *extras]),
        "activation": said["activation"],
        "layer_norm": said["layer_norm"],
        "parameters": said["parameters"],
        "dtype": said["dtype"],
        "base": _base(said),
        "a1111": _why_not(path, said),
        "warnings": tuple(map(_short, said["warnings"][:_MOST_WARNINGS])),
    }


def _active(said: Mapping[str, Any]) -> bool:
    return said["activate_output"] and said["activation"] != "linear"


def _weights(said: Mapping[str, Any]) -> dict[str, Any]:
    ranks = ", ".join(map(str, said["ranks"]))
    common = {"dtype": said["dtype"], "base": _base(said), "structure": f"{said['layers']} layers, rank {ranks}"}
    if said["kind"] != NETWORK:
        count = said["sets"]
        return common | {
            "kind": GENERATED,
            "structure": f"{count} {'set' if count == 1 else 'sets'}, {common['structure']}",
            "a1111": "A1111 loads context hypernetworks only; these are generated weights.",
        }
    return common | {
        "kind": WEIGHTS,
        "title": _short(said["name"]),
        "step": said["step"],
        "structure": f"{said['head']} head, hidden width {said['hidden_dim']}, {common['structure']}",
        "parameters": said["parameters"],
        "styles": tuple(said["styles"]),
        "a1111": "A1111 loads context hypernetworks only; generate a LoRA of a style, which it does load.",
    }


def _why_not(path: Path, said: Mapping[str, Any]) -> str:
    if said["format"] != "pt":
        return "A1111 loads hypernetworks from .pt files only; convert it to .pt."
    if MOVED_DROPOUTS in said["warnings"]:
        return "A1111 refuses weights that are not where the file's options say; convert it to .pt under another name."
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            strange = [name for name in archive.namelist() if not ENTRY.fullmatch(name)]
        if strange:
            part = strange[0].rpartition("/")[2]
            return f"A1111's check of files refuses the zip entry {_short(part)}; convert it to .pt under another name."
    return ""


def _base(said: Mapping[str, Any]) -> str:
    return _short(said.get("base_model") or said.get("training", {}).get("ss_sd_model_name") or "")


def _short(text: str) -> str:
    """A stranger's text on one line, not too long and without control characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
