"""What a run's numbers mean, in words: what goes wrong in training, said with the numbers that show it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from hnkernels.training.progress.history import History, Table

_GROWTH = 10  # times: weights move in proportion to the steps at most, so that a tenth of them adds some 11 %
_LAST = 0.1  # of the run: what happened long ago and has passed need not be said
_COMPARABLE = 0.5  # of the run: what was measured earlier may be a tenth of today's in a healthy run
_ENOUGH_ROWS = 50  # of the log: of fewer, a tenth is too little for a median
_STILL = 10  # steps: a gradient may underflow in fp16 until the loss scale has come down, which takes a few
_MOST_UNITS = 0.5  # share of the units: relu leaves nearly half of them at 0 for one input, but hardly any for all
_RISES = 3  # validations in a row: one rise is noise as often as not
_STANDARD_ERRORS = 2  # within them lie 95 % of the estimates of a difference that is 0


def findings(history: History) -> list[str]:
    """Sentences about what is wrong, each with its numbers and what helps; none if nothing is.

    They are about: weights or gradients that explode; parts that do not change, and dead or saturated units;
    overfitting; a network that is no better than the base model; a run that ended before its last step. (A part whose
    gradient is 0, and not absent, still shrinks by weight decay; it is not found by its change.)
    """
    return [
        *_exploding_weights(history.health),
        *_exploding_gradient(history.log),
        *_unchanged(history.health),
        *_units(history.health),
        *_overfitting(history.validation),
        *_against_base(history.validation),
        *_early(history),
    ]


def _exploding_weights(health: Table) -> Iterator[str]:
    steps = health.get("step", ())
    before = [i for i, step in enumerate(steps) if _COMPARABLE * steps[-1] <= step <= (1 - _LAST) * steps[-1]]
    for part, changes in _columns(health, "change"):
        if not math.isfinite(changes[-1]):
            yield f"{part}: its weights are no longer finite at step {steps[-1]:g}; go back to an earlier checkpoint."
        elif before and 0 < changes[before[-1]] * _GROWTH < changes[-1]:
            yield (
                f"{part} is exploding: the change of its weights went from {changes[before[-1]]:.3g} of their norm at "
                f"step {steps[before[-1]]:g} to {changes[-1]:.3g} at step {steps[-1]:g}; go back to an earlier "
                "checkpoint, with a lower learning_rate."
            )


def _exploding_gradient(log: Table) -> Iterator[str]:
    norms = [value if math.isfinite(value) else math.inf for value in log.get("grad_norm", ())]
    if len(norms) < _ENOUGH_ROWS:
        return
    last = math.ceil(_LAST * len(norms))
    earlier, now = median(norms[:-last]), median(norms[-last:])
    if 0 < earlier * _GROWTH < now:
        yield (
            f"The gradient is exploding: its norm was {earlier:.3g} (median) until step {log['step'][-last - 1]:g}, "
            f"and is {now:.3g} in the last {last} steps; use a lower learning_rate or gradient_clip."
        )


def _unchanged(health: Table) -> Iterator[str]:
    steps = health.get("step", ())
    if steps and steps[-1] >= _STILL:
        still = [part for part, changes in _columns(health, "change") if changes[-1] == 0]
        if still:
            yield (
                f"{_listed(still)}: no weight has changed in {steps[-1]:g} steps, so no gradient arrives there; check "
                "that the model has attention layers of this width among target_layers, and that the learning rate is "
                "not 0."
            )


def _units(health: Table) -> Iterator[str]:
    steps = health.get("step", ())
    for quantity, what in (("dead", "are 0 for all contexts"), ("saturated", "are at a limit of their activation")):
        for part, shares in _columns(health, quantity):
            if shares[-1] > _MOST_UNITS:
                yield (
                    f"{part}: {shares[-1]:.0%} of the hidden units {what} at step {steps[-1]:g} and hardly learn; "
                    "use a lower learning_rate, or another activation such as silu."
                )


def _overfitting(validation: Table) -> Iterator[str]:
    losses, errors, training = (validation.get(key, ()) for key in ("loss", "standard_error", "training_loss"))
    if len(losses) <= _RISES:
        return
    first = -_RISES - 1
    rises = all(losses[i] < losses[i + 1] for i in range(first, -1))
    if rises and losses[-1] - losses[first] > max(errors[first], errors[-1]) and training[-1] < training[first]:
        steps = validation["step"]
        best = min(range(len(losses)), key=lambda i: losses[i])
        yield (
            f"The network is overfitting: since step {steps[first]:g} the validation loss rose from "
            f"{losses[first]:.4g} to {losses[-1]:.4g} (± {errors[-1]:.2g}), while the loss of training pictures fell "
            f"from {training[first]:.4g} to {training[-1]:.4g}; it was best at step {steps[best]:g}, with "
            f"{losses[best]:.4g}. Stop there, or use more pictures."
        )


def _against_base(validation: Table) -> Iterator[str]:
    if not any(validation.get("step", ())):  # the first is often made before the first step
        return
    step, loss, base, difference, error = (
        validation[key][-1] for key in ("step", "loss", "base_loss", "difference", "difference_standard_error")
    )
    losses = f"at step {step:g} its validation loss is {loss:.4g}, and the base model's {base:.4g}"
    if not math.isfinite(loss) or not math.isfinite(base):
        yield f"The network cannot be compared with the base model: {losses}. Go back to an earlier checkpoint."
    elif math.isnan(error):
        yield (
            f"Whether the network is better than the base model is open: {losses}, but one picture gives no standard "
            "error; hold out more with validation_split."
        )
    elif abs(difference) <= _STANDARD_ERRORS * error:
        yield (
            f"The network is no better than the base model: {losses}; the difference of {difference:.2g} is within "
            f"{_STANDARD_ERRORS} standard errors of {error:.2g}. Train on, with a higher learning_rate, or hold out "
            "more pictures."
        )
    elif difference > 0:
        yield (
            f"The network is worse than the base model: {losses}; the difference of {difference:.2g} is more than "
            f"{_STANDARD_ERRORS} standard errors of {error:.2g}. Go back to an earlier checkpoint, or use a lower "
            "learning_rate."
        )


def _early(history: History) -> Iterator[str]:
    steps = history.log.get("step", ())
    if not steps or history.end is None or steps[-1] >= history.end:
        return
    ended = f"at step {steps[-1]:g} of {history.end}"
    if history.stopped == "schedule":
        yield f"The run ended {ended}, where its learning-rate schedule ends; extend that to train on."
    else:
        yield f"The run ended {ended}; continue it with resume=True (--resume)."


def _columns(health: Table, quantity: str) -> Iterator[tuple[str, Sequence[float]]]:
    """Part and values of all columns of a quantity that have values."""
    for name, values in health.items():
        part, dot, kind = name.rpartition(".")
        if dot and kind == quantity and values:
            yield part, values


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
