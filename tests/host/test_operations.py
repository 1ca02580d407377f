"""What ``hyper_kv`` and ``hyper_qkv`` do on the host between a call and its launches, on a device that is not there."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import triton
from torch.fx.experimental.proxy_tensor import make_fx

import hnkernels as hn
from hnkernels.ops import derived, fused
from hnkernels.triton import bound, direct
from hnkernels.triton._compat import DEPENDENT_LAUNCHES
from hnkernels.triton.kernels import arguments
from hnkernels.triton.launch import recording
from hnkernels.triton.testing import pretend_device
from tests.calls import count_calls
from tests.host.changes import CHANGES, OUT, WIDTH, Call

NETS = {"relu": {}, "relu + LayerNorm": {"layer_norm": True}, "affine": {"activation": None}}


def warm_calls(function) -> int:
    """Calls of functions once everything is decided and compiled."""
    for _ in range(3):
        function()
    return count_calls(function)


@pytest.fixture(autouse=True)
def _device():
    with pretend_device("sm_90"):
        yield


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
@pytest.mark.parametrize("query", [False, True], ids=["hyper_kv", "hyper_qkv"])
def test_inference_takes_few_calls_of_functions(query, options):
    assert warm_calls(Call(query, **options).run) <= 120


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_no_rows_and_one_on_a_device(options, dtype, rows):
    net = hn.Hypernetwork((1280,), **options).to(dtype)
    x, w = torch.randn(rows, 1280, dtype=dtype, requires_grad=True), torch.randn(8, 1280, dtype=dtype)
    k, v = hn.hyper_kv(x, *net[1280], w, w, backend="triton")
    torch.autograd.backward((k, v), (torch.ones_like(k), torch.ones_like(v)))
    assert k.shape == v.shape == (rows, 8)
    assert x.grad.shape == x.shape


def test_direct_launches_may_be_set_up_early(monkeypatch):
    entry, early = direct.entry, []

    def noted(kernel):
        early.append(getattr(kernel.metadata, "launch_pdl", False))
        return entry(kernel)

    monkeypatch.setattr(direct, "entry", noted)
    net, x, w = hn.Hypernetwork((1280,)).eval(), torch.randn(23, 1280), torch.randn(8, 1280)
    with torch.no_grad():
        hn.hyper_kv(x, *net[1280], w, w, backend="triton")
    assert set(early) == {DEPENDENT_LAUNCHES}


def test_what_is_returned_cannot_be_mistaken_for_a_result():
    call = Call(training=True)
    for _ in range(2):
        k, v = call.run()
        assert k.isnan().all()
        assert v.isnan().all()
    torch.autograd.backward((k, v), (k, v))
    assert all(p.grad.isnan().all() for mlp in call.mlps for p in mlp.parameters())


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_every_call_launches_the_same(training, options):
    call = Call(training=training, **options)
    call.run()  # folds and composes
    launches = []
    for _ in range(3):
        with recording() as seen:
            results = call.run()
            if training:
                torch.autograd.backward(results, results)
        launches.append(seen)
    assert launches[0] == launches[1] == launches[2] != []


class Launches:
    """What the launcher of every kernel has been called with: grid and arguments, pointers as addresses."""

    def __init__(self, monkeypatch):
        self.seen: list[tuple] = []
        monkeypatch.setattr("hnkernels.triton.testing._Launcher.__call__", lambda _, *given: self.take(given))

    def take(self, given: tuple) -> None:
        x, y, z, stream, _function, _metadata, _launch_metadata, _enter, _leave, *arguments = given
        plain = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        self.seen.append((x, y, z, stream, *plain))

    def taken(self) -> list[tuple]:
        seen, self.seen = self.seen, []
        return seen


def without_addresses(launches: list[tuple], known: set[int]) -> list[list]:
    """The launches, with ``...`` for the addresses of temporary tensors."""
    return [
        [... if isinstance(a, int) and a > 2**20 and a not in known else a for a in launch] for launch in launches
    ]  # fmt: skip


@pytest.mark.parametrize("options", [NETS["relu"], NETS["relu + LayerNorm"]], ids=["relu", "relu + LayerNorm"])
@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_direct_launch_passes_what_triton_passes(monkeypatch, training, query, options):
    launches, call = Launches(monkeypatch), Call(query, training, **options)
    upstream = [torch.ones(1, 3, OUT, dtype=torch.float16) for _ in range(3 if query else 2)]

    def run() -> list[tuple]:
        launches.taken()
        results = call.run()
        if training:  # with a query of its own launch, Q has no gradient here
            pairs = [(y, dy) for y, dy in zip(results, upstream, strict=True) if y.requires_grad]
            torch.autograd.backward(*zip(*pairs, strict=True))
        return launches.taken()

    run(), run()  # decided, compiled
    directly = run()
    monkeypatch.setattr(direct, "hooked", lambda: True)  # what a profiler hooks into is Triton's own launch
    by_triton = run()
    tensors = [call.x, *call.w.values(), *(p for mlp in call.mlps for p in mlp.parameters()), *upstream]
    known = {t.data_ptr() for t in tensors}
    assert directly
    assert without_addresses(directly, known) == without_addresses(by_triton, known)


def test_pointers_that_are_not_aligned_have_kernels_of_their_own():
    call = Call()
    call.run(), call.run()
    (plan,) = call.mlps[0].plans.values()
    kept = plan._program._bound
    assert len(kept) == 1
    call.x = torch.randn(3 * WIDTH + 1, dtype=torch.float16)[1:].view(1, 3, WIDTH)
    call.run()
    assert len(kept) == 2


def test_a_device_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="target 'sm_10' is unknown; accepted are sm_80"), pretend_device("sm_10"):
        pass


def test_a_hook_of_a_profiler_sees_every_launch(monkeypatch):
    call, seen = Call(), []
    for _ in range(3):
        call.run()
    if not hasattr(triton, "knobs"):  # Triton 3.2 and 3.3
        monkeypatch.setattr(triton.compiler.CompiledKernel, "launch_enter_hook", seen.append)
        call.run()
    else:
        triton.knobs.runtime.launch_enter_hook.add(seen.append)
        try:
            call.run()
        finally:
            triton.knobs.runtime.launch_enter_hook.remove(seen.append)
    assert [entry.get()["name"] for entry in seen] == ["mlp_layer_forward_kernel", "linear_streams_kernel"]


def test_where_the_call_of_a_kernel_is_not_known_triton_launches(monkeypatch):
    monkeypatch.setattr(direct, "_TRIED", ((98, 0), (99, 1)))
    assert f"Triton {triton.__version__} is not one of 98.0 to 99.1" in direct.route()
    monkeypatch.setattr(direct, "_DIRECT", False)
    monkeypatch.setattr(bound.Bound, "__init__", lambda *_: pytest.fail("launched directly"))
    call = Call(**{"activation": "tanh"})
    for _ in range(3):
        with recording() as launches:
            call.run()
    assert len(launches) == 2


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_a_plan_is_not_run_after(monkeypatch, change, options):
    call, decided = Call(**options), []
    original = fused.project_pair
    monkeypatch.setattr(fused, "project_pair", lambda *args: decided.append(1) or original(*args))
    for _ in range(3):
        call.run()
    assert len(decided) == 1
    change(call)
    for _ in range(3):
        call.run()
    assert len(decided) == 2


def test_a_plan_is_not_run_after_a_parameter_has_moved_within_its_storage(monkeypatch):
    call, decided = Call(), []
    original = fused.project_pair
    monkeypatch.setattr(fused, "project_pair", lambda *args: decided.append(1) or original(*args))
    weight = call.mlps[0].linear[0].weight
    both = torch.stack([weight.detach(), 2 * weight.detach()])
    for place in (0, 1):
        weight.data = both[place]
        for _ in range(3):
            call.run()
        assert len(decided) == 1 + place


@pytest.mark.parametrize("mode", ["autocast", "gradients", "training"])
def test_a_mode_that_is_switched_on_and_off_has_plans_of_its_own(monkeypatch, mode):
    call, decided = Call(dtype=torch.float32), []
    for name in ("project_pair", "recorded_pair"):
        original = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *args, run=original: decided.append(1) or run(*args))
    call.run()
    plain = warm_calls(call.run)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert call.run()[0].dtype == torch.bfloat16
    elif mode == "gradients":
        call.training = True
        assert call.run()[0].requires_grad
        call.training = False
    else:
        [mlp.train() for mlp in call.mlps]
        call.run()
        [mlp.eval() for mlp in call.mlps]
        call.run()
    assert len(decided) > 1
    k, _ = call.run()
    assert k.dtype == torch.float32
    assert not k.requires_grad
    assert warm_calls(call.run) == plain


def test_gradients_reach_what_comes_to_require_them():
    call = Call(training=True)
    [p.requires_grad_(False) for mlp in call.mlps for p in mlp.parameters()]
    assert not call.run()[0].requires_grad
    call.mlps[0].linear[0].weight.requires_grad_(True)
    assert call.run()[0].requires_grad
    call.w["v"].requires_grad_(True)
    k, v = call.run()
    torch.autograd.backward((k, v), (k.detach(), v.detach()))
    assert call.w["v"].grad is not None
    assert call.mlps[0].linear[0].weight.grad is not None


def test_copies_and_pickles_have_no_plans():
    call = Call()
    call.run()
    assert call.mlps[0].plans
    assert copy.deepcopy(call.mlps[0]).plans is None
    assert pickle.loads(pickle.dumps(call.mlps[0])).plans is None


def test_plans_go_with_the_projections_and_are_bounded():
    call = Call()
    call.run()
    call.w = {s: torch.randn(OUT, WIDTH, dtype=torch.float16) for s in "qkv"}
    assert not call.mlps[0].plans
    for tokens in range(1, 200):
        call.x = torch.randn(1, tokens, WIDTH, dtype=torch.float16)
        call.run()
    assert len(call.mlps[0].plans) <= 128


def test_a_captured_graph_holds_launches_alone_and_what_they_read_stays(monkeypatch):
    call = Call()
    call.run()
    monkeypatch.setattr(derived, "capturing", lambda t: True)
    with recording() as launches, torch.profiler.profile() as profile:
        call.run()
    assert len(launches) == 2
    operations = {event.key for event in profile.key_averages() if event.key.startswith("aten::")}
    assert operations <= {"aten::empty_strided", "aten::clone", "aten::empty_like", "aten::copy_", "aten::as_strided"}
    derived.forget()
    (kept,) = derived._in_graphs[call.w["k"]]
    assert kept


def test_under_autocast_every_parameter_is_cast_once_in_a_call_of_a_model():
    from hnkernels.ops.casting import keeping_casts

    call = Call(training=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        call.run()
        for layers in (1, 6):
            with torch.profiler.profile() as profile, keeping_casts():
                for _ in range(layers):
                    call.run()
            casts = {event.key: event.count for event in profile.key_averages()}["aten::_to_copy"]
            parameters = sum(1 for mlp in call.mlps for _ in mlp.parameters())
            assert casts <= parameters + layers  # and the context, in every layer


def test_tables_come_from_pinned_memory_that_a_captured_graph_keeps(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *_, **__: t)  # there is no such device here
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        table = arguments.table_on(torch.device("cuda"), [[1, 2], [3, 4]])
        assert table is pinned[-1]
        assert any(kept is table for kept in arguments._in_graphs) is capturing


def test_strengths_that_read_alike_have_plans_of_their_own():
    call = Call()
    call.mlps = [[mlp, mlp] for mlp in call.mlps]
    strengths = [{"k": 0.3, "v": 1.0}, {"v": 0.3, "k": 1.0}, [0.3, 1.0], {"k": [0.3, 1.0], "v": 1.0}]
    for strength in strengths:
        call.options = {"strength": strength}
        call.run()
    assert len(call.mlps[0][0].plans) == len(strengths)


@pytest.mark.parametrize("wrong", [{"k": 1.0}, {1.0}, [[1.0]]], ids=str)
def test_a_strength_that_is_none_is_refused_after_a_plan_too(wrong):
    call = Call()
    call.run(), call.run()
    call.options = {"strength": wrong}
    with pytest.raises(ValueError, match="strength"):
        call.run()


def test_what_is_not_an_mlp_is_refused():
    call = Call()
    with pytest.raises(ValueError, match="mlp_k must be a HypernetworkMLP or a sequence of them, not Linear"):
        hn.hyper_kv(call.x, [torch.nn.Linear(WIDTH, WIDTH)], [], call.w["k"], call.w["v"])


def test_rows_that_pytorch_knows_by_a_symbol_alone_decide_by_their_magnitude():
    net = hn.Hypernetwork((WIDTH,), layer_norm=True).half().train()
    structure = fused._structure(net[WIDTH][0])
    parameters = [p.detach() for mlp in net[WIDTH] for p in fused._parameters(mlp)]

    def forward(x: torch.Tensor, *parameters: torch.Tensor) -> list[torch.Tensor]:
        return torch.ops.hnkernels.mlp_forward(
            [x], [], list(parameters), [], None, None, None, *structure, [1.0, 1.0], None, torch.float16, True
        )  # fmt: skip

    x = torch.randn(20 * WIDTH, WIDTH).half()
    graph = make_fx(forward, tracing_mode="symbolic")(x, *parameters)
    rows = {str(guard.expr) for guard in graph.shape_env.guards}
    assert not any(guard.startswith("Eq(") and str(20 * WIDTH) in guard for guard in rows), rows
    for more in (x, torch.cat([x, x[:5]])):
        assert [t.shape for t in graph(more, *parameters)] == [t.shape for t in forward(more, *parameters)]
