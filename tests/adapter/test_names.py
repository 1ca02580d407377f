"""Adapters by name."""

import pytest
import torch

import hnkernels as hn
from tests.models import denoise, make_net


@pytest.fixture
def named(unet):
    first, second = make_net(activation="relu", name="ink"), make_net(activation="silu", name="chalk")
    hn.attach(unet, first, 0.5)
    hn.attach(unet, second, name="white chalk")
    return hn.adapters(unet)


def test_they_are_found_in_their_order(named, unet):
    assert list(named) == ["ink", "white chalk"]
    assert named["ink"].strength == 0.5
    assert "chalk" not in named
    assert len(named) == 2
    assert list(hn.adapters(unet)) == list(named)


def test_a_name_with_a_hash_as_in_old_prompts_is_that_before_it(named):
    assert named["ink(1a2b3c4d)"] is named["ink"]
    assert "ink(1a2b3c4d)" in named
    assert "chalk(1a2b3c4d)" not in named
    named.set("ink(1a2b3c4d)", 0.25)
    assert (named.active, named["ink"].strength) == (["ink"], 0.25)
    named.delete("ink(1a2b3c4d)", "ink")
    assert list(named) == ["white chalk"]


def test_a_network_without_a_name_of_its_own_is_numbered(unet):
    for _ in range(3):
        hn.attach(unet, make_net())
    assert list(hn.adapters(unet)) == ["hypernetwork", "hypernetwork_2", "hypernetwork_3"]


def test_a_name_that_is_taken_is_refused_and_nothing_is_attached(unet, named):
    with pytest.raises(hn.AdapterError, match="named 'ink' is on the model already; detach it, or give another name"):
        hn.attach(unet, make_net(), name="ink")
    assert list(named) == ["ink", "white chalk"]


def test_an_unknown_name_says_which_there_are(named):
    with pytest.raises(hn.AdapterError, match=r"no adapter named 'chlak' .* there are 'ink', 'white chalk'"):
        named["chlak"]
    assert named.get("chlak") is None
    for method in (named.enable, named.disable, named.delete, named.set):
        with pytest.raises(hn.AdapterError, match="no adapter named 'chlak'"):
            method("chlak")
    assert named.active == ["ink", "white chalk"]


def test_setting_chooses_and_weighs(named):
    named.set("white chalk", 0.25)
    assert named.active == ["white chalk"]
    assert named["white chalk"].strength == 0.25
    named.set(["ink", "white chalk"], [{"up": 0.1}, 0.2])
    assert named.active == ["ink", "white chalk"]
    assert [a.strength for a in named.values()] == [{"up": 0.1}, 0.2]
    named.set("ink")
    assert named["ink"].strength == {"up": 0.1}


def test_setting_with_a_mistake_changes_nothing(named):
    with pytest.raises(ValueError, match="strengths has 1 entries and names 2"):
        named.set(["ink", "white chalk"], [1.0])
    with pytest.raises(ValueError, match="must be a number"):
        named.set(["white chalk", "ink"], [0.3, "much"])
    assert [a.strength for a in named.values()] == [0.5, 1.0]
    assert named.active == ["ink", "white chalk"]


@torch.no_grad()
def test_switching_off_and_on(named, unet, x, text):
    both = denoise(unet, x, text)
    named.disable("ink")
    assert named.active == ["white chalk"]
    assert not torch.equal(denoise(unet, x, text), both)
    named.disable()
    off = denoise(unet, x, text)
    named.enable()
    assert torch.equal(denoise(unet, x, text), both)
    with pytest.raises(AttributeError):
        named["ink"].name = "white chalk"
    named.delete("white chalk", "ink", "ink")
    assert len(named) == 0
    assert torch.equal(denoise(unet, x, text), off)
