"""What a run says of itself in its files."""

import json

from PIL import Image

import hnkernels as hn
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.example import Example
from hnkernels.training.families import family_of
from hnkernels.training.persistence.description import Description
from tests.training.nets import make_net, make_unet


def test_the_captions_are_counted_once_and_the_step_is_said_every_time():
    examples = [Example(Image.new("RGB", (8, 8)), caption) for caption in ("cat, red", "cat")]
    description, net = Description(family_of(make_unet()), None, TrainingConfig(), examples, 10), make_net()
    for step in (1, 5):
        description.put_on(net, step)
        training = net.provenance.training
        assert (training["ss_steps"], training["ss_max_train_steps"]) == (str(step), "10")
        assert json.loads(training["ss_tag_frequency"]) == {"pictures": {"cat": 2, "red": 1}}
        assert training["ss_num_train_images"] == "2"
        examples.clear()


def test_of_a_model_of_no_known_family_nothing_is_said():
    net = hn.Hypernetwork((8,))
    Description(None, None, TrainingConfig(), [], 10).put_on(net, 1)
    assert not net.provenance.training
