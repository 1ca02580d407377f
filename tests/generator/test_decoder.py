"""The decoder: heads shared by shape, dropout on rank, and models too large for the dense head."""

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.generator.architectures import projections_of
from hnkernels.generator.targets import by_shape, select_layers
from tests.generator.cases import HIDDEN, tiny_layers
from tests.models import randomise

HEADS = ("lora", "basis", "dense")


def make(head="lora", **options):
    layers = tiny_layers(rank=None if head == "dense" else {"attn1": 3, "*": 2})
    decoder = hn.HypernetworkDecoder(HIDDEN, layers, head, **options)
    randomise(decoder)
    return decoder


def features(decoder, batch=3):
    return torch.randn(len(decoder.layers), batch, HIDDEN)


@pytest.mark.parametrize("head", HEADS)
def test_layers_of_one_shape_share_a_head_that_is_called_once(head):
    decoder = make(head)
    calls = []
    for name, module in decoder.heads.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    decoder(features(decoder))
    shapes = by_shape(decoder.layers)
    assert calls == ["x".join(map(str, shape)) for shape in shapes]
    assert len(shapes) < len(decoder.layers) / 4


@pytest.mark.parametrize("head", HEADS)
def test_every_layer_gets_what_its_own_features_say(head):
    decoder = make(head)
    x = features(decoder)
    weights = decoder(x)
    assert weights.layers == decoder.layers
    assert weights.sets == 3
    for row, layer in zip(x, decoder.layers, strict=True):
        a, b = decoder.heads["x".join(map(str, layer.shape))](row[None])
        for made, expected in zip(weights.factors(layer.name), (a[0], b[0]), strict=True):
            torch.testing.assert_close(made, expected)
            assert made.is_contiguous()


@pytest.mark.parametrize("head", HEADS)
def test_an_empty_batch_gives_no_sets(head):
    decoder = make(head)
    assert decoder(features(decoder, 0)).sets == 0


def test_dropout_leaves_out_whole_ranks_by_layer_and_sample():
    decoder = make(rank_dropout=0.25)
    x = features(decoder, 200)
    dropped, whole = decoder.train()(x), decoder.eval()(x)
    patterns = []
    for layer in decoder.layers:
        (a, b), (a0, b0) = dropped.factors(layer.name), whole.factors(layer.name)
        assert torch.equal(b, b0)
        kept = (a != 0).any(-1)
        torch.testing.assert_close(a, a0 * kept[..., None] / 0.75)
        patterns.append(kept[:, :2])
    patterns = torch.stack(patterns).float()  # [layers, B, 2]
    assert patterns.mean() == pytest.approx(0.75, abs=0.01)  # 56 · 200 · 2 draws: a standard deviation of 0.003
    assert patterns.mean(0).max() < 1, "no rank is kept in all layers at once"
    assert patterns.mean(1).max() < 0.9, "nor in all samples"


def test_dropout_leaves_the_mean_as_it_is():
    decoder = make(rank_dropout=0.5)
    x = features(decoder, 1).expand(-1, 4000, -1)
    name = decoder.layers[0].name
    a = decoder.train()(x).factors(name)[0].mean(0)
    expected = decoder.eval()(x[:, :1]).factors(name)[0][0]
    assert (a - expected).norm() < 0.1 * expected.norm()  # 4000 draws of 0 or 2: a standard deviation of 0.016


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_without_dropout_the_random_state_is_not_touched(p, training):
    decoder = make(rank_dropout=p).train(training)
    x = features(decoder)
    state = torch.get_rng_state()
    first, second = decoder(x), decoder(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first.factors(x.name)[0], second.factors(x.name)[0]) for x in decoder.layers)


def test_dropout_is_drawn_from_torchs_generator():
    decoder = make(rank_dropout=0.5).train()
    x = features(decoder)
    name = decoder.layers[0].name
    torch.manual_seed(7)
    first = decoder(x).factors(name)[0]
    torch.manual_seed(7)
    assert torch.equal(decoder(x).factors(name)[0], first)


def test_a_dense_head_for_a_large_model_is_refused_with_its_size():
    layers = select_layers(projections_of("sd15"), "*", None)
    values = sum(layer.out_features * layer.in_features for layer in layers)
    heads = sum(1024 * n * d for n, d, _ in by_shape(layers))
    message = (
        f"{values:,} values would be generated per sample, by heads of {heads:,} parameters .* GiB.*use head='lora'"
    )
    with pytest.raises(ValueError, match=message):
        hn.HypernetworkDecoder(1024, layers, "dense")
    with pytest.raises(ValueError, match="head 'dense' is for layers with a side of at most 64"):
        hn.WeightHypernetwork(head="dense")


def test_a_dense_head_needs_full_rank():
    with pytest.raises(ValueError, match=r"head 'dense' needs full rank, 8 at \S+, not 2"):
        hn.HypernetworkDecoder(HIDDEN, tiny_layers(), "dense")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, "head must be one of lora, basis, dense, not 'linear'"),
        ({"init": "xavier"}, "init must be one of hyperfan-in, hyperfan-out, hyperfan, not 'xavier'"),
        ({"bases": 0}, "bases must be an integer >= 1, not 0"),
        ({"hidden_dim": 0}, "hidden_dim must be an integer >= 1"),
        ({"rank_dropout": 1.0}, "rank_dropout must be at least 0 and below 1, not 1.0"),
        ({"rank_dropout": -0.1}, "rank_dropout must be"),
        ({"rank_dropout": float("nan")}, "rank_dropout must be"),
        ({"rank_dropout": True}, "rank_dropout must be"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hn.HypernetworkDecoder(**{"hidden_dim": HIDDEN, "layers": tiny_layers(), **options})


@pytest.mark.parametrize("shape", [(55, 3, HIDDEN), (56, 3, 8), (56, HIDDEN)])
def test_features_for_other_layers_are_refused(shape):
    with pytest.raises(ValueError, match=r"features must be \[56, B, 16\], one row per layer, not"):
        hn.HypernetworkDecoder(HIDDEN, tiny_layers())(torch.zeros(shape))


def test_the_positions_of_layers_are_not_part_of_the_state():
    assert isinstance(make().heads, nn.ModuleDict)
    assert all(key.startswith("heads.") for key in make().state_dict())
