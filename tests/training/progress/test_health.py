"""What a network says of itself: how far its weights have moved, and which units no longer act."""

import math

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.training.progress.health import Health
from tests.models import relative_error


def start_of(net):
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


def make(**options):
    torch.manual_seed(0)
    return hn.Hypernetwork((8, 12), **options).eval()


def contexts(rows=40, width=8):
    return {width: torch.randn(rows, width, generator=torch.Generator().manual_seed(1))}


def test_every_mlp_is_told_how_far_it_has_moved():
    net = make()
    start = start_of(net)
    assert Health.of(net, start).parts.keys() == {"8.k", "8.v", "12.k", "12.v"}
    assert all(part.change == 0 for part in Health.of(net, start).parts.values())
    with torch.no_grad():
        for parameter in net[8][1].parameters():
            parameter.add_(torch.randn_like(parameter))
    parts = Health.of(net, start).parts
    now, then = (
        torch.cat([s[f"layers.8.1.{k}"].flatten() for k in net[8][1].state_dict()]) for s in (net.state_dict(), start)
    )
    assert parts["8.v"].change == pytest.approx(relative_error(now, then), rel=1e-6)
    assert [parts[name].change for name in ("8.k", "12.k", "12.v")] == [0, 0, 0]


def test_the_change_of_weights_that_were_zero_is_their_norm():
    net = hn.Hypernetwork((4,), layer_structure=(1, 1), activation=None, init="identity")
    start = start_of(net)
    assert Health.of(net, start).parts["4.k"].change == 0
    with torch.no_grad():
        net[4][0].linear[0].bias.fill_(3)
    assert Health.of(net, start).parts["4.k"].change == pytest.approx(6)


def test_half_precision_weights_are_compared_exactly():
    net = make().half()
    start = start_of(net.float())
    assert Health.of(net.half(), start).parts["8.k"].change == 0


def test_weights_that_are_not_finite_show():
    net = make()
    start = start_of(net)
    with torch.no_grad():
        net[8][0].linear[0].weight[0, 0] = torch.inf
    assert not math.isfinite(Health.of(net, start).parts["8.k"].change)


def test_a_weight_hypernetwork_is_told_by_its_parts():
    gen = hn.WeightHypernetwork("attn2.v", embedding_dim=8, hidden_dim=8, rank=2)
    start = start_of(gen)
    with torch.no_grad():
        next(gen.decoder.parameters()).add_(1)
    parts = Health.of(gen, start, contexts()).parts
    assert parts.keys() == {"encoder", "generator", "decoder"}
    assert (parts["encoder"].change, parts["generator"].change) == (0, 0)
    assert parts["decoder"].change > 0
    assert all(math.isnan(part.dead) and math.isnan(part.saturated) for part in parts.values())


def test_units_that_are_zero_for_all_contexts_are_dead():
    net = make(activation="relu")
    with torch.no_grad():
        net[8][0].linear[0].weight.zero_()
        net[8][0].linear[0].bias[:4] = -1
        net[8][0].linear[0].bias[4:] = 1
    parts = Health.of(net, start_of(net), contexts()).parts
    assert parts["8.k"].dead == 4 / 16
    assert parts["8.v"].dead == 0
    assert math.isnan(parts["8.k"].saturated)
    assert math.isnan(parts["12.k"].dead)


