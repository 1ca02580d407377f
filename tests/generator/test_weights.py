"""Generated weights: scales, rows, norms, mixtures, LoRA files."""

import copy

import pytest
import torch

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.generator.architectures import projections_of
from hnkernels.generator.targets import fits, select_layers
from tests.generator.cases import make_weights, same, tiny_layers, trained_generator
from tests.models import UNET_TOLERANCE, copied, denoise, relative_error, tiny_unet

RANKS = {"attn1": 3, "*": 2}


@pytest.fixture
def weights():
    return make_weights(3, tiny_layers(rank=RANKS))


def close(actual, expected, tolerance=1e-12):
    assert actual.keys() == expected.keys()
    for name, delta in expected.items():
        assert relative_error(actual[name], delta) < tolerance


def test_the_factors_of_every_layer_are_there(weights):
    assert weights.sets == len(weights) == 3
    for layer in weights.layers:
        a, b = weights.factors(layer.name)
        assert a.shape == (3, layer.rank, layer.in_features)
        assert b.shape == (3, layer.out_features, layer.rank)
        assert a.is_contiguous()
        assert b.is_contiguous()
        assert weights.scales(layer.name) is None
        assert torch.equal(weights.dense(layer.name), b @ a)
    assert weights.index is None


def test_views_of_one_tensor_per_shape(weights):
    storages = {weights.factors(x.name)[0].untyped_storage().data_ptr() for x in weights.layers}
    assert len(storages) == len({x.shape for x in weights.layers})


@pytest.mark.parametrize("method", ["factors", "scales", "dense"])
def test_a_layer_that_is_not_there_is_named(weights, method):
    with pytest.raises(KeyError, match=r"no weights for 'mid_block'; there are 56 layers"):
        getattr(weights, method)("mid_block")


def test_they_say_what_they_are(weights):
    assert repr(weights) == "GeneratedWeights(3 sets for 56 layers, ranks 2 to 3, float64 on cpu)"
    single = make_weights(1).repeat(4)
    assert repr(single) == "GeneratedWeights(1 set for 56 layers, rank 2, float64 on cpu, for 4 rows)"


def test_groups_of_other_shapes_are_refused(weights):
    layers = tiny_layers("attn1.q")
    shape = layers[0].shape
    n, d, r = shape
    with pytest.raises(ValueError, match="the groups are of the shapes"):
        hn.GeneratedWeights(layers, {})
    with pytest.raises(ValueError, match="the groups are of the shapes"):
        hn.GeneratedWeights((), {})
    groups = {x.shape: (torch.ones(9, 1, r, d), torch.ones(9, 1, n, r)) for x in layers}
    with pytest.raises(ValueError, match="with the same G everywhere, not"):
        hn.GeneratedWeights(layers, groups)


# Scales


def test_a_number_scales_all(weights):
    scaled = weights.scaled(0.5).scaled(-3)
    close(scaled.dense(), {name: -1.5 * delta for name, delta in weights.dense().items()})
    assert weights.scales(weights.layers[0].name) is None, "the original is as it was"
    assert torch.equal(scaled.scales(weights.layers[0].name), torch.full((3,), -1.5, dtype=torch.float64))


def test_a_tensor_scales_every_set(weights):
    by_set = torch.tensor([0.0, 1.0, -2.0])
    scaled = weights.scaled(by_set)
    close(scaled.dense(), {name: by_set[:, None, None] * delta for name, delta in weights.dense().items()})
    assert torch.equal(weights.scaled(torch.tensor(2.0)).scales(weights.layers[0].name), torch.full((3,), 2.0).double())


def test_selectors_scale_some_and_multiply(weights):
    table = {"attn2": 0.5, "down.block_1": torch.tensor([1.0, 2.0, 3.0]), "*.to_v": -1}
    scaled = weights.scaled(table)
    for layer in weights.layers:
        expected = torch.ones(3, dtype=torch.float64)
        for selector, factor in table.items():
            if fits(layer, selector):
                expected = expected * factor
        untouched = not any(fits(layer, selector) for selector in table)
        assert (scaled.scales(layer.name) is None) == untouched
        torch.testing.assert_close(scaled.dense(layer.name), expected[:, None, None] * weights.dense(layer.name))


