"""What is said of a run in the files that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.example import Example
from hnkernels.training.families.family import Family
from hnkernels.training.persistence.origin import describe_training


class Description:
    """Says in a network's provenance how it is trained, before it is saved.

    Args:
        family: of the base model; ``None`` if nothing is known of it, and nothing is said.
        model: the base model.
        config: the settings.
        examples: those that are trained on; none where the data was encoded before.
        end: the steps that the run is to have.
    """

    def __init__(
        self, family: Family | None, model: Any, config: TrainingConfig, examples: Sequence[Example], end: int
    ):
        self._family, self._model, self._config, self._examples, self._end = family, model, config, examples, end
        self._said = False

    def put_on(self, net: Hypernetwork | WeightHypernetwork, step: int) -> None:
        """Sets ``net.provenance``: everything at the first call, afterwards the step, which alone is new.

        Args:
            net: the network of the run, the same at every call.
            step: steps done.
        """
        if self._family is None:
            return
        if self._said:
            net.provenance.training["ss_steps"] = str(step)
            return
        self._said = True
        model = self._model
        name = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
        describe_training(
            net,
            self._config,
            steps=step,
            end=self._end,
            base_version=self._family.version,
            model_name=Path(name).name if name else None,
            resolution=self._config.resolution or (self._family.side if self._family.pipeline is not None else 512),
            captions=self._captions(),
        )

    def _captions(self) -> dict[str, list[str]]:
        """The captions of every folder."""
        captions: dict[str, list[str]] = {}
        for example in self._examples:
            folder = example.image.parent.name if isinstance(example.image, Path) else "pictures"
            captions.setdefault(folder, []).append(example.caption)
        return captions
