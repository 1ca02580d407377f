"""Generated weights in a model: against the same weights written into it by hand."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hnkernels as hn
from hnkernels.adapter.projections import find_projections
from hnkernels.adapter.strength import PerRow
from tests.models import (
    TEXT_WIDTH,
    UNET_TOLERANCE,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    randomise,
    relative_error,
    tiny_unet,
)

SETS = 2
EXACT = 1e-10  # in float64; rounding grows on its way through some fifty layers


@pytest.fixture
def unet():
    return tiny_unet(torch.float64)


@pytest.fixture
def x():
    return noise(dtype=torch.float64)


@pytest.fixture
def text():
    return prompt(dtype=torch.float64)


def make_generator(model, **options):
    """A weight hypernetwork for the model whose weights matter."""
    options = {"embedding_dim": 6, "hidden_dim": 8, "rank": 3, "styles": ("ink", "oil"), "model": model, **options}
    gen = hn.WeightHypernetwork(options.pop("target_layers", ["attn1", "attn2"]), **options).eval()
    randomise(gen, 0.25)
    return gen.double()


def bare(model):
    """A copy of the model without what is attached."""
    model = copy.deepcopy(model)
    for adapter in list(hn.adapters(model).values()):
        adapter.detach()
    return model


def written_in(model, weights, row=0, strength=1.0):
    """A bare copy of the model with one set of the weights added to its own."""
    model = bare(model)
    with torch.no_grad():
        for name, change in weights.detach().dense().items():
            weight = model.get_submodule(name).weight
            weight += strength * change[row].to(weight.dtype)
    return model


@pytest.fixture
def gen(unet):
    return make_generator(unet)


@pytest.fixture
def weights(gen):
    return gen.generate_weights(torch.randn(SETS, 6).double()).detach()


@torch.no_grad()
def row_by_row(unet, weights, x, text, rows, strength=1.0):
    """The output, each row with its own copy of the model; None is the base model."""
    outs = []
    for i, row in enumerate(rows):
        model = bare(unet) if row is None else written_in(unet, weights, row, strength)
        outs.append(denoise(model, x[i : i + 1], text[i : i + 1]))
    return torch.cat(outs)


def test_every_row_has_the_weights_of_its_condition(unet, gen, x, text):
    condition = torch.randn(SETS, 6).double()
    with torch.no_grad(), hn.attach(unet, gen) as adapter:
        base = denoise(unet, x, text)
        with adapter.condition(condition):
            weights = adapter.weights
            y = denoise(unet, x, text)
        assert torch.equal(denoise(unet, x, text), base)
    assert relative_error(y, row_by_row(unet, weights, x, text, [0, 1])) <= EXACT
    assert relative_error(y, base) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("what", ["scale", "index"])
def test_scales_and_indices_that_are_written_count_at_once(unet, weights, x, text, what):
    scale, index = torch.ones(SETS), torch.tensor([0, 1])
    hn.attach(unet, weights.scaled(scale) if what == "scale" else weights.with_index(index))
    denoise(unet, x, text, 20)
    if what == "scale":
        scale.fill_(0.5)
        expected = row_by_row(unet, weights, x, text, [0, 1], strength=0.5)
    else:
        index.copy_(torch.tensor([1, 0]))
        expected = row_by_row(unet, weights, x, text, [1, 0])
    for prompt_ in (text, text.clone()):
        assert relative_error(denoise(unet, x, prompt_), expected) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize("before", [False, True], ids=["cast after", "cast before"])
def test_layerwise_casting_leaves_generated_weights_as_they_are(before):
    unet, x, text = tiny_unet(), noise(), prompt()
    by_hand = copied(unet)
    weights = make_generator(unet).float()("ink").detach()
    casting = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    by_hand.enable_layerwise_casting(**casting)
    base = denoise(by_hand, x, text)
    for name, (change,) in weights.dense().items():
        linear = by_hand.get_submodule(name)
        linear.register_forward_hook(lambda _, args, y, change=change: y + args[0] @ change.T)
    if before:
        unet.enable_layerwise_casting(**casting)
    hn.attach(unet, weights)
    if not before:
        unet.enable_layerwise_casting(**casting)
    expected = denoise(by_hand, x, text)
    assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
    assert relative_error(base, expected) > 0.01


@pytest.mark.parametrize("rows", [4, 6])
def test_one_set_serves_several_consecutive_rows(unet, weights, rows):
    x, text = noise(rows, torch.float64), prompt(rows, torch.float64)
    with torch.no_grad(), hn.attach(unet, weights):
        y = denoise(unet, x, text)
    which = [i * SETS // rows for i in range(rows)]
    assert relative_error(y, row_by_row(unet, weights, x, text, which)) <= EXACT


@pytest.mark.parametrize("other", ["index", "guidance", "strength"])
def test_two_networks_whose_rows_are_served_otherwise(unet, x, text, other):
    """Each has its own index, scales and halves, on the same layers."""
    rows = 4
    x, text = noise(rows, torch.float64), prompt(rows, torch.float64)
    first, second = (make_generator(unet)(torch.randn(SETS, 6).double()).detach() for _ in range(2))
    served, strengths = {
        "index": ([1, 0, 1, 1], [1.0] * 4),
        "guidance": ([None, None, 0, 1], [1.0] * 4),
        "strength": ([0, 0, 1, 1], [0.0, 0.0, 0.75, 0.75]),
    }[other]
    with torch.no_grad(), hn.attach(unet, first), hn.attach(unet, second) as adapter:
        if other == "index":
            adapter.weights = second.with_index(served)
        elif other == "guidance":
            adapter.guidance = True
            adapter.weights = second
        else:
            adapter.strength = PerRow(0, 0.75)
        y = denoise(unet, x, text)
    expected = []
    for i, (row, strength) in enumerate(zip(served, strengths, strict=True)):
        model = written_in(unet, first, [0, 0, 1, 1][i])
        model = model if row is None else written_in(model, second, row, strength)
        with torch.no_grad():
            expected.append(denoise(model, x[i : i + 1], text[i : i + 1]))
    assert relative_error(y, torch.cat(expected)) <= EXACT


def test_an_index_says_which_set_serves_which_row(unet, weights):
    x, text, which = noise(3, torch.float64), prompt(3, torch.float64), [1, 0, 1]
    with torch.no_grad(), hn.attach(unet, weights.with_index(which)):
        y = denoise(unet, x, text)
    assert relative_error(y, row_by_row(unet, weights, x, text, which)) <= EXACT


def test_under_guidance_the_unconditional_rows_are_the_base_model(unet, gen):
    x, text = noise(4, torch.float64), prompt(4, torch.float64)
    with torch.no_grad(), hn.attach(unet, gen) as adapter:
        with adapter.condition(torch.randn(SETS, 6).double(), guidance=True):
            y, weights = denoise(unet, x, text), adapter.weights
        assert adapter.guidance is None
    assert relative_error(y, row_by_row(unet, weights, x, text, [None, None, 0, 1])) <= EXACT


def test_scales_of_the_weights_and_strengths_multiply(unet, weights, x, text):
    scaled = weights.scaled(torch.tensor([0.5, 2.0])).scaled({"attn2": 0.25})
    with torch.no_grad(), hn.attach(unet, scaled, strength=0.5) as adapter:
        y = denoise(unet, x, text)
        assert relative_error(y, row_by_row(unet, scaled, x, text, [0, 1], 0.5)) <= EXACT
        adapter.strength = {"attn1": {"q": 0, "k": 0, "v": 0, "out": 0}, "attn2": 1}
        only = scaled.scaled({"attn1": 0.0})
        assert relative_error(denoise(unet, x, text), row_by_row(unet, only, x, text, [0, 1])) <= EXACT
        adapter.strength = PerRow(0, 1)
        assert relative_error(denoise(unet, x, text), row_by_row(unet, scaled, x, text, [None, 1])) <= EXACT
        adapter.strength = 0
        assert torch.equal(denoise(unet, x, text), denoise(bare(unet), x, text))


def test_at_the_start_the_model_computes_what_it_did_bit_for_bit(unet, x, text):
    gen = hn.WeightHypernetwork(embedding_dim=6, hidden_dim=8, model=unet).double()
    base = denoise(unet, x, text)
    with hn.attach(unet, gen) as adapter, adapter.condition(torch.randn(SETS, 6).double()):
        y = denoise(unet, x, text)
        y.square().sum().backward()
    assert torch.equal(y, base)
    assert any(p.grad is not None and p.grad.any() for p in gen.decoder.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_gradients_are_those_of_weights_added_by_hand(unet, gen, x, text, checkpointing, inside):
    x, text = x.requires_grad_(), text.requires_grad_()
    condition, upstream = torch.randn(1, 6).double(), torch.randn(2, 4, 4, 4).double()
    inputs = [x, text, *gen.parameters()]
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    with hn.attach(unet, gen) as adapter:
        with adapter.condition(condition):
            y = denoise(unet, x, text)
            if inside:
                ours = torch.autograd.grad(y, inputs, upstream, allow_unused=True)
        if not inside:
            ours = torch.autograd.grad(y, inputs, upstream, allow_unused=True)
    unet.disable_gradient_checkpointing()
    dense = {f"{name}.weight": w[0] + unet.get_submodule(name).weight for name, w in gen(condition).dense().items()}
    arguments = (x, torch.tensor(10)), {"encoder_hidden_states": text}
    by_hand = torch.func.functional_call(unet, dense, *arguments).sample
    theirs = torch.autograd.grad(by_hand, inputs, upstream, allow_unused=True)
    assert relative_error(y, by_hand) <= EXACT
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b.norm() > 1e-6:
            assert relative_error(a, b) <= 1e-9


def test_checkpointed_calls_under_two_conditions_keep_their_weights_apart(unet, gen, x, text):
    unet.enable_gradient_checkpointing()
    unet.train()
    parameters = list(gen.decoder.parameters())
    with hn.attach(unet, gen) as adapter:

        def loss(style):
            with adapter.condition(style):
                return denoise(unet, x, text).square().sum()

        apart = [torch.autograd.grad(loss(style), parameters) for style in ("ink", "oil")]
        later = [torch.autograd.grad(y, parameters) for y in (loss("ink"), loss("oil"))]
    for kept, ours in zip(apart, later, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, ours, strict=True))


def test_together_with_context_hypernetworks_in_any_order(unet, weights, x, text):
    net = make_net().double()
    with torch.no_grad():
        results = []
        for order in ((net, weights), (weights, net)):
            adapters = [hn.attach(unet, source) for source in order]
            results.append(denoise(unet, x, text))
            for adapter in adapters:
                adapter.detach()
        expected = []
        for row in range(SETS):
            model = written_in(unet, weights, row)
            hn.attach(model, net)
            expected.append(denoise(model, x[row : row + 1], text[row : row + 1]))
    assert torch.equal(*results)
    assert relative_error(results[0], torch.cat(expected)) <= EXACT


def test_a_fused_context_hypernetwork_steps_back_while_weights_act(unet, weights, x, text):
    net = make_net(activation=None).double()
    with torch.no_grad(), hn.attach(unet, net) as context, hn.attach(unet, weights) as adapter:
        plain = denoise(unet, x, text)
        context.fuse()
        assert relative_error(denoise(unet, x, text), plain) <= EXACT
        adapter.weights = None
        without = denoise(unet, x, text)
        assert relative_error(without, plain) > 0.01


def test_several_weight_adapters_add_up(unet, weights, x, text):
    other = make_generator(unet, rank=2).generate_weights(torch.randn(1, 6).double()).detach()
    with torch.no_grad(), hn.attach(unet, weights) as first, hn.attach(unet, other) as second:
        assert list(hn.adapters(unet)) == ["weights", "weights_2"]
        y = denoise(unet, x, text)
        second.enabled = False
        assert relative_error(denoise(unet, x, text), row_by_row(unet, weights, x, text, [0, 1])) <= EXACT
        second.enabled, first.enabled = True, False
        assert relative_error(denoise(unet, x, text), row_by_row(unet, other, x, text, [0, 0])) <= EXACT
    expected = row_by_row(written_in(unet, other, 0), weights, x, text, [0, 1])
    assert relative_error(y, expected) <= EXACT


def test_keys_and_values_of_the_prompt_are_kept_across_steps_and_follow_the_condition(unet, gen, x, text):
    with torch.no_grad(), hn.attach(unet, gen) as adapter:
        with adapter.condition("ink"):
            first = denoise(unet, x, text)
            misses = adapter.stats().misses
            assert torch.equal(denoise(unet, x, text), first)
            assert adapter.stats().misses == misses
            adapter.strength = 0.5
            half = denoise(unet, x, text)
            assert adapter.stats().misses > misses
            adapter.strength = 1.0
            assert torch.equal(denoise(unet, x, text), first)
            with adapter.condition("oil"):
                assert relative_error(denoise(unet, x, text), first) > 0.01
            assert torch.equal(denoise(unet, x, text), first)
        assert relative_error(half, row_by_row(unet, gen("ink"), x, text, [0, 0], 0.5)) <= EXACT


def test_detaching_leaves_nothing_behind(unet, gen, x, text):
    keys, taps = list(unet.state_dict()), {n for n, m in unet.named_modules() if "forward" in m.__dict__}
    base = denoise(unet, x, text)
    adapter = hn.attach(unet, gen)
    assert list(unet.state_dict()) == keys
    assert len(adapter.sites()) == 14
    net = hn.attach(unet, make_net().double())
    with torch.no_grad(), adapter.condition("ink"):
        denoise(unet, x, text)
        adapter.detach()
        denoise(unet, x, text)
    net.detach()
    assert {n for n, m in unet.named_modules() if "forward" in m.__dict__} == taps
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in unet.modules())
    assert torch.equal(denoise(unet, x, text), base)


def test_an_exception_inside_the_condition_leaves_the_base_model(unet, gen, x, text):
    base = denoise(unet, x, text)
    with hn.attach(unet, gen) as adapter:
        with pytest.raises(RuntimeError, match="mine"), adapter.condition("ink", guidance=True):
            raise RuntimeError("mine")
        assert adapter.weights is None
        assert adapter.guidance is None
        with pytest.raises(ValueError, match="style"), adapter.condition("pastel"):
            pass
        assert torch.equal(denoise(unet, x, text), base)
        with pytest.raises(ValueError, match="x must be"), adapter.condition("ink"):
            denoise(unet, x, text[..., 1:])
        assert torch.equal(denoise(unet, x, text), base)


def test_weights_for_another_model_are_refused(unet, gen, weights):
    other = tiny_unet(transformer_layers_per_block=2)
    deep = make_generator(other)
    sd = hn.WeightHypernetwork(["down_blocks.0.attentions.0.*"], embedding_dim=6, hidden_dim=8)
    with pytest.raises(hn.AdapterError, match=r"for another model: .*blocks.1.* is not there; build .* model="):
        hn.attach(unet, deep)
    with pytest.raises(hn.AdapterError, match=r"\[320, 320\] is \[8, 8\] there"):
        hn.attach(unet, sd)
    assert not hn.adapters(unet)
    with hn.attach(unet, gen) as adapter:
        with pytest.raises(hn.AdapterError, match="for another model"):
            adapter.weights = deep.generate_weights("ink")
        with pytest.raises(ValueError, match="weights must be GeneratedWeights or None, not dict"):
            adapter.weights = {}
    with (
        hn.attach(unet, weights) as adapter,
        pytest.raises(hn.AdapterError, match="weights were attached"),
        adapter.condition("ink"),
    ):
        pass
    with pytest.raises(ValueError, match="targets and parallel are for a Hypernetwork"):
        hn.attach(unet, gen, beside=True)


def test_a_batch_that_is_not_a_multiple_of_the_sets_is_refused(unet, weights):
    with torch.no_grad(), hn.attach(unet, weights) as adapter:
        with pytest.raises(hn.AdapterError, match="2 rows of a batch have generated weights, and a batch of 3"):
            denoise(unet, noise(3, torch.float64), prompt(3, torch.float64))
        with (
            pytest.raises(hn.AdapterError, match=r"4 rows of a batch under .* a batch of 2"),
            adapter.condition(weights, guidance=True),
        ):
            denoise(unet, noise(2, torch.float64), prompt(2, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_take_weights_of_any_dtype(dtype, gen):
    unet = tiny_unet(dtype)
    x, text = noise(dtype=dtype), prompt(dtype=dtype)
    randomise(gen, 0.1)  # so that a rounding stays one
    with torch.no_grad(), hn.attach(unet, gen) as adapter, adapter.condition("ink"):
        y = denoise(unet, x, text)
        wide, weights = bare(unet).double(), adapter.weights.to(torch.float64)
    exact = row_by_row(wide, weights, x.double(), text.double(), [0, 0])
    assert y.dtype == dtype
    eager = row_by_row(unet, weights, x, text, [0, 0])
    assert relative_error(y, exact) <= 2 * relative_error(eager, exact)


def test_some_projections_only(unet, x, text):
    gen = make_generator(unet, target_layers=["mid.attn1.q", "up.attn2.v"])
    names = {layer.name for layer in gen.layers}
    assert len(names) < len(find_projections(unet)) / 4
    with torch.no_grad(), hn.attach(unet, gen) as adapter, adapter.condition("oil"):
        y = denoise(unet, x, text)
    assert relative_error(y, row_by_row(unet, gen("oil"), x, text, [0, 0])) <= EXACT


def test_attention_layers_called_by_themselves(unet, weights):
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    layer, hidden = unet.get_submodule(name), torch.randn(2, 5, 16).double()
    expected = torch.cat([written_in(unet, weights, i).get_submodule(name)(hidden[i : i + 1]) for i in range(2)])
    with hn.attach(unet, weights):
        assert relative_error(layer(hidden), expected) <= EXACT
        y = checkpoint(layer, hidden, use_reentrant=False)
        assert relative_error(y, expected) <= EXACT


def test_text_width_is_what_attn2_sees(unet):
    widths = {(p.kind, p.projection): p.in_features for p in find_projections(unet) if p.name.startswith("mid")}
    assert widths["attn2", "k"] == TEXT_WIDTH


def test_a_layer_called_after_a_recorded_call_has_the_weights_of_now(unet, gen, x, text):
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    layer, hidden = unet.get_submodule(name), torch.randn(2, 5, 16).double()
    with hn.attach(unet, gen) as adapter:
        with adapter.condition("ink"):
            denoise(unet, x, text).sum().backward()
        with adapter.condition("oil"):
            weights = adapter.weights
            y = layer(hidden)
    assert relative_error(y, written_in(unet, weights).get_submodule(name)(hidden)) <= EXACT


def test_another_adapters_strength_leaves_the_prompts_keys_and_values_alone(unet, gen, x, text):
    other = make_generator(unet, target_layers=["attn1"])
    with torch.no_grad(), hn.attach(unet, gen) as adapter, hn.attach(unet, other) as second, adapter.condition("ink"):
        denoise(unet, x, text)
        misses = adapter.stats().misses
        second.strength = 0.5
        denoise(unet, x, text)
        assert adapter.stats().misses == misses


def test_what_a_call_was_recorded_with_goes_with_its_graph(unet, gen, x, text):
    alive = []
    with hn.attach(unet, gen) as adapter:
        with adapter.condition("ink"):
            alive += [weakref.ref(change.state.a) for change in adapter._deltas.values()]
            y = denoise(unet, x, text)
        del y
        gc.collect()
        assert not any(ref() is not None for ref in alive)


def test_a_condition_keeps_the_guidance_that_is_there_unless_it_says_another(unet, weights):
    adapter = hn.attach(unet, weights)
    for outer in (None, True, False):
        adapter.guidance = outer
        with adapter.condition(weights):
            assert adapter.guidance is outer
            for inner in (True, False):
                with adapter.condition(weights, guidance=inner):
                    assert adapter.guidance is inner
                assert adapter.guidance is outer
        assert adapter.guidance is outer


@torch.no_grad()
def test_weights_serve_batches_of_any_size_one_after_the_other(unet, weights):
    scaled = weights.scaled(torch.tensor([0.5, 2.0]))
    with hn.attach(unet, scaled):
        for rows in (4, 2, 6, 4):
            x, text = noise(rows, torch.float64), prompt(rows, torch.float64)
            which = [i * SETS // rows for i in range(rows)]
            assert relative_error(denoise(unet, x, text), row_by_row(unet, scaled, x, text, which)) <= EXACT


class Guiding:
    """A pipeline that says whether it guides, as diffusers' do."""

    def __init__(self, unet, guides):
        self.unet, self.guides = unet, guides

    @property
    def do_classifier_free_guidance(self):
        return self.guides

    def __call__(self, x, text):
        return denoise(self.unet, x, text)


