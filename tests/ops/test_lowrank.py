"""``lowrank_linear`` against the reference: values, every gradient, what is kept, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import reference
from hnkernels import lowrank_add, lowrank_linear, lowrank_linears
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, relative_error

pytestmark = pytest.mark.on_device

TOLERANCE = {torch.float32: (FORWARD_TOLERANCE, GRADIENT_TOLERANCE), torch.float64: (1e-14, 1e-13)}


class Case:
    """Random inputs of one shape, and both sides' outputs and gradients."""

    def __init__(
        self,
        samples=4,
        shape=(5,),
        d=12,
        n=9,
        rank=3,
        sets=None,
        dtype=torch.float32,
        scale="each",
        bias=True,
        index=None,
    ):
        self.sets = sets or samples

        def draw(*size):
            return torch.randn(size, dtype=dtype).requires_grad_()

        self.x, self.weight = draw(samples, *shape, d), draw(n, d)
        self.a, self.b = draw(self.sets, rank, d), draw(self.sets, n, rank)
        self.bias = draw(n) if bias else None
        sizes = {"each": samples, "set": self.sets}
        self.scale = draw(sizes[scale]) if scale in sizes else scale
        self.index = index
        self.upstream = torch.randn(samples, *shape, n, dtype=dtype)
        self.backend = "auto"

    def inputs(self):
        return {k: t for k, t in vars(self).items() if isinstance(t, Tensor) and t.requires_grad}

    def ours(self):
        return lowrank_linear(
            self.x, self.weight, self.a, self.b, self.scale, self.bias, index=self.index, backend=self.backend
        )

    def _gradients(self, y, inputs):
        return [y, *torch.autograd.grad(y, inputs, self.upstream.to(y.dtype))]

    def results(self):
        return self._gradients(self.ours(), list(self.inputs().values()))

    def expected(self, dtype=torch.float64):
        names = ("x", "weight", "a", "b", "bias", "scale")
        own = {k: t for k, t in vars(self).items() if k in names and isinstance(t, Tensor)}
        twin = {k: t.detach().to(dtype).requires_grad_(t.requires_grad) for k, t in own.items()}
        x, samples = twin["x"], self.x.shape[0]
        scale = twin.get("scale", self.scale)
        if isinstance(scale, float):
            scale = torch.full((samples,), scale, dtype=dtype)
        elif scale is not None and scale.shape[0] != samples:
            scale = scale[self.index] if self.index is not None else scale.repeat_interleave(samples // self.sets)
        y = reference.lowrank_linear(x, twin["weight"], twin["a"], twin["b"], scale, twin.get("bias"), self.index)
        return self._gradients(y, [twin[k] for k in self.inputs()])

    def check(self):
        tolerances = TOLERANCE[self.x.dtype]
        names = ["y", *self.inputs()]
        for name, ours, exact in zip(names, self.results(), self.expected(), strict=True):
            assert relative_error(ours, exact) <= tolerances[name != "y"], name


SHAPES = [
    {},
    {"shape": ()},
    {"shape": (2, 3)},
    {"samples": 1, "shape": (1,)},
    {"samples": 6, "sets": 2},
    {"samples": 6, "sets": 2, "scale": "set"},
    {"samples": 6, "sets": 1, "scale": None},
    {"scale": 0.3, "bias": False},
    {"scale": None},
    {"rank": 1, "d": 5, "n": 1},
    {"rank": 64, "d": 64, "n": 65},
    {"samples": 5, "sets": 3, "index": torch.tensor([2, 0, 0, 1, 2])},
    {"samples": 5, "sets": 3, "index": torch.tensor([2, 0, 0, 2, 2]), "scale": "set"},
    {"samples": 3, "sets": 3, "index": torch.tensor([1, 1, 1], dtype=torch.int32)},
    {"shape": (70,)},  # many tokens: with a merged weight per sample
    {"shape": (70,), "scale": None, "bias": False},
    {"samples": 6, "sets": 2, "shape": (70,), "scale": torch.tensor([0.0, 1.0, -2.0, 0.0, 0.0, 0.0])},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_values_and_all_gradients(options, dtype):
    Case(dtype=dtype, **options).check()


@pytest.mark.parametrize("size", [{"samples": 0, "sets": 2}, {"shape": (0,)}, {"shape": (2, 0)}], ids=str)
def test_nothing_in_nothing_out(size):
    case = Case(**size)
    y, *gradients = case.results()
    assert y.shape == case.upstream.shape
    for t, gradient in zip(case.inputs().values(), gradients, strict=True):
        assert gradient.shape == t.shape
        assert not gradient.any()


@pytest.mark.parametrize("options", SHAPES[:8], ids=str)
def test_first_and_second_derivatives_by_finite_differences(options):
    case = Case(dtype=torch.float64, **{**options, "d": 4, "n": 3, "rank": 2})
    inputs = tuple(case.inputs().values())
    assert torch.autograd.gradcheck(lambda *_: case.ours(), inputs)
    assert torch.autograd.gradgradcheck(lambda *_: case.ours(), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_no_more_than_eager(dtype):
    sums: dict[str, Tensor] = {}
    for _ in range(40):  # draws, pooled: one says little about a short vector
        case = Case(samples=4, shape=(32,), d=24, n=20, rank=4, dtype=dtype)
        for name, *tensors in zip(
            ["y", *case.inputs()], case.results(), case.expected(dtype), case.expected(), strict=True
        ):
            ours, eager, exact = (t.detach().double() for t in tensors)
            sums[name] = sums.get(name, 0) + torch.stack([(t - exact).square().sum() for t in (ours, eager)])
    for name, (ours, eager) in sums.items():
        assert ours <= 1.1**2 * eager, name


@pytest.mark.parametrize("scales", [(0, 0, 1, 1), (0, 1, 0, 2), (0, 0, 0, 0), (1, 0, 0, 0)])
def test_samples_of_scale_zero_are_the_plain_linear_bit_for_bit(scales):
    case = Case(scale=torch.tensor(scales, dtype=torch.float32))
    case.check()
    case.backend = "portable"  # a kernel adds the plain product up in another order
    plain = torch.nn.functional.linear(case.x, case.weight, case.bias)
    for s, scale in enumerate(scales):
        assert torch.equal(case.ours()[s], plain[s]) == (scale == 0)


def test_samples_of_scale_zero_cost_nothing(monkeypatch):
    rows = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: rows.append(a.shape[0]) or bmm(a, b))
    case = Case(scale=torch.tensor([0.0, 0.0, 0.0, 1.0]))
    case.backend = "portable"
    case.results()
    assert set(rows) == {1}


@pytest.mark.parametrize("frozen", ["x", "weight", "a", "b", "scale", "bias"])
def test_only_the_gradients_that_are_asked_for(frozen):
    case = Case()
    getattr(case, frozen).requires_grad_(False)
    case.check()


def test_x_and_the_factors_are_all_that_is_kept():
    case = Case(samples=4, shape=(64,))
    case.weight.requires_grad_(False)
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        case.ours()
    own = (case.x, case.weight, case.a, case.b, case.scale)
    assert sum(kept.values()) == sum(t.untyped_storage().nbytes() for t in own)


def test_layouts_that_are_not_contiguous():
    case = Case(samples=4, shape=(6,), d=12)
    x = case.x
    plain = case.results()
    case.x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for ours, theirs in zip(case.results(), plain, strict=True):
        assert relative_error(ours, theirs) <= FORWARD_TOLERANCE
    case.x = x.detach()[:1].expand(4, -1, -1)
    case.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp32_master_factors_and_autocast(dtype):
    case = Case()
    with torch.autocast(torch.get_default_device().type, dtype):
        y, *gradients = case.results()
    assert y.dtype == dtype
    assert all(g.dtype == torch.float32 for g in gradients)
    half = Case(dtype=dtype)
    half.a, half.b = (t.detach().float().requires_grad_() for t in (half.a, half.b))
    y, *_ = half.results()
    assert y.dtype == dtype
    assert relative_error(y, half.expected()[0]) <= (2e-3 if dtype == torch.float16 else 2e-2)  # some roundings


def test_checkpointing_and_a_retained_graph():
    case = Case()
    plain = case.results()
    inputs = list(case.inputs().values())
    y = checkpoint(lambda x: lowrank_linear(x, *inputs[1:4], case.scale, case.bias), case.x, use_reentrant=False)
    for _ in range(2):
        again = [y, *torch.autograd.grad(y, inputs, case.upstream, retain_graph=True)]
        assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def tensors(**changes):
    case = Case(samples=4, shape=(5,), d=12, n=9, rank=3, sets=2)
    arguments = {name: getattr(case, name).detach() for name in ("x", "weight", "a", "b", "bias")}
    return {**arguments, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": 3}, "not 3"),
        (
            {"x": torch.ones(4, 5, 12, dtype=torch.int64)},
            r"x must be a floating-point tensor \[S, ..., d\], not torch.int64 \[4, 5, 12\]",
        ),
        ({"x": torch.ones(12)}, r"x must be a floating-point tensor \[S, ..., d\], not torch.float32 \[12\]"),
        ({"x": torch.ones(4, 5, 11)}, r"not \[4, 5, 11\] and \[9, 12\]"),
        ({"x": torch.ones(5, 5, 12)}, "a batch of 5 is not a multiple of the 2 sets of factors; give an index"),
        ({"weight": torch.ones(9, 12).double()}, "weight is torch.float64 and x torch.float32; cast one"),
        ({"weight": torch.ones(9, 12, device="meta")}, "weight is on meta, x on (cpu|cuda:0)"),
        ({"bias": torch.ones(8)}, r"bias must be \[9\] like the weight, not \[8\]"),
        ({"a": torch.ones(3, 12)}, r"a must be \[G, r, 12\] and b \[G, 9, r\], not \[3, 12\] and \[2, 9, 3\]"),
        ({"b": torch.ones(2, 9, 4)}, r"not \[2, 3, 12\] and \[2, 9, 4\]"),
        ({"b": torch.ones(2, 8, 3)}, r"a must be \[2, 3, 12\] and b \[2, 9, 3\] for a weight \[9, 12\]"),
        ({"a": torch.ones(2, 10, 12), "b": torch.ones(2, 9, 10)}, "the rank must be between 1 and 9 .* not 10"),
        ({"a": torch.ones(2, 0, 12), "b": torch.ones(2, 9, 0)}, "the rank must be between 1 and 9 .* not 0"),
        ({"scale": torch.ones(3)}, r"scale must be a number, \[4\] or \[2\], not torch.float32 \[3\]"),
        ({"scale": "1"}, "scale must be a number"),
        ({"scale": True}, "scale must be a number"),
        ({"scale": torch.ones(4, device="meta")}, "scale is on meta, x on (cpu|cuda:0)"),
        ({"index": torch.ones(4)}, r"index must be \[4\] integers below 2, not torch.float32 \[4\]"),
        ({"index": torch.tensor([0, 1])}, r"index must be \[4\] integers"),
        ({"index": torch.tensor([0, 1, 2, 0])}, "index must be .* below 2"),
        ({"index": torch.tensor([0, 1, -1, 0])}, "index must be .* below 2"),
        ({"scale": 1e39}, r"scale must be a number that torch.float32 holds, not 1e\+39"),
        ({"scale": float("nan")}, "scale must be a number that .* holds, not nan"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown; accepted are auto, triton, portable"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lowrank_linear(**tensors(**changes))


def together(samples=4, sets=4, tokens=6, d=12, index=None, scales=None, dtype=torch.float64):
    """Three linears of one x, of different widths and ranks, one of them without bias."""
    cases = [
        Case(samples, (tokens,), d, n, rank, sets, dtype, "each" if scales is None else scales[i], n != 9, index)
        for i, (n, rank) in enumerate(((9, 3), (16, 1), (7, 5)))
    ]
    for case in cases[1:]:
        case.x = cases[0].x
    return cases


def call_together(cases, backend="auto"):
    return lowrank_linears(
        cases[0].x, [c.weight for c in cases], [c.a for c in cases], [c.b for c in cases], [c.scale for c in cases],
        [c.bias for c in cases], index=cases[0].index, backend=backend,
    )  # fmt: skip


MIXED = [torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.0, 2.0]), torch.zeros(4)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sets": 2},
        {"index": torch.tensor([1, 1, 0, 1]), "sets": 2},
        {"tokens": 90},
        {"scales": MIXED},
        {"scales": MIXED, "tokens": 90},
        {"scales": [None, 0.5, MIXED[1]]},
        {"dtype": torch.float32},
    ],
    ids=str,
)
def test_several_linears_of_one_x(options):
    cases = together(**options)
    inputs = [t for case in cases for t in case.inputs().values()]
    ys = call_together(cases)
    ours = torch.autograd.grad(ys, inputs, [case.upstream for case in cases])
    each = [case.results() for case in cases]
    summed = sum(results[1] for results in each)  # x's
    forward, backward = TOLERANCE[cases[0].x.dtype]
    theirs = [t for results in each for t in results[1:]]
    for y, results in zip(ys, each, strict=True):
        assert relative_error(y, results[0]) <= forward
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert relative_error(a, summed if inputs[i] is cases[0].x else b) <= backward


def test_several_linears_twice_differentiable():
    cases = together(tokens=2, d=4)
    cases = [c for c in cases if c.a.shape[1] <= 4]
    inputs = tuple(dict.fromkeys(t for case in cases for t in case.inputs().values()))
    assert torch.autograd.gradcheck(lambda *_: call_together(cases), inputs)
    assert torch.autograd.gradgradcheck(lambda *_: call_together(cases), inputs)


def test_several_linears_keep_x_once_and_read_it_in_one_product(monkeypatch):
    cases = together(dtype=torch.float32)
    kept, ranks = {}, []

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: ranks.append(b.shape[2]) or bmm(a, b))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call_together(cases, "portable")
    assert ranks == [9]
    own = [cases[0].x, *(t for c in cases for t in (c.weight, c.a, c.b, c.scale))]
    assert sum(kept.values()) == sum(t.untyped_storage().nbytes() for t in own)


