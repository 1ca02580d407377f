"""Gradients through a UNet with a hypernetwork: the web UI's, however the pass is run."""

import copy

import pytest
import torch

import hnkernels as hn
from tests.adapter.test_weights import make_generator
from tests.models import (
    GRADIENT_TOLERANCE,
    TEXT_WIDTH,
    WebUIProcessor,
    attention_layers,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    relative_error,
    tiny_unet,
)

pytestmark = pytest.mark.on_device


@pytest.fixture(params=["eval", "train", "dropout"])
def net(request):
    if request.param == "dropout":
        return make_net(activation="silu", dropout_structure=(0, 0.5, 0.3)).train()
    return make_net(activation="silu", layer_norm=True).train(request.param == "train")


def gradients(net, loss, seed=7):
    """The gradient of every parameter of the network."""
    net.zero_grad()
    torch.manual_seed(seed)
    loss().backward()
    return [p.grad.clone() for p in net.parameters()]


def assert_close(actual, expected, tolerance=GRADIENT_TOLERANCE):
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) <= tolerance


@pytest.mark.parametrize("train", [False, True])
def test_they_are_the_web_uis_in_float64(train):
    unet, x = tiny_unet(torch.float64), noise(dtype=torch.float64)
    net = make_net(activation="silu", layer_norm=True).double().train(train)
    text = prompt(dtype=torch.float64).requires_grad_()
    twin, processor = copied(unet), WebUIProcessor([net])
    twin.set_attn_processor(processor)
    references = [mlp for size in net for mlp in processor.pairs[0][size]]
    upstream = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    expected = torch.autograd.grad(
        denoise(twin, x, text), [text, *(p for ref in references for p in ref.parameters())], upstream
    )
    hn.attach(unet, net)
    actual = torch.autograd.grad(denoise(unet, x, text), [text, *net.parameters()], upstream)
    for a, e in zip(actual, expected, strict=True):
        # float64 through some fifty layers. Softmax makes the gradient of K's last bias 0: only roundings stay there.
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


def test_only_the_networks_own_parameters_take_gradients(unet, x, text):
    hn.attach(unet, make_net())
    denoise(unet, x, text).sum().backward()
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("text_grad", [False, True])
def test_gradient_checkpointing_changes_nothing(unet, x, text, net, times, text_grad):
    # Twice: the recomputation of the first pass happens after the second, with the same prompt tensor.
    adapter = hn.attach(unet, net)
    unet.train()
    inputs = [noise() for _ in range(times)]
    text.requires_grad_(text_grad)

    def loss():
        return sum((i + 1) * denoise(unet, y, text, t=10 + i).square().sum() for i, y in enumerate(inputs))

    plain = gradients(net, loss)
    text_plain, text.grad = text.grad, None
    unet.enable_gradient_checkpointing()
    assert_close(gradients(net, loss), plain)
    if text_grad:
        assert relative_error(text.grad, text_plain) <= GRADIENT_TOLERANCE
    adapter.detach()


def test_checkpointing_survives_previews_between_forward_and_backward(unet, x, text, net):
    hn.attach(unet, net)
    unet.train()
    others = [prompt() for _ in range(6)]

    def loss(previews):
        value = denoise(unet, x, text).square().sum()
        with torch.random.fork_rng(), torch.no_grad():
            for other in previews:
                denoise(unet, x, other)
        return value

    plain = gradients(net, lambda: loss([]))
    unet.enable_gradient_checkpointing()
    assert_close(gradients(net, lambda: loss([*others, text])), plain)


def test_checkpointing_around_the_whole_model(unet, x, text, net):
    hn.attach(unet, net)
    plain = gradients(net, lambda: denoise(unet, x, text).square().sum())
    replayed = gradients(
        net,
        lambda: torch.utils.checkpoint.checkpoint(denoise, unet, x, text, use_reentrant=False).square().sum(),
    )
    assert_close(replayed, plain)


