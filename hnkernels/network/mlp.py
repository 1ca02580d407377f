"""One residual MLP of a context hypernetwork, with the parameter names of an A1111 file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hnkernels.errors import InputError
from hnkernels.network.activations import resolve
from hnkernels.wording import shown

INITS = ("normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "identity")


_MOST_UNITS = 2**24


def normalise_init(name: str) -> str:
    """``"XavierUniform"`` (A1111's spelling) or ``"xavier_uniform"`` → ``"xavier_uniform"``.

    Raises:
        ValueError: the name is none of ``INITS`` in either spelling.
    """
    for known in INITS:
        if isinstance(name, str) and name.lower().replace("_", "") == known.replace("_", ""):
            return known
    raise InputError(f"init {shown(name)} is unknown; accepted are {', '.join(INITS)}")


def derive_dropout_structure(
    layer_count: int, use_dropout: bool, last_layer_dropout: bool = False
) -> tuple[float, ...]:
    """The dropout list of a file that has none, by A1111's rule.

    Args:
        layer_count: ``len(layer_structure)``; the list has as many entries, entry i+1 belongs to linear i.
        use_dropout: dropout of 0.3 after every linear but the last two.
        last_layer_dropout: together with ``use_dropout``, 0.3 after the penultimate linear too.
    """
    if not use_dropout or layer_count < 3:
        return (0.0,) * layer_count
    return (0.0, *(0.3,) * (layer_count - 3), 0.3 if last_layer_dropout else 0.0, 0.0)


@dataclass(frozen=True)
class MLPConfig:
    """What all MLPs of one hypernetwork share.

    Args:
        layer_structure: widths relative to the context's, first and last 1. They are floats; ``int(dim * s)``
            truncates, so that 768 · 0.1 gives 76.
        activation: a name of the table in ``hnkernels.network.activations``; ``None`` or ``"linear"`` for none.
        layer_norm: a LayerNorm after every linear, the last one included.
        dropout_structure: one probability in [0, 1) per entry of ``layer_structure``; entry i+1 follows linear i,
            entry 0 has no effect. ``None``: no dropout.
        activate_output: the activation follows the last linear too.
        init: one of ``INITS``, or A1111's spelling of one. ``"identity"`` starts as the base model: hidden layers as
            ``"kaiming_normal"``, and the output exactly zero with a gradient that is not.
        allow_legacy_activations: accept the softmax family, which mixes the items of a batch.

    Raises:
        ValueError: a value is outside what is said above.
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation: str | None = "relu"
    layer_norm: bool = False
    dropout_structure: tuple[float, ...] | None = None
    activate_output: bool = False
    init: str = "normal"
    allow_legacy_activations: bool = False

    def __post_init__(self):
        structure = _numbers("layer_structure", self.layer_structure)
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
            raise InputError(
                f"layer_structure must have at least two entries and start and end with 1: {shown(structure)}"
            )
        if not all(0 < s <= sys.float_info.max for s in structure):
            raise InputError(f"layer_structure must be positive and finite: {shown(structure)}")
        object.__setattr__(self, "layer_structure", structure)
        for name in ("layer_norm", "activate_output", "allow_legacy_activations"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {shown(getattr(self, name))}")
        resolve(self.activation, self.allow_legacy_activations)
        if self.dropout_structure is not None:
            dropout = _numbers("dropout_structure", self.dropout_structure)
            if len(dropout) != len(structure):
                raise InputError(
                    f"dropout_structure has {len(dropout)} entries and layer_structure {len(structure)}; "
                    "they must be as many, entry i+1 follows linear i"
                )
            if not all(0 <= p < 1 for p in dropout):
                raise InputError(f"dropout_structure must lie in [0, 1): {shown(dropout)}")
            object.__setattr__(self, "dropout_structure", dropout)
        object.__setattr__(self, "init", normalise_init(self.init))

    def dropout_after(self, index: int) -> float:
        """Dropout probability after linear ``index``."""
        return 0.0 if self.dropout_structure is None else self.dropout_structure[index + 1]


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InputError(f"{name} must be a sequence of numbers such as (1, 2, 1), not {shown(values)}")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise InputError(f"{name} must hold numbers only: {shown(tuple(values))}")
    return tuple(values)


class Layer(NamedTuple):
    """One linear of an MLP and what follows it."""

    linear: nn.Linear
    activation: nn.Module | None
    norm: nn.LayerNorm | None
    dropout: float


class Prepared:
    """The modules of an MLP as flat lists, so that no call has to walk them.

    Attributes:
        modules: what the lists were made of.
        layers: see ``HypernetworkMLP.layers``.
        act: the activation's name in the kernels' table, ``"linear"`` if it has none.
        drops: the dropout modules.
        activated, norms, dropouts: whether an activation and a LayerNorm follow, and dropout's probability, by layer.
    """

    def __init__(self, mlp: HypernetworkMLP):
        self.modules = dict(mlp.linear._modules)
        self.layers = mlp.layers()
        row = resolve(mlp.config.activation, mlp.config.allow_legacy_activations)
        self.act = "linear" if row is None or row.device is None else row.device
        self.activated = tuple(layer.activation is not None for layer in self.layers)
        self.norms = tuple(layer.norm is not None for layer in self.layers)
        self.dropouts = tuple(layer.dropout for layer in self.layers)
        self.drops = [module for module in mlp.linear if isinstance(module, nn.Dropout)]
        self._owners: list[tuple[nn.Module, str]] = []
        for layer in self.layers:
            slope = layer.activation if isinstance(layer.activation, nn.PReLU) else None
            self._owners += [(layer.linear, "weight"), (layer.linear, "bias")]
            self._owners += [] if slope is None else [(slope, "weight")]
            self._owners += [] if layer.norm is None else [(layer.norm, "weight"), (layer.norm, "bias")]
        self._sources = [(module._parameters, name) for module, name in self._owners]
        self.is_linears = [isinstance(module, nn.Linear) for module, _ in self._owners]

    def is_bare(self) -> bool:
        """Whether every parameter is one, and nothing that another tool computes in its place."""
        return all([name in parameters for parameters, name in self._sources])

    def parameters(self) -> list[Tensor]:
        """Layer by layer: weight and bias of the linear, prelu's slope, LayerNorm's weight and bias."""
        try:
            return [parameters[name] for parameters, name in self._sources]  # type: ignore[misc]
        except KeyError:  # another tool has put something in a parameter's place
            for layer in self.layers:
                _check_linear(layer.linear)
            return [getattr(module, name) for module, name in self._owners]


def _check_linear(linear: nn.Linear) -> None:
    if linear.bias is None:
        raise InputError("a linear of a network has no bias; give it one of zeros, as its files have")
    if linear._forward_pre_hooks and "weight" not in linear._parameters and not hasattr(linear, "parametrizations"):
        raise InputError(
            "a hook computes the weight of a linear whenever that is called, which only the network itself does, as a "
            "module; make it lasting (torch.nn.utils: prune.remove, remove_weight_norm), or use "
            "torch.nn.utils.parametrizations"
        )


class HypernetworkMLP(nn.Module):
    """``y = x + m·f(x)``: rewrites the attention context in front of one projection.

    ``f`` is, for every entry of the layer structure, Linear → activation → LayerNorm → Dropout. In training mode m is
    1, in eval mode it is ``multiplier``, as in A1111. State-dict keys are ``linear.<i>.weight|bias``, where i counts
    every sub-layer, those without parameters included.

    Args:
        dim: width of the context.
        config: what is built; see ``MLPConfig``.

    Shape: x [..., dim] → [..., dim], in x's dtype.
    """

    _prepared: Prepared | None = None
    plans: dict[Any, Any] | None = None
    """What operations have decided about it, for as long as it lives; theirs to make and to check."""

    def __init__(self, dim: int, config: MLPConfig | None = None):
        super().__init__()
        if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= _MOST_UNITS:
            raise InputError(f"dim must be a positive integer, at most {_MOST_UNITS}, not {shown(dim)}")
        self.dim = dim
        self.config = config = config or MLPConfig()
        self.multiplier = 1.0
        widths = [int(min(dim * s, _MOST_UNITS + 1)) for s in config.layer_structure]
        if not all(1 <= width <= _MOST_UNITS for width in widths):
            raise InputError(
                f"layer_structure {shown(config.layer_structure)} makes a layer of no unit, or of more than "
                f"{_MOST_UNITS}, at width {dim}"
            )
        activation = resolve(config.activation, config.allow_legacy_activations)
        self._activation = () if activation is None else type(activation.build())
        count = len(widths) - 1
        sublayers: list[nn.Module] = []
        for i in range(count):
            sublayers.append(nn.Linear(widths[i], widths[i + 1]))
            if activation is not None and (i < count - 1 or config.activate_output):
                sublayers.append(activation.build())
            if config.layer_norm:
                sublayers.append(nn.LayerNorm(widths[i + 1]))
            if config.dropout_after(i) > 0:
                sublayers.append(nn.Dropout(config.dropout_after(i)))
        self.linear = nn.Sequential(*sublayers)
        self.reset_parameters()

    def layers(self) -> list[Layer]:
        """The sub-layers grouped by linear, in order.

        Raises:
            InputError: another tool has put in what the MLP was not built with, or computes a weight in a hook.
        """
        groups: list[dict[str, Any]] = []
        for module in self.linear:
            if isinstance(module, nn.Linear):
                _check_linear(module)
                groups.append({"linear": module, "activation": None, "norm": None, "dropout": 0.0})
            elif isinstance(module, nn.LayerNorm):
                groups[-1]["norm"] = module
            elif isinstance(module, nn.Dropout):
                groups[-1]["dropout"] = module.p
            elif isinstance(module, self._activation):
                groups[-1]["activation"] = module
            else:
                kind = f"{type(module).__module__}.{type(module).__name__}"
                raise InputError(
                    f"a network holds a {kind}, with which it was not built, and which only the network itself runs, "
                    "called as a module; take it out first (peft: merge_and_unload)"
                )
        return [Layer(**group) for group in groups]

    def prepared(self) -> Prepared:
        """Its modules as flat lists, made once and again whenever a module is another one."""
        kept = self._prepared
        if kept is None or kept.modules != self._modules["linear"]._modules:  # type: ignore[union-attr]
            kept = self._prepared = Prepared(self)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_prepared", "plans")}

    def multiplier_at(self, strength: float | Tensor) -> float | Tensor:
        """m as a forward pass at this strength uses it: 1 in training mode, else multiplier times strength."""
        return 1.0 if self.training else self.multiplier * strength

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.linear(x), alpha=1.0 if self.training else self.multiplier)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the parameters again by ``config.init``. Biases become 0, LayerNorm weights N(0, 0.01).

        On the meta device, where PyTorch would import its compiler for a draw of nothing, it leaves them.
        """
        init = self.config.init
        fill = {
            "normal": lambda w: nn.init.normal_(w, std=0.01),
            "xavier_uniform": nn.init.xavier_uniform_,
            "xavier_normal": nn.init.xavier_normal_,
            "kaiming_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
            "kaiming_normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        }["kaiming_normal" if init == "identity" else init]
        for layer in [] if next(self.parameters()).is_meta else self.layers():
            fill(layer.linear.weight)
            nn.init.zeros_(layer.linear.bias)
            if layer.norm is not None:
                nn.init.normal_(layer.norm.weight, std=0.01)
                nn.init.zeros_(layer.norm.bias)
            if isinstance(layer.activation, nn.PReLU):
                nn.init.constant_(layer.activation.weight, 0.25)
        if init == "identity":
            self._start_at_identity()

    def _start_at_identity(self) -> None:
        last = self.layers()[-1]
        if last.norm is not None:
            # Zeroing the linear instead would feed LayerNorm rows without variance: a gradient 1/sqrt(eps) too large.
            nn.init.zeros_(last.norm.weight)
            return
        activation = resolve(self.config.activation, self.config.allow_legacy_activations)
        if last.activation is not None and activation is not None:
            with torch.device("cpu"), torch.enable_grad():  # whatever device the parameters are being made on
                zero = torch.zeros(1, 1, 1, requires_grad=True)
                value = activation.build()(zero)
                (slope,) = torch.autograd.grad(value.sum(), zero)
            if value.item() != 0 or slope.item() == 0:
                raise InputError(
                    f"init 'identity' with activate_output cannot work for activation {self.config.activation!r}: "
                    "its output at 0 is not 0, or its slope there is; use activate_output=False or layer_norm=True"
                )
        nn.init.zeros_(last.linear.weight)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, multiplier={self.multiplier:g}"
