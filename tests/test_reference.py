"""The ground truth against formulas written out by hand, and that it stands on its own."""

import subprocess
import sys

import pytest
import torch

import reference


def test_it_does_not_import_the_library():
    code = "import sys, reference; assert not [m for m in sys.modules if m.startswith('hnkernels')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_mlp_is_the_formula():
    mlp = reference.MLP(4, (1, 2, 1), "relu").double().eval()
    mlp.multiplier = 0.5
    x = torch.randn(3, 4, dtype=torch.float64)
    w1, b1, w2, b2 = mlp.parameters()
    expected = x + 0.5 * ((x @ w1.T + b1).clamp(min=0) @ w2.T + b2)
    torch.testing.assert_close(mlp(x), expected)
    torch.testing.assert_close(mlp.train()(x), 2 * expected - x)  # in training m is 1


def test_a_chain_feeds_each_network_the_output_of_the_one_before():
    a, b = (reference.MLP(4, (1, 1)).double() for _ in range(2))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(reference.chain(x, [a, b]), b(a(x)))
    assert reference.chain(x, []) is x


def test_k_and_v_have_chains_of_their_own():
    a, b = (reference.MLP(4, (1, 1)).double() for _ in range(2))
    x, w_k, w_v, b_v = (torch.randn(s, dtype=torch.float64) for s in ((3, 4), (5, 4), (6, 4), (6,)))
    k, v = reference.project_kv(x, [a], [b], w_k, w_v, None, b_v)
    torch.testing.assert_close(k, a(x) @ w_k.T)
    torch.testing.assert_close(v, b(x) @ w_v.T + b_v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_is_torchs_own(dtype):
    x, context = torch.randn(2, 5, 8, dtype=dtype), torch.randn(2, 3, 6, dtype=dtype)
    w_q, w_k, w_v, w_out = (torch.randn(s, dtype=dtype) * 0.3 for s in ((8, 8), (8, 6), (8, 6), (8, 8)))
    b_out = torch.randn(8, dtype=dtype)
    mlp_k, mlp_v = (reference.MLP(6, (1, 2, 1), "tanh").to(dtype) for _ in range(2))
    actual = reference.attention(x, context, [mlp_k], [mlp_v], w_q, w_k, w_v, w_out, b_out, heads=2)
    q, k, v = (
        t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (x @ w_q.T, mlp_k(context) @ w_k.T, mlp_v(context) @ w_v.T)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    # Two orders of the same sums: a few roundings of the dtype.
    torch.testing.assert_close(
        actual, mixed @ w_out.T + b_out, rtol=16 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps
    )
