"""The whole: from a condition to weights."""

import copy
import re

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.generator.heads import INITS
from hnkernels.pipeline import load_pipeline
from tests.generator.cases import EMBEDDING, HIDDEN, make_generator, same, tiny_layers, trained_generator
from tests.models import tiny_unet

PARTS = ("encoder", "generator", "decoder")


def test_the_line_as_written():
    gen = hn.WeightHypernetwork(target_layers=["attn1", "attn2"], embedding_dim=768, hidden_dim=1024)
    assert len(gen.layers) == 128
    counts = {part: sum(p.numel() for p in getattr(gen, part).parameters()) for part in PARTS}
    assert counts == {"encoder": 14_172_928, "generator": 8_444_928, "decoder": 36_962_304}
    weights = gen.generate_weights(torch.randn(1, 77, 768))
    assert weights.sets == 1
    for layer in gen.layers:
        a, b = weights.factors(layer.name)
        assert a.shape == (1, 4, layer.in_features)
        assert b.shape == (1, layer.out_features, 4)
    assert gen.listing().splitlines()[-1] == "128 layers, 797,184 generated values"


@pytest.mark.parametrize("model", ["sd21", "sdxl"])
def test_other_models_by_name(model):
    gen = hn.WeightHypernetwork(hidden_dim=8, embedding_dim=4, model=model)
    assert gen.generate_weights(torch.randn(2, 4)).sets == 2
    assert len(gen.layers) == {"sd21": 128, "sdxl": 560}[model]


def test_a_pipeline_is_read_and_not_kept():
    pipe = load_pipeline(TINY_SD)
    gen = hn.WeightHypernetwork("attn2", hidden_dim=8, embedding_dim=96, model=pipe, projections=("k", "v"))
    assert {layer.in_features for layer in gen.layers} == {96}
    for layer in gen.layers:
        assert pipe.unet.get_submodule(layer.name).weight.shape == (layer.out_features, layer.in_features)
    kept = {id(p) for p in pipe.unet.parameters()}
    assert not kept & {id(p) for p in gen.parameters()}
    assert not any(isinstance(m, type(pipe.unet)) for m in gen.modules())


def test_options_reach_the_parts():
    gen = make_generator(
        target_layers=["mid", "down.block_0"],
        projections="v",
        rank={"mid": 3, "*": 1},
        head="basis",
        init="hyperfan",
        pooling="mean",
        latent_norm=False,
        rank_dropout=0.25,
        name="paint",
    )
    assert gen.layers == tiny_layers(["mid", "down.block_0"], {"mid": 3, "*": 1}, projections="v")
    assert gen.decoder.config == {
        "hidden_dim": HIDDEN, "head": "basis", "bases": 16, "init": "hyperfan", "rank_dropout": 0.25,
    }  # fmt: skip
    assert gen.encoder.config["pooling"] == "mean"
    assert not gen.encoder.config["latent_norm"]
    assert gen.provenance.name == "paint"


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("head", ["lora", "basis", "dense"])
def test_at_the_start_the_output_is_that_of_the_base_to_the_last_bit(head, init):
    gen = make_generator(head=head, init=init)
    weights = gen.generate_weights(["ink", "oil"])
    unet = tiny_unet()
    assert not any(delta.any() for delta in weights.dense().values())
    total = 0.0
    for layer in gen.layers:
        linear = unet.get_submodule(layer.name)
        x = torch.randn(2, 5, layer.in_features)
        y = hn.lowrank_linear(x, linear.weight, *weights.factors(layer.name), bias=linear.bias)
        assert torch.equal(y, torch.nn.functional.linear(x, linear.weight, linear.bias))
        total = total + y.square().sum()
    total.backward()
    moving = {"lora": "to_b", "basis": "bases_b", "dense": "to_delta"}[head]
    for shared in gen.decoder.heads.values():
        assert getattr(shared, moving).grad.any()


def loss_of(weights):
    return sum((1 + layer.rank) * (weights.dense(layer.name) - 0.1).square().mean() for layer in weights.layers)


