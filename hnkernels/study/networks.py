"""The networks that are compared, and how each is trained on the embedded model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hnkernels.adapter import attach
from hnkernels.adapter.layers import find_attention
from hnkernels.checkpoint import load_hypernetwork
from hnkernels.demo.sample_pictures import write_image_folder
from hnkernels.generator import WeightGenerator, WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.study.bench import STYLE, Bench
from hnkernels.study.protocol import Cell
from hnkernels.training import Example, HypernetworkTrainer, TrainingConfig
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.losses import draw
from hnkernels.training.optimizers import learning_rate_at, make_optimizer
from hnkernels.training.sampler import Sampler, generator_of
from hnkernels.training.step import take_step

_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Trained(NamedTuple):
    """A network that has been trained and acts in the pipeline.

    Attributes:
        parameters: their number.
        step_ms: CPU time of a step, median.
        adapter: what has its strength; ``None`` for a LoRA.
    """

    parameters: int
    step_ms: float
    adapter: Any


@contextmanager
def trained(bench: Bench, cell: Cell, seed: int, steps: int) -> Iterator[Trained]:
    """A cell's network, trained for so many steps; it acts in the bench's pipeline inside.

    Raises:
        DivergenceError: its loss became NaN or infinite.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {**bench.protocol.training, **cell.training, "max_steps": steps, "max_epochs": steps}
        if cell.prior:
            write_image_folder(bench.prior(cell.prior, seed), Path(folder) / "prior")
            options["regularization_data"] = f"{folder}/prior"
        config = TrainingConfig.of(
            {
                **options,
                "seed": seed,
                "progress": False,
                "checkpoint_every": 0,
                "validate_every": steps,
                "cache_dir": str(bench.cache),
                "output_dir": f"{folder}/run",
            }
        )
        torch.manual_seed(seed)
        examples = bench.examples(cell, seed)
        with _KINDS[cell.kind](bench, cell, config, examples) as network:
            yield network


def step_ms(bench: Bench, cell: Cell, seed: int) -> float:
    """CPU time of a step of a cell, from a few of them."""
    with trained(bench, cell, seed, bench.protocol.timed) as network:
        return network.step_ms


@contextmanager
def _context(bench: Bench, cell: Cell, config: TrainingConfig, examples: list[Example]) -> Iterator[Trained]:
    specs = find_attention(bench.pipeline.unet)
    sizes = sorted({spec.width for spec in specs if spec.kind in config.target_layers})
    net = Hypernetwork(sizes, **{**bench.protocol.network, **cell.network})
    file, taken = _train(net, bench, config, examples)
    with attach(bench.pipeline, load_hypernetwork(file), targets=config.target_layers) as adapter:
        yield Trained(_count(net), taken, adapter)


@contextmanager
def _weight(bench: Bench, cell: Cell, config: TrainingConfig, examples: list[Example]) -> Iterator[Trained]:
    options = dict(cell.network)
    depth = options.pop("depth")
    width = bench.pipeline.unet.config.cross_attention_dim
    net = WeightHypernetwork(
        model=bench.pipeline, embedding_dim=width, pooling="mean", styles=(STYLE,), name="study", **options
    )
    net.generator = WeightGenerator(options["hidden_dim"], net.layers, depth=depth)
    file, taken = _train(net, bench, config, examples)
    net = WeightHypernetwork.load(file)
    with attach(bench.pipeline, net) as adapter, torch.no_grad(), adapter.condition(STYLE, guidance=False):
        yield Trained(_count(net), taken, adapter)


def _train(net: Any, bench: Bench, config: TrainingConfig, examples: list[Example]) -> tuple[Path, float]:
    """The file of the finished network, and CPU time of a step in ms."""
    marks: list[float] = []
    trainer = HypernetworkTrainer(
        net, bench.pipeline, config, examples, callback=lambda *_: marks.append(time.process_time())
    )
    return trainer.train().files[0], _median_ms(marks)


@contextmanager
def _lora(bench: Bench, cell: Cell, config: TrainingConfig, examples: list[Example]) -> Iterator[Trained]:
    """By peft, with the pictures, noise, timesteps and optimiser that ``HypernetworkTrainer`` would have."""
    from peft import LoraConfig

    unet, rank = bench.pipeline.unet, cell.network["rank"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_LORA_TARGETS))
    try:
        weights = nn.ParameterList([p for p in unet.parameters() if p.requires_grad])
        taken = _train_lora(weights, bench, config, examples)
        yield Trained(_count(weights), taken, None)
    finally:
        unet.unload_lora()


def _train_lora(weights: nn.ParameterList, bench: Bench, config: TrainingConfig, examples: list[Example]) -> float:
    unet, steps = bench.pipeline.unet, config.max_steps
    assert steps is not None
    data = PipelineData(bench.process.family, examples, config, "study")
    data.encode()
    sampler = Sampler(data.groups(), range(len(data)), config.batch_size, 1, config.seed)
    optimizer, rate_of = make_optimizer(weights, config, unet), learning_rate_at(config, steps)
    clip = None if config.gradient_clip is None else float(config.gradient_clip)
    marks = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step)
        (indices,) = sampler.step(step)
        generators = [generator_of(config.seed, "example", step, place) for place in range(len(indices))]
        batch = draw(bench.process, data.batch(indices, generators), generators)
        net: Any = weights
        take_step(net, unet, [batch], optimizer, process=bench.process, gradient_clip=clip).metrics()
        marks.append(time.process_time())
    return _median_ms(marks)


_KINDS: dict[str, Callable[..., Any]] = {"context": _context, "weight": _weight, "lora": _lora}


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _median_ms(marks: list[float]) -> float:
    """Of the times between the marks."""
    return float(np.median(np.diff(marks))) * 1000
