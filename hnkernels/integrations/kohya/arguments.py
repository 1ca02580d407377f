"""What ``--network_args`` may say, and the network that it asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hnkernels.adapter.layers import TARGETS, accepted_targets, find_attention
from hnkernels.adapter.projections import find_projections
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.integrations.kohya.files import renamed
from hnkernels.integrations.original_names import diffusers_name
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.wording import shown

KINDS = ("context", "weights")


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() and "." not in text else number


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in _texts(text))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _texts(text))


def _switch(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _name_or_none(text: str) -> str | None:
    return None if text.lower() == "none" else text


_Reader = Callable[[str], Any]
_EXAMPLES: dict[_Reader, str] = {
    _number: "a number",
    _numbers: "numbers with commas between them, such as 1,2,1",
    _integers: "integers with commas between them, such as 320,768",
    int: "an integer",
    _switch: "true or false",
}
_OPTIONS: dict[str, dict[str, _Reader]] = {
    "context": {
        "sizes": _integers,
        "layer_structure": _numbers,
        "activation": _name_or_none,
        "layer_norm": _switch,
        "activate_output": _switch,
        "dropout_structure": _numbers,
        "init": str,
    },
    "weights": {
        "hidden_dim": int,
        "projections": _texts,
        "head": str,
        "init": str,
        "pooling": str,
        "styles": _texts,
        "style": str,
    },
}
_COMMON: dict[str, _Reader] = {"kind": str, "target_layers": _texts, "dropout": _number}


@dataclass(frozen=True)
class Arguments:
    """``--network_args``, read.

    Attributes:
        kind: of ``KINDS``.
        targets: ``target_layers``: kinds of attention for a context hypernetwork, selectors for a weight hypernetwork.
        dropout: of hidden units, or of generated ranks; 0 for none.
        style: the style that a weight hypernetwork trains on; ``None`` for the captions' text embeddings.
        options: the other arguments of the network's class.
    """

    kind: str
    targets: tuple[str, ...]
    dropout: float
    style: str | None
    options: Mapping[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any], dropout: float | None = None, kind: str = "context") -> Arguments:
        """Reads them.

        Args:
            given: name → text, as ``--network_args name=text`` has it; ``None`` for one that was not given.
            dropout: ``--network_dropout``, which an argument of that name goes before.
            kind: the network's, if the arguments do not say.

        Raises:
            ValueError: a name is unknown (the message says the nearest), or a value is of the wrong form.
        """
        texts = {name: text for name, text in given.items() if text is not None}
        kind = texts.get("kind", kind)
        if kind not in KINDS:
            raise InputError(f"--network_args kind={shown(kind)} is not known; kind must be one of {', '.join(KINDS)}")
        readers = _COMMON | _OPTIONS[kind]
        for name in texts:
            if name not in readers:
                near = difflib.get_close_matches(name, readers, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InputError(
                    f"--network_args has {name!r}, which is not known for kind={kind}; {hint}accepted are "
                    f"{', '.join(readers)}"
                )
        read = {name: _read(name, text, readers[name]) for name, text in texts.items()}
        read.pop("kind", None)
        return cls(
            kind=kind,
            targets=read.pop("target_layers", TARGETS),
            dropout=read.pop("dropout", dropout) or 0.0,
            style=read.pop("style", None),
            options=read,
        )

    def network(self, unet: nn.Module, rank: int | None) -> Hypernetwork | WeightHypernetwork:
        """A new network for a UNet, whose weights are not looked at.

        Args:
            unet: kohya's or diffusers'.
            rank: of generated weights, 4 if ``None``; a context hypernetwork does without.

        Raises:
            ValueError: an argument is outside its range; the message says which and what is accepted.
        """
        layers = find_attention(unet)
        if self.kind == "context":
            targets = accepted_targets(self.targets)
            widths = sorted({layer.width for layer in layers if layer.kind in targets})
            options = {"sizes": widths, "init": "identity", **self.options}
            if self.dropout:
                if "dropout_structure" in options:
                    raise InputError("dropout and dropout_structure were both given; give one of them")
                inner = len(options.get("layer_structure", (1, 2, 1))) - 2
                options["dropout_structure"] = (0.0, *(self.dropout,) * inner, 0.0)
            return Hypernetwork(**options)
        text_width = max(layer.width for layer in layers if layer.kind == "attn2")
        return WeightHypernetwork(
            self.targets,
            text_width,
            rank=4 if rank is None else rank,
            model=renamed(find_projections(unet), diffusers_name),
            rank_dropout=self.dropout,
            **self.options,
        )


def _read(name: str, text: Any, reader: _Reader) -> Any:
    try:
        return reader(str(text))
    except (ValueError, KeyError, OverflowError):
        raise InputError(f"--network_args {name}={text} must be {_EXAMPLES[reader]}") from None
