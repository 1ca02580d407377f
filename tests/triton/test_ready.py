"""Operations that taps run by themselves (``adapter/ready.py``): until anything changes that they assume."""

from __future__ import annotations

import copy

import pytest
import torch

import hnkernels as hn
from hnkernels.adapter.host import Host
from hnkernels.triton.launch import recording
from tests.models import (
    FEWER_LAYERS,
    attention_layers,
    denoise,
    make_net,
    noise,
    prompt,
    randomise,
    relative_error,
    tiny_unet,
)

SELF = "attn1"


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet(**FEWER_LAYERS)


@pytest.fixture(params=["network", "generated"])
def adapter(unet, request):
    if request.param == "network":
        return hn.attach(unet, make_net(), targets=SELF)
    gen = hn.WeightHypernetwork([SELF], embedding_dim=6, hidden_dim=8, model=unet, projections=("q", "k", "v"))
    randomise(gen, 0.1)
    with torch.no_grad():
        return hn.attach(unet, gen.generate_weights(torch.randn(1, 6)).detach())


def warmed(unet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An input and a prompt for which the operations are ready, and what they give."""
    x, text = noise(), prompt()
    for _ in range(3):
        expected = denoise(unet, x, text)
    return x, text, expected


def by_themselves(unet) -> bool:
    """Whether a call goes through operations that are ready, and through nothing else."""
    asked = []
    layers = Host.of(unet).layers
    for layer in layers:
        layer.run = lambda *given, run=layer.run: asked.append(given[0]) or run(*given)
    denoise(unet, noise(), prompt(), 1)
    for layer in layers:
        del layer.run
    return not asked


def in_place(unet, adapter):
    for layer in attention_layers(unet, SELF).values():
        layer.to_v.weight.mul_(1.5)


def other_storage(unet, adapter):
    for layer in attention_layers(unet, SELF).values():
        layer.to_q.weight.data = layer.to_q.weight * 1.5


def other_parameter(unet, adapter):
    for layer in attention_layers(unet, SELF).values():
        layer.to_k.weight = torch.nn.Parameter(layer.to_k.weight * 1.5)


def other_module(unet, adapter):
    for layer in attention_layers(unet, SELF).values():
        linear = layer.to_k
        layer.to_k = torch.nn.Linear(linear.in_features, linear.out_features, bias=False).requires_grad_(False)


def hooked(unet, adapter):
    for layer in attention_layers(unet, SELF).values():
        layer.to_k.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def wrapped(unet, adapter):
    for layer in attention_layers(unet, SELF).values():
        layer.to_v.forward = lambda x, forward=layer.to_v.forward: forward(x) * 1.5


def source(unet, adapter):
    if isinstance(adapter, hn.Adapter):
        adapter.net.load_state_dict({k: v * 1.3 for k, v in adapter.net.state_dict().items()})
    else:
        for delta in adapter._deltas.values():
            delta.state.b.mul_(2)


def strength(unet, adapter):
    adapter.strength = 0.5


def disabled(unet, adapter):
    adapter.enabled = False


def moved(unet, adapter):
    unet.half().float()
    for layer in attention_layers(unet, SELF).values():
        layer.to_v.weight.data = (layer.to_v.weight * 1.5).half().float()


def fused_optimizer(unet, adapter):
    weights = [layer.to_k.weight for layer in attention_layers(unet, SELF).values()]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    torch.optim.SGD(weights, lr=0.1, fused=True).step()


def mode(unet, adapter):
    for module in (adapter.net,) if isinstance(adapter, hn.Adapter) else ():
        module.train()
        module.set_multiplier(0.5)  # which training takes no notice of
    adapter.strength = 0.5


CHANGES = [
    in_place, other_storage, other_parameter, other_module, hooked, wrapped, source, strength, disabled, moved,
    fused_optimizer, mode,
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_is_changed_between_two_steps_counts_at_once(unet, adapter, change):
    x, text = noise(), prompt()
    for t in (30, 20, 10):
        before = denoise(unet, x, text, t)
    assert by_themselves(unet)
    change(unet, adapter)
    after = denoise(unet, x, text, 9)
    adapter.clear_cache()
    Host.of(unet)._prover.watch = None
    assert torch.equal(denoise(unet, x, text, 9), after)
    if change is not mode or not isinstance(adapter, hn.Adapter):  # in training mode strength is 1, as it was
        assert relative_error(after, before) > 1e-4


@torch.no_grad()
def test_an_exception_inside_a_layer_leaves_nothing_waiting(unet, adapter):
    x, text, expected = warmed(unet)
    hook = next(iter(attention_layers(unet, SELF).values())).to_k.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        denoise(unet, x, text)
    hook.remove()
    assert torch.equal(denoise(unet, x, text), expected)


@torch.no_grad()
def test_a_copy_has_operations_of_its_own(unet, adapter):
    x, text, expected = warmed(unet)
    twin = copy.deepcopy(unet)
    for layer in attention_layers(twin, SELF).values():
        layer.to_v.weight.mul_(1.5)
    assert relative_error(denoise(twin, x, text), expected) > 1e-4
    assert torch.equal(denoise(unet, x, text), expected)


@torch.no_grad()
def test_other_shapes_and_dtypes_are_other_operations(unet, adapter):
    x, text, expected = warmed(unet)
    wide = denoise(unet, torch.cat([x, x]), torch.cat([text, text]))
    assert relative_error(wide[: len(x)], expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        half = denoise(unet, x, text)
    assert 1e-4 < relative_error(half, expected) < 0.1
    assert torch.equal(denoise(unet, x, text), expected)
    assert by_themselves(unet)


@torch.no_grad()
def test_who_counts_launches_sees_those_of_every_call(unet, adapter):
    seen = []
    for _ in range(4):
        with recording() as launches:
            denoise(unet, noise(), prompt())
        seen.append(launches)
        denoise(unet, noise(), prompt())
    assert seen[0] != []
    assert seen[1] == seen[2] == seen[3]


@torch.no_grad()
def test_a_context_that_is_not_contiguous(unet, adapter):
    layer = next(layer for layer in Host.of(unet).layers if layer.name.endswith(SELF))
    norm = unet.get_submodule(layer.name.rsplit(".", 1)[0]).norm1
    x, text, expected = warmed(unet)
    hook = norm.register_forward_hook(lambda module, args, y: y.mT.contiguous().mT)
    assert relative_error(denoise(unet, x, text), expected) < 1e-5
    hook.remove()