@pytest.mark.parametrize("options", [SHAPES[i] for i in (0, 1, 2, 4, 5, 7, 11, 14, 16)], ids=str)
def test_the_change_alone(options):
    case = Case(dtype=torch.float64, **options)
    base = torch.randn_like(case.upstream).requires_grad_()
    names = [name for name in case.inputs() if name not in ("weight", "bias")]
    inputs = [getattr(case, name) for name in names]
    y = lowrank_add(base, case.x, case.a, case.b, case.scale, index=case.index)
    ours = torch.autograd.grad(y, [base, *inputs], case.upstream)
    case.weight, case.bias = torch.zeros_like(case.weight, requires_grad=True), None
    exact = dict(zip(["y", *case.inputs()], case.expected(), strict=True))
    assert relative_error(y, base + exact["y"]) <= 1e-14
    assert torch.equal(ours[0], case.upstream)
    for name, gradient in zip(names, ours[1:], strict=True):
        assert relative_error(gradient, exact[name]) <= 1e-13, name


def test_the_change_alone_leaves_the_base_as_it_is():
    case, base = Case(), torch.randn(4, 5, 9)
    before = base.clone()
    lowrank_add(base, case.x, case.a, case.b)
    assert torch.equal(base, before)
    assert torch.equal(lowrank_add(base, case.x, case.a, case.b, 0.0), base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": []}, "of which there are 0"),
        ({"a": [torch.ones(2, 3, 12)]}, "give one entry per weight, of which there are 2 .* {'a': 1,"),
        ({"scales": [1.0]}, "'scales': 1"),
        ({"weights": [torch.ones(9, 12), torch.ones(9, 11)]}, r"weights\[1\] \[n, d\], not \[4, 5, 12\] and \[9, 11\]"),
        ({"biases": [None, torch.ones(8)]}, r"biases\[1\] must be \[9\]"),
        ({"b": [torch.ones(2, 9, 3), torch.ones(2, 9, 2)]}, r"a\[1\] must be \[G, r, 12\] and b\[1\] \[G, 9, r\]"),
        (
            {"a": [torch.ones(2, 3, 12), torch.ones(4, 3, 12)], "b": [torch.ones(2, 9, 3), torch.ones(4, 9, 3)]},
            r"as many sets of factors, not \[2, 4\]",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(changes, message):
    given = {
        "x": torch.ones(4, 5, 12), "weights": [torch.ones(9, 12)] * 2, "a": [torch.ones(2, 3, 12)] * 2,
        "b": [torch.ones(2, 9, 3)] * 2, **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        lowrank_linears(**given)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"'triton' cannot run here: .*; use 'auto' or 'portable'"):
        lowrank_linear(**tensors(backend="triton"))


def test_a_base_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"base must be a floating-point tensor \[4, 5, 'n'\], not torch.float32 \[4, 9\]"
    ):
        lowrank_add(torch.ones(4, 9), torch.ones(4, 5, 12), torch.ones(2, 3, 12), torch.ones(2, 9, 3))


@pytest.mark.parametrize("name", ["x", "base"])
def test_a_dtype_that_only_stores_is_refused(name):
    given = {
        "base": torch.ones(4, 5, 9),
        "x": torch.ones(4, 5, 12),
        "a": torch.ones(2, 3, 12),
        "b": torch.ones(2, 9, 3),
    }
    with pytest.raises(ValueError, match=f"{name} is torch.float8_e4m3fn, in which PyTorch does not compute; cast it"):
        lowrank_add(**{**given, name: given[name].to(torch.float8_e4m3fn)})


@pytest.mark.parametrize(
    ("of_base", "of_x"),
    [(torch.float64, torch.float32), (torch.float32, torch.float16), (torch.bfloat16, torch.float16)],
)
def test_a_wider_base_keeps_its_digits(of_base, of_x):
    base, x = torch.randn(4, 5, 9, dtype=of_base), torch.randn(4, 5, 12, dtype=of_x)
    a, b = torch.zeros(2, 3, 12, dtype=of_x), torch.randn(2, 9, 3, dtype=of_x)
    y = lowrank_add(base, x, a, b)
    assert y.dtype == of_base
    assert torch.equal(y, base)


def test_the_portable_backend_plans_on_the_meta_device():
    x, weight, a, b = (torch.empty(*shape, device="meta") for shape in ((4, 5, 12), (9, 12), (4, 2, 12), (4, 9, 2)))
    assert lowrank_linear(x, weight, a, b, backend="portable").shape == (4, 5, 9)


@pytest.mark.parametrize("transform", [torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f), in_dims=0)])
def test_transforms_of_functions(transform):
    x, weight, a, b = torch.randn(2, 3, 8), torch.randn(6, 8), torch.randn(2, 2, 8), torch.randn(2, 6, 2)

    def loss(x):
        return lowrank_linear(x, weight, a, b, backend="portable").square().sum()

    if transform is torch.func.grad:
        given = x
        expected = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)[0]
    else:
        given = torch.stack([x, 2 * x])
        expected = torch.stack([torch.autograd.grad(loss(leaf := t.clone().requires_grad_()), leaf)[0] for t in given])
    assert relative_error(transform(loss)(given), expected) < GRADIENT_TOLERANCE


def test_a_tangent_comes_through():
    x, weight, a, b = torch.randn(2, 3, 8), torch.randn(6, 8), torch.randn(2, 2, 8), torch.randn(2, 6, 2)
    tangent = torch.randn_like(x)
    _, actual = torch.func.jvp(lambda x: lowrank_linear(x, weight, a, b, backend="portable"), (x,), (tangent,))
    assert relative_error(actual, lowrank_linear(tangent, weight, a, b)) < FORWARD_TOLERANCE