@pytest.mark.parametrize("condition", ["features", "tokens", "tasks", "styles"])
@pytest.mark.parametrize("pooling", ["perceiver", "mean"])
@pytest.mark.parametrize("head", ["lora", "basis", "dense"])
def test_after_one_step_the_gradient_reaches_all_parts(head, pooling, condition):
    gen = make_generator(head=head, pooling=pooling)
    x = {
        "features": torch.randn(3, EMBEDDING),
        "tokens": torch.randn(3, 4, EMBEDDING),
        "tasks": torch.tensor([0, 1, 2]),
        "styles": ["ink", "chalk", {"oil": 0.5, "ink": 0.5}],
    }[condition]
    optimizer = torch.optim.SGD(gen.parameters(), lr=0.1)
    loss_of(gen(x)).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss_of(gen(x)).backward()
    others = {
        "features": ("task_table", "style_table", "nothing"),
        "tokens": ("task_table", "style_table", "nothing"),
        "tasks": ("pool", "style_table"),
        "styles": ("pool", "task_table"),
    }[condition]
    if condition == "features":
        others += ("queries",)  # they have one token to attend to, and so no choice
    for name, parameter in gen.named_parameters():
        if not any(other in name for other in others):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_a_few_steps_learn_to_tell_conditions_apart():
    gen = make_generator(target_layers="mid")
    optimizer = torch.optim.Adam(gen.parameters(), lr=3e-3)
    u, v = torch.randn(3, 16), torch.randn(3, 16)
    targets = {n: torch.einsum("gi,gj->gij", u, v[:, :d]) for n, d in ((x.name, x.in_features) for x in gen.layers)}
    losses = []
    for _ in range(300):
        weights = gen(["ink", "chalk", "oil"])
        loss = sum((weights.dense(name) - target).square().mean() for name, target in targets.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_a_latent_stands_for_a_condition():
    gen = trained_generator()
    x, mask = torch.randn(2, 4, EMBEDDING), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    latent = gen.encode(x, mask)
    assert latent.shape == (2, HIDDEN)
    assert same(gen.generate_weights(latent=latent), gen.generate_weights(x, mask))
    assert same(gen(x, mask), gen.generate_weights(x, mask))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either conditions x, with a mask if need be, or a latent"),
        ({"x": "ink", "latent": torch.zeros(1, HIDDEN)}, "give either conditions x"),
        ({"mask": torch.ones(1, 1), "latent": torch.zeros(1, HIDDEN)}, "give either conditions x"),
        ({"latent": torch.zeros(1, 3)}, r"latent must be \[B, 16\], not \[1, 3\]"),
        ({"x": torch.zeros(1, 5)}, "the encoder accepts 6"),
    ],
)
def test_impossible_conditions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_generator().generate_weights(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_layers": "attn3"}, "target_layers has 'attn3'"),
        ({"rank": 9}, r"rank is 9 at \S+, a weight \[8, \d+\]"),
        ({"model": "sd3"}, "model is 'sd3', which is not a known architecture"),
        ({"projections": "x"}, "projections must be some of q, k, v, out, not 'x'"),
        ({"head": "none"}, "head must be one of lora, basis, dense"),
        ({"init": "none"}, "init must be one of"),
        ({"pooling": "none"}, "pooling must be one of"),
        ({"hidden_dim": 0}, "hidden_dim must be"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_generator(**options)


@pytest.mark.parametrize("head", ["lora", "basis", "dense"])
@pytest.mark.parametrize("x", [torch.zeros(0, EMBEDDING), torch.zeros(0, 3, EMBEDDING), []])
def test_an_empty_batch_gives_no_sets(head, x):
    weights = make_generator(head=head).generate_weights(x)
    assert weights.sets == 0
    assert all(delta.shape == (0, x.out_features, x.in_features) for x, delta in zip(
        weights.layers, weights.dense().values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("head", ["lora", "basis", "dense"])
def test_it_works_in_half_precision(head):
    gen = trained_generator(head=head)
    exact = gen.generate_weights(["ink", "oil"])
    low = gen.to(torch.bfloat16).generate_weights(["ink", "oil"])
    assert low.dtype == torch.bfloat16
    for name, delta in exact.dense().items():
        # bf16 has 8 bits; some thirty operations on the way, and a product of two factors
        assert (low.dense(name).float() - delta).norm() < 0.2 * delta.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert gen.float().generate_weights("ink").dtype == torch.bfloat16


def test_generating_twice_gives_the_same_and_leaves_the_random_state():
    gen = trained_generator(rank_dropout=0.5)
    state = torch.get_rng_state()
    first, second = gen("ink"), gen("ink")
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)
    assert not same(gen.train()("ink"), first)


def test_a_seed_makes_the_same_network():
    def parameters():
        torch.manual_seed(3)
        return make_generator().state_dict()

    first, second = parameters(), parameters()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_copy_generates_the_same():
    gen = trained_generator()
    assert same(copy.deepcopy(gen)("ink"), gen("ink"))


# Parts of one's own


class MyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, HIDDEN)

    def forward(self, x, mask=None):
        return self.linear(x)


class MyGenerator(nn.Module):
    layers = nn.ModuleList()  # its own affair
    config = None

    def __init__(self, count):
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, 1, HIDDEN))

    def forward(self, latent):
        return latent + self.table