def test_scales_are_differentiable(weights):
    s = torch.ones(3, dtype=torch.float64, requires_grad=True)
    weights.scaled(s).penalty(l2=1.0).backward()
    assert (s.grad > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_not_rounded_to_half_precision(weights, dtype):
    scaled = weights.to(dtype).scaled(0.3)
    name = weights.layers[0].name
    assert torch.equal(scaled.scales(name), torch.full((3,), 0.3))
    assert scaled.dense(name).dtype == dtype


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", "a scale must be"),
        (float("nan"), "a scale must be a finite number"),
        (True, "a scale must be"),
        (torch.ones(2), r"a floating-point tensor \[3\], one per set, not torch.float32 \[2\]"),
        (torch.ones(3, 1), r"not torch.float32 \[3, 1\]"),
        (torch.ones(3, dtype=torch.int64), "not torch.int64"),
        ({"attn3": 1.0}, r"the scale has 'attn3', which fits none of the 56 layers; did you mean 'attn"),
        ({1: 1.0}, "the scale has 1, which is not a string"),
        ({"attn1": None}, "a scale must be"),
    ],
)
def test_impossible_scales_are_refused(weights, value, message):
    with pytest.raises(ValueError, match=message):
        weights.scaled(value)


# Rows and sets


def test_one_set_serves_several_rows(weights):
    assert weights.repeat(2).index.tolist() == [0, 0, 1, 1, 2, 2]
    assert weights.with_index([2, 0]).repeat(2).index.tolist() == [2, 2, 0, 0]
    assert weights.with_index([2, 0]).with_index(None).index is None
    assert weights.with_index(torch.tensor([1, 1], dtype=torch.int32)).index.dtype == torch.int64
    assert weights.with_index([]).index.tolist() == []
    assert weights.repeat(2).scaled(2.0).index.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("index", [[3], [-1], [0.5], [True], [[0]], 0, torch.zeros(2)])
def test_impossible_indices_are_refused(weights, index):
    with pytest.raises(ValueError, match=r"index must be \[S\] integers from 0 to 2, not"):
        weights.with_index(index)


@pytest.mark.parametrize("rows", [0, 1.0, True])
def test_impossible_numbers_of_rows_are_refused(weights, rows):
    with pytest.raises(ValueError, match="rows must be an integer >= 1"):
        weights.repeat(rows)


@pytest.mark.parametrize(
    ("which", "sets"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0, 2], [2, 0, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        (slice(0, 0), []),
    ],
)
def test_sets_are_chosen_like_rows_of_a_tensor(weights, which, sets):
    scaled = weights.scaled(torch.tensor([1.0, 2.0, 3.0])).repeat(2)
    chosen = scaled[which]
    assert chosen.sets == len(sets)
    assert chosen.index is None
    for name, delta in scaled.dense().items():
        assert torch.equal(chosen.dense(name), delta[sets])
        assert all(factor.is_contiguous() for factor in chosen.factors(name))


def test_a_set_that_is_not_there_is_refused(weights):
    for which in (3, [0, 5]):
        with pytest.raises(IndexError):
            weights[which]


def test_sets_are_iterated_over(weights):
    assert [same(one, weights[i]) for i, one in enumerate(weights)] == [True] * 3


# Norms and penalty


def test_norms_are_those_of_the_products(weights):
    scaled = weights.scaled({"attn1": torch.tensor([0.0, -2.0, 1.0])})
    for name, norm in scaled.norms().items():
        torch.testing.assert_close(norm, scaled.dense(name).norm(dim=(1, 2)))


