"""What all runs share: the embedded model, the pictures, the judges, and what a network is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hnkernels.assets import TINY_SD
from hnkernels.demo.glyphs import Pictures, caption, handwritten_digits, printed_glyphs
from hnkernels.demo.scores import HANDWRITING, PRINT, Judges, train_judges_on
from hnkernels.pipeline import load_pipeline
from hnkernels.study.protocol import Cell, Protocol
from hnkernels.training import Example, TrainingConfig
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.losses import denoising_errors, process_of
from hnkernels.training.sampler import generator_of

STYLE = "handwriting"
"""The condition of a weight hypernetwork."""

_SUBJECT_DIGIT = 7
_DRAWS = 8  # of noise and timestep per held-out picture
_ROWS = 32  # in a batch that is not trained on
_PRINT_SEED = 5000  # of pictures that no network is trained on


def pipeline_on_cpu() -> Any:
    """The embedded model, whose weights take no gradient."""
    pipeline = load_pipeline(TINY_SD).to("cpu")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.requires_grad_(False)
    return pipeline


def held_out_judges(vae: Any, protocol: Protocol) -> Judges:
    """Judges that have learned from none of the pictures that a network may be trained on."""
    written, others = handwritten_digits("held_out"), handwritten_digits("train")
    count = min(len(written), protocol.judged)
    train = {HANDWRITING: _first(written, count), PRINT: printed_glyphs(count, _PRINT_SEED, digit_share=1.0)}
    held_out = {HANDWRITING: _first(others, count), PRINT: printed_glyphs(count, _PRINT_SEED + 1, digit_share=1.0)}
    return train_judges_on(train, held_out, vae, seed=0)


class Bench:
    """A process's share of what all runs share.

    Args:
        protocol: of the study.
        judges: see ``held_out_judges``.
        cache: a folder for encoded pictures, which processes share.
    """

    def __init__(self, protocol: Protocol, judges: Judges, cache: Path):
        self.protocol, self.judges, self.cache = protocol, judges, cache
        self.pipeline = pipeline_on_cpu()
        self.process = process_of(self.pipeline)
        self._held: dict[bool, list[dict[str, Any]]] = {}

    def examples(self, cell: Cell, seed: int) -> list[Example]:
        """The pictures that a run is trained on: others for every seed, and none of those held out."""
        pictures, _, free = self._split(cell)
        chosen = np.random.default_rng(seed).permutation(free)[: getattr(self.protocol, cell.data)]
        condition = STYLE if cell.kind == "weight" else None
        return [Example(Image.fromarray(pictures.images[i]), pictures.captions[i], condition) for i in chosen]

    def prior(self, count: int, seed: int) -> Pictures:
        """Printed digits, as the base model knows them, without the subject's."""
        printed = printed_glyphs(2 * count + 20, seed, digit_share=1.0)
        return _chosen(printed, np.flatnonzero(printed.labels != _SUBJECT_DIGIT)[:count])

    def scores(self, cell: Cell, seed: int) -> dict[str, float]:
        """What the network that acts in the pipeline is worth.

        Args:
            cell: which pictures are judged depends on its data.
            seed: of the starting noise; the same for all cells.

        Returns:
            ``style``: the share of pictures that are taken for handwriting; ``content``: the share that show the digit
            asked for; ``both``: the share that does both; ``loss``: mean denoising loss of held-out pictures. For a
            subject the first three are of this digit, and ``spill`` is the share of the others taken for handwriting.
        """
        drawn = self.protocol.drawn
        subject = cell.data == "subject"
        labels = np.arange(drawn) % 10
        if subject:
            labels = np.where(
                np.arange(drawn) < drawn // 2, _SUBJECT_DIGIT, np.delete(np.arange(10), _SUBJECT_DIGIT)[labels % 9]
            )
        pictures = self._draw(labels, seed)
        asked = labels == _SUBJECT_DIGIT if subject else np.full(drawn, True)
        scores = {
            "style": self.judges.style_score(pictures[asked]),
            "content": self.judges.content_accuracy(pictures[asked], labels[asked]),
            "both": self.judges.both(pictures[asked], labels[asked]),
            "loss": self._loss(subject),
        }
        if subject:
            scores["spill"] = self.judges.style_score(pictures[~asked])
        return {name: round(value, 6) for name, value in scores.items()}

    def _split(self, cell: Cell) -> tuple[Pictures, np.ndarray, np.ndarray]:
        """The handwriting, and which of it is held out and which may be trained on."""
        pictures = handwritten_digits("train")
        fitting = np.flatnonzero(pictures.labels == _SUBJECT_DIGIT if cell.data == "subject" else pictures.labels >= 0)
        order = np.random.default_rng(0).permutation(fitting)
        return pictures, order[: self.protocol.held_out], order[self.protocol.held_out :]

    def _draw(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """A picture of every digit, uint8 [n, 32, 32, 3]."""
        images = []
        for start in range(0, len(labels), _ROWS // 2):
            part = labels[start : start + _ROWS // 2]
            drawn = self.pipeline(
                [caption(int(label)) for label in part],
                num_inference_steps=self.protocol.inference_steps,
                guidance_scale=self.protocol.guidance,
                generator=[generator_of(seed, "drawn", start + i) for i in range(len(part))],
                output_type="np",
            ).images
            images.append((drawn * 255).round().astype(np.uint8))
        return np.concatenate(images)

    @torch.no_grad()
    def _loss(self, subject: bool) -> float:
        """At the same noise and timesteps in all runs."""
        if subject not in self._held:
            self._held[subject] = self._held_out(Cell("", data="subject" if subject else "many"))
        errors = [denoising_errors(self.process, batch, None)[0] for batch in self._held[subject]]
        return float(torch.cat(errors).double().mean())

    def _held_out(self, cell: Cell) -> list[dict[str, Any]]:
        """Batches of held-out pictures, each several times, at timesteps spread over all."""
        pictures, held, _ = self._split(cell)
        examples = [Example(Image.fromarray(pictures.images[i]), pictures.captions[i]) for i in held]
        data = PipelineData(self.process.family, examples, TrainingConfig(progress=False), "study")
        data.encode()
        places = [(picture, draw) for picture in range(len(examples)) for draw in range(_DRAWS)]
        batches = []
        for start in range(0, len(places), _ROWS):
            part = places[start : start + _ROWS]
            batch = data.plain_batch([picture for picture, _ in part])
            shape = batch["latents"].shape[1:]
            batch["noise"] = torch.stack([torch.randn(shape, generator=generator_of(0, "held", *at)) for at in part])
            timesteps = self.process.noising.timesteps
            batch["timesteps"] = torch.tensor([int(timesteps * (draw + 0.5) / _DRAWS) for _, draw in part])
            batches.append(batch)
        return batches


def _chosen(pictures: Pictures, indices: np.ndarray) -> Pictures:
    return Pictures(pictures.images[indices], [pictures.captions[i] for i in indices], pictures.labels[indices])


def _first(pictures: Pictures, count: int) -> Pictures:
    """The first of the pictures, or all of them."""
    return _chosen(pictures, np.arange(min(count, len(pictures))))
