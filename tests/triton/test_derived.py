"""What inference keeps is never stale."""

from __future__ import annotations

import copy

import pytest
import torch

from hnkernels import hyper_kv
from hnkernels.ops import derived
from hnkernels.triton.launch import recording
from tests.models import FORWARD_TOLERANCE, make_mlp, relative_error

WIDTH, OUT = 8, 6
OPTIONS = [{"activation": "silu"}, {"activation": None}, {"activation": "relu", "layer_norm": True}]


class Layer:
    """A layer's inputs, with both backends side by side at inference."""

    def __init__(self, dtype: torch.dtype = torch.float32, **options):
        self.mlps = [make_mlp(WIDTH, **options).eval() for _ in "kv"]
        self.x = torch.randn(5, WIDTH, dtype=dtype)
        self.w_k, self.w_v = (torch.randn(OUT, WIDTH, dtype=dtype) for _ in "kv")
        self.strength = 0.5

    @torch.no_grad()
    def kv(self, backend: str) -> torch.Tensor:
        return torch.stack(hyper_kv(self.x, *self.mlps, self.w_k, self.w_v, strength=self.strength, backend=backend))

    def check(self) -> None:
        assert relative_error(self.kv("triton"), self.kv("portable")) <= FORWARD_TOLERANCE


@torch.no_grad()
def _overwrite(layer: Layer) -> None:
    layer.mlps[0].layers()[-1].linear.weight.mul_(-2)


def _load(layer: Layer) -> None:
    layer.mlps[1].load_state_dict({k: 3 * v for k, v in layer.mlps[1].state_dict().items()})


def _replace(layer: Layer) -> None:
    layer.mlps[0] = copy.deepcopy(layer.mlps[0])
    _overwrite(layer)


def _new_projection(layer: Layer) -> None:
    layer.w_k = layer.w_k * -1


def _new_strength(layer: Layer) -> None:
    layer.strength = -0.25


def _swap(layer: Layer) -> None:
    layer.mlps.reverse()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("change", [_overwrite, _load, _replace, _new_projection, _new_strength, _swap])
def test_a_change_is_followed(options, change):
    layer = Layer(**options)
    layer.check()
    change(layer)
    layer.check()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_step_of_an_optimiser_that_leaves_no_trace_is_followed(options):
    layer = Layer(**options)
    layer.check()
    k, v = hyper_kv(layer.x, *layer.mlps, layer.w_k, layer.w_v, backend="triton")
    (k.sum() + v.sum()).backward()
    versions = [p._version for mlp in layer.mlps for p in mlp.parameters()]
    parameters = [p for mlp in layer.mlps for p in mlp.parameters()]
    torch.optim.Adam(parameters, lr=0.1, fused=True).step()
    assert versions == [p._version for p in parameters]  # or this test tests nothing
    layer.check()


@pytest.mark.parametrize("options", OPTIONS)
def test_what_was_computed_once_is_not_computed_again(options):
    layer = Layer(**options)
    with recording() as first:
        layer.kv("triton")
    with recording() as second:
        layer.kv("triton")
    derived.forget()
    with recording() as third:
        layer.kv("triton")
    assert len(second) <= len(first) == len(third)


def test_it_goes_with_its_tensors_and_keeps_few_purposes():
    layer = Layer(activation="silu")
    for layer.strength in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        layer.kv("triton")
    assert max(len(memos) for memos in derived._kept.values()) <= 4
    before = len(derived._kept)
    assert before
    del layer
    assert len(derived._kept) < before


@pytest.mark.parametrize("options", OPTIONS)
def test_neither_when_it_was_frozen_in_between(options):
    layer = Layer(**options)
    parameters = [p for mlp in layer.mlps for p in mlp.parameters()]
    for mlp in layer.mlps:
        mlp.requires_grad_(False)
    layer.check()
    for p in parameters:
        p.requires_grad_(True)
        p.grad = torch.ones_like(p)
    torch.optim.Adam(parameters, lr=0.1, fused=True).step()
    for p in parameters:
        p.requires_grad_(False)
    layer.check()
