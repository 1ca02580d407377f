"""Objective scores for the demos: which style is it, and is it the digit that was asked for?

Two small convolutional classifiers, trained in seconds. Everything they see comes as it is and as it looks after the
embedded model's autoencoder, all styles alike, so that neither can lean on the autoencoder's traces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnkernels.demo.glyphs import Pictures, handwritten_digits, printed_glyphs
from hnkernels.demo.latents import decode, encode, to_tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PRINT, HANDWRITING = 0, 1
_STEPS = 300
_BATCH = 128
_LEARNING_RATE = 3e-3
_MAX_SHIFT = 2  # pixels
_PIXEL_NOISE = 0.05  # of the range [-1, 1]


@dataclass(frozen=True)
class Judges:
    """The two trained classifiers and how well they do on pictures they were not trained on.

    Attributes:
        style: which style, logits [n, styles].
        content: which digit, logits [n, 10].
        style_accuracy: on held-out pictures of all styles, with and without the autoencoder's traces.
        content_accuracy_held_out: the same for the digit classifier.
    """

    style: nn.Module
    content: nn.Module
    style_accuracy: float
    content_accuracy_held_out: float

    def style_score(self, images: np.ndarray, style: int = HANDWRITING) -> float:
        """Share of the pictures (uint8 [n, 32, 32, 3]) taken for one style, in [0, 1]."""
        return float((_classes(self.style, images) == style).double().mean())

    def content_accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of the pictures (uint8 [n, 32, 32, 3]) that show the digit named by `labels` [n], in [0, 1]."""
        return _accuracy(self.content, images, labels)

    def both(self, images: np.ndarray, labels: np.ndarray, style: int = HANDWRITING) -> float:
        """Share of the pictures (uint8 [n, 32, 32, 3]) that are taken for a style and show the digit, in [0, 1]."""
        right = (_classes(self.style, images) == style) & (_classes(self.content, images) == torch.from_numpy(labels))
        return float(right.double().mean())


def train_judges(vae: AutoencoderKL, seed: int = 0) -> Judges:
    """Judges of print and handwriting; the split of the handwriting is `handwritten_digits`'s default."""
    train = {HANDWRITING: handwritten_digits("train"), PRINT: printed_glyphs(1400, seed, digit_share=1.0)}
    held_out = {HANDWRITING: handwritten_digits("held_out"), PRINT: printed_glyphs(450, seed + 1, digit_share=1.0)}
    return train_judges_on(train, held_out, vae, seed)


def train_judges_on(
    train: Mapping[int, Pictures], held_out: Mapping[int, Pictures], vae: AutoencoderKL, seed: int
) -> Judges:
    """Trains both classifiers on the CPU.

    Args:
        train: style → pictures of digits; the styles are the numbers from 0.
        held_out: others of the same styles, on which the classifiers are judged themselves.
        vae: whose traces the pictures are shown with, too.
        seed: of everything random.
    """
    images, styles, digits = _examples(train, vae)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        style = _train(_network(len(train)), images, styles, styles, seed)
        content = _train(_network(10), images, digits, styles, seed)
    images, styles, digits = _examples(held_out, vae)
    return Judges(style, content, _accuracy(style, images, styles), _accuracy(content, images, digits))


def _examples(sets: Mapping[int, Pictures], vae: AutoencoderKL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pictures, each plain and after the autoencoder, with style and digit labels."""
    images = np.concatenate([pictures.images for pictures in sets.values()])
    images = np.concatenate([images, decode(vae, encode(vae, images))])
    styles = np.repeat(list(sets), [len(pictures) for pictures in sets.values()])
    digits = np.concatenate([pictures.labels for pictures in sets.values()])
    return images, np.tile(styles, 2), np.tile(digits, 2)


def _network(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 4 * 4, classes))


def _train(network: nn.Sequential, images: np.ndarray, labels: np.ndarray, styles: np.ndarray, seed: int) -> nn.Module:
    """Batches have as many pictures of every style, each shifted and slightly noisy."""
    generator = torch.Generator().manual_seed(seed)
    ink, targets = _grey(images), torch.from_numpy(labels)
    groups = [torch.from_numpy(np.flatnonzero(styles == style)) for style in range(styles.max() + 1)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS)
    network.train()
    for _ in range(_STEPS):
        picks = [group[torch.randint(len(group), (_BATCH // len(groups),), generator=generator)] for group in groups]
        chosen = torch.cat(picks)
        shift_y, shift_x = torch.randint(-_MAX_SHIFT, _MAX_SHIFT + 1, (2,), generator=generator).tolist()
        batch = ink[chosen].roll((shift_y, shift_x), dims=(2, 3))
        batch = batch + _PIXEL_NOISE * torch.randn(batch.shape, generator=generator)
        loss = F.cross_entropy(network(batch), targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _grey(images: np.ndarray) -> Tensor:
    return to_tensor(images).mean(dim=1, keepdim=True)


@torch.no_grad()
def _classes(network: nn.Module, images: np.ndarray) -> Tensor:
    return network(_grey(images)).argmax(dim=1)


def _accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    return float((_classes(network, images) == torch.from_numpy(labels)).double().mean())
