"""``hyper_kv`` and ``hyper_context`` against the reference: values, every gradient, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import hnkernels as hn
import reference
from hnkernels import hyper_context, hyper_kv, hyper_qkv
from tests.accuracy import Call, check_fp32, check_half
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, make_mlp, reference_of, relative_error

pytestmark = pytest.mark.on_device

SMOOTH = ("gelu", "silu", "mish", "tanh", "softplus")
DETERMINISTIC = [
    "celu",
    "elu",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leakyrelu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "swish",
    "tanh",
    "tanhshrink",
]


@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 0.5, 1), (1, 1.5, 2.25, 1)])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "swish", "prelu"])
def test_values_and_all_gradients_in_fp32(structure, activation):
    for norm, last, train in itertools.product((False, True), repeat=3):
        make = partial(
            Call.make,
            layer_structure=structure,
            activation=activation,
            layer_norm=norm,
            activate_output=last,
            train=train,
            strength=0.6,
            bias=not norm,
        )
        check_fp32(make, most=8 if activation == "prelu" else 1)


@pytest.mark.parametrize("activation", DETERMINISTIC)
def test_every_activation_in_fp32(activation):
    for last in (False, True):
        make = partial(Call.make, shape=(3, 16), activation=activation, activate_output=last)
        check_fp32(make, most=8 if activation == "prelu" else 1)


@given(
    dim=st.integers(2, 24),
    hidden=st.lists(st.floats(0.5, 3), max_size=2),
    shape=st.lists(st.integers(1, 5), max_size=3),
    activation=st.sampled_from([None, *SMOOTH, "relu", "leakyrelu"]),
    norm=st.booleans(),
    last=st.booleans(),
    train=st.booleans(),
    bias=st.booleans(),
    length=st.integers(0, 3),
    strength=st.sampled_from([1.0, 0.5, -1.3, 0.0, 2]),
    seed=st.integers(0, 2**16),
)
def test_any_structure_and_shape_in_float64(
    dim, hidden, shape, activation, norm, last, train, bias, length, strength, seed
):
    torch.manual_seed(seed)
    case = Call.make(
        dim=dim,
        shape=tuple(shape),
        layer_structure=(1, *hidden, 1),
        activation=activation,
        layer_norm=norm,
        activate_output=last,
        train=train,
        bias=bias,
        length=length,
        strength=strength,
        dtype=torch.float64,
    )
    used = [i for i in case.inputs() if i.requires_grad]
    kv = case.ours()
    actual = torch.autograd.grad(kv, used, case.cast_upstream(kv), allow_unused=True, materialize_grads=True)
    for mine, exact in zip((*kv, *actual), case.expected(), strict=True):
        # LayerNorm of nearly equal values magnifies roundings of 1e-16 by up to 1/sqrt(eps), a few hundred.
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"activation": "silu", "layer_norm": True},
        {"activation": "tanh", "activate_output": True},
        {"activation": None, "layer_structure": (1, 1.5, 2, 1)},
        {"activation": "gelu", "layer_norm": True, "activate_output": True},
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_half_precision_errs_no_more_than_eager(dtype, options, train):
    make = partial(Call.make, dim=24, shape=(4, 32), n=(16, 20), dtype=dtype, train=train, strength=0.7, **options)
    check_half(make, lambda case: case.expected(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp32_master_weights_follow_the_context(dtype):
    options = {"mlp_dtype": torch.float32, "activation": "silu", "layer_norm": True}
    make = partial(Call.make, dim=24, shape=(4, 32), dtype=dtype, **options)
    case = make()
    results = case.results()
    assert results[0].dtype == results[1].dtype == dtype
    assert [g.dtype for g in results[2:]] == [t.dtype for t in case.inputs()]
    check_half(make, lambda case: case.expected(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("context_dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_eagers_autocast(dtype, norm, context_dtype):

    class Autocast(Call):
        def ours(self) -> tuple[Tensor, ...]:
            with torch.autocast(torch.get_default_device().type, dtype):
                return super().ours()

    def make() -> Call:
        case = Autocast.make(dim=24, shape=(4, 32), activation="silu", layer_norm=norm, train=False, strength=0.7)
        case.context = case.context.detach().to(context_dtype).requires_grad_()
        case.upstream = tuple(u.to(dtype) for u in case.upstream)
        return case

    def eager(case: Call) -> list[Tensor]:
        with torch.autocast(torch.get_default_device().type, dtype):
            return case.expected(torch.float32, context_dtype)

    case = make()
    actual = case.results()
    assert [t.dtype for t in actual] == [t.dtype for t in eager(case)]
    assert actual[0].dtype == dtype
    check_half(make, eager)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"activate_output": True}])
@pytest.mark.parametrize("activation", ["tanh", "silu", "prelu"])
def test_first_and_second_derivatives_by_finite_differences(activation, options):
    case = Call.make(dim=3, shape=(2,), n=(2, 2), dtype=torch.float64, activation=activation, **options)
    inputs = tuple(case.inputs())
    assert torch.autograd.gradcheck(lambda *_: case.ours(), inputs)
    assert torch.autograd.gradgradcheck(lambda *_: case.ours(), inputs)


def test_a_chain_feeds_each_network_the_output_of_the_one_before():
    case = Call.make(length=3, train=False, activation="relu", strength=(1.0, -0.5, 2.0))
    for m, mlp in zip((0.5, 2.0, -1.0), case.mlps_k, strict=True):
        mlp.multiplier = m
    check_fp32(case)
    swapped = dataclasses.replace(case, mlps_k=case.mlps_k[::-1])
    assert not torch.allclose(swapped.ours()[0], case.ours()[0])


def test_one_mlp_and_a_chain_of_one_are_the_same():
    case = Call.make()
    single = hyper_kv(case.context, case.mlps_k[0], case.mlps_v[0], case.w_k, case.w_v, case.b_k, case.b_v)
    assert all(torch.equal(a, b) for a, b in zip(single, case.ours(), strict=True))


def test_chains_of_different_length_and_an_empty_one():
    case = Call.make(length=2)
    k, v = hyper_kv(case.context, case.mlps_k, [], case.w_k, case.w_v, case.b_k, case.b_v)
    assert torch.equal(k, case.ours()[0])
    assert torch.equal(v, torch.nn.functional.linear(case.context, case.w_v, case.b_v))


def test_nothing_to_do_is_the_plain_projection_bit_for_bit():
    case = Call.make(train=False, strength=0.0)
    plain = torch.nn.functional.linear(case.context, case.w_k, case.b_k)
    assert torch.equal(case.ours()[0], plain)
    for mlp in (*case.mlps_k, *case.mlps_v):
        mlp.multiplier = 0.0
    assert torch.equal(dataclasses.replace(case, strength=1.0).ours()[0], plain)
    assert torch.equal(dataclasses.replace(case, mlps_k=[], mlps_v=[]).ours()[0], plain)
    assert hyper_context(case.context, []) is case.context


def test_strength_has_no_effect_in_training_mode():
    case = Call.make(train=True, strength=0.0)
    assert torch.equal(case.ours()[0], dataclasses.replace(case, strength=1.0).ours()[0])


class TensorStrength(Call):
    """The strengths as tensors: what a compiled model hands over."""

    def ours(self) -> tuple[Tensor, ...]:
        numbers = self.strength if isinstance(self.strength, tuple) else (self.strength,) * len(self.mlps_k)
        return dataclasses.replace(Call(**vars(self)), strength=[torch.tensor(float(s)) for s in numbers]).ours()


STRENGTH_OPTIONS = [
    {"activation": "silu"},
    {"activation": "relu", "layer_norm": True},
    {"activation": "gelu", "activate_output": True},
    {"activation": None, "layer_structure": (1, 1)},
    {"activation": "prelu", "layer_norm": True, "activate_output": True},
]


@pytest.mark.parametrize("options", STRENGTH_OPTIONS)
@pytest.mark.parametrize("n", [(6, 7), (6, 7, 5)])
@pytest.mark.parametrize("strength", [(0.4, -1.5), (0.0, 2.0)])
def test_strengths_as_tensors(options, n, strength):
    case = TensorStrength.make(n=n, length=2, train=False, strength=strength, **options)
    case.mlps_v[0].multiplier = 0.5
    check_fp32(case)


@pytest.mark.parametrize("options", STRENGTH_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strengths_as_tensors_in_half_precision(options, dtype):
    make = partial(
        TensorStrength.make, dim=24, shape=(4, 32), n=(16, 20), dtype=dtype, train=False, strength=0.7, **options
    )
    check_half(make, lambda case: case.expected(dtype))


def test_a_tensor_of_strength_is_read_at_every_call_and_gets_no_gradient():
    case = Call.make(train=False, activation="silu")
    strength = torch.tensor(0.5, requires_grad=True)
    values = []
    for value in (0.5, -2.0):
        strength.data.fill_(value)
        values.append(dataclasses.replace(case, strength=strength).ours())
        numbers = dataclasses.replace(case, strength=value).ours()
        for a, b in zip(values[-1], numbers, strict=True):
            assert relative_error(a, b) <= FORWARD_TOLERANCE
    values[0][0].sum().backward()
    assert strength.grad is None


def test_k_and_v_may_differ_in_strength_and_in_length():
    case = Call.make(train=False, activation="relu", length=2)
    both = {"k": (0.3, 0.7), "v": -1.0}
    arguments = (case.w_k, case.w_v, case.b_k, case.b_v)
    k, v = hyper_kv(case.context, case.mlps_k, case.mlps_v[:1], *arguments, strength=both)
    assert torch.equal(k, hyper_kv(case.context, case.mlps_k, [], *arguments, strength={"k": (0.3, 0.7), "v": ()})[0])
    one = dataclasses.replace(case, strength=-1.0, mlps_k=case.mlps_k[:1], mlps_v=case.mlps_v[:1]).ours()
    assert relative_error(v, one[1]) <= FORWARD_TOLERANCE
    two = dataclasses.replace(case, strength=(0.3, 0.7)).ours()
    assert relative_error(k, two[0]) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 0), (2, 3), (2, 3, 4), (0, 3, 4)])
def test_contexts_of_any_rank_and_row_count(shape):
    case = Call.make(shape=shape, activation="silu", layer_norm=True, dtype=torch.float64)
    for actual, expected in zip(case.results(), case.expected(), strict=True):
        torch.testing.assert_close(actual, expected)
    assert case.ours()[0].shape == (*shape, 6)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "offset"])
def test_contexts_of_any_memory_layout(layout):
    x = {
        "transposed": lambda: torch.randn(8, 5, 3).transpose(0, 2),
        "strided": lambda: torch.randn(6, 5, 16)[::2, :, ::2],
        "expanded": lambda: torch.randn(1, 5, 8).expand(3, 5, 8),
        "offset": lambda: torch.randn(3 * 5 * 8 + 3)[3:].view(3, 5, 8),
    }[layout]()
    case = Call.make(shape=(3, 5), activation="relu")
    case.context = x.requires_grad_()
    check_fp32(case)


def test_strided_projections():
    case = Call.make()
    case.w_k = torch.randn(8, 6).t().requires_grad_()
    case.w_v = torch.randn(7, 16)[:, ::2].requires_grad_()
    check_fp32(case)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", None])
@pytest.mark.parametrize("norm", [True, False])
def test_the_inputs_are_never_modified(grad, activation, norm):
    case = Call.make(activation=activation, layer_norm=norm, activate_output=True, layer_structure=(1, 1))
    before = [t.detach().clone() for t in case.inputs()]
    with torch.set_grad_enabled(grad):
        outputs = case.ours()
    assert all(torch.equal(t, b) and t._version == 0 for t, b in zip(case.inputs()[:5], before[:5], strict=True))
    assert all(torch.equal(t, b) for t, b in zip(case.inputs(), before, strict=True))
    assert not {o.data_ptr() for o in outputs} & {t.data_ptr() for t in case.inputs()}


def test_frozen_networks_still_pass_the_gradient_on():
    case = Call.make(activation="silu", layer_norm=True)
    for t in case.inputs()[1:]:
        t.requires_grad_(False)
    kv = case.ours()
    (actual,) = torch.autograd.grad(kv, [case.context], case.upstream)
    assert relative_error(actual, Call.expected(case)[2]) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("activation", ["relu", "silu", "hardtanh"])
def test_networks_train_on_a_context_without_gradient(activation):
    case = Call.make(activation=activation, activate_output=True)
    expected = case.expected()
    case.context = case.context.detach()
    inputs = case.inputs()[1:]
    for actual, exact in zip(torch.autograd.grad(case.ours(), inputs, case.upstream), expected[3:], strict=True):
        assert relative_error(actual, exact) <= GRADIENT_TOLERANCE


def test_dropout_replays_by_seed_and_stops_in_eval():
    case = Call.make(dropout_structure=(0, 0.5, 0.5), shape=(4, 16))

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return case.ours()[0]

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    for mlp in (*case.mlps_k, *case.mlps_v):
        mlp.eval()
    assert torch.equal(seeded(1), seeded(2))
    check_fp32(case)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("activate_output", [True, False])
@pytest.mark.parametrize("dropouts", [(0, 0.5, 0), (0, 0, 0.5), (0, 0.5, 0.5)])
def test_dropout_is_the_references_draw_for_draw(dropouts, activate_output, norm, grad):
    options = {"dropout_structure": dropouts, "activation": "silu"}
    mlp = make_mlp(dtype=torch.float64, layer_norm=norm, activate_output=activate_output, **options)
    ref, x = reference_of(mlp), torch.randn(4, 16, 8, dtype=torch.float64)
    w = torch.randn(5, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.manual_seed(3)
        actual = hyper_context(x, mlp)
        torch.manual_seed(3)
        expected = ref(x)
        torch.testing.assert_close(actual, expected)
        torch.manual_seed(3)
        k, _ = hyper_kv(x, mlp, (), w, w)
        torch.testing.assert_close(k, expected @ w.T)


def test_checkpointing_gives_the_same_gradients_dropout_included():
    case = Call.make(activation="silu", layer_norm=True, dropout_structure=(0, 0.5, 0.2))
    torch.manual_seed(5)
    plain = torch.autograd.grad(case.ours(), case.inputs(), case.upstream)
    torch.manual_seed(5)
    replayed = torch.autograd.grad(
        checkpoint(case.ours, use_reentrant=False), case.inputs(), case.upstream
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(plain, replayed, strict=True))


@pytest.mark.parametrize("options", [{"activation": a, "layer_norm": n} for a in ("relu", "silu") for n in (0, 1)])
def test_a_second_backward_over_a_retained_graph_gives_the_same(options):
    case = Call.make(**{**options, "layer_norm": bool(options["layer_norm"])}, activate_output=True)
    kv = case.ours()
    first = torch.autograd.grad(kv, case.inputs(), case.upstream, retain_graph=True)
    second = torch.autograd.grad(kv, case.inputs(), case.upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inference_mode_gives_the_same():
    case = Call.make(activation="silu", layer_norm=True)
    with torch.inference_mode():
        inferred = case.ours()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(inferred, case.ours(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hyper_context_is_the_chain_alone(dtype):
    mlps = [make_mlp(activation="silu").eval() for _ in range(2)]
    x = torch.randn(3, 8, dtype=dtype)
    y = hyper_context(x, mlps, strength=(0.5, -1))
    refs = [reference_of(m) for m in mlps]
    refs[0].multiplier, refs[1].multiplier = 0.5, -1
    assert y.dtype == dtype
    # Six rounded operations in a row, each good to half an eps.
    assert relative_error(y, reference.chain(x.double(), refs)) <= 3 * max(torch.finfo(dtype).eps, 1e-7)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"activation": None},
        {"activation": "silu", "layer_norm": True},
        {"activation": "gelu", "layer_structure": (1, 1), "activate_output": True},
        {"activation": "relu", "length": 2},
        {"length": 0},
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_hyper_qkv_is_hyper_kv_and_the_plain_query(options, bias, grad):
    case = Call.make(train=False, strength=0.6, **options)
    w_q, b_q = torch.randn(9, 8, requires_grad=True), torch.randn(9, requires_grad=True) if bias else None
    weights = (w_q, case.w_k, case.w_v, b_q, case.b_k, case.b_v)
    with torch.set_grad_enabled(grad):
        q, k, v = hyper_qkv(case.context, case.mlps_k, case.mlps_v, *weights, strength=case.strength)
        expected = torch.nn.functional.linear(case.context, w_q, b_q), *case.ours()
    for actual, plain in zip((q, k, v), expected, strict=True):
        assert relative_error(actual, plain) <= FORWARD_TOLERANCE
    if grad:
        upstream = (torch.randn_like(q), *case.upstream)
        inputs = [t for t in (*case.inputs(), w_q, b_q) if t is not None]
        ours = torch.autograd.grad((q, k, v), inputs, upstream)
        theirs = torch.autograd.grad(expected, inputs, upstream)
        assert all(relative_error(a, b) <= GRADIENT_TOLERANCE for a, b in zip(ours, theirs, strict=True))


class TestRefusals:
    """One message style: what was given, what is accepted, what to do."""

    @staticmethod
    def call(**changes):
        case = Call.make(dim=8, shape=(2, 5), n=(6, 7))
        arguments = {
            "context": case.context, "mlp_k": case.mlps_k, "mlp_v": case.mlps_v,
            "w_k": case.w_k, "w_v": case.w_v, "b_k": case.b_k, "b_v": case.b_v,
        }  # fmt: skip
        return hyper_kv(**{**arguments, **changes})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"backend": "cuda"}, "backend 'cuda' is unknown; accepted are auto, triton, portable"),
            (
                {"backend": "triton", "mlp_k": make_mlp(8, activation="rrelu")},  # which no machine has device code for
                "backend 'triton' cannot run here: .*; use 'auto' or 'portable'",
            ),
            ({"context": [1.0]}, "context must be a tensor, not list"),
            ({"context": torch.ones(2, 8).long()}, r"floating-point tensor \[..., d\], not torch.int64 \[2, 8\]; cast"),
            ({"context": torch.tensor(1.0)}, r"not torch.float32 \[\]"),
            ({"context": torch.ones(2, 9)}, r"mlp_k is for contexts of width 8, .* torch.float32 \[2, 9\], width 9"),
            ({"context": torch.ones(2, 8, dtype=torch.float64)}, "w_k is torch.float32 and the context torch.float64"),
            ({"context": torch.ones(2, 8, device="meta")}, "mlp_k is on (cpu|cuda:0), the context on meta"),
            ({"w_k": torch.ones(6, 9)}, r"w_k must be \[n, 8\] for a context of width 8, not \[6, 9\]"),
            ({"w_v": torch.ones(8, 7)}, r"w_v must be \[n, 8\] .* not \[8, 7\]; it looks transposed"),
            ({"w_k": torch.ones(8)}, r"w_k must be \[n, 8\] .* not \[8\]"),
            ({"w_k": None}, "w_k must be a tensor, not NoneType"),
            ({"b_k": torch.ones(7)}, r"b_k must be \[6\] like w_k, not \[7\]"),
            ({"b_v": torch.ones(7, 1)}, r"b_v must be \[7\] like w_v, not \[7, 1\]"),
            ({"b_v": 0.0}, "b_v must be a tensor, not float"),
            ({"w_v": torch.ones(7, 8).half()}, "w_v is torch.float16 and the context torch.float32; cast one of them"),
            ({"b_v": torch.ones(7).double()}, "b_v is torch.float64 and the context torch.float32"),
            ({"w_k": torch.ones(6, 8, device="meta")}, "w_k is on meta, the context on (cpu|cuda:0)"),
            ({"b_k": torch.ones(6, device="meta")}, "b_k is on meta, the context on (cpu|cuda:0)"),
            ({"mlp_k": torch.nn.Linear(8, 8)}, "mlp_k must be a HypernetworkMLP or a sequence of them, not Linear"),
            ({"mlp_v": [torch.nn.Linear(8, 8)]}, "mlp_v must be a HypernetworkMLP .* not Linear"),
            ({"mlp_v": None}, "mlp_v must be a HypernetworkMLP .* not NoneType"),
            ({"mlp_v": ""}, "mlp_v must be a HypernetworkMLP .* not str"),
            ({"context": torch.ones(2, 8).to(torch.float8_e4m3fn)}, "context is torch.float8_e4m3fn, in which PyTorch"),
            ({"w_k": torch.ones(6, 8).to_sparse()}, r"w_k is sparse_coo; make it dense with .to_dense\(\)"),
            ({"context": torch.ones(2, 8).to_sparse()}, "context is sparse_coo"),
            ({"strength": torch.tensor(1j)}, r"a tensor without dimensions, .* not torch.complex64 \[\]"),
            ({"strength": torch.tensor(1.0).to(torch.float8_e5m2)}, "must be a number, .* not torch.float8_e5m2"),
            ({"strength": (1.0, 2.0)}, "strength has 2 values and mlp_k is a chain of 1"),
            ({"strength": "1"}, "strength must be a number"),
            ({"strength": None}, "strength must be a number"),
            ({"strength": float("nan")}, "strength must be a number, not infinite, .* not nan"),
            ({"strength": 10**400}, "strength must be a number, not infinite"),
            (
                {"strength": 1e39, "mlp_k": make_mlp(8).eval()},
                r"strength times multiplier of mlp_k must be a number that torch.float32 holds, not 1e\+39",
            ),
            ({"strength": torch.ones(1)}, r"a tensor without dimensions, .* not torch.float32 \[1\]"),
            ({"strength": {"k": 1.0}}, "strength by stream must be {'k': …, 'v': …}, not"),
        ],
    )
    def test_hyper_kv(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.call(**changes)

    def test_a_second_mlp_of_another_width(self):
        with pytest.raises(ValueError, match="mlp_v is for contexts of width 4"):
            self.call(mlp_v=[make_mlp(8), make_mlp(4)], strength=1.0)

    def test_hyper_context(self):
        with pytest.raises(ValueError, match=r"mlps is for contexts of width 8, .* width 9"):
            hyper_context(torch.ones(2, 9), make_mlp(8))
        with pytest.raises(ValueError, match="backend 'triton'"):
            hyper_context(torch.ones(2, 8), make_mlp(8, activation="rrelu"), backend="triton")

    def test_hyper_qkv(self):
        mlp, w = make_mlp(8), torch.ones(6, 8)
        with pytest.raises(ValueError, match=r"w_q must be \[n, 8\] .* not \[6, 9\]"):
            hyper_qkv(torch.ones(2, 8), mlp, mlp, torch.ones(6, 9), w, w)
        with pytest.raises(ValueError, match=r"b_q must be \[6\] like w_q, not \[5\]"):
            hyper_qkv(torch.ones(2, 8), mlp, mlp, w, w, w, torch.ones(5))


def test_the_portable_backend_plans_on_the_meta_device():
    mlp, x, w = make_mlp(8).to("meta"), torch.empty(3, 8, device="meta"), torch.empty(6, 8, device="meta")
    k, v = hyper_kv(x, mlp, mlp, w, w, backend="portable")
    assert k.shape == v.shape == (3, 6)


def with_another_activation(net):
    net[16][0].linear[1] = torch.nn.GELU()


def without_a_bias(net):
    net[16][0].linear[0].bias = None


def pruned(net):
    prune.l1_unstructured(net[16][0].linear[0], "weight", 0.5)


class LoRA(torch.nn.Module):
    """In the place of a linear, as PEFT does it."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear


