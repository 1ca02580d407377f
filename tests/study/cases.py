"""A study so small that a run takes a second or two."""

import dataclasses

from hnkernels.study.protocol import Cell, Protocol
from hnkernels.study.questions import Entry, Question

PROTOCOL = dataclasses.replace(
    Protocol(),
    training={"learning_rate": 1e-3, "batch_size": 2, "max_steps": 2, "latent_sampling": "deterministic"},
    many=2,
    few=2,
    subject=2,
    held_out=2,
    drawn=10,
    inference_steps=1,
    timed=2,
    judged=20,
)
BASE = Cell("base", strengths={"0": 0.0})
QUESTION = Question(
    "width",
    "Width",
    "How wide?",
    Entry("1, 2, 1", BASE),
    (Entry("1, 1, 1", Cell("narrow", network={"layer_structure": [1, 1, 1]})), Entry("off", BASE, "0")),
    "It is a small model.",
)
