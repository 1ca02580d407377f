"""The hypernetwork: one pair of MLPs per context width."""

import copy
import pickle
import warnings

import pytest
import torch

from hnkernels import Hypernetwork, HypernetworkMLP
from tests.models import make_net


def test_sizes_are_ascending_and_looked_up_by_width():
    net = Hypernetwork((12, 4, 8))
    assert net.sizes == tuple(net) == (4, 8, 12)
    assert len(net) == 3
    assert 8 in net
    assert 5 not in net
    assert "8" not in net
    mlp_k, mlp_v = net[8]
    assert mlp_k is not mlp_v
    assert all(isinstance(m, HypernetworkMLP) and m.dim == 8 for m in (mlp_k, mlp_v))


def test_an_unknown_width_is_a_key_error_that_lists_the_known_ones():
    with pytest.raises(KeyError, match="no MLPs for width 5; this hypernetwork has 4, 8"):
        Hypernetwork((4, 8))[5]


@pytest.mark.parametrize("sizes", [(), 320, (8, 8), None, "320", b"320", iter((8,))])
def test_sizes_must_be_one_or_more_different_widths(sizes):
    with pytest.raises(ValueError, match="one or more different widths"):
        Hypernetwork(sizes)


@pytest.mark.parametrize("size", [0, -4, 8.0, True, "8", [8], None])
def test_a_size_must_be_a_positive_whole_number(size):
    with pytest.raises(ValueError, match="positive integer"):
        Hypernetwork((size,))


@pytest.mark.parametrize("size", [2**25, 10**40])
def test_a_width_beyond_all_use_is_refused_before_memory_is_asked_for(size):
    with pytest.raises(ValueError, match=f"at most {2**24}"):
        Hypernetwork((size,))


@pytest.mark.parametrize("name", ["layer_norm", "activate_output", "allow_legacy_activations"])
@pytest.mark.parametrize("value", ["False", 0, None])
def test_a_switch_must_be_a_bool(name, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False, not {value!r}"):
        Hypernetwork((4,), **{name: value})


def test_a_name_must_be_a_text():
    with pytest.raises(ValueError, match="name must be a text, not 3"):
        Hypernetwork((4,), name=3)


@pytest.mark.parametrize("init", ["XavierNormal", "xavier_uniform", "KaimingUniform", "kaiming_normal"])
def test_inits_that_ruin_the_image_warn_and_name_the_way_out(init):
    with pytest.warns(UserWarning, match="without layer_norm .* init 'identity'"):
        Hypernetwork((4,), init=init)


@pytest.mark.parametrize(("init", "layer_norm"), [("normal", False), ("identity", False), ("KaimingNormal", True)])
def test_other_inits_do_not_warn(init, layer_norm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Hypernetwork((4,), init=init, layer_norm=layer_norm)


def test_the_multiplier_is_set_for_every_mlp():
    net = Hypernetwork((4, 8))
    net.set_multiplier(0.3)
    assert {m.multiplier for size in net for m in net[size]} == {0.3}


def test_it_is_an_ordinary_module():
    net = make_net((4, 8), activation="prelu", layer_norm=True)
    net.provenance.step = 7
    x = torch.randn(3, 8)
    before = [m(x) for m in net[8]]
    fresh = Hypernetwork((4, 8), activation="prelu", layer_norm=True).eval()
    fresh.load_state_dict(net.state_dict(), strict=True)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert all(torch.equal(m(x), y) for m, y in zip(other[8], before, strict=True))
    assert copy.deepcopy(net).provenance == net.provenance
    assert {p.dtype for p in copy.deepcopy(net).to(torch.bfloat16).parameters()} == {torch.bfloat16}


def test_k_and_v_start_from_different_draws():
    mlp_k, mlp_v = Hypernetwork((8,))[8]
    assert not torch.equal(mlp_k.linear[0].weight, mlp_v.linear[0].weight)


def test_its_name_and_sizes_are_printed():
    assert "name='ink', sizes=(4, 8)" in repr(Hypernetwork((8, 4), name="ink"))
