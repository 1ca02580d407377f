"""The presets of ``hnkernels train``."""

import pytest
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.demo.glyphs import handwritten_digits
from hnkernels.network.mlp import MLPConfig
from hnkernels.pipeline import load_pipeline
from hnkernels.training import TrainingConfig
from hnkernels.training.recipes import RECIPES, recipe_named


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