def with_lora(net):
    net[16][0].linear[2] = LoRA(net[16][0].linear[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_another_activation, r"a network holds a torch\.nn\..*\.GELU, with which it was not built.*; take it out"),
        (with_lora, r"a network holds a .*\.LoRA, with which it was not built.*\(peft: merge_and_unload\)"),
        (without_a_bias, "has no bias; give it one of zeros"),
        (pruned, r"a hook computes the weight of a linear.*; make it lasting \(torch\.nn\.utils: prune\.remove"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_network_was_not_built_with_is_refused(change, message):
    net, x, w = hn.Hypernetwork((16,)), torch.randn(2, 16), torch.randn(8, 16)
    hn.hyper_kv(x, *net[16], w, w, backend="portable")
    change(net)
    with pytest.raises(hn.InputError, match=message):
        hn.hyper_kv(x, *net[16], w, w, backend="portable")


def test_pruning_that_was_made_lasting_counts():
    net, x, w = hn.Hypernetwork((16,)), torch.randn(2, 16), torch.randn(8, 16)
    pruned(net)
    prune.remove(net[16][0].linear[0], "weight")
    k, _ = hn.hyper_kv(x, *net[16], w, w, backend="portable")
    assert relative_error(k, torch.nn.functional.linear(net[16][0](x), w)) < FORWARD_TOLERANCE
