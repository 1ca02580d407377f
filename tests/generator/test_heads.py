"""Heads: the variance that a generated A starts with, the B that starts at 0, and what they compute."""

import pytest
import torch

from hnkernels.generator.heads import INITS, BasisHead, DenseHead, LoraHead, generated_variance

SHAPE = (24, 40, 4)
HIDDEN = 64


def features(layers=2, batch=3, hidden=HIDDEN):
    """With a root mean square of 1, as the weight generator makes them."""
    x = torch.randn(layers, batch, hidden)
    return x / x.square().mean(-1, keepdim=True).sqrt()


def heads(shape=SHAPE):
    return {
        "lora": LoraHead(HIDDEN, shape, "hyperfan-in"),
        "basis": BasisHead(HIDDEN, shape, "hyperfan-in", 5),
        "dense": DenseHead(HIDDEN, (*shape[:2], min(shape[:2]))),
    }


def test_the_rules_are_those_of_the_paper():
    n, d, r = SHAPE
    fan_in, fan_out, mean = (
        generated_variance(init, (n, d, r)) for init in ("hyperfan-in", "hyperfan-out", "hyperfan")
    )
    assert fan_in == 1 / d
    assert fan_out == 1 / r
    assert mean == pytest.approx(2 / (1 / fan_in + 1 / fan_out), rel=1e-12)
    assert set(INITS) == {"hyperfan-in", "hyperfan-out", "hyperfan"}


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", ["lora", "basis"])
def test_a_generated_a_has_the_variance_of_the_rule(kind, init):
    shape = (8, 600, 8)
    variances = []
    for _ in range(8):
        head = LoraHead(HIDDEN, shape, init) if kind == "lora" else BasisHead(HIDDEN, shape, init, 256)
        a, _ = head(features(1, 4))
        assert a.mean().abs() < 0.1 * a.std()
        variances.append(a.square().mean())
    # 8 draws of 4800 entries each; the coefficients of 256 bases have a relative spread of √(2/256) per draw and row.
    assert torch.stack(variances).mean().item() == pytest.approx(generated_variance(init, shape), rel=0.05)


def test_fan_in_keeps_the_size_of_what_a_is_applied_to():
    head = LoraHead(256, (8, 500, 64), "hyperfan-in")
    a, _ = head(features(1, 1, 256))
    u = torch.randn(200, 500) @ a[0, 0].mT
    assert u.square().mean().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("shape", [SHAPE, (40, 24, 4), (16, 16, 16)])
@pytest.mark.parametrize("kind", heads())
def test_the_product_starts_at_exactly_zero_and_its_gradient_does_not(kind, shape):
    head = heads(shape)[kind]
    a, b = head(features())
    n, d, rank = shape[0], shape[1], min(shape[:2]) if kind == "dense" else shape[2]
    assert a.shape == (2, 3, rank, d)
    assert b.shape == (2, 3, n, rank)
    assert a.is_contiguous()
    assert b.is_contiguous()
    assert torch.equal(b @ a, torch.zeros(2, 3, n, d))
    if kind != "dense":
        assert not b.any()
        assert a.any()
    (b @ a * torch.randn(n, d)).sum().backward()
    moving = [name for name, p in head.named_parameters() if p.grad is not None and p.grad.any()]
    assert moving == [{"lora": "to_b", "basis": "bases_b", "dense": "to_delta"}[kind]]


def test_the_lora_head_is_linear_in_the_features():
    head = heads()["lora"]
    torch.nn.init.normal_(head.to_b)
    x = features()
    for factor, doubled in zip(head(x), head(2 * x), strict=True):
        torch.testing.assert_close(doubled, 2 * factor)
    a, b = head(x)
    torch.testing.assert_close(a[1, 2].flatten(), head.to_a @ x[1, 2])
    torch.testing.assert_close(b[1, 2].flatten(), head.to_b @ x[1, 2])


def test_the_basis_head_mixes():
    head = heads()["basis"]
    torch.nn.init.normal_(head.bases_b)
    x = features()
    a, b = head(x)
    mix = head.mix @ x[1, 2]
    n, d, r = SHAPE
    torch.testing.assert_close(a[1, 2], torch.einsum("k,krd->rd", mix[:5], head.bases_a.view(5, r, d)))
    torch.testing.assert_close(b[1, 2], torch.einsum("k,knr->nr", mix[5:], head.bases_b.view(5, n, r)))


@pytest.mark.parametrize("sides", [(5, 9), (9, 5), (6, 6)])
def test_the_dense_head_makes_any_matrix(sides):
    head = DenseHead(HIDDEN, (*sides, min(sides)))
    torch.nn.init.normal_(head.to_delta)
    x = features()
    a, b = head(x)
    torch.testing.assert_close((b @ a)[1, 2].flatten(), head.to_delta @ x[1, 2])
    assert torch.equal((b if sides[0] <= sides[1] else a)[0, 0], torch.eye(min(sides)))
