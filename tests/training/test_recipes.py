"""The presets of ``hnkernels train``."""

import re
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.demo.glyphs import handwritten_digits
from hnkernels.network.mlp import MLPConfig
from hnkernels.pipeline import load_pipeline
from hnkernels.study.comparison import rows_of
from hnkernels.study.protocol import Protocol
from hnkernels.study.questions import questions_named
from hnkernels.study.results import Results
from hnkernels.study.statistics import paired
from hnkernels.training import TrainingConfig
from hnkernels.training.recipes import RECIPES, recipe_named

STUDY = Path(__file__).parents[2] / "docs" / "recipes.jsonl"


@cache
def row(question, label):
    """A row of the study's table: a setting and what it came to."""
    (asked,) = questions_named([question])
    return {row.label: row for row in rows_of(asked, Results(STUDY, Protocol()), (0, 1, 2))}[label]


def mean(question, label, score):
    """A share of pictures as the study's table has it."""
    return f"{row(question, label).means[score].mean:.2f}"


def difference(question, one, other, score):
    """1 or -1 where the first setting has more or less of it by more than two standard errors, otherwise 0."""
    found = paired(row(question, one).values[score], row(question, other).values[score])
    return (found.mean > 0) - (found.mean < 0) if found.is_real else 0


def cpu_time(label):
    """Of a whole run of the question about batches."""
    return row("rate", label).step_ms * row("rate", label).steps


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_settings_that_are_accepted_and_a_reason_for_each(name):
    recipe = recipe_named(name)
    TrainingConfig.of(recipe.training_with({}))
    MLPConfig(**recipe.network_with({}))
    assert set(recipe.why) == {*recipe.training, *recipe.network}
    assert all(reason.endswith(".") for reason in recipe.why.values())


def test_there_are_recipes_for_a_style_for_a_subject_and_for_speed():
    assert set(RECIPES) == {"style", "subject", "fast"}


@pytest.mark.parametrize(("name", "hint"), [("stile", "did you mean 'style'[?] "), ("x", ""), ("", "")])
def test_an_unknown_recipe_lists_those_there_are(name, hint):
    with pytest.raises(ValueError, match=f"there is no recipe '{name}'; {hint}accepted are style, subject, fast"):
        recipe_named(name)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    "own",
    [
        {"learning_rate": "1e-3:10, 1e-4"},
        {"lr_scheduler": None},
        {"lr_scheduler": "linear"},
        {"max_epochs": 3},
        {"max_steps": 7},
        {"max_steps": None},
        {"weight_decay": 0.5, "batch_size": 3},
    ],
)
def test_what_a_user_sets_goes_before_the_recipe(name, own):
    recipe = recipe_named(name)
    settings = recipe.training_with(own)
    assert own.items() <= settings.items()
    config = TrainingConfig.of(settings)
    if "max_epochs" in own:
        assert config.max_steps is None
    if own.get("max_steps"):
        assert config.max_epochs >= own["max_steps"]
    assert recipe.network_with({"activation": "tanh"})["activation"] == "tanh"


def test_the_steps_of_a_recipe_are_taken_however_few_the_pictures_are():
    for recipe in RECIPES.values():
        config = TrainingConfig.of(recipe.training_with({}))
        assert config.max_epochs >= config.max_steps


def test_a_subject_is_trained_on_a_handful_of_pictures(tmp_path):
    digits = handwritten_digits("train")
    sevens = [i for i, label in enumerate(digits.labels) if label == 7][:4]
    data = [(Image.fromarray(digits.images[i]), digits.captions[i]) for i in sevens]
    recipe = recipe_named("subject")
    settings = recipe.training_with({"max_steps": 3, "progress": False, "output_dir": str(tmp_path)})
    net = hn.Hypernetwork((48, 80, 96), **recipe.network_with({}))
    assert hn.HypernetworkTrainer(net, load_pipeline(TINY_SD), settings, data).train().step == 3


BASE_LAYERS, BASE_SUBJECT, BASE_RATE = "attn1 and attn2, k and v", "200 steps, rate 0.005", "batch 8, rate 0.005"
LAYERS = [("layers", label, "both") for label in ("attn1", BASE_LAYERS, "attn2")]
SHARES = {
    ("style", "target_layers"): LAYERS,
    ("fast", "target_layers"): LAYERS,
    ("fast", "max_steps"): [("layers", "attn1", "style")],
    ("subject", "target_layers"): [
        ("subject", label, score) for label in ("attn1", BASE_SUBJECT) for score in ("both", "spill")
    ],
    ("subject", "max_steps"): [("subject", "100 steps", "both"), ("subject", BASE_SUBJECT, "both")],
    ("subject", "layer_structure"): [("subject", "1, 0.5, 1", "both"), ("subject", BASE_SUBJECT, "both")],
}
"""Recipe and setting → what the shares of pictures in its reason are, in their order."""


