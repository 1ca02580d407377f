"""What one run of the study does: the base protocol, and a cell, which is the same protocol with something changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hnkernels.adapter.strength import Strength


@dataclass(frozen=True)
class Protocol:
    """What all runs of a study do, where their cell says nothing else.

    Args:
        training: settings of ``TrainingConfig``.
        network: arguments of ``Hypernetwork``.
        many, few, subject: pictures that are trained on: handwritten digits; few of these; and few of the digit seven.
        held_out: pictures that no network is trained on, for the denoising loss.
        drawn: pictures that are drawn with a trained network and judged.
        inference_steps, guidance: how they are drawn.
        timed: steps after which the time that a step takes is known, for comparisons at equal time.
        judged: the most pictures of a style from which the judges learn.
    """

    training: Mapping[str, Any] = field(
        default_factory=lambda: {
            "learning_rate": 5e-3,
            "batch_size": 8,
            "max_steps": 200,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 20,
            "caption_dropout": 0.1,
            "latent_sampling": "deterministic",  # as the embedded model was trained
        }
    )
    network: Mapping[str, Any] = field(
        default_factory=lambda: {"layer_structure": [1, 2, 1], "activation": "silu", "init": "identity"}
    )
    many: int = 256
    few: int = 16
    subject: int = 6
    held_out: int = 32
    drawn: int = 60
    inference_steps: int = 10
    guidance: float = 3.0
    timed: int = 16
    judged: int = 1400


@dataclass(frozen=True)
class Cell:
    """One run's difference from the protocol.

    Args:
        name: what it is called in the results; no other cell has it.
        kind: ``"context"`` for a ``Hypernetwork``, ``"weight"`` for a ``WeightHypernetwork``, or ``"lora"``.
        data: ``"many"``, ``"few"`` or ``"subject"``.
        training, network: settings in place of the protocol's. The network's of a weight hypernetwork and a LoRA stand
            alone.
        prior: trains on as many printed digits too, for prior preservation; 0 for none.
        equal_time: the number of steps is what takes as long as the protocol's own steps.
        strengths: further strengths at which the trained network is judged, by what they are called.
    """

    name: str
    kind: str = "context"
    data: str = "many"
    training: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    prior: int = 0
    equal_time: bool = False
    strengths: Mapping[str, Strength] = field(default_factory=dict)

    def settings(self, protocol: Protocol) -> dict[str, Any]:
        """All that the result of a run depends on but the seed, as plain JSON values."""
        own = dataclasses.asdict(self)
        own["training"] = {**protocol.training, **self.training}
        own["network"] = {**protocol.network, **self.network} if self.kind == "context" else self.network
        sizes = ("held_out", "drawn", "inference_steps", "guidance", "judged")
        own |= {name: getattr(protocol, name) for name in sizes}
        own["pictures"] = getattr(protocol, self.data)
        return json.loads(json.dumps(own))
