"""Dropout: the mask is a function of coordinates, and networks with it are the reference with that very mask."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hnkernels import HypernetworkMLP, hyper_context, hyper_kv
from hnkernels.ops import fused
from hnkernels.ops.hyper import hyper_context_pair
from hnkernels.triton.kernels.dropout import dropout_scale
from hnkernels.triton.tiling import Tiles, forced
from tests.accuracy import Call
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, make_mlp, reference_of, relative_error

pytestmark = pytest.mark.on_device

P = 0.3
NETS = [
    {"activation": "relu", "dropout_structure": (0, P, 0)},
    {"activation": "silu", "dropout_structure": (0, P, 0)},
    {"activation": "silu", "dropout_structure": (0, 0, P)},
    {"activation": None, "dropout_structure": (0, P, P)},
    {"activation": "prelu", "dropout_structure": (0, P, P), "activate_output": True},
    {"activation": "tanh", "dropout_structure": (0, P, P), "activate_output": True},
    {"activation": "silu", "dropout_structure": (0, P, 0), "layer_norm": True},
    {"activation": "relu", "dropout_structure": (0, P, P), "layer_norm": True, "activate_output": True},
    {"activation": "relu", "dropout_structure": (0, P, 0, P), "layer_structure": (1, 1.5, 2, 1), "layer_norm": True},
    {"activation": "hardtanh", "dropout_structure": (0, P), "layer_structure": (1, 1)},
]


def name_of(options: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


@triton.jit
def _mask_kernel(seed_ptr, p, out_ptr, first_row, M, N, site, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.arange(0, BLOCK_M).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)
    at = out_ptr + rows[:, None] * N + cols[None, :]
    scale = dropout_scale(seed_ptr, p, first_row + rows, cols, site)
    tl.store(at, scale, mask=(rows < M)[:, None] & (cols < N)[None, :])


def mask(M: int, N: int, p: float = P, seed: int = 1, site: int = 0, first_row: int = 0) -> Tensor:
    """What the kernels multiply with. ``site`` is 2·layer, and one more in the V stream. Shape: [M, N]."""
    out = torch.empty(M, N)
    blocks = {"BLOCK_M": triton.next_power_of_2(M), "BLOCK_N": triton.next_power_of_2(N)}
    _mask_kernel[(1,)](torch.tensor([seed]), p, out, first_row, M, N, site, **blocks)
    return out


class _Masked(nn.Module):
    """Dropout with a given mask."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


def masked_reference(mlp: HypernetworkMLP, rows: int, seed: int, stream: int):
    """The reference in float64 with the kernels' masks in place of its dropouts."""
    ref = reference_of(mlp)
    layer, width = -1, 0
    for i, module in enumerate(ref.linear):
        if isinstance(module, nn.Linear):
            layer, width = layer + 1, module.out_features
        elif isinstance(module, nn.Dropout):
            ref.linear[i] = _Masked(mask(rows, width, module.p, seed, 2 * layer + stream))
    return ref


