"""What a layer takes by the kernels is what explain says, and by eager PyTorch what one counts by hand."""

import pytest
import torch

import hnkernels as hn
from hnkernels.accounting.comparison import compare, modelled
from hnkernels.triton.launch import Launch

TOKENS, WIDTH, OUT, ELEMENT = 100, 32, 48, 2


@pytest.fixture
def mlps():
    return hn.Hypernetwork((WIDTH,), activation="relu")[WIDTH]


def test_eager_pytorch_launches_every_operation(mlps):
    compared = compare(mlps, TOKENS, OUT)
    names = [one.kernel for one in compared.eager.launches]
    assert (
        names
        == ["aten.addmm.default", "aten.relu.default", "aten.addmm.default", "aten.add.Tensor", "aten.mm.default"] * 2
    )
    product = 2 * TOKENS * (WIDTH * 2 * WIDTH * 2 + WIDTH * OUT)
    assert compared.eager.flops == 2 * product
    first = compared.eager.launches[0]
    assert first.bytes_read == ELEMENT * (TOKENS * WIDTH + 2 * WIDTH * WIDTH + 2 * WIDTH)
    assert first.bytes_written == ELEMENT * TOKENS * 2 * WIDTH
    assert compared.saved == (0, 0)


def test_the_kernels_are_those_of_explain(mlps):
    ours = compare(mlps, TOKENS, OUT, target="sm_90").ours
    assert ours == hn.explain(*mlps, TOKENS, OUT, training=False, target="sm_90")
    assert len(ours.launches) <= 2


def test_training_has_a_backward_pass_and_what_is_kept_for_it(mlps):
    compared = compare(mlps, TOKENS, OUT, train=True)
    assert compared.ours.backward
    assert compared.ours.saved_bytes == compared.saved[0] > 0
    assert compared.saved[0] <= compared.saved[1]
    assert compared.eager.bytes_moved > compared.ours.bytes_moved


def test_counting_leaves_the_networks_alone(mlps):
    before = [p.clone() for mlp in mlps for p in mlp.parameters()]
    with torch.inference_mode():
        compare(mlps, TOKENS, OUT, train=True)
    after = [p for mlp in mlps for p in mlp.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_a_modelled_time_is_the_longer_of_products_and_bytes():
    products = Launch("a", 1, None, 312 * 10**9, 0, 0)
    bytes_moved = Launch("b", 1, None, 0, 2039 * 10**6, 0)
    assert modelled([products], "sm_80") == pytest.approx(1e-3 + 0.9e-6)
    assert modelled([bytes_moved, bytes_moved], "sm_80") == pytest.approx(2 * (1e-3 + 0.9e-6))


def test_fp32_has_no_modelled_time(mlps):
    assert compare(mlps, TOKENS, OUT, dtype=torch.float32).seconds is None
    ours, eager = compare(mlps, TOKENS, OUT, dtype=torch.bfloat16).seconds
    assert 0 < ours < eager


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tokens": 0}, "tokens must be a positive integer"), ({"target": "sm_70"}, "target 'sm_70' is unknown")],
)
def test_what_cannot_be_explained_is_refused(mlps, change, message):
    with pytest.raises(ValueError, match=message):
        compare(mlps, change.pop("tokens", TOKENS), OUT, **change)
