"""The adapter on the Triton kernels: what a whole UNet launches, and that nothing else changes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

import hnkernels as hn
from hnkernels.triton.launch import recording
from tests.marks import compiles_models
from tests.models import (
    FEWER_LAYERS,
    GRADIENT_TOLERANCE,
    WebUIProcessor,
    denoise,
    make_net,
    noise,
    prompt,
    randomise,
    relative_error,
    tiny_unet,
)

LAYERS = 7  # of self-attention, and as many of cross-attention


def reference_of_step(net: hn.Hypernetwork, x: Tensor, text: Tensor) -> Tensor:
    """What the web UIs' way gives, in float64."""
    torch.manual_seed(0)
    unet = tiny_unet(torch.float64)
    unet.set_attn_processor(WebUIProcessor([net]))
    return denoise(unet, x.double(), text.double())


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet()


@pytest.mark.parametrize("options", [{"activation": "silu"}, {"activation": "relu", "layer_norm": True}])
def test_sampling_is_the_web_uis_and_takes_two_launches_a_layer(unet, options):
    net, x, text = make_net(**options), noise(), prompt()
    expected = reference_of_step(net, x, text)
    hn.attach(unet, net)
    with torch.no_grad():
        denoise(unet, x, text)
        with recording() as launches:
            again = denoise(unet, x, text)
    assert relative_error(again, expected) <= 1e-5  # a whole UNet in fp32, of which eager's own error is most
    kernels = Counter(launch.kernel for launch in launches)
    per_layer = 4 if options.get("layer_norm") else 2
    # K and V of all cross-attention layers are kept from the first step; to_q costs no launch of its own.
    assert sum(kernels.values()) == per_layer * LAYERS
    assert not kernels["grouped_linear_kernel"]


def test_a_new_prompt_costs_one_launch_for_all_projections(unet):
    hn.attach(unet, make_net(sizes=(12,), activation="silu"))
    with torch.no_grad(), recording() as launches:
        denoise(unet, noise(), prompt())
    assert [launch.kernel for launch in launches] == ["mlp_layer_forward_kernel"] * 2 + ["grouped_linear_kernel"]


def test_the_projections_of_layers_with_lora_or_a_gradient_stay_apart(unet):
    net = make_net(sizes=(12,), activation="silu").train()
    hn.attach(unet, net)
    trained = next(m for n, m in unet.named_modules() if n.endswith("attn2.to_k"))
    trained.weight.requires_grad_()
    with recording() as launches:
        denoise(unet, noise(), prompt()).sum().backward()
    assert trained.weight.grad is not None
    assert "grouped_linear_kernel" not in [launch.kernel for launch in launches]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_gives_the_portable_backends_gradients(monkeypatch, checkpointing):
    net, x, text = make_net(activation="relu", layer_norm=True).train(), noise(), prompt()
    gradients = []
    for interpret in ("1", "0"):
        monkeypatch.setenv("TRITON_INTERPRET", interpret)  # which is what "auto" asks on a CPU
        torch.manual_seed(0)
        unet = tiny_unet()
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        with hn.attach(unet, net), recording() as launches:
            denoise(unet, x, text).square().sum().backward()
        assert bool(launches) == (interpret == "1")
        gradients.append([p.grad for p in net.parameters()])
        net.zero_grad(set_to_none=True)
    ours, theirs = (torch.cat([g.flatten() for g in side]) for side in gradients)
    assert relative_error(ours, theirs) <= 10 * GRADIENT_TOLERANCE  # two fp32 results, through a whole UNet


@compiles_models
@pytest.mark.parametrize("training", [False, True])
def test_the_whole_unet_compiles_as_one_graph(training):
    unet, net = tiny_unet(**FEWER_LAYERS), make_net(activation="silu")
    x, text = noise(), prompt()
    hn.attach(unet, net)
    net.train(training)
    with torch.set_grad_enabled(training):
        eager = denoise(unet, x, text)
        compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
        with recording() as launches:
            result = denoise(compiled, x, text)
        assert relative_error(result, eager) <= 1e-5  # the projections of cross-attention run in another order
        assert launches
        if training:
            parameters = list(net.parameters())
            theirs, ours = (torch.autograd.grad(y.square().sum(), parameters) for y in (eager, result))
            assert relative_error(*(torch.cat([g.flatten() for g in side]) for side in (ours, theirs))) <= 1e-4


def test_one_training_step_runs_on_the_kernels(unet):
    net = make_net(activation="silu")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in net.parameters()]
    with hn.attach(unet, net.train()), recording() as launches:
        denoise(unet, noise(), prompt()).square().mean().backward()
        optimizer.step()
    assert "weight_gradient_kernel" in [launch.kernel for launch in launches]
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_generated_weights_cost_one_launch_a_layer_and_one_for_the_prompt(unet):
    gen = hn.WeightHypernetwork(embedding_dim=6, hidden_dim=8, model=unet, projections=("q", "k", "v"))
    randomise(gen, 0.1)
    x, text, condition = noise(), prompt(), torch.randn(2, 6)
    with hn.attach(unet, gen) as adapter:
        with torch.no_grad(), adapter.condition(condition):
            with recording() as first:
                denoise(unet, x, text)
            with recording() as later:
                denoise(unet, x, text)
        with adapter.condition(condition):
            y = denoise(unet, x, text)
            with recording() as backward:
                y.sum().backward()
    # Q, K and V of a self-attention layer together, Q of a cross-attention layer alone; K and V of the prompt, once.
    assert len(first) == 2 * LAYERS + 1
    assert len(later) == 2 * LAYERS
    assert len(backward) <= 4 * len(first)
