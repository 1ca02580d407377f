"""Interpolation and averages of networks."""

import pytest
import torch

import hnkernels as hn
from tests.models import make_net, randomise


def network(name="one", dtype=torch.float32, **options):
    net = hn.Hypernetwork((4, 8), **{"activation": "silu", "layer_norm": True, **options}, name=name)
    randomise(net)
    return net.to(dtype).eval()


def same(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("t", [0.25, 0.5, -0.5, 1.7])
def test_interpolation_mixes_every_parameter(t):
    a, b = network(), network("two")
    mixed = hn.interpolate(a, b, t)
    assert mixed.state_dict().keys() == a.state_dict().keys()
    for key, tensor in mixed.state_dict().items():
        exact = (1 - t) * a.state_dict()[key].double() + t * b.state_dict()[key].double()
        assert torch.equal(tensor, exact.float())


def test_the_ends_are_the_networks_themselves():
    a, b = network(), network("two")
    assert same(hn.interpolate(a, b, 0), a)
    assert same(hn.interpolate(a, b, 1), b)


def test_the_result_is_as_if_loaded_from_a_file():
    a, b = network().train(), network("two", init="identity")
    before = [p.detach().clone() for p in a.parameters()]
    a.provenance.step = 100
    a.set_multiplier(0.3)
    mixed = hn.interpolate(a, b, 0.25)
    assert (mixed.training, mixed[4][0].multiplier, mixed.provenance.step) == (False, 1.0, 0)
    assert mixed.provenance.name == "0.75 one + 0.25 two"
    assert mixed.config == a.config
    assert all(p.requires_grad for p in mixed.parameters())
    assert all(map(torch.equal, a.parameters(), before))


def test_the_base_model_is_kept_where_all_agree():
    a, b = network(), network()
    for net in (a, b):
        net.provenance.sd_checkpoint, net.provenance.sd_checkpoint_name = "abcd", "sd15"
    assert hn.average([a, b]).provenance.sd_checkpoint_name == "sd15"
    b.provenance.sd_checkpoint = "ef01"
    origin = hn.average([a, b]).provenance
    assert (origin.sd_checkpoint, origin.sd_checkpoint_name) == (None, None)


@pytest.mark.parametrize(("weights", "shares"), [(None, (1 / 3, 1 / 3, 1 / 3)), ((2, 1, 1), (0.5, 0.25, 0.25))])
def test_averages_are_weighted_means(weights, shares):
    nets = [network() for _ in range(3)]
    mixed = hn.average(nets, weights)
    for key, tensor in mixed.state_dict().items():
        exact = sum(share * net.state_dict()[key].double() for share, net in zip(shares, nets, strict=True))
        torch.testing.assert_close(tensor, exact.float(), rtol=1e-6, atol=1e-8)


def test_an_average_may_subtract():
    a, b = network(dtype=torch.float64), network(dtype=torch.float64)
    torch.testing.assert_close(
        torch.cat([p.flatten() for p in hn.average([a, b], (2, -1)).parameters()]),
        torch.cat([(2 * p - q).flatten() for p, q in zip(a.parameters(), b.parameters(), strict=True)]),
    )


def test_the_wider_dtype_is_kept():
    half, single = network(dtype=torch.float16), network()
    assert {p.dtype for p in hn.average([half, half]).parameters()} == {torch.float16}
    assert {p.dtype for p in hn.average([half, single]).parameters()} == {torch.float32}


def test_writings_of_the_same_structure_are_equal():
    a = network(activation=None, layer_structure=(1, 2, 1), activate_output=True, dropout_structure=None)
    b = network(activation="linear", layer_structure=(1.0, 2.0, 1.0), dropout_structure=(0.5, 0, 0))
    assert hn.interpolate(a, b, 0.5).sizes == (4, 8)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"layer_structure": (1, 1.5, 1), "activation": "relu"}, r"layer_structure \(1, 2, 1\) .* \(1, 1.5, 1\)"),
        ({"activation": "relu"}, "activation silu and 'two' has relu"),
        ({"layer_norm": False}, "layer_norm True and 'two' has False"),
        ({"activate_output": True}, "activate_output False and 'two' has True"),
        ({"dropout_structure": (0, 0.1, 0)}, r"dropouts \(0.0, 0.0\) and 'two' has \(0.1, 0\)"),
    ],
)
def test_the_first_difference_is_named(options, difference):
    a, b = network(), network("two", **options)
    for call in (lambda: hn.interpolate(a, b, 0.5), lambda: hn.average([a, a, b])):
        with pytest.raises(ValueError, match=f"only networks of equal structure can be mixed; 'one' has {difference}"):
            call()


def test_networks_of_one_name_are_told_apart_by_their_number():
    with pytest.raises(ValueError, match=r"the first has sizes \(4,\) and number 2 has \(4, 8\)"):
        hn.interpolate(make_net((4,)), make_net((4, 8)), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda: [], None), "0 networks and 0 weights are given"),
        ((lambda: [network()], [1, 2]), "1 networks and 2 weights are given"),
        ((lambda: [network(), network()], [1, -1]), r"the weights \(1, -1\) add up to 0"),
        ((lambda: [network()], [float("inf")]), "a weight must be a finite number, not inf"),
        ((lambda: [network(), "b.pt"], None), "only a Hypernetwork can be mixed, not str"),
        ((lambda: network(), None), "nets must be a list of Hypernetworks, not one Hypernetwork"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    nets, weights = arguments
    with pytest.raises(ValueError, match=message):
        hn.average(nets(), weights)


@pytest.mark.parametrize("t", ["0.5", None, True, float("nan")])
def test_t_must_be_a_number(t):
    with pytest.raises(ValueError, match="t must be a finite number"):
        hn.interpolate(network(), network(), t)


def test_parameters_that_leave_the_dtype_are_refused():
    with pytest.raises(ValueError, match=r"not finite in torch.float16"):
        hn.interpolate(network(dtype=torch.float16), network(dtype=torch.float16), 1e7)


def test_a_network_without_data_is_refused():
    with torch.device("meta"):
        empty = hn.Hypernetwork((4,))
    with pytest.raises(ValueError, match="has no data, it is on the meta device"):
        hn.average([empty])
