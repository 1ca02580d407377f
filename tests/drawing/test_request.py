"""A request is refused with a sentence before anything is loaded, or is what its prompt and its networks say."""

from dataclasses import replace
from pathlib import Path

import pytest

from hnkernels.drawing.request import DrawRequest, NetworkUse, SettingError

INK = NetworkUse(Path("ink.pt"), "ink", 0.5)
ASKS = DrawRequest(Path("model"), "digit seven", networks=(INK,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "prompt must be a text of at most 10000 characters, not None"),
        ({"prompt": "x" * 10_001}, "prompt must be a text"),
        ({"negative": 3}, "negative must be a text"),
        ({"seed": -1}, "seed must be an integer from 0 to 9223372036854775807, not -1"),
        ({"seed": 2**63}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"steps": 0}, "steps must be an integer from 1 to 1000, not 0"),
        ({"steps": "20"}, "steps must be an integer"),
        ({"batch": 17}, "batch must be an integer from 1 to 16, not 17"),
        ({"width": 4}, "width must be an integer from 8 to 2048, not 4"),
        ({"height": 4096}, "height must be an integer from 8 to 2048, not 4096"),
        ({"height": 36}, "height must be a multiple of 8, not 36"),
        ({"guidance": float("nan")}, "guidance must be a finite number, not nan"),
        ({"guidance": float("inf")}, "guidance must be a finite number, not inf"),
        ({"guidance": "7"}, "guidance must be a finite number"),
        ({"networks": (replace(INK, strength=float("nan")),)}, "strength must be a finite number, not nan"),
        ({"networks": (replace(INK, strength=None),)}, "strength must be a finite number, not None"),
        ({"networks": (INK, replace(INK, file=Path("b.pt")))}, "ink.pt and b.pt are both named 'ink'"),
        ({"prompt": "a <hypernet:oil>"}, "the prompt names the hypernetwork oil; choose it as well"),
        ({"prompt": "a <hypernet:ink:much>"}, "is not a hypernetwork tag"),
        ({"prompt": "a <hypernet:ink"}, "is not closed"),
        ({"prompt": "<hypernet:ink> <hypernet:ink(1a2b3c4d)>"}, "names a hypernetwork twice, once with its hash"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ValueError, match=r"^") as refused:
        replace(ASKS, **changes).check()
    assert message in str(refused.value)


def test_a_fault_names_its_setting():
    with pytest.raises(SettingError) as refused:
        replace(ASKS, steps=0).check()
    assert refused.value.setting == "steps"


def test_what_is_at_the_limits_is_accepted():
    replace(ASKS, seed=2**63 - 1, steps=1000, batch=16, width=8, height=2048, guidance=0).check()


def test_tags_set_strengths_and_bring_networks_that_are_known():
    asks = replace(ASKS, prompt="a <hypernet:ink:0.25> b <hypernet:oil>")
    called = asks.called({"oil": Path("oil.pt"), "pen": Path("pen.pt")}, "choose it as well")
    assert called.networks == (replace(INK, strength=0.25), NetworkUse(Path("oil.pt"), "oil", 1.0))
    assert called.text == "a b"


def test_a_tag_with_the_hash_of_old_prompts_calls_the_network():
    (use,) = replace(ASKS, prompt="<hypernet:ink(1a2b3c4d):0.75>").called({}, "").networks
    assert use.strength == 0.75


def test_one_network_is_changed_and_what_tags_say_of_others_stays():
    two = replace(ASKS, networks=(INK, NetworkUse(Path("oil.pt"), "oil")), prompt="a <hypernet:ink:2> <hypernet:oil:3>")
    changed = two.with_network("oil", strength=0.0)
    assert [use.strength for use in changed.networks] == [2.0, 0.0]
    assert changed.prompt == "a"
    with pytest.raises(ValueError, match="there is no network 'pen' in the picture; there are: ink"):
        ASKS.with_network("pen", strength=1.0)


def test_parts_multiply_the_strength_of_the_whole():
    assert INK.acting == 0.5
    assert replace(INK, parts={"down": 0.5}).acting == {"*": 0.5, "down": 0.5}


def test_pictures_of_a_batch_have_seeds_one_after_the_other():
    assert replace(ASKS, seed=7, batch=3).seeds() == [7, 8, 9]
    assert replace(ASKS, seed=2**63 - 1, batch=2).seeds() == [2**63 - 1, 0]


def test_what_is_kept_of_a_request_names_no_place():
    kept = replace(ASKS, model=Path("/a/secret/model"), networks=(replace(INK, file=Path("/a/secret/ink.pt")),))
    assert "secret" not in str(kept.to_json())
    assert kept.to_json()["model"] == "model"
    assert replace(kept, model_name="mine").to_json()["model"] == "mine"