class OwnCheckpoint(torch.autograd.Function):
    """As the original repositories have it: gradients for the inputs and the block's own parameters, no others."""

    @staticmethod
    def forward(ctx, run, count, *args):
        ctx.run, ctx.inputs, ctx.parameters = run, args[:count], args[count:]
        with torch.no_grad():
            return run(*ctx.inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs = [x.detach().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad():
            y = ctx.run(*(x.view_as(x) for x in inputs))
        return None, None, *torch.autograd.grad(y, [*inputs, *ctx.parameters], grad, allow_unused=True)


def wrap_blocks(unet, wrapped):
    """Has ``wrapped(forward, block, hidden, text)`` in the place of every transformer block's forward."""
    for block in unet.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            inner = block.forward
            block.forward = lambda hidden, encoder_hidden_states=None, inner=inner, block=block, **_: wrapped(
                lambda h, c: inner(h, encoder_hidden_states=c), block, hidden, encoder_hidden_states
            )


@pytest.mark.parametrize("kind", ["context", "weights"])
def test_a_checkpoint_of_the_hosts_own_that_drops_gradients_is_an_error(unet, x, text, net, kind):
    unet.requires_grad_(True)
    wrap_blocks(unet, lambda run, block, h, c: OwnCheckpoint.apply(run, 2, h, c, *block.parameters()))
    gen = make_generator(unet).float()
    adapter = hn.attach(unet, net if kind == "context" else gen)
    if kind == "weights":
        adapter.weights = gen(["ink"])
    for _ in range(2):
        loss = denoise(unet, x, text).square().sum()
        with pytest.raises(hn.AdapterError, match=r"no gradient has reached .* torch\.utils\.checkpoint"):
            loss.backward()
    assert not any(p._post_accumulate_grad_hooks for p in (net if kind == "context" else gen).parameters())
    adapter.detach()
    denoise(unet, x, text).square().sum().backward()


def test_a_checkpoint_that_computes_once_more_in_a_pass_of_its_own(unet, x, text):
    net = make_net(activation="relu")
    unet.requires_grad_(True)
    hn.attach(unet, net)
    plain = gradients(net, lambda: denoise(unet, x, text).square().sum())
    wrap_blocks(unet, lambda run, _, h, c: torch.utils.checkpoint.checkpoint(run, h, c, use_reentrant=True))
    replayed = gradients(net, lambda: denoise(unet, x, text).square().sum())
    flat = [torch.cat([g.flatten() for g in grads]) for grads in (replayed, plain)]
    assert relative_error(*flat) < 1e-5


def test_checkpointing_in_a_model_whose_prompt_argument_is_hidden(unet, x, text, net):
    # The wrapper's forward does not say which argument is the prompt: every site computes for itself.
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = unet

        def forward(self, *args, **kwargs):
            return self.model(*args, **kwargs)

    wrapper = Wrapper()
    hn.attach(wrapper, net)
    unet.train()
    with torch.no_grad():
        denoise(wrapper, x, text)
    plain = gradients(net, lambda: denoise(wrapper, x, text).square().sum())
    with torch.no_grad():
        denoise(wrapper, x, text)
    unet.enable_gradient_checkpointing()
    assert_close(gradients(net, lambda: denoise(wrapper, x, text).square().sum()), plain)


def test_accumulation_with_the_same_prompt_tensor_adds_up(unet, text):
    net = make_net(activation="silu")
    hn.attach(unet, net)
    inputs = [noise() for _ in range(3)]
    separate = [gradients(net, lambda y=y: denoise(unet, y, text).square().sum()) for y in inputs]
    net.zero_grad()
    for y in inputs:
        denoise(unet, y, text).square().sum().backward()
    assert_close([p.grad for p in net.parameters()], [sum(g) for g in zip(*separate, strict=True)])


def test_a_sampling_pass_before_a_training_step_changes_nothing(unet, x, text):
    net = make_net(activation="silu")
    hn.attach(unet, net)
    expected = gradients(net, lambda: denoise(unet, x, text).square().sum())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            denoise(unet, x, text)
        assert_close(gradients(net, lambda: denoise(unet, x, text).square().sum()), expected)


def test_one_prompt_through_several_optimizer_steps(unet, x, text):
    net = make_net(activation="silu")
    twin_unet, twin_net = copied(unet), copy.deepcopy(net)
    hn.attach(unet, net)
    hn.attach(twin_unet, twin_net)
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-2) for n in (net, twin_net)]
    for _ in range(3):
        kept = gradients(net, lambda: denoise(unet, x, text).square().sum())
        fresh = gradients(twin_net, lambda: denoise(twin_unet, x, text.clone()).square().sum())
        assert all(torch.equal(a, b) for a, b in zip(kept, fresh, strict=True))
        for optimizer in optimizers:
            optimizer.step()


def test_a_second_backward_over_a_retained_graph(unet, x, text):
    net = make_net(activation="silu", layer_norm=True)
    hn.attach(unet, net)
    loss = denoise(unet, x, text).square().sum()
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_prompt_that_trains_gets_its_gradient_through_a_frozen_network(unet, x, text):
    net = make_net(activation="silu").requires_grad_(False)
    twin = copied(unet).double()
    twin.set_attn_processor(WebUIProcessor([net]))
    hn.attach(unet, net)
    mine, theirs = text.clone().requires_grad_(), text.double().requires_grad_()
    denoise(unet, x, mine).square().sum().backward()
    denoise(twin, x.double(), theirs).square().sum().backward()
    assert relative_error(mine.grad, theirs.grad) <= 10 * GRADIENT_TOLERANCE  # some fifty layers


def test_projections_that_train_get_theirs(unet, x, text):
    hn.attach(unet, make_net())
    for layer in attention_layers(unet).values():
        layer.to_k.requires_grad_()
    denoise(unet, x, text).sum().backward()
    for layer in attention_layers(unet).values():
        assert layer.to_k.weight.grad.any()
        assert layer.to_v.weight.grad is None


def test_training_the_text_network_alone(unet, x, text):
    net = make_net((TEXT_WIDTH,))
    hn.attach(unet, net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    target, losses = torch.randn_like(x), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (denoise(unet, x, text) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
