"""What ``explain`` says is what happens, and what a launch says that it moves is what it touches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from benchmarks.forms import FORMS, calls, lowrank_calls
from hnkernels import explain, hyper_kv, hyper_qkv
from hnkernels.triton import target
from hnkernels.triton._compat import DEPENDENT_LAUNCHES
from hnkernels.triton.kernels import hidden_and_projection
from hnkernels.triton.launch import capturing, recording
from hnkernels.triton.ops.grouped import run_grouped_linear
from hnkernels.triton.tiling import forced
from tests.models import make_mlp
from tests.triton import test_lowrank
from tests.triton.test_compiled import KERNELS

ROWS, WIDTH, OUT = 33, 40, 24
OPTIONS = [
    {},
    {"activation": None},
    {"activation": "silu"},
    {"activation": "relu", "layer_norm": True},
    {"activation": "gelu", "layer_norm": True, "activate_output": True},
    {"activation": "prelu", "layer_norm": True},
    {"layer_structure": (1, 1)},
    {"layer_structure": (1, 2, 4, 2, 1), "layer_norm": True},
    {"dropout_structure": (0, 0.3, 0), "layer_norm": True},
]


@pytest.fixture(autouse=True)
def _the_target_is_the_interpreter(monkeypatch):
    monkeypatch.setitem(target.TARGETS, "interpreter", target.target_of(torch.device("cpu")))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_explain_tells_the_launches_that_happen(options, query, training, monkeypatch):
    monkeypatch.setattr(GridExecutor, "__call__", lambda *_, **__: None)  # what is launched need not be computed
    mlps = [make_mlp(WIDTH, **options).train(training) for _ in "kv"]
    x = torch.randn(ROWS, WIDTH, requires_grad=training)
    w_q, w_k, w_v = (torch.randn(OUT, WIDTH) for _ in "qkv")

    def run() -> tuple[torch.Tensor, ...]:
        with torch.set_grad_enabled(training):
            if query:
                return hyper_qkv(x, *mlps, w_q, w_k, w_v, backend="triton")
            return hyper_kv(x, *mlps, w_k, w_v, backend="triton")

    run()  # what inference computes once and keeps is in place from here on
    with recording() as forward:
        results = run()
    with recording() as backward:
        if training:
            torch.autograd.backward(results, [torch.ones_like(t) for t in results])
    explanation = explain(
        *mlps, tokens=ROWS, out_features=OUT, training=training, query_features=OUT if query else None,
        dtype=torch.float32, target="interpreter",
    )  # fmt: skip
    assert explanation.forward == tuple(forward)
    assert explanation.backward == tuple(backward)


def test_a_stride_of_no_rows_launches_nothing():
    mlp, w = make_mlp(WIDTH), torch.randn(OUT, WIDTH)
    with recording() as launches:
        hyper_kv(torch.empty(0, WIDTH), mlp, mlp, w, w, backend="triton")
    assert launches == []


class Touched:
    """What the interpreter's launches have loaded and stored so far."""

    def __init__(self, monkeypatch):
        self.bytes: list[tuple[int, int]] = []  # of every launch, read and written, every byte once
        self._loaded: list[tuple[int, numpy.ndarray]] = []
        self._stored: list[tuple[int, numpy.ndarray]] = []
        launch, load, store = (
            GridExecutor.__call__,
            InterpreterBuilder.create_masked_load,
            InterpreterBuilder.create_masked_store,
        )

        def launched(*args, **kwargs):
            self._loaded, self._stored = [], []
            launch(*args, **kwargs)
            self.bytes.append((self._count(self._loaded), self._count(self._stored)))

        def loading(builder, pointers, mask, *rest):
            self._loaded.append(self._addresses(pointers, mask))
            return load(builder, pointers, mask, *rest)

        def storing(builder, pointers, value, mask, *rest):
            self._stored.append(self._addresses(pointers, mask))
            return store(builder, pointers, value, mask, *rest)

        monkeypatch.setattr(GridExecutor, "__call__", launched)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loading)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", storing)

    @staticmethod
    def _addresses(pointers, mask) -> tuple[int, numpy.ndarray]:
        """The bytes of an element, and where the elements begin."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        return size, pointers.data[numpy.broadcast_to(mask.data, pointers.data.shape)].ravel()

    @staticmethod
    def _count(accesses: list[tuple[int, numpy.ndarray]]) -> int:
        """Of bytes; no tensor is read as elements of two sizes, nor do elements overlap."""
        elements = defaultdict(list)
        for size, addresses in accesses:
            assert not (addresses % size).any()
            elements[size].append(addresses)
        return sum(size * numpy.unique(numpy.concatenate(of_size)).size for size, of_size in elements.items())


def calls_of_every_kernel() -> Iterator[Callable[[], object]]:
    """Some that between them launch every kernel, with and without what is optional."""

    def mlps(query: bool, training: bool, options: dict) -> None:
        nets = [make_mlp(WIDTH, **options).train(training) for _ in "kv"]
        x = torch.randn(ROWS, WIDTH, requires_grad=training)
        w_q, w_k, w_v = (torch.randn(n, WIDTH) for n in (OUT, OUT, OUT + 7))
        with torch.set_grad_enabled(training):
            y = hyper_qkv(x, *nets, w_q, w_k, w_v) if query else hyper_kv(x, *nets, w_k, w_v)
            if training:
                torch.autograd.backward(y, [torch.randn_like(t) for t in y])

    def one_launch() -> None:
        with forced(hidden_and_projection.TILES[0]):
            mlps(True, False, {})

    def grouped() -> None:
        x = [torch.randn(ROWS, WIDTH, requires_grad=True) for _ in "kv"]
        w, b = [torch.randn(n, WIDTH) for n in (41, 20, 7)], [torch.randn(41), None, torch.randn(7)]
        y = run_grouped_linear((x[0], x[1]), w, b, (0, 1, 1))
        torch.autograd.grad(y, x, [torch.randn_like(t) for t in y])

    def lowrank(wanted: str, options: dict) -> None:
        call = test_lowrank.Call(**options)
        for name, t in call.named_inputs():
            t.requires_grad_(name == wanted or not wanted)
        torch.autograd.grad(call.ours(), [t for _, t in call.named_inputs() if t.requires_grad], call.upstream)

    for number, options in enumerate(OPTIONS):
        for training in (False, True):
            yield lambda q=number % 2 == 0, t=training, o=options: mlps(q, t, o)
    yield one_launch
    yield grouped
    for options in ({}, {"add": True, "index": (2, 0, 1)}, {"slices": test_lowrank.FEW_MORE}):
        for wanted in ("", "x", "a", "scale"):
            yield lambda w=wanted, o=options: lowrank(w, o)


def test_every_byte_that_is_counted_is_touched_and_no_other(monkeypatch):
    touched = Touched(monkeypatch)
    with recording() as launches, capturing() as calls:
        for call in calls_of_every_kernel():
            call()
    launches = [launch for launch in launches if launch.kernel != "vendor_linear"]
    assert {launch.kernel for launch in launches} == KERNELS
    for launch, call, (read, written) in zip(launches, calls, touched.bytes, strict=True):
        table = call.arguments.get("table_ptr")  # no kernel reads all columns of the table of low-rank linears
        unread = 0 if table is None else table.numel() * table.element_size()
        assert launch.bytes_written == written, launch
        assert launch.bytes_read - unread <= read <= launch.bytes_read, launch


@pytest.mark.parametrize("training", [False, True])
def test_where_the_query_cannot_come_along_it_is_a_linear_of_its_own(monkeypatch, training):
    mlps = [make_mlp(16).train(training) for _ in "kv"]
    x, weights = torch.randn(2, 5, 16), [torch.randn(16, 16) for _ in "qkv"]
    found = []
    for along in (True, False):
        monkeypatch.setattr("hnkernels.ops.fused.QUERY_COMES_ALONG", along)
        mlps[0].plans = None
        with torch.set_grad_enabled(training):
            found.append(hyper_qkv(x, *mlps, *weights, backend="triton"))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942"])
def test_every_launch_may_be_set_up_early_where_kernels_wait(name):
    made = [call for form in FORMS for call in calls(form, 320, 77, torch.float16, target.TARGETS[name])]
    made += lowrank_calls(320, 77, 4, torch.float16, target.TARGETS[name])
    early = DEPENDENT_LAUNCHES and name in ("sm_90", "sm_120")
    assert {call.arguments.get("launch_pdl", False) for call in made} == {early}