@pytest.mark.parametrize(
    ("activation", "low", "high", "dead", "saturated"),
    [
        ("tanh", -3, 3, None, 1),
        ("tanh", -2, 2, None, 0),
        ("sigmoid", -5, 5, None, 1),
        ("sigmoid", -4, 4, None, 0),
        ("hardtanh", -1, 1, None, 1),
        ("hardsigmoid", -3, 3, None, 1),
        ("softsign", -200, 200, None, 1),
        ("relu6", -1, 7, 0.5, 0.5),
        ("hardswish", -4, 4, 0.5, None),
        ("swish", -4, 4, 0.5, None),
        ("softshrink", 0.4, 0.6, 0.5, None),
        ("hardshrink", 0.4, 0.6, 0.5, None),
        ("silu", -9, 9, None, None),
        ("leakyrelu", -9, 9, None, None),
        (None, -9, 9, None, None),
    ],
)
def test_which_units_count_follows_from_the_activation(activation, low, high, dead, saturated):
    net = make(activation=activation)
    with torch.no_grad():
        for mlp in net[8]:
            mlp.linear[0].weight.zero_()
            mlp.linear[0].bias[::2], mlp.linear[0].bias[1::2] = low, high
    part = Health.of(net, start_of(net), contexts()).parts["8.v"]
    for share, expected in ((part.dead, dead), (part.saturated, saturated)):
        assert math.isnan(share) if expected is None else share == expected


def test_a_unit_that_answers_to_more_than_one_context_in_a_hundred_is_not_saturated():
    net = make(activation="tanh")
    with torch.no_grad():
        net[8][0].linear[0].weight.fill_(1)
    at_limit, free = torch.ones(98, 8), torch.zeros(2, 8)
    assert Health.of(net, start_of(net), {8: torch.cat([at_limit, free])}).parts["8.k"].saturated == 0
    assert Health.of(net, start_of(net), {8: torch.cat([at_limit, free[:0]])}).parts["8.k"].saturated == 1


def test_deeper_layers_see_what_the_network_gives_them():
    net = make(layer_structure=(1, 2, 2, 1), layer_norm=True, dropout_structure=(0, 0.5, 0, 0)).train()
    seen = []
    mlp = net[8][0]
    with torch.no_grad():
        mlp.layers()[1].linear.bias.fill_(-3)
    mlp.linear[5].register_forward_hook(lambda module, args, output: seen.append(output))
    rows = contexts()
    part = Health.of(net, start_of(net), rows).parts["8.k"]
    assert net.training
    mlp.eval()(rows[8])
    assert part.dead == (seen[-1] == 0).all(0).float().sum().item() / 32


def test_contexts_may_have_more_dimensions_another_dtype_or_no_rows():
    net = make(activation="relu").half()
    assert Health.of(net, start_of(net), {8: torch.randn(2, 5, 8)}).parts["8.k"].dead >= 0
    assert math.isnan(Health.of(net, start_of(net), {8: torch.zeros(0, 8)}).parts["8.k"].dead)


def test_a_network_without_hidden_units_has_none_to_tell_of():
    net = make(layer_structure=(1, 1), activate_output=True)
    assert math.isnan(Health.of(net, start_of(net), contexts()).parts["8.k"].dead)


def test_measuring_leaves_everything_as_it_was():
    net = make(activation="rrelu").train()
    before, state = start_of(net), torch.random.get_rng_state()
    Health.of(net, before, contexts())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert net.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("start", "given", "message"),
    [
        ({}, None, r"layers\.8\.0\.linear\.0\.weight is missing; give its own state_dict"),
        ("wider", None, r"is \[20, 10\], not \[16, 8\]"),
        (None, {8: torch.zeros(3, 7)}, r"contexts\[8\] must be \[N, 8\], not \[3, 7\]"),
        (None, {8: torch.tensor(1.0)}, r"contexts\[8\] must be \[N, 8\], not \[\]"),
    ],
)
def test_what_does_not_fit_is_refused(start, given, message):
    net = make()
    if start == "wider":
        start = {key.replace(".10.", ".8."): t for key, t in hn.Hypernetwork((10,)).state_dict().items()}
    with pytest.raises(ValueError, match=message):
        Health.of(net, start_of(net) if start is None else start, given)


def test_a_row_has_the_columns_it_says():
    health = Health.of(make(), start_of(make()), contexts())
    assert health.columns()[:3] == ("8.k.change", "8.k.dead", "8.k.saturated")
    assert tuple(health.row(7)) == ("step", *health.columns())
    assert health.row(7)["step"] == 7


def test_a_network_of_frozen_modules_has_not_moved():
    assert Health.of(nn.Sequential(nn.ReLU()), {}).parts["0"].change == 0
