"""The context hypernetwork: a pair of residual MLPs, for K and for V, per context width."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from hnkernels.errors import InputError
from hnkernels.network.mlp import HypernetworkMLP, MLPConfig
from hnkernels.wording import shown


@dataclass
class Provenance:
    """What a hypernetwork file says about where it comes from; none of it changes the result.

    Attributes:
        name: display name.
        step: optimiser steps trained so far.
        sd_checkpoint: short hash of the base model.
        sd_checkpoint_name: its name.
        optional_info: free text.
        training: how it was trained, for other programs: ``modelspec.…`` and ``ss_…`` entries of safetensors metadata,
            see ``checkpoint.training_metadata``. A ``.pt`` file has no place for them.
    """

    name: str = "hypernetwork"
    step: int = 0
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    optional_info: str | None = None
    training: dict[str, str] = field(default_factory=dict)


class Hypernetwork(nn.Module):
    """A Stable Diffusion hypernetwork of the context kind.

    It changes what attention looks at: before ``to_k`` and ``to_v`` of every attention layer whose context is d wide,
    the context x becomes ``x + m·f(x)``, with one f for K and one for V shared by all layers of that width.

    Args:
        sizes: context widths. SD 1.x: 320, 640, 1280 (self-attention) and 768 (text); SD 2.x has 1024 for text,
            SDXL 640, 1280 and 2048.
        layer_structure, activation, layer_norm, dropout_structure, activate_output, init, allow_legacy_activations:
            see ``MLPConfig``.
        name: display name, kept in files.

    Raises:
        ValueError: a size is not a positive integer or stands there twice, or an option is outside its range.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (320, 640, 768, 1280),
        layer_structure: Sequence[float] = (1, 2, 1),
        activation: str | None = "relu",
        layer_norm: bool = False,
        dropout_structure: Sequence[float] | None = None,
        activate_output: bool = False,
        init: str = "normal",
        *,
        allow_legacy_activations: bool = False,
        name: str = "hypernetwork",
    ):
        super().__init__()
        _check_widths(sizes)
        if not isinstance(name, str):
            raise InputError(f"name must be a text, not {shown(name)}")
        self.config = MLPConfig(
            layer_structure=layer_structure,  # type: ignore[arg-type]  # MLPConfig makes it a tuple
            activation=activation,
            layer_norm=layer_norm,
            dropout_structure=dropout_structure,  # type: ignore[arg-type]
            activate_output=activate_output,
            init=init,
            allow_legacy_activations=allow_legacy_activations,
        )
        self.provenance = Provenance(name=name)
        self.layers = nn.ModuleDict(
            {
                str(size): nn.ModuleList([HypernetworkMLP(size, self.config), HypernetworkMLP(size, self.config)])
                for size in sorted(sizes)
            }
        )
        if not layer_norm and self.config.init.startswith(("xavier", "kaiming")):
            warnings.warn(
                f"init {self.config.init!r} without layer_norm starts far from the base model and ruins the image at "
                "step 0; init 'identity' starts exactly at it",
                stacklevel=2,
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The context widths, ascending."""
        return tuple(int(size) for size in self.layers)

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and str(size) in self.layers

    def __getitem__(self, size: int) -> tuple[HypernetworkMLP, HypernetworkMLP]:
        """The (K, V) pair of MLPs for contexts of this width."""
        if size not in self:
            raise KeyError(f"no MLPs for width {size!r}; this hypernetwork has {', '.join(map(str, self.sizes))}")
        pair = cast("Sequence[HypernetworkMLP]", self.layers[str(size)])
        return pair[0], pair[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.layers)

    def set_multiplier(self, multiplier: float) -> None:
        """Sets m of every MLP. It counts in eval mode only; training always runs at 1."""
        for size in self:
            for mlp in self[size]:
                mlp.multiplier = float(multiplier)

    def extra_repr(self) -> str:
        return f"name={self.provenance.name!r}, sizes={self.sizes}"


def _check_widths(sizes: Any) -> None:
    if isinstance(sizes, (Sequence, Set)) and not isinstance(sizes, (str, bytes)):
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InputError(f"each of sizes must be a positive integer, not {shown(size)}")
        if 0 < len(sizes) == len(set(sizes)):
            return
    raise InputError(f"sizes must be one or more different widths such as (320, 768), not {shown(sizes)}")
