"""The text context is rewritten once for all layers, once per prompt, and never is anything stale used."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.adapter.contexts import ContextStore
from hnkernels.adapter.host import Host
from tests.models import (
    TEXT_WIDTH,
    UNET_TOLERANCE,
    WIDTHS,
    attention_layers,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    relative_error,
)


def uncached(unet, x, text, adapter):
    """The output as computed from scratch."""
    adapter.clear_cache()
    return denoise(unet, x, text)


def test_seven_layers_cost_two_evaluations_and_the_next_step_none(unet, x, text, evaluations):
    hn.attach(unet, make_net())
    with torch.no_grad():
        denoise(unet, x, text, t=10)
        assert evaluations.of_text() == 2
        for t in (9, 8, 7):
            denoise(unet, noise(), text, t)
            assert evaluations.of_text() == 0


def test_under_autograd_each_call_costs_two(unet, x, text, evaluations):
    hn.attach(unet, make_net())
    for _ in range(3):
        denoise(unet, x, text)
        assert evaluations.of_text() == 2


def test_a_chain_costs_two_evaluations_of_the_whole_chain(unet, x, text, evaluations):
    hn.attach(unet, make_net())
    hn.attach(unet, make_net())
    with torch.no_grad():
        denoise(unet, x, text)
        assert evaluations.of_text() == 2
        denoise(unet, x, text)
        assert evaluations.of_text() == 0


def test_a_network_for_the_image_alone_leaves_the_text_alone(unet, x, text, evaluations):
    hn.attach(unet, make_net(WIDTHS))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            denoise(unet, x, text)
            assert evaluations.of_text() == 0


def test_switching_to_and_fro_between_two_prompts_costs_nothing(unet, x, evaluations):
    adapter = hn.attach(unet, make_net())
    prompts = [prompt(), prompt()]
    with torch.no_grad():
        outputs = [denoise(unet, x, text) for text in prompts]
        evaluations.clear()
        for text, output in zip(prompts, outputs, strict=True):
            assert torch.equal(denoise(unet, x, text), output)
        assert evaluations.of_text() == 0
        assert torch.equal(uncached(unet, x, prompts[0], adapter), outputs[0])


def test_in_inference_mode_it_is_hoisted_and_cached_as_well(unet, x, text, evaluations):
    hn.attach(unet, make_net())
    with torch.inference_mode():
        for made_here in (False, True):
            context = text.clone() if made_here else text
            denoise(unet, x, context)
            assert evaluations.of_text() == 2
            denoise(unet, x, context)
            assert evaluations.of_text() == 0


def change_with_an_optimizer(net, adapter, unet, text):
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(net.parameters(), lr=0.1).step()


def change_in_place(net, adapter, unet, text):
    net[TEXT_WIDTH][1].linear[0].bias.add_(0.5)


def change_by_loading(net, adapter, unet, text):
    net.load_state_dict(make_net(activation=None).state_dict())


def change_by_assigning(net, adapter, unet, text):
    net.load_state_dict(make_net(activation=None).state_dict(), assign=True)


def change_a_parameter_object(net, adapter, unet, text):
    net[TEXT_WIDTH][0].linear[1].weight = nn.Parameter(torch.randn(TEXT_WIDTH, 2 * TEXT_WIDTH))


def change_the_strength(net, adapter, unet, text):
    adapter.strength = 0.3


def change_the_multiplier(net, adapter, unet, text):
    net.set_multiplier(-1)


def change_the_mode(net, adapter, unet, text):
    net.train()  # the strength no longer counts


def change_the_network(net, adapter, unet, text):
    adapter.net = make_net()


def change_the_prompt(net, adapter, unet, text):
    text.mul_(2)


def change_the_prompt_through_a_view(net, adapter, unet, text):
    text[0].zero_()


def change_to_k(net, adapter, unet, text):
    for layer in attention_layers(unet, "attn2").values():
        layer.to_k.weight.mul_(2)


def change_to_v_by_loading(net, adapter, unet, text):
    unet.load_state_dict({k: v * 2 if "attn2.to_v" in k else v for k, v in unet.state_dict().items()})


def change_the_targets(net, adapter, unet, text):
    adapter.targets = ("attn1",)


def change_to_another_dtype_and_back(net, adapter, unet, text):
    net.half().float()


def change_the_weights_of_the_model_to_another_dtype_and_back(net, adapter, unet, text):
    nn.Module.to(unet, torch.bfloat16)
    nn.Module.to(unet, torch.float32)


CHANGES = [change for name, change in list(globals().items()) if name.startswith("change_")]


@pytest.mark.parametrize("stream", ["k", "v"])
def test_a_prompt_made_in_inference_mode_with_a_network_on_one_stream(unet, x, stream):
    hn.attach(unet, make_net(), {stream: 0})
    text = prompt()
    with torch.no_grad():
        expected = denoise(unet, x, text)
    with torch.inference_mode():
        made = text.clone()
        for _ in range(2):
            assert relative_error(denoise(unet, x, made), expected) < UNET_TOLERANCE


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
def test_no_change_goes_unnoticed(unet, x, text, change, fused, mode):
    net = make_net(activation=None)
    adapter = hn.attach(unet, net, strength=0.7)
    if fused:
        adapter.fuse()
    with torch.no_grad():
        before = denoise(unet, x, text)
        change(net, adapter, unet, text)
    with mode():
        after = denoise(unet, x, text)
        assert not torch.equal(after, before)
        assert torch.equal(uncached(unet, x, text, adapter), after)


def test_a_prompt_made_and_changed_in_inference_mode(unet, x):
    adapter = hn.attach(unet, make_net())
    with torch.inference_mode():
        text = prompt()
        before = denoise(unet, x, text)
        text.mul_(2)
        after = denoise(unet, x, text)
        assert not torch.equal(after, before)
        assert torch.equal(uncached(unet, x, text, adapter), after)


def test_a_network_made_in_inference_mode(unet, x, text):
    with torch.inference_mode():
        net = make_net()
        adapter = hn.attach(unet, net)
        before = denoise(unet, x, text)
        net[TEXT_WIDTH][0].linear[0].weight.mul_(3)
        after = denoise(unet, x, text)
        assert not torch.equal(after, before)
        assert torch.equal(uncached(unet, x, text, adapter), after)


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_training_with_a_fused_optimizer_is_noticed(unet, x, text, fused):
    # Fused optimisers write into the parameters without raising their version.
    net = make_net(activation=None)
    adapter = hn.attach(unet, net)
    if fused:
        adapter.fuse()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.no_grad():
            preview = denoise(unet, x, text)
            assert torch.equal(uncached(unet, x, text, adapter), preview)
        denoise(unet, x, text).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_entering_and_leaving_autocast_is_noticed(unet, x, text):
    adapter = hn.attach(unet, make_net())
    with torch.no_grad():
        plain = denoise(unet, x, text)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                half = denoise(unet, x, text)
                assert torch.equal(uncached(unet, x, text, adapter), half)
        assert torch.equal(denoise(unet, x, text), plain)


def test_dropout_in_training_mode_is_drawn_in_every_call(unet, x, text):
    hn.attach(unet, make_net((TEXT_WIDTH,), dropout_structure=(0, 0.5, 0)).train())
    with torch.no_grad():
        assert not torch.equal(denoise(unet, x, text), denoise(unet, x, text))


def test_prompts_that_come_and_go_at_the_same_address_are_not_confused(unet, x):
    net = make_net()
    hn.attach(unet, net)
    fresh = copied(unet)
    with torch.no_grad():
        for i in range(20):
            text = prompt() * (i + 1)
            actual = denoise(unet, x, text)
            Host.of(fresh).clear()
            assert torch.equal(actual, denoise(fresh, x, text.clone()))
            del text


def test_the_cache_dies_with_its_prompt(unet, x):
    hn.attach(unet, make_net())
    store, text = Host.of(unet).contexts, prompt()
    with torch.no_grad():
        denoise(unet, x, text)
    assert len(store._entries) == 1
    kept = weakref.ref(next(iter(store._entries.values())))
    del text
    gc.collect()
    assert kept() is None
    assert not store._entries


def test_the_cache_holds_a_few_prompts_at_most(unet, x):
    hn.attach(unet, make_net())
    prompts = [prompt() for _ in range(8)]
    with torch.no_grad():
        for text in prompts:
            denoise(unet, x, text)
    assert len(Host.of(unet).contexts._entries) == 4


@pytest.mark.parametrize("text_grad", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True}, {"activation": "prelu"}, {"dropout_structure": (0, 0.5, 0.5)}]
)
def test_recorded_passes_leave_nothing_behind(unet, x, text, options, text_grad):
    hn.attach(unet, make_net(**options).train())
    text.requires_grad_(text_grad)
    for _ in range(3):
        denoise(unet, x, text)  # without a backward
        denoise(unet, x, text).sum().backward()
    gc.collect()
    assert not Host.of(unet).contexts._entries


def test_detaching_and_clearing_drop_the_cache(unet, x, text, evaluations):
    adapter, other = hn.attach(unet, make_net()), hn.attach(unet, make_net())
    with torch.no_grad():
        denoise(unet, x, text)
        adapter.clear_cache()
        assert not Host.of(unet).contexts._entries
        denoise(unet, x, text)
        other.detach()
        evaluations.clear()
        denoise(unet, x, text)
        assert evaluations.of_text() == 2


def test_a_context_that_is_not_the_models_own_is_computed_by_the_site(unet):
    net = make_net()
    hn.attach(unet, net)
    layer = next(iter(attention_layers(unet, "attn2").values()))
    hidden, text = torch.randn(2, 16, WIDTHS[0]), prompt()
    with torch.no_grad():
        alone = layer(hidden, encoder_hidden_states=text)
    assert relative_error(layer(hidden, encoder_hidden_states=text), alone) < UNET_TOLERANCE
    assert relative_error(layer(hidden, encoder_hidden_states=text.clone()), alone) < UNET_TOLERANCE


def test_a_processor_that_writes_into_k_and_v_does_not_spoil_the_next_step(unet, x, text):
    hn.attach(unet, make_net())
    for layer in attention_layers(unet).values():
        layer.to_k.register_forward_hook(lambda m, i, k: k.mul_(1.5))
        layer.to_v.register_forward_hook(lambda m, i, v: v.add_(0.1))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(denoise(unet, x, text), denoise(unet, x, text))


def test_a_store_that_is_copied_starts_empty():
    store, text = ContextStore(), prompt()
    store.open(text)
    assert not copy.deepcopy(store)._entries


@torch.no_grad()
def test_the_statistics_tell_what_is_kept_and_how_often_it_served(unet, x, text):
    adapter = hn.attach(unet, make_net(activation="silu"))
    assert adapter.stats() == (0, 0, 0, 0)
    denoise(unet, x, text)
    sites = [name for name in adapter.sites() if name.endswith("attn2")]
    first = adapter.stats()
    assert (first.contexts, first.hits, first.misses) == (1, 0, 2 * len(sites))
    widths = sum(attention_layers(unet, "attn2")[name].to_k.out_features for name in sites)
    rows = text.shape[0] * text.shape[1]
    assert first.bytes == 4 * rows * (2 * TEXT_WIDTH + 2 * widths)  # both rewritten contexts, K and V of all layers
    denoise(unet, x, text, t=9)
    assert adapter.stats() == (1, first.bytes, 2 * len(sites), 2 * len(sites))
    adapter.strength = 0.5
    denoise(unet, x, text, t=8)
    assert adapter.stats()[2:] == (2 * len(sites), 4 * len(sites))
    adapter.clear_cache()
    assert adapter.stats()[:2] == (0, 0)


def test_nothing_is_kept_of_recorded_passes(unet, x, text):
    adapter = hn.attach(unet, make_net(activation="silu"))
    out = denoise(unet, x, text)
    assert adapter.stats() == (0, 0, 0, 0)
    out.sum().backward()
    assert adapter.stats() == (0, 0, 0, 0)


@torch.no_grad()
def test_a_strength_that_changes_at_every_step_leaves_nothing_behind(unet, x, text):
    adapter = hn.attach(unet, make_net(activation="silu"))
    sizes = set()
    for step in range(6):
        adapter.strength = {"up": step / 10, "attn2": 1 - step / 10}
        denoise(unet, x, text, t=step)
        sizes.add(adapter.stats().bytes)
        if step == 1:
            most = max(sizes)
    assert max(sizes) <= 2 * most


@pytest.mark.parametrize("grad", [False, True])
def test_prompts_of_different_lengths_one_after_the_other(unet, x, grad):
    net = make_net(activation="silu")
    texts = [torch.randn(2, tokens, TEXT_WIDTH) for tokens in (7, 14, 1)]
    adapter = hn.attach(unet, net)
    with torch.set_grad_enabled(grad):
        for text in texts * 2:
            y = denoise(unet, x, text)
            adapter.clear_cache()
            assert torch.equal(denoise(unet, x, text), y)


class Regions:
    """Attends to the two halves of the prompt one by one, and mixes what comes of it."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, outs = attn.to_q(hidden_states), []
        parts = context.chunk(2, dim=1) if encoder_hidden_states is not None else (context,)
        for part in parts:
            q, k, v = (
                t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (query, attn.to_k(part), attn.to_v(part))
            )
            outs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return attn.to_out[0](torch.stack(outs).mean(0))


@pytest.mark.parametrize("grad", [False, True])
def test_regional_prompts(unet, x, grad):
    net = make_net(activation="silu")
    text = torch.randn(2, 14, TEXT_WIDTH)
    plain = copied(unet)
    for model in (unet, plain):
        model.set_attn_processor(Regions())
    for layer in attention_layers(plain).values():
        for projection, index in ((layer.to_k, 0), (layer.to_v, 1)):
            mlp = net[projection.in_features][index]
            projection.register_forward_pre_hook(lambda _, args, mlp=mlp: mlp(args[0]))
    hn.attach(unet, net)
    with torch.set_grad_enabled(grad):
        expected = denoise(plain, x, text)
        for _ in range(2):
            assert relative_error(denoise(unet, x, text), expected) <= UNET_TOLERANCE
