"""The hypernetworks that act in the web UI at the moment: put on its model, followed from step to step, taken off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hnkernels.adapter import attach
from hnkernels.adapter.handle import Handle
from hnkernels.adapter.strength import Strength
from hnkernels.errors import InputError
from hnkernels.generator import GeneratedWeights, WeightHypernetwork
from hnkernels.integrations.patcher.applying import apply_context
from hnkernels.integrations.patcher.context_patch import ContextPatch
from hnkernels.integrations.patcher.generated import kohya_lora, renamed, scaled
from hnkernels.integrations.webui.acting import Acting
from hnkernels.integrations.webui.files import Files, Use
from hnkernels.network.hypernetwork import Hypernetwork


class _Asked(NamedTuple):
    """One hypernetwork of the prompt. Weights are generated, without a strength."""

    use: Use
    net: Hypernetwork | GeneratedWeights
    identity: str


class Session:
    """What acts, from a prompt's tags to the end of its pictures.

    In A1111 the networks are attached to the UNet. In Forge they are patches of the clone of its UNet that it makes for
    every sampling, and gone with it.

    Args:
        files: where hypernetworks are.
    """

    def __init__(self, files: Files):
        self.files = files
        self._asked: list[_Asked] = []
        self._acting = Acting()
        self._handles: list[tuple[Handle, Strength]] = []
        self._patches: list[ContextPatch] = []
        self._unet: Any = None
        self._factor = 1.0

    def begin(self, uses: Sequence[Use], acting: Acting, model: Any) -> dict[str, str]:
        """Lets these hypernetworks act, and none that acted before.

        Args:
            uses: in the order of the prompt.
            acting: how.
            model: the web UI's model.

        Returns:
            Name and hash of each.

        Raises:
            ValueError, CheckpointError, AdapterError: one cannot be read or does not fit. Then none acts.
        """
        self.end()
        asked = [_Asked(use, *_ready(use, *self.files.read(use.name))) for use in uses]
        self._asked, self._acting = asked, acting
        if asked and not is_forge(model):
            self._attach(model.model.diffusion_model)
        return {one.use.name: one.identity.partition(" ")[0] for one in asked}

    def end(self) -> None:
        """Takes everything off; the model is as it was."""
        for handle, _ in reversed(self._handles):
            handle.detach()
        self._asked, self._handles, self._patches, self._unet = [], [], [], None

    def patch(self, forge_objects: Any, load_lora: Callable[[Any, dict[str, torch.Tensor]], dict[str, Any]]) -> None:
        """Forge: gives the objects of the sampling that begins another UNet, a clone on which the networks act.

        Args:
            forge_objects: Forge's, with the UNet's patcher as ``unet``.
            load_lora: a patcher's model and kohya's LoRA → Forge's patches.
        """
        self._patches, self._factor = [], 1.0
        unet = forge_objects.unet
        for asked in self._asked:
            strengths = self._acting.strengths(asked.use.strength)
            if isinstance(asked.net, Hypernetwork):
                unet, patches = apply_context(unet, asked.net, strengths)
                self._patches += patches
            else:
                weights = renamed(asked.net, unet.model.diffusion_model)
                for strength in strengths:
                    weights = scaled(weights, strength)
                patches_of_lora = load_lora(unet.model, kohya_lora(weights.to_lora_state_dict()))
                unet = unet.clone()
                # Forge compares names, not weights, to see whether the model has them already.
                unet.add_patches(filename=f"hnkernels {asked.identity} {strengths}", patches=patches_of_lora)
        forge_objects.unet = unet

    def step(self, model: Any, step: int, steps: int) -> None:
        """Follows the sampling: called before every call of the UNet.

        Args:
            model: the web UI's model, which may be another one since the refiner took over.
            step, steps: the step that begins, from 0, of as many.
        """
        if not self._asked:
            return
        factor = self._acting.factor(step, steps)
        if is_forge(model):
            for patch in self._patches:
                patch.level = factor
            return
        if model.model.diffusion_model is not self._unet:
            self._attach(model.model.diffusion_model)
        if factor != self._factor:
            self._factor = factor
            for handle, strength in self._handles:
                handle.strength = strength if factor == 1 else 0.0

    def _attach(self, unet: Any) -> None:
        for handle, _ in reversed(self._handles):
            handle.detach()
        self._handles, self._unet, self._factor = [], unet, 1.0
        try:
            for asked in self._asked:
                strength = _product(self._acting.strengths(asked.use.strength))
                self._handles.append((_attached(unet, asked.net, strength), strength))
        except BaseException:
            self.end()
            raise


def _attached(unet: Any, net: Hypernetwork | GeneratedWeights, strength: Strength) -> Handle:
    if isinstance(net, Hypernetwork):
        return attach(unet, net, strength)
    handle = attach(unet, renamed(net, unet), strength)
    handle.guidance = False  # all rows have these weights
    return handle


def is_forge(model: Any) -> bool:
    """Whether a web UI's model is one of Forge."""
    return hasattr(model, "forge_objects")


@torch.no_grad()
def _ready(
    use: Use, net: Hypernetwork | WeightHypernetwork, identity: str
) -> tuple[Hypernetwork | GeneratedWeights, str]:
    if isinstance(net, Hypernetwork):
        if use.styles:
            raise InputError(f"the hypernetwork {use.name} has no styles; leave {', '.join(use.styles)} out of its tag")
        return net, identity
    if not use.styles:
        raise InputError(
            f"{use.name} is a weight hypernetwork; name its styles, as in <hypernet:{use.name}:{use.strength:g}:ink=1>"
        )
    return net.generate_weights(dict(use.styles)), f"{identity} {sorted(use.styles.items())}"


def _product(strengths: Sequence[Strength]) -> Strength:
    """One strength that is the product of a number and, if there is one, a table: both patterns fit every layer."""
    return strengths[0] if len(strengths) == 1 else {"*": strengths[0], "**": strengths[1]}
