"""The form has every setting once, and gives back what it shows."""

import pytest

from hnkernels.training import TrainingConfig
from hnkernels.training.settings import settings
from hnkernels.ui import form


def test_every_setting_has_one_place():
    assert sorted([*form.NAMES, *form.ELSEWHERE]) == sorted(settings())


@pytest.mark.parametrize("name", form.NAMES)
def test_a_default_survives_the_form(name):
    default = settings()[name].default
    value = form.entered(name, form.shown(name, default))
    config = TrainingConfig.of({name: value})
    assert getattr(config, name) == getattr(TrainingConfig(), name) or (name, value) == ("preview_conditions", [])


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("learning_rate", "5e-5:100, 1e-6", "5e-5:100, 1e-6"),
        ("learning_rate", " 0.001 ", 0.001),
        ("max_steps", "", None),
        ("max_steps", " 12 ", 12),
        ("max_steps", "12.5", 12.5),
        ("max_steps", "many", "many"),
        ("batch_size", 4.0, 4),
        ("preview_prompts", "a\n\n b \n", ["a", "b"]),
        ("optimizer_args", '{"betas": [0.9, 0.99]}', {"betas": [0.9, 0.99]}),
        ("optimizer_args", "", {}),
        ("lr_scheduler", " ", None),
        ("mask_data", "", None),
    ],
)
def test_what_is_typed_is_what_the_config_takes(name, typed, value):
    assert form.entered(name, typed) == value


def test_what_should_be_json_and_is_not():
    with pytest.raises(ValueError, match=r'optimizer_args must be JSON such as \{"name": 1\}'):
        form.entered("optimizer_args", "{")
