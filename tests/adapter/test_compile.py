"""What a hypernetwork costs PyTorch's compiler: the model compiles as often with it as without, whatever changes."""

import functools

import pytest
import torch
from torch import nn

import hnkernels as hn
from tests.adapter.hosts import CROSS_ATTENTION, by_hand
from tests.marks import compiles_models, earlier
from tests.models import (
    ONE_WIDTH,
    TEXT_WIDTH,
    UNET_TOLERANCE,
    attention_layers,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    randomise,
    relative_error,
    tiny_unet,
)

pytestmark = compiles_models

STRENGTHS = (1.0, 0.5, -0.3, 0.0)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compilations:
    """A backend that runs what it is given as it is, and counts."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph.forward


def whole(unet, backend):
    return torch.compile(unet, fullgraph=True, backend=backend)


def by_blocks(unet, backend):
    unet.compile_repeated_blocks(fullgraph=True, backend=backend)
    return unet


@pytest.fixture(params=[whole, by_blocks], ids=["whole", "by blocks"])
def compiled(request):
    return request.param


@pytest.fixture
def unet(compiled):
    return small_unet(compiled)


def small_unet(compiled):
    """As small as will do, since tracing takes its time: blocks of two widths only where these are what is traced."""
    return CROSS_ATTENTION["sd1"].model(torch.float32) if compiled is by_blocks else unet_of_one_width()


def unet_of_one_width():
    unet = tiny_unet(**ONE_WIDTH)
    randomise(unet, 0.1)
    return unet


@functools.cache
def compilations_without(compiled, grad):
    """How often the bare model is compiled for the calls that the tests make.

    Recorded, something in its first attention layer is trained: from there on a gradient flows, as it does after a
    hypernetwork that is trained.
    """
    torch._dynamo.reset()
    backend, unet = Compilations(), small_unet(compiled)
    next(iter(attention_layers(unet).values())).to_out[0].bias.requires_grad_(grad)
    model = compiled(unet, backend)
    with torch.set_grad_enabled(grad):
        for t in (10, 9, 8):
            denoise(model, noise(), prompt(), t)
    torch._dynamo.reset()
    return backend.count


@pytest.mark.parametrize("grad", [False, True])
def test_prompts_timesteps_and_strengths_compile_nothing_more(unet, compiled, grad):
    with torch.set_grad_enabled(grad):
        pure, backend, net = copied(unet), Compilations(), make_net()
        adapter = hn.attach(unet, net)
        model = compiled(unet, backend)
        for t, strength in enumerate(STRENGTHS[:-1] if grad else STRENGTHS):  # at 0 nothing is recorded: another graph
            adapter.strength = strength
            x, text = noise(), prompt()
            net.set_multiplier(strength)
            expected = denoise(by_hand(pure, net), x, text, t)
            net.set_multiplier(1.0)
            assert relative_error(denoise(model, x, text, t), expected) < UNET_TOLERANCE
        assert backend.count == compilations_without(compiled, grad) > 0


ROWS = [hn.PerRow(0, 1), hn.PerRow(0.5, 0.7), hn.PerRow(1, 1)]
TABLES = [{"up": {"attn2": 0.5, "k": 0.1}}, {"up": {"attn2": -1, "k": 0.2}}, {"up": {"attn2": 2, "k": 0}}]


@pytest.mark.parametrize("strengths", [ROWS, TABLES], ids=["rows", "tables"])
def test_rows_and_tables_compile_nothing_more(unet, x, text, compiled, strengths):
    with torch.no_grad():
        backend, counts = Compilations(), []
        adapter = hn.attach(unet, make_net())
        eager = copied(unet)
        (theirs,) = hn.adapters(eager).values()
        model = compiled(unet, backend)
        for strength in strengths:
            adapter.strength = theirs.strength = strength
            assert relative_error(denoise(model, x, text), denoise(eager, x, text)) < UNET_TOLERANCE
            counts.append(backend.count)
        # Layers that a table tells apart are of more than one form, and those of one form share their code.
        most = compilations_without(compiled, False) * (1 if strengths is ROWS or compiled is whole else 3)
        assert counts[0] == counts[-1] <= most


def test_the_networks_own_multiplier_compiles_once_more(unet, x, text, compiled):
    with torch.no_grad():
        pure, backend, net = copied(unet), Compilations(), make_net()
        hn.attach(unet, net)
        model = compiled(unet, backend)
        counts = []
        for multiplier in STRENGTHS:
            net.set_multiplier(multiplier)
            assert relative_error(denoise(model, x, text), denoise(by_hand(pure, net), x, text)) < UNET_TOLERANCE
            counts.append(backend.count)
        # It is a number, which PyTorch takes for a constant until it changes.
        assert counts[1] == counts[-1] == 2 * compilations_without(compiled, False)


def test_trained_weights_compile_nothing_more(unet, x, text, compiled):
    pure, backend = copied(unet), Compilations()
    net = make_net().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    hn.attach(unet, net)
    model = compiled(unet, backend)
    for _ in range(3):
        out = denoise(model, x, text)
        assert relative_error(out, denoise(by_hand(pure, net), x, text)) < UNET_TOLERANCE
        optimizer.zero_grad()
        out.square().sum().backward()
        optimizer.step()
    assert backend.count == compilations_without(compiled, True) > 0


@pytest.mark.parametrize("compiled", [whole], indirect=True)
@pytest.mark.parametrize("training", [False, True])
def test_the_whole_model_is_one_graph_with_the_right_gradients(unet, compiled, x, text, training):
    net = make_net((8, TEXT_WIDTH), activation="silu").train(training)
    hn.attach(unet, net)
    outs, grads = [], []
    for model in (unet, compiled(unet, "aot_eager")):
        outs.append(denoise(model, x, text))
        loss = outs[-1].square().sum()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    assert relative_error(outs[1], outs[0]) <= 1e-6  # the same operations, some in another order
    assert relative_error(grads[1], grads[0]) <= 1e-5


def test_two_networks_compile_nothing_more(unet, x, text, compiled):
    with torch.no_grad():
        pure, backend = copied(unet), Compilations()
        nets = [make_net(activation="relu"), make_net(activation="silu")]
        adapters = [hn.attach(unet, net) for net in nets]
        model = compiled(unet, backend)
        for strength in (1.0, 0.5, 0.25):
            adapters[1].strength = strength
            nets[1].set_multiplier(strength)
            expected = denoise(by_hand(pure, *nets), x, text)
            nets[1].set_multiplier(1.0)
            assert relative_error(denoise(model, x, text), expected) < UNET_TOLERANCE
        assert backend.count == compilations_without(compiled, False) > 0


def test_attached_to_a_compiled_model_and_detached_from_it(unet, x, text, compiled):
    with torch.no_grad():
        pure, backend, net = copied(unet), Compilations(), make_net()
        base, expected = denoise(pure, x, text), denoise(by_hand(pure, net), x, text)
        model = compiled(unet, backend)
        assert relative_error(denoise(model, x, text), base) < UNET_TOLERANCE
        adapter = hn.attach(unet, net)
        assert relative_error(denoise(model, x, text), expected) < UNET_TOLERANCE
        adapter.enabled = False
        assert relative_error(denoise(model, x, text), base) < UNET_TOLERANCE
        adapter.enabled = True
        assert relative_error(denoise(model, x, text), expected) < UNET_TOLERANCE
        adapter.detach()
        assert relative_error(denoise(model, x, text), base) < UNET_TOLERANCE


@pytest.mark.parametrize("compiled", [by_blocks], indirect=True)
@pytest.mark.skipif(earlier("torch", (2, 12)), reason="PyTorch 2.11 goes over its limit of recompilations here")
def test_blocks_compiled_by_themselves_still_share_the_prompt(unet, compiled, x, text, evaluations):
    compiled(unet, Compilations())
    adapter = hn.attach(unet, make_net((TEXT_WIDTH,)))
    with torch.no_grad():
        for _ in range(3):
            denoise(unet, x, text)
    assert evaluations.of_text() == 2
    assert adapter.stats().misses == 2 * len(adapter.sites())


@pytest.mark.parametrize("compiled", [by_blocks], indirect=True)
def test_a_lora_loaded_into_compiled_blocks_counts_at_once(unet, compiled, x, text):
    peft = pytest.importorskip("peft", reason="diffusers loads LoRA through PEFT")
    hn.attach(unet, make_net((TEXT_WIDTH,)))
    compiled(unet, "aot_eager")
    names = [f"{name}.to_k" for name in attention_layers(unet, "attn2")]
    with torch.no_grad():
        before = denoise(unet, x, text)
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))
        unet.eval()
        first, second = denoise(unet, x, text), denoise(unet, x, text)
    assert relative_error(first, before) > 1e-3
    assert torch.equal(first, second)


def test_a_copy_after_a_training_step_with_compiled_blocks(x, text):
    unet = unet_of_one_width()
    hn.attach(unet, make_net((8, TEXT_WIDTH)))
    by_blocks(unet, "aot_eager")
    loss = denoise(unet, x, text).square().sum()
    loss.backward()
    twin = copied(unet)
    with torch.no_grad():
        assert relative_error(denoise(twin, x, text), denoise(unet, x, text)) <= UNET_TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_blocks_compiled_by_themselves(x, text, checkpointing):
    unet, net = unet_of_one_width(), make_net((8, TEXT_WIDTH), activation="silu").train()
    hn.attach(unet, net)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    grads = []
    for model in (unet, by_blocks(unet, "aot_eager")):
        loss = denoise(model.train(), x, text).square().sum()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    assert relative_error(grads[1], grads[0]) <= 1e-5


@pytest.mark.parametrize("compiled", [whole], indirect=True)
def test_attached_by_the_compiled_model(unet, compiled, x, text):
    with torch.no_grad():
        pure, net = copied(unet), make_net()
        model = whole(unet, Compilations())
        adapter = hn.attach(model, net)
        assert sorted(name.removeprefix("_orig_mod.") for name in adapter.sites()) == sorted(attention_layers(pure))
        assert relative_error(denoise(model, x, text), denoise(by_hand(pure, net), x, text)) < UNET_TOLERANCE
        assert relative_error(denoise(unet, x, text), denoise(by_hand(pure, net), x, text)) < UNET_TOLERANCE


def test_a_fused_network(unet, x, text, compiled):
    with torch.no_grad():
        pure, backend = copied(unet), Compilations()
        net = make_net(activation=None)
        adapter = hn.attach(unet, net).fuse()
        model = compiled(unet, backend)
        for strength in (1.0, 0.5):
            adapter.strength = strength
            net.set_multiplier(strength)
            expected = denoise(by_hand(pure, net), x, text)
            net.set_multiplier(1.0)
            assert relative_error(denoise(model, x, text), expected) < UNET_TOLERANCE
        assert backend.count == compilations_without(compiled, False) > 0


@pytest.mark.parametrize("name", ["pixart", "ldm"])
def test_other_models_compile_as_one_graph(name):
    case = CROSS_ATTENTION[name]
    model, call, net = case.model(torch.float32), case.call(torch.float32), make_net(tuple(case.widths))

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    with torch.no_grad():
        expected = first(by_hand(model, net)(**call))
        hn.attach(model, net)
        backend = Compilations()
        assert relative_error(first(whole(model, backend)(**call)), expected) < UNET_TOLERANCE
        assert backend.count == 1


class Sample(nn.Module):
    """The UNet with a tensor for an answer."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, text):
        return self.unet(x, t, text, return_dict=False)[0]


@pytest.mark.parametrize("compiled", [whole], indirect=True)
def test_exported(unet, compiled, x, text):
    net = make_net().requires_grad_(False)
    expected = denoise(by_hand(unet, net), x, text)
    with hn.attach(unet, net), torch.no_grad():
        exported = torch.export.export(
            Sample(unet), (x, torch.tensor(10), text), strict=False
        )  # the other way knows no hooks with tensors
        run = exported.module()
        assert relative_error(run(x, torch.tensor(10), text), expected) < UNET_TOLERANCE
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE  # and the model works on
    other, prompt_2 = noise(), prompt()
    expected = denoise(by_hand(unet, net), other, prompt_2, 3)
    assert relative_error(run(other, torch.tensor(3), prompt_2), expected) < UNET_TOLERANCE
