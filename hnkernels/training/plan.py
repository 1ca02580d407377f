"""What is decided of a run before its first step: who comes when, how many steps there are, at which rates."""

from __future__ import annotations

from collections.abc import Sequence

from hnkernels.errors import InputError
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.data.tensor_data import TensorData
from hnkernels.training.optimizers import learning_rate_at
from hnkernels.training.sampler import Sampler
from hnkernels.training.schedule import Schedule


class Plan:
    """The steps of a run.

    Args:
        config: the settings.
        data: what both lists are of.
        own: the examples to train on.
        prior: those for prior preservation.
        processes: how many train together.

    Attributes:
        sampler: the examples of every step.
        end: how many steps there are.
        learning_rate: a step's number (from 0) → its rate; ``None`` where the schedule has ended.
        clip: of the gradient's norm or value, by step; ``None`` without.

    Raises:
        ValueError: there are more processes than examples.
    """

    def __init__(
        self,
        config: TrainingConfig,
        data: TensorData | PipelineData,
        own: Sequence[int],
        prior: Sequence[int],
        processes: int,
    ):
        if len(own) < processes:
            raise InputError(
                f"{processes} processes cannot train on {len(own)} examples; start fewer, or give more pictures"
            )
        self.sampler = Sampler(
            data.groups(),
            own,
            config.batch_size * processes,
            config.gradient_accumulation_steps,
            config.seed,
            data.repeats(),
            prior,
        )
        self.end = config.max_epochs * self.sampler.steps_per_epoch
        if config.max_steps is not None:
            self.end = min(self.end, config.max_steps)
        self.learning_rate = learning_rate_at(config, self.end)
        self.clip = None if config.gradient_clip is None else Schedule(config.gradient_clip, self.end)