class MyDecoder(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.of = layers

    def forward(self, features):
        sets = features.shape[1]
        factors = {
            x.name: (torch.ones(sets, x.rank, x.in_features), torch.ones(sets, x.out_features, x.rank)) for x in self.of
        }
        return hn.GeneratedWeights.from_factors(self.of, factors)


@pytest.mark.parametrize(
    "parts",
    [
        {"encoder": MyEncoder()},
        {"generator": MyGenerator(56)},
        {"decoder": MyDecoder(tiny_layers())},
        {"encoder": MyEncoder(), "generator": MyGenerator(56), "decoder": MyDecoder(tiny_layers())},
    ],
    ids=["encoder", "generator", "decoder", "all"],
)
def test_every_part_can_be_replaced_and_saving_says_that_it_cannot(parts, tmp_path):
    gen = make_generator(**parts)
    weights = gen(torch.randn(3, 2 if "encoder" in parts else EMBEDDING))
    assert weights.sets == 3
    assert weights.layers == gen.layers
    part = next(iter(parts))
    path = tmp_path / "g.safetensors"
    with pytest.raises(
        hn.CheckpointError, match=f"g.safetensors: cannot hold the {part}, a {type(parts[part]).__name__}, "
    ):
        gen.save(path)
    assert not path.exists()


def test_parts_with_other_options_are_kept_with_them(tmp_path):
    layers = tiny_layers()
    gen = make_generator(
        encoder=hn.HypernetworkEncoder(3, HIDDEN, "mean", latent_norm=False),
        generator=hn.WeightGenerator(HIDDEN, layers, depth=1),
        decoder=hn.HypernetworkDecoder(HIDDEN, layers, "basis", bases=3),
    )
    gen.save(tmp_path / "g.safetensors")
    loaded = hn.WeightHypernetwork.load(tmp_path / "g.safetensors")
    assert [getattr(loaded, p).config for p in PARTS] == [getattr(gen, p).config for p in PARTS]
    x = torch.randn(2, 3)
    assert same(loaded(x), gen(x))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the HypernetworkDecoder is for other layers or ranks"):
        make_generator(decoder=hn.HypernetworkDecoder(HIDDEN, tiny_layers("attn1")))
    with pytest.raises(ValueError, match="the WeightGenerator is for other layers or ranks"):
        make_generator(generator=hn.WeightGenerator(HIDDEN, tiny_layers(rank=1)))
    with pytest.raises(ValueError, match=r"the parts have different hidden_dim: {'HypernetworkEncoder': 8, "):
        make_generator(encoder=hn.HypernetworkEncoder(EMBEDDING, 8))


def test_an_empty_sequence_is_a_part_too():
    gen = make_generator(encoder=nn.Sequential())  # which is false in a condition
    latent = torch.randn(2, HIDDEN)
    assert isinstance(gen.encoder, nn.Sequential)
    assert gen(latent=latent).sets == 2


def test_a_decoder_that_makes_something_else_is_refused():
    with pytest.raises(ValueError, match="the decoder must return GeneratedWeights, not Tensor"):
        make_generator(decoder=nn.Identity())("ink")


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", ["lora", "basis", "dense"])
def test_a_saved_network_comes_back_to_the_last_bit(head, dtype, tmp_path):
    gen = trained_generator(head=head, rank={"attn1": 3, "*": 2}, name="paint", rank_dropout=0.1).to(dtype)
    gen.provenance.step = 7
    path = tmp_path / "g.safetensors"
    gen.train().save(path)
    state = torch.get_rng_state()
    loaded = hn.WeightHypernetwork.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert loaded.layers == gen.layers
    assert loaded.provenance == gen.provenance
    assert [getattr(loaded, p).config for p in PARTS] == [getattr(gen, p).config for p in PARTS]
    theirs = loaded.state_dict()
    assert theirs.keys() == gen.state_dict().keys()
    assert all(torch.equal(value, theirs[name]) and value.dtype == dtype for name, value in gen.state_dict().items())
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    assert not any(b.is_meta for b in loaded.buffers())
    assert same(loaded(["ink", {"oil": 0.3}]), gen.eval()(["ink", {"oil": 0.3}]))
    loss_of(loaded.train()("ink")).backward()
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


def test_a_frozen_network_can_be_saved_and_a_file_replaced(tmp_path):
    path = tmp_path / "g.safetensors"
    make_generator(hidden_dim=8).save(path)
    gen = make_generator().requires_grad_(False)
    gen.save(str(path))
    assert same(hn.WeightHypernetwork.load(str(path))("ink"), gen("ink"))


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "g.safetensors"
    gen = make_generator()
    gen.encoder.half()
    with pytest.raises(
        hn.CheckpointError, match="could not be read back: the parameters must be of one floating dtype"
    ):
        gen.save(path)
    gen = make_generator()
    gen.decoder = hn.HypernetworkDecoder(HIDDEN, tiny_layers("attn1"))
    with pytest.raises(hn.CheckpointError, match="could not be read back: the tensor 'decoder"):
        gen.save(path)
    gen = make_generator()
    with torch.no_grad():
        gen.encoder.style_table[0, 0] = float("nan")
    with pytest.raises(hn.CheckpointError, match=r"has NaN or infinite values in 'encoder.style_table'"):
        gen.save(path)
    with pytest.raises(hn.CheckpointError, match=re.escape("the extension is not accepted; use .safetensors")):
        make_generator().save(tmp_path / "g.pt")
    with pytest.raises(hn.CheckpointError, match="on the meta device"):
        make_generator().to("meta").save(path)
    assert not list(tmp_path.iterdir())
