"""What is wrong with a run is said in words, with the numbers that show it; nothing is said of a healthy one."""

import math

import pytest

from hnkernels.training.progress.findings import findings
from hnkernels.training.progress.history import History

NAN = math.nan


def log(norms, **columns):
    return {"step": list(range(1, len(norms) + 1)), "grad_norm": norms, **columns}


def health(steps, **columns):
    return {"step": steps, **{f"768.k.{key}": values for key, values in columns.items()}}


def validation(losses, base=1.0, error=0.01, difference_error=0.001, training=None, steps=None):
    count = len(losses)
    return {
        "step": steps or [100 * (i + 1) for i in range(count)],
        "loss": losses,
        "standard_error": [error] * count,
        "base_loss": [base] * count,
        "difference": [loss - base for loss in losses],
        "difference_standard_error": [difference_error] * count,
        "training_loss": training or [NAN] * count,
    }


HEALTHY = {
    "nothing measured": History(),
    "a run as it should be": History(
        log([1.0, 0.9] * 500),
        validation([1.0, 0.9, 0.85, 0.8, 0.79]),
        health([0, 10, 500, 900, 1000], change=[0, 0.01, 0.3, 0.5, 0.52], dead=[0.1] * 5, saturated=[NAN] * 5),
        end=1000,
        stopped="finished",
    ),
    "weights that move in proportion to the steps": History(health=health([1, 10, 100], change=[0.001, 0.01, 0.1])),
    "the first measurements": History(health=health([0, 5], change=[0, 0])),
    "a gradient with one spike": History(log([1.0] * 99 + [1e4])),
    "a gradient that grew long ago": History(log([1.0] * 200 + [20.0] * 800)),
    "a short log": History(log([1.0] * 20 + [1e4] * 5)),
    "a step without a gradient, as fp16 has": History(log([math.inf] * 5 + [1.0] * 200)),
    "half of the units dead": History(health=health([100], change=[0.1], dead=[0.5])),
    "a rise within the standard error": History(
        validation=validation([0.5, 0.501, 0.502, 0.503], training=[0.5, 0.4, 0.3, 0.2])
    ),
    "two rises": History(validation=validation([0.5, 0.6, 0.7], training=[0.5, 0.4, 0.3])),
    "rises with a fall between": History(validation=validation([0.5, 0.6, 0.55, 0.7], training=[0.5, 0.4, 0.3, 0.2])),
    "a loss that rises on training pictures too": History(
        validation=validation([0.5, 0.6, 0.7, 0.8], training=[0.5, 0.6, 0.7, 0.8])
    ),
    "a rise without training losses": History(validation=validation([0.5, 0.6, 0.7, 0.8])),
    "the validation before the first step": History(validation=validation([1.0], steps=[0])),
    "a run that goes on": History(log([1.0] * 20)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_said_of(name):
    assert findings(HEALTHY[name]) == []


WRONG = {
    "exploding weights": (
        History(health=health([100, 180, 200], change=[0.2, 0.3, 3.3])),
        ["768.k is exploding", "from 0.3 of their norm at step 180 to 3.3 at step 200", "lower learning_rate"],
    ),
    "weights that are not finite": (
        History(health=health([100, 200], change=[0.2, NAN])),
        ["768.k: its weights are no longer finite at step 200"],
    ),
    "an exploding gradient": (
        History(log([0.5] * 900 + [6.0] * 100)),
        ["norm was 0.5 (median) until step 900", "is 6 in the last 100 steps", "gradient_clip"],
    ),
    "a gradient that is not finite": (
        History(log([0.5] * 90 + [NAN] * 10)),
        ["norm was 0.5 (median) until step 90", "is inf in the last 10 steps"],
    ),
    "a part without a gradient": (
        History(health={"step": [0, 10], "768.k.change": [0, 0], "768.v.change": [0, 0], "320.k.change": [0, 0.1]}),
        ["768.k and 768.v: no weight has changed in 10 steps", "target_layers"],
    ),
    "dead units": (
        History(health=health([50], change=[0.1], dead=[0.75])),
        ["768.k: 75% of the hidden units are 0 for all contexts at step 50"],
    ),
    "saturated units": (
        History(health=health([50], change=[0.1], saturated=[0.6])),
        ["768.k: 60% of the hidden units are at a limit of their activation at step 50"],
    ),
    "overfitting": (
        History(validation=validation([0.7, 0.5, 0.52, 0.54, 0.56], training=[0.7, 0.5, 0.4, 0.3, 0.2])),
        [
            "overfitting: since step 200 the validation loss rose from 0.5 to 0.56 (± 0.01)",
            "fell from 0.5 to 0.2",
            "best at step 200, with 0.5",
        ],
    ),
    "no difference to the base model": (
        History(validation=validation([0.9, 0.9985])),
        ["no better than the base model: at step 200 its validation loss is 0.9985, and the base model's 1", "-0.0015"],
    ),
    "worse than the base model": (
        History(validation=validation([1.1])),
        ["worse than the base model: at step 100", "1.1", "the difference of 0.1"],
    ),
    "one picture": (
        History(validation=validation([0.9], error=NAN, difference_error=NAN)),
        ["is open", "one picture gives no standard error", "validation_split"],
    ),
    "a validation that is not finite": (
        History(validation=validation([NAN], error=NAN, difference_error=NAN)),
        ["cannot be compared", "is nan"],
    ),
    "an interrupted run": (
        History(log([1.0] * 20), end=30, stopped="interrupted"),
        ["The run ended at step 20 of 30; continue it with resume=True"],
    ),
    "a schedule that ends": (
        History(log([1.0] * 20), end=30, stopped="schedule"),
        ["ended at step 20 of 30, where its learning-rate schedule ends"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_is_said_of(name):
    history, words = WRONG[name]
    (said,) = findings(history)
    for part in words:
        assert part in said
    assert said.endswith(".")
    assert said.count("\n") == 0