def test_no_product_is_formed_for_norms_penalty_and_compression(monkeypatch):
    largest = []
    real = torch.Tensor.__matmul__

    def watched(x, y):
        product = real(x, y)
        largest.append(product[0].numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    weights = make_weights(2, select_layers(projections_of("sd15"), "down.block_0.attn1.k", 4), torch.float32)
    weights.norms()
    weights.penalty(l1=1.0, l2=1.0)
    weights.interpolate(weights, 0.5, rank=4)
    assert largest
    assert max(largest) <= 2 * 320 * 8  # two layers' or two sets' factors; a product has 320²


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_summed_in_fp32(weights, dtype):
    low = weights.to(dtype)
    exact = low.to(torch.float64)
    for name, norm in low.norms().items():
        assert norm.dtype == torch.float32
        torch.testing.assert_close(norm.double(), exact.dense(name).norm(dim=(1, 2)), rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(norm, low.norms()[name]) for name, norm in low.norms().items())


def test_the_gradient_of_a_zero_norm_is_zero():
    layers = tiny_layers("mid.q")
    a = torch.randn(2, 2, layers[0].in_features, requires_grad=True)
    b = torch.zeros(2, layers[0].out_features, 2, requires_grad=True)
    weights = hn.GeneratedWeights.from_factors(layers[:1], {layers[0].name: (a, b)})
    weights.norms()[layers[0].name].sum().backward()
    assert not a.grad.any()
    assert not b.grad.any()


def test_the_penalty_is_the_mean_square_of_the_products_and_the_mean_of_the_factors(weights):
    scaled = weights.scaled({"attn2": 0.5})
    entries = torch.cat([delta.flatten() for delta in scaled.dense().values()])
    values = torch.cat([f.flatten() for x in weights.layers for f in weights.factors(x.name)])
    torch.testing.assert_close(scaled.penalty(l2=3.0), 3 * entries.square().mean())
    torch.testing.assert_close(scaled.penalty(l1=0.2), 0.2 * values.abs().mean())
    torch.testing.assert_close(scaled.penalty(0.2, 3.0), 0.2 * values.abs().mean() + 3 * entries.square().mean())
    assert scaled.penalty() == 0


def test_the_penalty_is_differentiable():
    layers = tiny_layers("mid")
    factors = {
        x.name: (
            torch.randn(2, 2, x.in_features, dtype=torch.float64, requires_grad=True),
            torch.randn(2, x.out_features, 2, dtype=torch.float64, requires_grad=True),
        )
        for x in layers
    }
    flat = [t for pair in factors.values() for t in pair]

    def penalty(*tensors):
        pairs = dict(zip(factors, zip(tensors[::2], tensors[1::2], strict=True), strict=True))
        return hn.GeneratedWeights.from_factors(layers, pairs).penalty(0.3, 0.7)

    assert torch.autograd.gradcheck(penalty, flat)


@pytest.mark.parametrize("options", [{"l1": float("inf")}, {"l2": "1"}])
def test_impossible_penalties_are_refused(weights, options):
    with pytest.raises(ValueError, match=r"l[12] must be"):
        weights.penalty(**options)


def test_no_sets_have_no_penalty_and_no_norms(weights):
    none = weights[:0]
    assert none.penalty(1.0, 1.0) == 0
    assert all(norm.shape == (0,) for norm in none.norms().values())
    assert none.interpolate(none, 0.5).sets == 0
    assert none.scaled(0.5).sets == 0


# Mixtures


def mixed(first, second, t):
    return {name: (1 - t) * delta + t * second.dense(name) for name, delta in first.dense().items()}


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, -0.5])
def test_interpolation_is_exact_by_default(t):
    first = make_weights(2, tiny_layers(rank=2)).scaled({"attn1": torch.tensor([0.5, 2.0])})
    second = make_weights(2, tiny_layers(rank=1)).scaled({"v": -1})
    result = first.interpolate(second, t)
    close(result.dense(), mixed(first, second, t))
    assert {layer.rank for layer in result.layers} == {3}
    assert all(result.scales(layer.name) is None for layer in result.layers)


