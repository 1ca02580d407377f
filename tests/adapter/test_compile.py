"""A model with a hypernetwork on it, through PyTorch's compiler."""

import copy

import pytest
import torch

import hnkernels as hn
from tests.models import TEXT_WIDTH, denoise, make_net, noise, prompt, relative_error, tiny_unet


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_model_compiles_as_one_graph(unet, x, text, training):
    net = make_net(activation="silu")
    hn.attach(unet, net)
    net.train(training)
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        eager, result = denoise(unet, x, text), denoise(compiled, x, text)
        assert relative_error(result, eager) <= 1e-6  # the same operations, some in another order
        if training:
            parameters = list(net.parameters())
            theirs, ours = (torch.autograd.grad(y.square().sum(), parameters) for y in (eager, result))
            assert relative_error(*(torch.cat([g.flatten() for g in side]) for side in (ours, theirs))) <= 1e-5


@pytest.fixture(autouse=True)
def _compiler_without_memory():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


def whole(unet, backend):
    return torch.compile(unet, fullgraph=True, backend=backend)


def in_place(unet, backend):
    unet.compile(fullgraph=True, backend=backend)
    return unet


def by_blocks(unet, backend):
    unet.compile_repeated_blocks(fullgraph=True, backend=backend)
    return unet


COMPILE = [whole, in_place, by_blocks]


def graphs_of_the_bare_model(compile_model) -> int:
    backend = Counting()
    with torch.no_grad():
        model = compile_model(tiny_unet(), backend)
        for t in (10, 20):
            denoise(model, noise(), prompt(), t)
    torch.compiler.reset()
    return backend.graphs


STRENGTHS = {
    "numbers": [1.0, 0.5, -0.3, 0.0],
    "rows": [hn.PerRow(0, 1), hn.PerRow(0.5, 0.7), hn.PerRow(1, 1)],
    "tables": [{"up": {"attn2": 0.5, "k": 0.1}}, {"up": {"attn2": -1, "k": 0.2}}, {"up": {"attn2": 2, "k": 0}}],
}


@pytest.mark.parametrize("compile_model", COMPILE)
@pytest.mark.parametrize("kind", STRENGTHS)
def test_strengths_prompts_and_steps_compile_nothing_anew(unet, x, compile_model, kind):
    """As many graphs as the model without an adapter has; compiled layers of one form share theirs."""
    expected = graphs_of_the_bare_model(compile_model)
    adapter = hn.attach(unet, make_net(activation="silu", std=0.2))
    eager = copy.deepcopy(unet)
    theirs = next(iter(hn.adapters(eager).values()))
    backend = Counting()
    model = compile_model(unet, backend)
    with torch.no_grad():
        for t, strength in enumerate(STRENGTHS[kind] * 2):
            adapter.strength = theirs.strength = strength
            text = prompt()
            result = denoise(model, x, text, t)
            assert relative_error(result, denoise(eager, x, text, t)) <= 1e-6  # the same sums in another order
    if compile_model is not by_blocks or kind != "tables":
        assert backend.graphs == expected
    else:  # the layers that a table tells apart are of different forms
        assert backend.graphs <= 3 * expected


@pytest.mark.parametrize("compile_model", COMPILE)
def test_attaching_and_detaching_after_compilation_take_effect(unet, x, text, compile_model):
    model = compile_model(unet, "aot_eager")
    net = make_net(activation="silu", std=0.2)
    with torch.no_grad():
        base = denoise(model, x, text)
        with hn.attach(model, net):
            changed = denoise(model, x, text)
        after = denoise(model, x, text)
        plain = copy.deepcopy(unet)
        plain._compiled_call_impl = None
        with hn.attach(plain, net):
            assert relative_error(changed, WithoutCompiler(plain)(x, text)) <= 1e-6
    assert relative_error(changed, base) > 1e-3
    assert torch.equal(after, base)


def WithoutCompiler(unet):
    for module in unet.modules():
        module._compiled_call_impl = None
    return lambda x, text: denoise(unet, x, text)


def test_blocks_compiled_by_themselves_still_share_the_prompt(unet, x, text, evaluations):
    by_blocks(unet, "aot_eager")
    adapter = hn.attach(unet, make_net((TEXT_WIDTH,), activation="silu"))
    with torch.no_grad():
        for _ in range(3):
            denoise(unet, x, text)
    assert evaluations.of_text() == 2
    assert adapter.stats().misses == 14


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_blocks_compiled_by_themselves(unet, x, text, checkpointing):
    net = make_net(activation="silu").train()
    hn.attach(unet, net)
    grads = []
    for compiled in (False, True):
        if compiled:
            by_blocks(unet, "aot_eager")
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train()
        loss = denoise(unet, x, text).square().sum()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    assert relative_error(grads[1], grads[0]) <= 1e-5
