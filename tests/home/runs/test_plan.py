"""What a run will take, and what is wrong with it, each fault at its field."""

import dataclasses

import pytest

from hnkernels.assets import TINY_SD
from hnkernels.home.folder import Home
from hnkernels.home.runs.plan import Fault, plan, side_of
from hnkernels.home.runs.request import RunRequest
from hnkernels.home.sample_data import write_sample_data
from hnkernels.training.settings import settings


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("home"))
    home.make()
    write_sample_data(home)
    return RunRequest(str(TINY_SD), str(home.dataset("handwriting")), "style")


def test_it_counts_what_will_be(request_):
    found = plan(dataclasses.replace(request_, training={"batch_size": 8, "max_epochs": 3, "validation_split": 32}))
    # An MLP d → 2d → d with biases for K and for V, for each width of contexts.
    assert found.parameters == sum(2 * (4 * d * d + 3 * d) for d in (48, 80, 96))
    assert found.file_bytes == 4 * found.parameters
    assert found.pictures == 256
    assert found.steps == 3 * (256 - 32) // 8


def test_the_steps_end_where_the_settings_say(request_):
    assert plan(dataclasses.replace(request_, training={"max_steps": 7})).steps == 7


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"training": {"batch_size": 0}}, "batch_size", "batch_size must be an integer >= 1, not 0"),
        ({"training": {"learning_rate": "x"}}, "learning_rate", "cannot read 'x' in the schedule"),
        ({"training": {"min_timestep": 5, "max_timestep": 3}}, "min_timestep", "the first must be lower"),
        ({"training": {"optimizer": "adamwx"}}, "optimizer", "adamwx"),
        ({"training": {"bath_size": 1}}, "network", "did you mean 'batch_size'"),
        ({"data": "/nowhere"}, "data", "/nowhere is not a folder"),
        ({"model": "/nowhere"}, "model", "/nowhere is not a diffusers pipeline"),
        ({"network": {"activation": "x"}}, "network", "activation 'x' is unknown"),
        ({"network": {"activatio": "x"}}, "network", "does not know"),
        ({"kind": "x"}, "network", "a network's kind must be one of"),
        ({"name": " "}, "name", "the network needs a name"),
        ({"model_dtype": "fp7"}, "model", "model_dtype must be one of"),
        ({"training": {"validation_split": 300}}, "validation_split", "300"),
    ],
)
def test_a_fault_names_its_field(request_, changes, field, said):
    with pytest.raises(Fault, match=said.replace("(", r"\(")) as error:
        plan(dataclasses.replace(request_, **changes))
    assert error.value.field == field


def test_every_setting_is_described():
    for setting in settings().values():
        assert setting.help, setting.name
        assert "  " not in setting.help
    assert settings()["batch_size"].low == 1
    assert settings()["tag_dropout"].high == 1
    assert settings()["loss_type"].choices == ("l2", "huber", "smooth_l1")
    assert settings()["snr_gamma"].optional
    assert settings()["target_layers"].kind == "choices"


def test_the_size_of_pictures_is_the_models(tmp_path):
    assert side_of(TINY_SD) == 32
    with pytest.raises(ValueError, match="does not say how large its pictures are"):
        side_of(tmp_path)
