"""Every way in which weights are written, of the model's and the network's: the next sampling run has the new ones."""

import copy

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.ops import derived, onednn
from tests.adapter.test_forward_lora import Model
from tests.models import FORWARD_TOLERANCE, copied, make_net, relative_error

FACTOR = 1.05


def in_place(module):
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(FACTOR)


def through_data(module):
    for p in module.parameters():
        p.data.mul_(FACTOR)


def by_new_data(module):
    for p in module.parameters():
        p.data = p.data * FACTOR


def through_the_storage(module):
    for p in module.parameters():
        p.untyped_storage().copy_((p.detach() * FACTOR).untyped_storage())


def through_numpy(module):
    for p in module.parameters():
        p.detach().numpy()[...] *= FACTOR


def in_inference_mode(module):
    with torch.inference_mode():
        in_place(module)


def all_at_once(module):
    torch._foreach_mul_([p.data for p in module.parameters()], FACTOR)


def by_set(module):
    with torch.no_grad():
        for p in module.parameters():
            p.set_(p * FACTOR)


def by_new_parameters(module):
    for owner, name, p in named(module):
        setattr(owner, name, nn.Parameter(p.detach() * FACTOR, p.requires_grad))


def by_loading(module):
    module.load_state_dict({key: value * FACTOR for key, value in module.state_dict().items()})


def by_assigning(module):
    module.load_state_dict({key: value * FACTOR for key, value in module.state_dict().items()}, assign=True)


def by_a_fused_optimizer(module):
    trained = [p for p in module.parameters() if not p.requires_grad]
    for p in module.parameters():
        p.requires_grad_(True).grad = p.detach() * (1 - FACTOR)
    torch.optim.SGD(module.parameters(), lr=1.0, fused=True).step()
    module.zero_grad()
    for p in trained:
        p.requires_grad_(False)


def by_a_vector(module):
    vector = nn.utils.parameters_to_vector(module.parameters()) * FACTOR
    nn.utils.vector_to_parameters(vector.detach(), module.parameters())


def named(module):
    return [
        (owner, name, p) for owner in module.modules() for name, p in list(owner._parameters.items()) if p is not None
    ]


WAYS = [
    *(in_place, through_data, by_new_data, through_the_storage, through_numpy, in_inference_mode, all_at_once, by_set),
    *(by_new_parameters, by_loading, by_assigning, by_a_fused_optimizer, by_a_vector),
]


@pytest.mark.parametrize(("kind", "mode"), [("kept", torch.no_grad), ("fused", torch.inference_mode)])
@pytest.mark.parametrize("whose", ["model", "network"])
@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
def test_the_next_run_has_what_was_written(write, whose, kind, mode):
    model, net = Model(), make_net((12,), activation="relu" if kind == "kept" else None).eval()
    x, text = torch.randn(2, 5, 8), torch.randn(2, 7, 12)
    untouched = copied(model), copy.deepcopy(net)
    adapter = hn.attach(model, net)
    if kind == "fused":
        adapter.fuse()
    with mode():
        for _ in range(2):
            before = model(x, text)
    write(model if whose == "model" else net)
    twin, other = untouched
    in_place(twin if whose == "model" else other)
    hn.attach(twin, other)
    with mode():
        expected = twin(x, text)
        assert relative_error(model(x, text), expected) < FORWARD_TOLERANCE
    assert relative_error(before, expected) > 100 * FORWARD_TOLERANCE


@pytest.mark.parametrize("whose", ["model", "network"])
@pytest.mark.parametrize("write", [through_data, through_the_storage, through_numpy], ids=lambda way: way.__name__)
def test_what_was_made_of_weights_goes_when_they_are_written_without_a_trace(write, whose, monkeypatch):
    monkeypatch.setattr(onednn, "LEAST_ELEMENTS", 0)  # weights of any size are packed
    model, net = Model().requires_grad_(False), make_net((12,), activation="relu").requires_grad_(False)
    x, text = torch.randn(2, 5, 8), torch.randn(2, 7, 12)
    twin, other = copied(model), copy.deepcopy(net)
    hn.attach(model, net)
    with torch.no_grad():
        model(x, text)
        model(x, text)
        epoch = derived.epoch()
        write(model if whose == "model" else net)
        y = model(x, text)
        assert derived.epoch() != epoch
        in_place(twin if whose == "model" else other)
        hn.attach(twin, other)
        assert relative_error(y, twin(x, text)) < FORWARD_TOLERANCE