def test_exact_ranks_end_at_the_smaller_side_and_gradients_flow():
    first, second = make_weights(2, tiny_layers(rank=6)), make_weights(2, tiny_layers(rank=5))
    t = 0.25
    result = first.interpolate(second, t)
    close(result.dense(), mixed(first, second, t))
    assert {layer.rank for layer in result.layers} == {8, 11}
    net = trained_generator(head="dense")
    weights = net.generate_weights(["ink", "oil"])
    weights.interpolate(net.generate_weights(["oil", "chalk"]), t).penalty(l2=1.0).backward()
    assert net.decoder.heads["8x8x8"].to_delta.grad.any()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_rank_cuts_to_the_best_approximation(rank):
    first, second = make_weights(2), make_weights(2)
    result = first.interpolate(second, 0.4, rank=rank)
    for name, delta in mixed(first, second, 0.4).items():
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        best = (u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]
        assert relative_error(result.dense(name), best) < 1e-10
        a, b = result.factors(name)
        assert a.shape[1] == rank
        assert a.is_contiguous()
        assert b.is_contiguous()
        torch.testing.assert_close(a.norm(dim=(1, 2)), b.norm(dim=(1, 2)))


def test_a_rank_that_is_enough_cuts_nothing():
    first, second = make_weights(2), make_weights(2)
    assert same(first.interpolate(second, 0.4, rank=4), first.interpolate(second, 0.4))


def test_recompressed_fp32_factors_lose_nothing_but_roundings():
    first = make_weights(2, dtype=torch.float32)
    close(first.interpolate(first, 0.3, rank=2).dense(), first.dense(), 2e-6)


def test_above_rank_64_a_rank_must_be_given():
    layers = select_layers(projections_of("sd15"), "mid.attn1.q", 40)
    first = make_weights(1, layers, torch.float32)
    with pytest.raises(ValueError, match=r"the exact rank at mid_block\S+to_q is 80, above 64; give a rank"):
        first.interpolate(first, 0.5)
    result = first.interpolate(first, 0.5, rank=64)
    close(result.dense(), first.dense(), 2e-6)


def test_the_index_stays():
    first, second = make_weights(2).repeat(2), make_weights(2).repeat(2)
    assert first.interpolate(second, 0.5).index.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"other": "weights"}, "other must be GeneratedWeights, not str"),
        ({"other": make_weights(2)}, "the weights have 3 and 2 sets"),
        (
            {"other": make_weights(3, tiny_layers("attn1"))},
            r"different layers: only these weights have \S+attn2\S+ \[8",
        ),
        ({"other": make_weights(3).repeat(2)}, "the weights have different indices"),
        ({"t": float("nan")}, "t must be a finite number"),
        ({"t": torch.tensor(0.5)}, "t must be"),
        ({"rank": 0}, "rank must be an integer >= 1 and at most 64, not 0"),
        ({"rank": 65}, "rank must be an integer"),
        ({"rank": 2.0}, "rank must be an integer"),
    ],
)
def test_impossible_mixtures_are_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        weights.interpolate(**{"other": make_weights(3), "t": 0.5, **options})


def test_weights_for_another_model_say_what_the_other_has():
    first, second = make_weights(3, tiny_layers("attn1")), make_weights(3)
    with pytest.raises(ValueError, match=r"only the other weights have \S+attn2"):
        first.interpolate(second, 0.5)


# LoRA


def test_a_lora_has_the_keys_of_diffusers_the_scale_and_one_rank(weights):
    scaled = weights.scaled({"attn2": torch.tensor([1.0, 0.5, -2.0])}).to(torch.float32)
    for i in (0, 2, -1):
        state = scaled.to_lora_state_dict(i)
        names = [layer.name for layer in weights.layers]
        assert state.keys() == {f"unet.{name}.{part}.weight" for name in names for part in ("lora_A", "lora_B")}
        for layer in weights.layers:
            down, up = (state[f"unet.{layer.name}.{part}.weight"] for part in ("lora_A", "lora_B"))
            assert down.shape == (3, layer.in_features)
            assert up.shape == (layer.out_features, 3)
            torch.testing.assert_close(up @ down, scaled.dense(layer.name)[i])
        assert all(t.dtype == torch.float32 and t.is_contiguous() and not t.requires_grad for t in state.values())
        assert len({t.untyped_storage().data_ptr() for t in state.values()}) == len(state)


def test_the_lora_of_a_transformer_has_another_prefix(weights):
    assert all(key.startswith("transformer.") for key in weights.to_lora_state_dict(0, prefix="transformer"))


