"""What a training run may be told."""

import dataclasses
from pathlib import Path

import numpy as np
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


def test_the_defaults_are_part_of_the_interface():
    assert dataclasses.asdict(TrainingConfig()) == {
        "learning_rate": 1e-5, "batch_size": 1, "max_epochs": 100, "target_layers": ("attn1", "attn2"),
        "max_steps": None, "gradient_accumulation_steps": 1, "gradient_clip": 1.0, "gradient_clip_mode": "norm",
        "mixed_precision": "no", "gradient_checkpointing": False, "weight_decay": 0.01, "latent_sampling": "once",
        "caption_template": "[filewords]", "shuffle_tags": False, "tag_dropout": 0.0, "caption_dropout": 0.0,
        "resolution": None, "seed": 0, "output_dir": "runs/train", "checkpoint_every": 500, "preview_every": 0,
        "preview_prompts": (), "preview_conditions": (), "preview_inference_steps": 20, "preview_guidance": 7.5,
        "progress": True, "keep_tags": 0, "clip_skip": 1, "bucketing": False, "bucket_step": 64,
        "bucket_max_aspect": 2.0, "random_flip": False, "regularization_data": None, "prior_loss_weight": 1.0,
        "masked_loss": False, "mask_data": None, "cache_dir": None, "skip_broken": False, "loss_type": "l2",
        "huber_delta": 0.1, "snr_gamma": None, "min_timestep": 0, "max_timestep": None, "timestep_sampling": "auto",
        "noise_offset": 0.0, "zero_terminal_snr": False, "optimizer": "adamw", "optimizer_args": {},
        "lr_scheduler": None, "lr_warmup_steps": 0, "lr_scheduler_args": {}, "learning_rate_factors": {},
        "decay_biases_and_norms": False, "ema_decay": None, "validation_split": 0.0, "validate_every": 100,
        "trackers": (),
    }  # fmt: skip


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
        ("learning_rate", True),
        ("learning_rate", None),
        ("learning_rate", [1e-4]),
        ("learning_rate", float("nan")),
        ("learning_rate", "0,00005"),
        ("learning_rate", "1e-4:1, fast"),
        ("learning_rate", 0),
        ("gradient_clip", 0),
        ("gradient_clip", False),
        ("batch_size", "2"),
        ("batch_size", [2]),
        ("batch_size", None),
        ("max_steps", "100"),
        ("resolution", 512.0),
        ("seed", "0"),
        ("seed", 1.5),
        ("seed", None),
        ("seed", 2**63),
        ("weight_decay", "0.01"),
        ("weight_decay", True),
        ("weight_decay", float("nan")),
        ("weight_decay", -0.1),
        ("weight_decay", float("inf")),
        ("weight_decay", 10**400),
        ("tag_dropout", "0.5"),
        ("caption_dropout", None),
        ("preview_guidance", "7.5"),
        ("preview_guidance", float("nan")),
        ("gradient_checkpointing", "false"),
        ("shuffle_tags", 1),
        ("progress", None),
        ("caption_template", None),
        ("caption_template", ["[filewords]"]),
        ("output_dir", None),
        ("output_dir", ""),
        ("output_dir", 5),
        ("target_layers", None),
        ("target_layers", [["attn1"]]),
        ("target_layers", {"attn1": True}),
        ("mixed_precision", ["fp16"]),
        ("preview_prompts", 5),
        ("preview_prompts", ["a", None]),
        ("preview_conditions", "ink"),
        ("preview_conditions", {"ink": 1.0}),
        ("keep_tags", -1),
        ("clip_skip", 0),
        ("bucket_step", 4),
        ("bucket_max_aspect", 0.5),
        ("bucketing", 1),
        ("regularization_data", ""),
        ("mask_data", 3),
        ("cache_dir", []),
        ("loss_type", "l1"),
        ("huber_delta", 0),
        ("snr_gamma", -1),
        ("snr_gamma", "5"),
        ("min_timestep", -1),
        ("max_timestep", 0),
        ("timestep_sampling", "late"),
        ("noise_offset", 2),
        ("optimizer", None),
        ("optimizer_args", [1]),
        ("optimizer_args", {"betas": {1}}),
        ("optimizer_args", {"eps": float("nan")}),
        ("lr_warmup_steps", 10),  # without lr_scheduler
        ("lr_scheduler", 3),
        ("lr_scheduler_args", 2),
        ("learning_rate_factors", {"k": -1}),
        ("learning_rate_factors", {"k": "2"}),
        ("ema_decay", 1.5),
        ("validation_split", -0.1),
        ("validation_split", 1.5),
        ("validate_every", 0),
        ("trackers", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"^{key}"):
        TrainingConfig.of({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", " 1e-4 "),
        ("learning_rate", 1),
        ("gradient_clip", "1:100, 0.5,"),
        ("weight_decay", 0),
        ("seed", -1),
        ("max_steps", None),
    ],
)
def test_a_value_of_which_it_is_clear_what_is_meant_is_taken(key, value):
    assert getattr(TrainingConfig.of({key: value}), key) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep is 500 and max_timestep 500; the first must be"),
        ({"lr_scheduler": "cosine", "learning_rate": "1e-4:5, 1e-5"}, "learning_rate is the schedule .* lr_scheduler"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.of(settings)


def test_a_config_holds_plain_values_that_a_checkpoint_can_hold():
    config = TrainingConfig(output_dir=Path("runs"), learning_rate=np.float32(0.5), weight_decay=np.float64(0.5))
    assert (config.output_dir, type(config.learning_rate), type(config.weight_decay)) == ("runs", float, float)


def test_something_else_than_a_mapping_is_refused():
    with pytest.raises(ValueError, match="TrainingConfig or a dict"):
        TrainingConfig.of([1])
