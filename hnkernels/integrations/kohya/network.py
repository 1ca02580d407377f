"""The object that kohya's trainers train, save and switch on and off."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.adapter import Adapter, WeightAdapter, attach
from hnkernels.adapter.layers import TARGETS, find_attention
from hnkernels.convert.merging import merge
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.integrations.kohya.files import Net, check_extension, load, rename, save, structure
from hnkernels.integrations.original_names import diffusers_name
from hnkernels.ops.folding import is_affine

_TEXT = ("encoder_hidden_states", "context")  # the UNets' third argument
_REENTRANT = "USE_REENTRANT"


class KohyaNetwork(nn.Module):
    """A hypernetwork with the interface that kohya's trainers expect of a network.

    Args:
        net: a hypernetwork of either kind.
        targets: kinds of attention that a context hypernetwork acts on.
        style: for a weight hypernetwork, the style that it is trained on; ``None`` for the text embeddings that the
            UNet is called with.
        multiplier: strength, which acts on a context hypernetwork in eval mode only.
        for_inference: whether nothing is to be trained.

    Raises:
        ValueError: the style is not one of the network's, or it has styles and none is given.

    Attributes:
        net: the network, the only part with parameters.
        adapter: the handle by which it acts, from ``apply_to`` on.
    """

    def __init__(
        self,
        net: Net,
        targets: Sequence[str] = TARGETS,
        style: str | None = None,
        multiplier: float = 1.0,
        for_inference: bool = False,
    ):
        super().__init__()
        if isinstance(net, WeightHypernetwork):
            _check_style(net, style)
        self.net = net
        self.adapter: Adapter | WeightAdapter | None = None
        self._targets, self._style, self._multiplier = tuple(targets), style, multiplier
        self._for_inference = for_inference

    def prepare_network(self, args: Any) -> None:
        """Refuses, before anything is trained, a file format that the network cannot be saved in."""
        if (extension := getattr(args, "save_model_as", None)) is not None:
            check_extension(self.net, f".{extension}")

    def apply_to(
        self, text_encoder: Any, unet: nn.Module, apply_text_encoder: bool = True, apply_unet: bool = True
    ) -> None:
        """Attaches the network to the UNet.

        Raises:
            ValueError: the text encoder is to be trained, or the UNet is not.
            AdapterError: the network is for another model.
        """
        if not self._for_inference and (apply_text_encoder or not apply_unet):
            raise InputError(
                "a hypernetwork acts in the UNet alone, and nothing of it is in the text encoder; train with "
                "--network_train_unet_only and without --network_train_text_encoder_only"
            )
        _checkpoint_in_one_pass(unet)
        if not isinstance(self.net, WeightHypernetwork):
            self.adapter = attach(unet, self.net, self._multiplier, self._targets)
            return
        names = {diffusers_name(layer.name): layer.name for layer in find_attention(unet)}
        rename(self.net, lambda attention: names.get(attention, attention))
        self.adapter = attach(unet, self.net, self._multiplier)
        unet.register_forward_pre_hook(self._generate, prepend=True, with_kwargs=True)

    def set_multiplier(self, multiplier: float) -> None:
        """Sets the strength. 0 switches the network off in training mode too, as the trainers need it for a prior."""
        self._multiplier = multiplier
        if self.adapter is not None:
            self.adapter.enabled = multiplier != 0
            self.adapter.strength = multiplier

    def prepare_optimizer_params(
        self, text_encoder_lr: Any, unet_lr: float | None, default_lr: float | None = None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """One parameter group at the UNet's learning rate, and what the log is to call it."""
        rate = default_lr if unet_lr is None else unet_lr
        group: dict[str, Any] = {"params": list(self.parameters())}
        return [group if rate is None else {**group, "lr": rate}], ["unet"]

    def prepare_grad_etc(self, text_encoder: Any, unet: nn.Module) -> None:
        """Lets the network take gradients; the UNet's own parameters are frozen by the trainer."""
        self.requires_grad_(True)

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: the UNet has its own, and replays the network with its blocks."""

    def on_epoch_start(self, text_encoder: Any, unet: nn.Module) -> None:
        """Training mode, after the trainer's validation and sampling."""
        self.train()

    def get_trainable_params(self) -> Iterable[nn.Parameter]:
        """What gradients are clipped of."""
        return self.parameters()

    def save_weights(self, file: str, dtype: torch.dtype | None, metadata: dict[str, Any] | None) -> None:
        """Writes the network; see ``files.save``."""
        save(self.net, Path(file), dtype, metadata)

    def load_weights(self, file: str) -> str:
        """Takes the weights, name and step of a file; returns a line for the log.

        Raises:
            ValueError: the file's network is of another kind or structure.
            CheckpointError: it cannot be read.
        """
        loaded = load(Path(file))
        if type(loaded) is not type(self.net) or structure(loaded) != structure(self.net):
            raise InputError(
                f"{file} holds a {type(loaded).__name__} of another structure than --network_args ask for; add "
                "--dim_from_weights, which takes kind, layers and structure from the file"
            )
        self.net.load_state_dict(loaded.state_dict())
        self.net.provenance = copy.deepcopy(loaded.provenance)
        return f"{loaded.provenance.name!r}, trained for {loaded.provenance.step} steps"

    def is_mergeable(self) -> bool:
        """Whether it can become part of the UNet's weights: an affine context hypernetwork can."""
        return not isinstance(self.net, WeightHypernetwork) and all(
            is_affine(mlp) for size in self.net for mlp in self.net[size]
        )

    def merge_to(self, text_encoder: Any, unet: nn.Module, weights: Any, dtype: Any, device: Any) -> None:
        """Merges an affine context hypernetwork into the UNet, for ``--base_weights``; the text encoder stays.

        Raises:
            ValueError: the network is not of that kind.
        """
        if isinstance(self.net, WeightHypernetwork):
            raise InputError(
                "a weight hypernetwork cannot be merged; write the LoRA of one condition with 'hnkernels generate' and "
                "merge that into the model beforehand"
            )
        merge(unet, self.net, self._multiplier, self._targets)

    def _generate(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the UNet, which the trainers call with sample, timesteps and text embeddings: the batch's weights."""
        adapter, net = self.adapter, self.net
        assert isinstance(adapter, WeightAdapter)
        assert isinstance(net, WeightHypernetwork)
        if not adapter.enabled:
            return
        condition: Any = self._style
        if condition is None:
            text: Tensor = args[2] if len(args) > 2 else next(kwargs[name] for name in _TEXT if name in kwargs)
            if adapter.guided(adapter.guidance):  # the first half, the negative prompts', runs the base model
                text = text[len(text) // 2 :]
            like = next(net.parameters())
            condition = text.detach().to(like.device, like.dtype)
        adapter.weights = net.generate_weights(condition)


def _check_style(net: WeightHypernetwork, style: str | None) -> None:
    if style is not None:
        with torch.no_grad():
            net.encode(style)  # refuses one that is not there, and names the nearest
    elif styles := getattr(net.encoder, "styles", ()):
        raise InputError(
            f"the network has the styles {', '.join(styles)}; say with --network_args style={styles[0]} which one this "
            "run trains"
        )


def _checkpoint_in_one_pass(unet: nn.Module) -> None:
    """Switches the SDXL UNet's gradient checkpointing to the kind that stays within one backward pass.

    It checkpoints as a constant of its module says. With the other kind every block has a backward pass of its own,
    which goes through the whole hypernetwork: ten times as slow for one that changes the context, and an error for
    one that generates weights. The gradients are the same.
    """
    constants = vars(sys.modules[type(unet).__module__])
    if _REENTRANT in constants:
        constants[_REENTRANT] = False