def test_there_is_no_lora_of_a_set_that_is_not_there(weights):
    with pytest.raises(IndexError):
        weights.to_lora_state_dict(3)


@pytest.mark.parametrize("rank", [4, {"attn2": 3, "*.to_q": 1, "*": 2}], ids=["one rank", "several ranks"])
def test_diffusers_loads_the_lora_and_does_what_the_weights_do(rank, tmp_path):
    pytest.importorskip("peft", reason="diffusers loads LoRAs with peft")
    import safetensors.torch

    from hnkernels.pipeline import load_pipeline

    pipe = load_pipeline(TINY_SD)
    pipe.unet.requires_grad_(False)
    net = trained_generator(model=pipe, rank=rank)
    weights = net.generate_weights(["ink", "oil"]).detach()
    size = max(norm.max() for norm in weights.norms().values())
    weights = weights.scaled({"*": 1 / float(size), "attn2": 2.0})
    twin = copied(pipe.unet)
    for name, delta in weights.dense().items():
        twin.get_submodule(name).weight += delta[1]
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 96)
    with torch.no_grad():
        base = denoise(pipe.unet, x, text)
        expected = denoise(twin, x, text)
        safetensors.torch.save_file(weights.to_lora_state_dict(1), tmp_path / "lora.safetensors")
        pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        assert relative_error(denoise(pipe.unet, x, text), expected) < UNET_TOLERANCE
    assert relative_error(base, expected) > 1e-2


# Files, devices, history


def everything(weights):
    return weights.scaled({"attn1": torch.tensor([0.1, 1.0, -3.0]), "mid": 0.3}).repeat(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_saved_weights_come_back_to_the_last_bit(weights, dtype, tmp_path):
    path = tmp_path / "w.safetensors"
    for given in (weights.to(dtype), everything(weights.to(dtype)), weights.to(dtype)[:0]):
        given.save(path)
        loaded = hn.GeneratedWeights.load(path)
        assert same(loaded, given)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_another_dtype_keeps_the_scales(weights):
    low = everything(weights).to(torch.bfloat16)
    last = weights.layers[-1].name
    assert low.dtype == torch.bfloat16
    assert low.index.dtype == torch.int64
    assert low.scales(low.layers[0].name).dtype == torch.float32  # given so
    assert weights.scaled(2.0).to(torch.bfloat16).scales(last).dtype == torch.float64
    assert same(weights.to("cpu"), weights)
    with pytest.raises(ValueError, match=r"weights must have a floating dtype, not torch.int64"):
        weights.to(torch.int64)


def test_everything_moves(weights):
    moved = everything(weights).to("meta")
    name = moved.layers[0].name
    assert moved.device.type == moved.index.device.type == moved.scales(name).device.type == "meta"


def test_detached_weights_have_no_history():
    weights = trained_generator().generate_weights("ink").scaled(torch.ones(1, requires_grad=True))
    name = weights.layers[0].name
    assert weights.dense(name).requires_grad
    detached = weights.detach()
    assert not detached.dense(name).requires_grad
    assert same(detached, weights)


def test_a_copy_shares_nothing(weights):
    twin = copy.deepcopy(everything(weights))
    assert same(twin, everything(weights))
    twin.factors(twin.layers[0].name)[0].zero_()
    assert weights.factors(twin.layers[0].name)[0].all()


def test_lowrank_linear_applies_them():
    weights = everything(make_weights(3))
    unet = tiny_unet(torch.float64)
    layer = weights.layers[-1]
    a, b = weights.factors(layer.name)
    w = unet.get_submodule(layer.name).weight
    x = torch.randn(6, 5, layer.in_features, dtype=torch.float64)
    y = hn.lowrank_linear(x, w, a, b, weights.scales(layer.name), index=weights.index)
    expected = torch.einsum("std,snd->stn", x, w + weights.dense(layer.name)[weights.index])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_has_no_hand_in_norms_and_penalty(dtype):
    weights = make_weights(dtype=dtype)
    norms, penalty = weights.norms(), weights.penalty(0.5, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weights.penalty(0.5, 0.5), penalty)
        assert all(torch.equal(norm, norms[name]) for name, norm in weights.norms().items())