@torch.no_grad()
def test_a_pipeline_that_guides_and_one_that_does_not_may_take_turns(unet, weights):
    x, text = noise(4, torch.float64), prompt(4, torch.float64)
    with hn.attach(unet, weights):
        for guides in (True, False, True):
            which = [None, None, 0, 1] if guides else [0, 0, 1, 1]
            y = Guiding(unet, guides)(x, text)
            assert relative_error(y, row_by_row(unet, weights, x, text, which)) <= EXACT


@torch.no_grad()
def test_guidance_may_be_set_while_weights_act(unet, weights):
    x, text = noise(4, torch.float64), prompt(4, torch.float64)
    with hn.attach(unet, weights) as adapter:
        for guidance, which in ((None, [0, 0, 1, 1]), (True, [None, None, 0, 1]), (False, [0, 0, 1, 1])):
            adapter.guidance = guidance
            assert relative_error(denoise(unet, x, text), row_by_row(unet, weights, x, text, which)) <= EXACT


def test_scales_alone_can_be_learned_also_after_sampling(unet, weights, x, text):
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    steps = 1e-6 * torch.eye(2, dtype=torch.float64)
    up, down = (
        torch.stack([row_by_row(unet, weights.scaled(s), x, text, [0, 1]).square().sum() for s in scale.detach() + m])
        for m in (steps, -steps)
    )
    with hn.attach(unet, weights.scaled(scale)):
        for _ in range(2):
            with torch.no_grad():
                denoise(unet, x, text)
            (gradient,) = torch.autograd.grad(denoise(unet, x, text).square().sum(), scale)
            torch.testing.assert_close(gradient, (up - down) / 2e-6, rtol=1e-5, atol=0)
