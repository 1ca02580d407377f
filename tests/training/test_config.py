"""What a training run may be told."""

import pytest

from hnkernels import TrainingConfig


def test_four_keys_are_enough():
    config = TrainingConfig.of(
        {"learning_rate": 1e-4, "batch_size": 4, "max_epochs": 100, "target_layers": ["attn1", "attn2"]}
    )
    assert config.target_layers == ("attn1", "attn2")
    assert config.gradient_accumulation_steps == 1


def test_nothing_gives_the_defaults_and_a_config_passes_through():
    assert TrainingConfig.of(None) == TrainingConfig()
    config = TrainingConfig(batch_size=3)
    assert TrainingConfig.of(config) is config


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"'learning_rat'.*did you mean 'learning_rate'"):
        TrainingConfig.of({"learning_rat": 1e-4})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "soon"),
        ("learning_rate", -1e-4),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("max_epochs", 0),
        ("max_steps", 0),
        ("target_layers", ["attn3"]),
        ("target_layers", []),
        ("gradient_accumulation_steps", 0),
        ("gradient_clip", "x"),
        ("gradient_clip_mode", "sum"),
        ("mixed_precision", "fp8"),
        ("latent_sampling", "never"),
        ("tag_dropout", 1.5),
        ("caption_dropout", -0.1),
        ("resolution", 0),
        ("checkpoint_every", -1),
        ("preview_every", 5),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key if key != "learning_rate" and key != "gradient_clip" else "schedule"):
        TrainingConfig.of({key: value})


def test_something_else_than_a_mapping_is_refused():
    with pytest.raises(ValueError, match="TrainingConfig or a dict"):
        TrainingConfig.of([1])
