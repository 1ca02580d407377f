"""The questions of the study: what is compared with what."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from hnkernels.adapter.strength import Strength
from hnkernels.errors import InputError
from hnkernels.study.protocol import Cell
from hnkernels.training import TrainingConfig
from hnkernels.training.recipes import RECIPES
from hnkernels.wording import shown

FULL = "1"
"""The strength at which everything is judged, as results call it."""


class Entry(NamedTuple):
    """A row of a question's table.

    Attributes:
        label: what the row is called.
        cell: the run.
        strength: at which of the cell's strengths it is judged.
    """

    label: str
    cell: Cell
    strength: str = FULL


class Question(NamedTuple):
    """What is asked, and the runs that answer it.

    Attributes:
        name: for the command line and files.
        title: of the section.
        asked: what is compared.
        baseline: what the other entries are compared with.
        others: these.
        caveat: where the answer may not carry over to a full-size model.
    """

    name: str
    title: str
    asked: str
    baseline: Entry
    others: tuple[Entry, ...]
    caveat: str

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All rows, the baseline first."""
        return (self.baseline, *self.others)

    @property
    def cells(self) -> list[Cell]:
        """The runs, each once."""
        return list({entry.cell.name: entry.cell for entry in self.entries}.values())


_STRENGTHS: dict[str, Strength] = {
    **{f"{strength:g}": strength for strength in (0.0, 0.25, 0.5, 0.75, 1.25, 1.5)},
    "down alone": {"mid": 0.0, "up": 0.0},
    "mid alone": {"down": 0.0, "up": 0.0},
    "up alone": {"down": 0.0, "mid": 0.0},
    "attn1 alone": {"attn2": 0.0},
    "attn2 alone": {"attn1": 0.0},
}
_BASE = Cell("base", strengths=_STRENGTHS)
_FEW = Cell("few", data="few")
_SUBJECT = Cell("subject", data="subject")
_LORA = {"rank": 18}
_WEIGHT = {"hidden_dim": 16, "rank": 15, "depth": 0}


def _training(label: str, data: str = "many", **settings: Any) -> Entry:
    return Entry(label, Cell(f"{data}: {label}", data=data, training=settings))


def _network(label: str, data: str = "many", **settings: Any) -> Entry:
    return Entry(label, Cell(f"{data}: {label}", data=data, network=settings))


def _recipe(name: str, rate: float | None = None) -> Entry:
    """A recipe as it is, or at another rate."""
    recipe = RECIPES[name]
    training = {**recipe.training, **({} if rate is None else {"learning_rate": rate})}
    label = name if rate is None else f"{name}, rate {rate:g}"
    return Entry(label, Cell(f"recipe {label}", training=training, network=recipe.network))