def seed_after(manual: int) -> int:
    """The seed that the backend draws next after ``torch.manual_seed(manual)``."""
    torch.manual_seed(manual)
    return int(torch.randint(2**62, (1,)).item())


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, [u.to(o.dtype) for u, o in zip(upstream, outputs, strict=True)]))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_as_many_are_kept_as_should_be_and_the_mean_stays(p):
    scale = mask(128, 512, p)
    kept = scale != 0
    deviation = (p * (1 - p) / scale.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * deviation  # of a binomial; 1 in 16000 by chance
    assert torch.equal(scale[kept], torch.full_like(scale[kept], 1 / (1 - p)))


def test_rows_and_columns_are_kept_alike():
    kept = (mask(256, 256) != 0).double()
    deviation = (P * (1 - P) / 256) ** 0.5
    for means in (kept.mean(0), kept.mean(1)):
        assert ((means - (1 - P)).abs() < 5 * deviation).all()  # of 512 means; 1 in 3000 by chance
        assert means.std() == pytest.approx(deviation, rel=0.25)  # 5 standard errors of a standard deviation


@pytest.mark.parametrize("other", [{"seed": 2}, {"seed": 1 + 2**40}, {"site": 1}, {"site": 2}, {"first_row": 64},
                                   {"first_row": 2**32}])  # fmt: skip
def test_seeds_layers_streams_and_rows_have_masks_of_their_own(other):
    agree = ((mask(64, 128) != 0) == (mask(64, 128, **other) != 0)).double().mean().item()
    expected = P**2 + (1 - P) ** 2
    assert abs(agree - expected) < 4 * (expected * (1 - expected) / (64 * 128)) ** 0.5  # as independent masks do


def test_a_row_has_the_same_mask_wherever_a_tile_begins():
    assert torch.equal(mask(64, 100)[32:], mask(32, 100, first_row=32))
    assert torch.equal(mask(64, 100)[:, :40], mask(64, 40))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", NETS, ids=name_of)
def test_forward_and_gradients_are_the_references_with_that_mask(options, recompute):
    rows, width = 37, 20
    mlps = [make_mlp(width, **options) for _ in "kv"]
    x = torch.randn(rows, width, requires_grad=True)
    upstream = [torch.randn(rows, width) for _ in mlps]
    refs = [masked_reference(mlp, rows, seed_after(7), stream) for stream, mlp in enumerate(mlps)]
    torch.manual_seed(7)
    y = hyper_context_pair(x, *mlps, backend="triton", recompute=recompute)
    exact_x = x.detach().double().requires_grad_()
    exact_y = [ref(exact_x) for ref in refs]
    for actual, expected in zip(y, exact_y, strict=True):
        assert relative_error(actual, expected) <= FORWARD_TOLERANCE
    inputs = [x, *(p for mlp in mlps for p in mlp.parameters())]
    exact_inputs = [exact_x, *(p for ref in refs for p in ref.parameters())]
    pairs = zip(gradients(y, inputs, upstream), gradients(exact_y, exact_inputs, upstream), strict=True)
    for i, (actual, expected) in enumerate(pairs):
        assert relative_error(actual, expected) <= GRADIENT_TOLERANCE, i


@pytest.mark.parametrize("options", NETS, ids=name_of)
def test_training_mode_without_gradients_drops_alike(options):
    """Inference takes other kernels and other epilogues; what a network does in training mode is the same."""
    call = Call.make(dim=20, shape=(9,), **options)
    refs = [
        masked_reference(mlps[0], 9, seed_after(7), stream) for stream, mlps in enumerate((call.mlps_k, call.mlps_v))
    ]
    expected = [ref(call.context.double()) for ref in refs]
    with torch.no_grad():
        torch.manual_seed(7)
        pair = hyper_context_pair(call.context, call.mlps_k, call.mlps_v, backend="triton")
        torch.manual_seed(7)
        kv = call.ours()
    linears = ((call.w_k, call.b_k), (call.w_v, call.b_v))
    for y, projected, exact, (w, b) in zip(pair, kv, expected, linears, strict=True):
        assert relative_error(y, exact) <= FORWARD_TOLERANCE
        assert relative_error(projected, nn.functional.linear(exact, w.double(), b.double())) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("stream", [0, 1])
def test_a_single_stream_has_the_mask_of_k(stream):
    mlp = make_mlp(20, activation="silu", dropout_structure=(0, P, P))
    x = torch.randn(9, 20)
    seed = seed_after(3)
    torch.manual_seed(3)
    y = hyper_context(x, mlp, backend="triton")
    same = relative_error(y, masked_reference(mlp, 9, seed, stream)(x.double())) <= FORWARD_TOLERANCE
    assert same == (stream == 0)


@pytest.mark.parametrize("options", NETS[::3], ids=name_of)
def test_the_tiles_make_no_difference(options):
    call = Call.make(dim=20, shape=(37,), **options)

    def seeded(tiles: Tiles) -> list[Tensor]:
        torch.manual_seed(5)
        with forced(tiles):
            return call.results()

    results = [seeded(tiles) for tiles in (Tiles(16, 16, 16), Tiles(64, 32, 32), Tiles(32, 64, 64))]
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert relative_error(a, b) <= GRADIENT_TOLERANCE  # sums in another order; one flipped mask shows as 1e-2


@pytest.mark.parametrize("options", NETS[::3], ids=name_of)
def test_checkpointing_and_recomputation_replay_it(options):
    call = Call.make(dim=20, shape=(9,), **options)

    def gradients_of(kv) -> list[Tensor]:
        return [*kv, *gradients(kv, call.inputs(), call.upstream)]

    torch.manual_seed(5)
    plain = gradients_of(call.ours())
    torch.manual_seed(5)
    checkpointed = gradients_of(checkpoint(call.ours, use_reentrant=False, preserve_rng_state=True))
    torch.manual_seed(5)
    call.recompute = True
    recomputed = gradients_of(call.ours())
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_every_call_draws_anew_and_the_networks_of_a_chain_differ():
    mlp = make_mlp(20, activation="silu", dropout_structure=(0, P, 0))
    x = torch.randn(9, 20)
    assert not torch.equal(hyper_context(x, mlp), hyper_context(x, mlp))
    seeds = []
    original = fused.run_mlps

    def spy(*args, seed=None, **kwargs):
        seeds.append(int(seed.item()))
        return original(*args, seed=seed, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "run_mlps", spy)
        hyper_context(x, [mlp, mlp])
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", NETS[::3], ids=name_of)
def test_in_eval_nothing_is_dropped_and_no_random_number_drawn(options, grad):
    mlps = [make_mlp(20, **options).eval() for _ in "kv"]
    x, w = torch.randn(9, 20), torch.randn(6, 20)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        k, v = hyper_kv(x, *mlps, w, w)
    assert torch.equal(state, torch.get_rng_state())
    for actual, mlp in zip((k, v), mlps, strict=True):
        assert relative_error(actual, reference_of(mlp)(x.double()) @ w.double().T) <= FORWARD_TOLERANCE
