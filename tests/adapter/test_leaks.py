"""Nothing accumulates: attaching, prompts and conditions leave as many objects, tensors and hooks as there were.

``HNKERNELS_FUZZ=50`` makes it fifty times as many.
"""

import gc
import os
import sys
from collections import Counter

import pytest
import torch

import hnkernels as hn
from tests.fuzz.model import WIDTH, Model
from tests.models import make_net

FACTOR = float(os.environ.get("HNKERNELS_FUZZ", 1))
WARM = 50
FEW = 100
"""By how many the objects of a type may differ: Python fills caches late. One kept in each round would be more."""
BLOCKS = 150
"""Likewise blocks of Python's memory."""


def alive(model):
    """How many objects and tensors there are by type, and hooks on the model."""
    counts = Counter(type(thing).__qualname__ for thing in gc.get_objects())
    counts["hooks"] = sum(
        len(hooks) for module in model.modules() for name, hooks in vars(module).items() if name.endswith("_hooks")
    )
    counts["instance attributes"] = sum(len(vars(module)) for module in model.modules())
    return counts


def stays_flat(model, round_, count):
    """Runs ``round_`` so often, and compares what there is with what there was after some."""
    for number in range(WARM):
        round_(number)
    gc.collect()
    before, blocks = alive(model), sys.getallocatedblocks()
    for number in range(int(count * FACTOR)):
        round_(WARM + number)
    gc.collect()
    grown, after = sys.getallocatedblocks() - blocks, alive(model)
    assert not {name: after[name] - before[name] for name in after if after[name] > before[name] + FEW}
    assert grown < BLOCKS


@pytest.fixture
def model():
    return Model().eval().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 3, WIDTH)


def test_attaching_and_detaching_leaves_nothing(model, x):
    net = make_net((WIDTH,))

    def attach_and_detach(number):
        with hn.attach(model, net, strength=0.5 + number % 3, name=f"net {number}"):
            model(x)

    stays_flat(model, attach_and_detach, 200)


def test_prompts_leave_nothing(model, x):
    hn.attach(model, make_net((WIDTH,)), targets="attn2")

    def draw(number):
        with torch.no_grad():
            for _ in range(2):  # two steps
                model(x, torch.full((2, 3, WIDTH), number / 100))

    stays_flat(model, draw, 200)


def test_conditions_leave_nothing(model, x):
    gen = hn.WeightHypernetwork(["attn1", "attn2"], 4, 8, 2, model=model, styles=("ink", "oil")).eval()
    adapter = hn.attach(model, gen)

    def switch(number):
        with torch.no_grad(), adapter.condition({"ink": number / 1000, "oil": 0.5}):
            model(x)

    stays_flat(model, switch, 200)


def test_a_leak_would_be_seen(model, x):
    kept = []
    with pytest.raises(AssertionError, match="Tensor"):
        stays_flat(model, lambda number: kept.append(x + number), 200)
    with pytest.raises(AssertionError, match=f"< {BLOCKS}"):
        stays_flat(model, lambda number: kept.append(f"{number}"), 200)