def _batch(size: int, rate: float) -> Entry:
    return _training(f"batch {size}, rate {rate:g}", batch_size=size, learning_rate=rate, max_steps=1600 // size)


def _other(kind: str, network: dict[str, Any], rate: float, equal_time: bool = False) -> Entry:
    label = f"{'LoRA' if kind == 'lora' else 'weight hypernetwork'}, rate {rate:g}"
    label += ", equal time" if equal_time else ""
    return Entry(label, Cell(label, kind, training={"learning_rate": rate}, network=network, equal_time=equal_time))


QUESTIONS = (
    Question(
        "rate",
        "Learning rate and batch size",
        "The baseline takes 200 steps of 8 pictures at a learning rate of 0.005, the highest of a cosine after 20 "
        "steps of warm-up. The others take 1600 pictures too, in batches of another size or at another rate.",
        Entry("batch 8, rate 0.005", _BASE),
        (
            *(_batch(8, rate) for rate in (1e-5, 1e-3, 1e-2)),
            *(_batch(4, rate) for rate in (2e-3, 5e-3)),
            *(_batch(32, rate) for rate in (5e-3, 1e-2)),
        ),
        "The best rate depends on the width of the layers, the number of steps and the initialisation. For wider "
        "layers it is likely to be lower: start with a tenth, and look at the validation.",
    ),
    Question(
        "recipes",
        "Recipes and defaults",
        "The recipes `style`, which `hnkernels train` takes if no other is named, and `fast`: as they are, and at "
        "ten times their rates, which are the ones that were best here. Below, the same number of steps with what "
        "`TrainingConfig` and `Hypernetwork` have as defaults, which are the web UIs'.",
        _recipe("style"),
        (
            _recipe("style", 5e-3),
            _recipe("fast"),
            _recipe("fast", 1e-2),
            Entry(
                "bare defaults",
                Cell(
                    "bare defaults",
                    training={
                        "learning_rate": TrainingConfig().learning_rate,
                        "batch_size": TrainingConfig().batch_size,
                        "max_steps": RECIPES["style"].training["max_steps"],
                        "lr_scheduler": None,
                        "lr_warmup_steps": 0,
                        "caption_dropout": 0.0,
                    },
                    network={"activation": "relu", "init": "normal"},
                ),
            ),
        ),
        "A recipe's rate is for layers ten times as wide as these, on which it was not measured. The web UIs' rate is "
        "one for many thousands of steps.",
    ),
    Question(
        "layers",
        "Which layers",
        "The network acts on self-attention (attn1) or cross-attention (attn2) alone, or is trained for K or V alone.",
        Entry("attn1 and attn2, k and v", _BASE),
        (
            _training("attn1", target_layers=["attn1"]),
            _training("attn2", target_layers=["attn2"]),
            _training("k alone", learning_rate_factors={"v": 0.0}),
            _training("v alone", learning_rate_factors={"k": 0.0}),
        ),
        "The embedded model has attention at every resolution, and two words of text. Where text says more of a "
        "picture, cross-attention may have more to offer.",
    ),
    Question(
        "size",
        "Size and structure",
        "Widths of the hidden layers relative to the context's. The affine one has no hidden layer and no activation, "
        "and can be merged into the model.",
        Entry("1, 2, 1", _BASE),
        (
            _network("1, 1 (affine)", layer_structure=[1, 1], activation=None),
            _network("1, 0.5, 1", layer_structure=[1, 0.5, 1]),
            _network("1, 4, 1", layer_structure=[1, 4, 1]),
            _network("1, 2, 2, 1", layer_structure=[1, 2, 2, 1]),
        ),
        "Contexts of a full-size model are ten times as wide, and a network of the same structure has a hundred times "
        "the parameters: it may do with a smaller one.",
    ),
    Question(
        "kinds",
        "Context hypernetwork, weight hypernetwork and LoRA",
        "All three of equal size, as nearly as their structure allows (the table counts parameters): the baseline; a "
        "LoRA of rank 18 on q, k, v and out by peft; a weight hypernetwork of rank 15 on the same projections, with "
        "one style. At equal steps, and at equal time: then the number of steps is what takes the CPU time of the "
        "baseline's, timed on 16 steps of both.",
        Entry("context hypernetwork, rate 0.005", _BASE),
        (
            *(_other("lora", _LORA, rate) for rate in (1e-3, 5e-3)),
            *(_other("weight", _WEIGHT, rate) for rate in (1e-3, 5e-3)),
            _other("lora", _LORA, 1e-3, equal_time=True),
            _other("weight", _WEIGHT, 1e-3, equal_time=True),
        ),
        "Of equal size is here a LoRA whose rank is a fifth to a third of the widths, which is a high one. A "
        "weight hypernetwork is for many styles, of which there is one here. Times are those of a CPU and a model "
        "whose layers are tiny.",
    ),
    Question(
        "subject",
        "A subject from few pictures",
        "Six pictures of one thing, the handwritten digit seven. Style and content are those of sevens that are drawn "
        "then. Spill is the share of the *other* digits that look handwritten too: for a subject it should be low. "
        "Prior preservation trains on 24 printed pictures of the other digits beside them.",
        Entry("200 steps, rate 0.005", _SUBJECT),
        (
            Entry("prior preservation", Cell("subject: prior preservation", data="subject", prior=24)),
            _training("attn1", "subject", target_layers=["attn1"]),
            _training("rate 0.001", "subject", learning_rate=1e-3),
            _training("100 steps", "subject", max_steps=100),
            _network("1, 0.5, 1", "subject", layer_structure=[1, 0.5, 1]),
            _training("attn2", "subject", target_layers=["attn2"]),
        ),
        "The other digits are close to a seven; a subject of a full-size model has more that is far from it. There the "
        "pictures of prior preservation are drawn with the base model.",
    ),
    Question(
        "length",
        "Number of steps",
        "Twice and four times as many steps, each with a cosine over all of them.",
        Entry("200 steps", _BASE),
        tuple(_training(f"{steps} steps", max_steps=steps) for steps in (400, 800)),
        "How many steps are enough may depend on how far a style is from what the base model draws.",
    ),
    Question(
        "objective",
        "Objective, average and schedule",
        "Settings of the loss, an exponential moving average, the captions that are left out (a tenth in the "
        "baseline), and a constant rate.",
        Entry("baseline", _BASE),
        (
            _training("snr_gamma 5", snr_gamma=5.0),
            _training("noise_offset 0.05", noise_offset=0.05),
            _training("ema_decay 0.98", ema_decay=0.98),
            _training("caption_dropout 0", caption_dropout=0.0),
            _training("constant rate", lr_scheduler="constant_with_warmup"),
        ),
        "The held-out loss is the plain one in all rows, so that it is at home in the baseline. Noise offset is for "
        "pictures that are dark or bright as a whole, of which there are none here.",
    ),
    Question(
        "init",
        "Initialisation",
        "Identity starts at the base model; the others are A1111's.",
        Entry("identity", _BASE),
        tuple(_network(init, init=init) for init in ("normal", "xavier_normal", "kaiming_normal")),
        "How far a random start is from the base model depends on the widths: the weights of normal (a deviation of "
        "0.01) add up to more where layers are wider.",
    ),
    Question(
        "activation",
        "Activation and LayerNorm",
        "The activation of the hidden layer, and a LayerNorm after every linear.",
        Entry("silu", _BASE),
        (
            *(_network(name, activation=name) for name in ("relu", "tanh")),
            _network("linear", activation=None),
            _network("silu, LayerNorm", layer_norm=True),
        ),
        "LayerNorm changes the size of what a network adds, so that its best rate is another one; here it has the "
        "baseline's.",
    ),
    Question(
        "strength",
        "Strength, and the parts of the UNet",
        "The networks of the baseline, trained at full strength in all layers, at other strengths, and in some layers "
        "alone.",
        Entry("1", _BASE),
        tuple(Entry(strength, _BASE, strength) for strength in _STRENGTHS),
        "A network that is trained longer may want another strength. The parts are of a network that was trained to "
        "act in all of them.",
    ),
    Question(
        "regularisation",
        "Dropout and weight decay",
        "Sixteen pictures, so that there is something to overfit on: dropout after the hidden layer, and decay of the "
        "weights, which is 0.01 in the baseline.",
        Entry("none, decay 0.01", _FEW),
        (
            *(_network(f"dropout {share:g}", "few", dropout_structure=[0, share, 0]) for share in (0.1, 0.3)),
            *(_training(f"decay {decay:g}", "few", weight_decay=decay) for decay in (0.0, 0.1)),
            _training("decay 0.1, biases too", "few", weight_decay=0.1, decay_biases_and_norms=True),
        ),
        "Weight decay acts over the number of steps times the rate; runs of thousands of steps see more of it.",
    ),
    Question(
        "precision",
        "Precision",
        "Training under autocast, judged in fp32.",
        Entry("fp32", _BASE),
        tuple(_training(precision, mixed_precision=precision) for precision in ("bf16", "fp16")),
        "The times are those of a CPU and say nothing of a GPU. Deeper and wider models may lose more to rounding.",
    ),
)


def questions_named(names: Sequence[str]) -> list[Question]:
    """Some of the questions, in the order of ``QUESTIONS``; all for no name.

    Raises:
        ValueError: there is no question of that name.
    """
    known = [question.name for question in QUESTIONS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"accepted are {', '.join(known)}"
            raise InputError(f"the study has no question {shown(name)}; {hint}")
    return [question for question in QUESTIONS if not names or question.name in names]
