"""One residual MLP of a context hypernetwork, and chains of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def activation_module(name: str | None) -> nn.Module | None:
    """The module that an activation name of a hypernetwork file stands for; ``None`` for the identity.

    Six names have a meaning of their own (``swish`` is Hardswish); any other is the lower-cased name of a class in
    ``torch.nn.modules.activation``, built with its default arguments.
    """
    own = {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish, "tanh": nn.Tanh,
           "sigmoid": nn.Sigmoid}  # fmt: skip
    if name is None or name == "linear":
        return None
    if name in own:
        return own[name]()
    return {c.lower(): getattr(nn.modules.activation, c) for c in nn.modules.activation.__all__}[name]()


class MLP(nn.Module):
    """``y = x + m·f(x)``, where ``f`` is Linear → activation → LayerNorm → Dropout for each layer.

    Args:
        dim: width of x.
        layer_structure: widths of the layers relative to ``dim``, first and last 1; ``int(dim * s)`` truncates.
        activation: name of the activation, ``None`` or ``"linear"`` for none.
        layer_norm: a LayerNorm after every linear, the last one included.
        dropout_structure: one probability per entry of ``layer_structure``; entry i+1 follows linear i.
        activate_output: the activation follows the last linear too.

    Shape: x [..., dim] → [..., dim]. In training mode m is 1, whatever ``multiplier`` says.
    """

    def __init__(
        self,
        dim: int,
        layer_structure: Sequence[float] = (1, 2, 1),
        activation: str | None = None,
        layer_norm: bool = False,
        dropout_structure: Sequence[float] | None = None,
        activate_output: bool = False,
    ):
        super().__init__()
        self.multiplier = 1.0
        sublayers: list[nn.Module] = []
        count = len(layer_structure) - 1
        for i in range(count):
            sublayers.append(nn.Linear(int(dim * layer_structure[i]), int(dim * layer_structure[i + 1])))
            last = i == count - 1
            act = activation_module(activation)
            if act is not None and (not last or activate_output):
                sublayers.append(act)
            if layer_norm:
                sublayers.append(nn.LayerNorm(int(dim * layer_structure[i + 1])))
            if dropout_structure is not None and dropout_structure[i + 1] > 0:
                sublayers.append(nn.Dropout(p=dropout_structure[i + 1]))
        self.linear = nn.Sequential(*sublayers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * (1.0 if self.training else self.multiplier)


def chain(x: Tensor, mlps: Sequence[nn.Module]) -> Tensor:
    """Several hypernetworks one after the other: the output of each is the input of the next."""
    for mlp in mlps:
        x = mlp(x)
    return x