@pytest.mark.parametrize("name", RECIPES)
def test_every_share_that_a_reason_quotes_is_the_studys(name):
    for setting, reason in RECIPES[name].why.items():
        if setting == "learning_rate":
            continue  # there the numbers are rates
        quoted = re.findall(r"\b[01]\.\d\d\b", reason)
        assert quoted == [mean(*figure) for figure in SHARES.get((name, setting), [])], setting


@pytest.mark.parametrize("name", RECIPES)
def test_a_rate_is_a_tenth_of_one_that_the_study_has_tried(name):
    recipe = RECIPES[name]
    tenth, *others = map(float, re.findall(r"\b0\.\d+\b", recipe.why["learning_rate"]))
    assert f"A tenth of {tenth:g}, " in recipe.why["learning_rate"]
    assert recipe.training["learning_rate"] == pytest.approx(tenth / 10)
    tried = {
        cell.settings(Protocol())["training"]["learning_rate"]
        for question in questions_named(["rate", "subject"])
        for cell in question.cells
    }
    assert {tenth, *others} <= tried


def test_the_time_of_batches_that_a_reason_quotes_is_the_studys():
    ratio = cpu_time("batch 8, rate 0.005") / cpu_time("batch 4, rate 0.005")
    assert f"took {ratio:.1f} of the CPU time" in RECIPES["fast"].why["batch_size"]


@pytest.mark.parametrize(
    ("said", "question", "one", "other", "score", "sign"),
    [
        ("normal or xavier_normal fewer pictures were right", "init", "normal", "identity", "both", -1),
        ("normal or xavier_normal fewer pictures were right", "init", "xavier_normal", "identity", "both", -1),
        ("kaiming_normal showed no difference", "init", "kaiming_normal", "identity", "both", 0),
        ("held-out loss was a little lower than with relu", "activation", "silu", "relu", "loss", -1),
        ("the pictures showed no difference", "activation", "silu", "relu", "style", 0),
        ("the pictures showed no difference", "activation", "silu", "relu", "content", 0),
        ("the pictures showed no difference", "activation", "silu", "relu", "both", 0),
        ("With half the width", "size", "1, 0.5, 1", "1, 2, 1", "both", -1),
        ("or no hidden layer, fewer", "size", "1, 1 (affine)", "1, 2, 1", "both", -1),
        ("twice the width", "size", "1, 4, 1", "1, 2, 1", "both", 0),
        ("another hidden layer", "size", "1, 2, 2, 1", "1, 2, 1", "both", 0),
        ("attn1", "layers", "attn1", BASE_LAYERS, "both", 1),
        ("attn1", "subject", "attn1", BASE_SUBJECT, "spill", -1),
        ("and rate, batches of 4 had a lower held-out", "rate", "batch 4, rate 0.005", BASE_RATE, "loss", -1),
        ("or 32", "rate", "batch 4, rate 0.005", "batch 32, rate 0.005", "loss", -1),
        ("batches of 4 had the lowest held-out", "rate", "batch 4, rate 0.005", "batch 4, rate 0.002", "loss", -1),
        ("Twice the steps of the baseline lowered", "length", "400 steps", "200 steps", "loss", -1),
        ("more pictures were right than with 0.001", "subject", "rate 0.001", BASE_SUBJECT, "both", -1),
        ("0.01, which had a lower held-out loss", "rate", "batch 8, rate 0.01", BASE_RATE, "loss", -1),
        ("After 100 steps", "subject", "100 steps", BASE_SUBJECT, "both", -1),
        ("With half the width 0.54", "subject", "1, 0.5, 1", BASE_SUBJECT, "both", -1),
    ],
)
def test_what_a_reason_says_to_be_more_or_less_is_so_in_the_study(said, question, one, other, score, sign):
    texts = [f"{recipe.training} {recipe.network} {recipe.why}" for recipe in RECIPES.values()]
    assert any(said in text for text in texts)
    assert difference(question, one, other, score) == sign
