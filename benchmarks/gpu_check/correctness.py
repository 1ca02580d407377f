"""Whether every kernel is right: values and gradients against float64, beside what eager PyTorch errs.

The bounds are those of the tests (``tests/accuracy.py``), the sizes those of real layers; in a rehearsal all is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hnkernels as hn
from benchmarks.gpu_check import RIGHT, SKIPPED, WRONG, Finding, Session, Task
from benchmarks.measuring import captured
from benchmarks.rows import DTYPES, Environment
from hnkernels.triton.target import forced_route
from tests.accuracy import Call, check_fp32, check_half
from tests.models import make_mlp, relative_error
from tests.triton import test_lowrank

PHASE = "right"

MOST_DRAWS = 24
"""Of a case whose error is too large at first, as in the tests: luck evens out, a fault does not."""


class Layer(NamedTuple):
    """One layer with its network."""

    width: int
    rows: int
    columns: int
    options: dict[str, Any]

    def __str__(self) -> str:
        words = ["LayerNorm" if k == "layer_norm" else str(v) for k, v in self.options.items()]
        return f"{self.width} x {self.rows} to {self.columns}, {', '.join(words)}"

    def call(self, environment: Environment, dtype: str, training: bool = True) -> Call:
        """Random tensors for it, where they are to be."""
        with environment.device:
            return Call.make(
                dim=self.width, shape=(self.rows,), n=(self.columns, self.columns), dtype=DTYPES[dtype],
                std=self.width**-0.5, train=training, **self.options,
            )  # fmt: skip


LAYERS = (
    Layer(320, 2048, 320, {"activation": "relu"}),
    Layer(320, 2048, 320, {"activation": "silu", "layer_norm": True}),
    Layer(1280, 256, 1280, {"activation": "gelu"}),
    Layer(768, 154, 320, {"activation": "mish", "layer_norm": True}),
    Layer(640, 1024, 640, {"activation": None}),
    Layer(76, 33, 40, {"activation": "prelu", "layer_norm": True, "activate_output": True}),
    Layer(1280, 77, 640, {"activation": "tanh", "layer_structure": (1, 1.5, 1.5, 1)}),
    Layer(2048, 77, 640, {"activation": "elu"}),
)
"""Every kind of network at the shapes of Stable Diffusion, and one size that no block fits."""


def layers(environment: Environment) -> tuple[Layer, ...]:
    """Those that are checked: in the interpreter the same networks, small."""
    return (
        LAYERS
        if environment.kind == "cuda"
        else tuple(layer._replace(width=16, rows=9, columns=12) for layer in LAYERS)
    )


def tasks(environment: Environment) -> Iterator[tuple[str, Task]]:
    """Most telling first: every kind of layer in fp16, then what surrounds them, then other dtypes and ways."""
    everyone = layers(environment)
    plain, normed, *_ = everyone
    for layer in everyone:
        yield f"{layer}, fp16", partial(_layer, layer, "fp16")
    yield "low rank", _lowrank
    for layer in (plain, normed):
        yield f"captured graph, new inputs, {layer}", partial(_graph, layer)
        yield f"torch.compile, {layer}", partial(_compiled, layer)
    yield "autocast", partial(_autocast, normed)
    yield "side stream", partial(_side_stream, normed)
    yield "dropout computed again", partial(_dropout, plain)
    for way in ("kernels", "vendor"):
        for layer in (plain, normed):
            yield f"route {way}, {layer}", partial(_route, way, layer)
    for dtype in ("bf16", "fp32"):
        for layer in everyone:
            yield f"{layer}, {dtype}", partial(_layer, layer, dtype)
    yield "second device", _second_device
    yield "more than 2^31 elements", _many_elements


def _layer(layer: Layer, dtype: str, session: Session) -> Iterator[Finding]:
    """Outputs, recorded and at inference, and all gradients; and the same bits twice."""
    what = f"{layer}, {dtype}"
    yield _errors(what, partial(layer.call, session.environment, dtype), dtype, session)
    call = layer.call(session.environment, dtype)
    yield _same(f"{what}, the same bits twice", call.results(), call.results())


def _errors(what: str, make: Any, dtype: str, session: Session) -> Finding:
    with session.environment.device:
        if dtype == "fp32":
            errors = check_fp32(make, most=MOST_DRAWS)
            worst = max(errors.items(), key=lambda item: item[1].ours)
            return Finding(PHASE, what, RIGHT, worst[1].ours, "relative error", worst[0])
        errors = check_half(make, lambda call: call.expected(DTYPES[dtype]), most=MOST_DRAWS)
        worst = max(errors.items(), key=lambda item: item[1].ratio)
        return Finding(PHASE, what, RIGHT, worst[1].ratio, "x eager's error", worst[0])


def _same(what: str, ours: Iterable[Tensor], others: Iterable[Tensor]) -> Finding:
    equal = all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))
    return Finding(PHASE, what, RIGHT if equal else WRONG)


def _near(what: str, ours: Iterable[Tensor], others: Iterable[Tensor], most: float) -> Finding:
    error = max(relative_error(a, b) for a, b in zip(ours, others, strict=True))
    return Finding(PHASE, what, RIGHT if error <= most else WRONG, error, "relative error", f"at most {most:g}")


def _lowrank(session: Session) -> Iterator[Finding]:
    shape = {"samples": 4, "tokens": 9, "d": 16} if session.rehearsed else {"samples": 8, "tokens": 1024, "d": 320}
    slices = ((24, 21, 40), (4, 4, 4)) if session.rehearsed else ((320, 320, 320), (4, 4, 16))
    for dtype in ("fp16", "bf16"):
        make = partial(test_lowrank.Call, **shape, slices=slices, dtype=DTYPES[dtype])
        yield _errors(f"low rank, {dtype}", make, dtype, session)


def _graph(layer: Layer, session: Session) -> Iterator[Finding]:
    what = f"captured graph, new inputs, {layer}"
    if session.rehearsed:
        yield Finding(PHASE, what, SKIPPED, note="needs a GPU")
        return
    call = layer.call(session.environment, "fp16", training=False)
    with torch.no_grad():
        results = list(call.ours())
        replay = captured(lambda: [a.copy_(b) for a, b in zip(results, call.ours(), strict=True)])
        call.context.copy_(torch.randn_like(call.context))
        replay()
        yield _same(what, results, call.ours())


def _compiled(layer: Layer, session: Session) -> Iterator[Finding]:
    what = f"torch.compile, {layer}"
    if session.rehearsed and torch.__version__ < "2.8":  # a TorchVersion; the graph is cut, and what follows is traced
        yield Finding(PHASE, what, SKIPPED, note="PyTorch before 2.8 would compile Triton's interpreter as well")
        return
    call = layer.call(session.environment, "fp32")
    expected = call.results()
    torch._dynamo.reset()
    compiled = torch.compile(call.ours, backend="aot_eager" if session.rehearsed else "inductor", dynamic=False)
    inputs = [t for t in call.inputs() if t.requires_grad]
    outputs = compiled()
    results = [*outputs, *torch.autograd.grad(outputs, inputs, call.cast_upstream(outputs))]
    yield _near(what, results, expected, 1e-4)


def _autocast(layer: Layer, session: Session) -> Iterator[Finding]:
    call = layer.call(session.environment, "fp32")
    with torch.autocast(session.environment.device.type, torch.bfloat16):
        results = call.ours()
    yield _near("autocast", results, call.expected()[:2], 5e-2)
    dtypes = {t.dtype for t in results}
    yield Finding(PHASE, "autocast, its dtype", RIGHT if dtypes == {torch.bfloat16} else WRONG, note=str(dtypes))


def _side_stream(layer: Layer, session: Session) -> Iterator[Finding]:
    if session.rehearsed:
        yield Finding(PHASE, "side stream", SKIPPED, note="needs a GPU")
        return
    call, stream = layer.call(session.environment, "fp16"), torch.cuda.Stream()
    expected = call.results()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = call.results()
    stream.synchronize()
    yield _same("side stream", results, expected)


def _dropout(layer: Layer, session: Session) -> Iterator[Finding]:
    """Masks are drawn from a seed: what is computed again in the backward pass must find the same ones."""
    layer = layer._replace(options={"activation": "relu", "dropout_structure": (0, 0.3, 0)})
    call = layer.call(session.environment, "fp16")
    results = []
    for call.recompute in (False, True):
        torch.manual_seed(0)
        results.append(call.results())
    yield _same("dropout computed again", *results)


def _route(way: str, layer: Layer, session: Session) -> Iterator[Finding]:
    with forced_route(way):
        yield _errors(f"route {way}, {layer}", partial(layer.call, session.environment, "fp16"), "fp16", session)


def _second_device(session: Session) -> Iterator[Finding]:
    if session.rehearsed or torch.cuda.device_count() < 2:
        yield Finding(PHASE, "second device", SKIPPED, note="there are not two")
        return
    mlps = [make_mlp(320, activation="relu").half() for _ in "kv"]
    x, w = torch.randn(1, 512, 320).half(), [torch.randn(320, 320).half() / 18 for _ in "kv"]
    results = []
    for device in ("cuda:0", "cuda:1"):
        with torch.no_grad():
            given = [t.to(device) for t in (x, *w)]
            results.append([t.cpu() for t in hn.hyper_kv(given[0], *(m.to(device) for m in mlps), *given[1:])])
    yield _near("second device", *results, 1e-3)


def _many_elements(session: Session) -> Iterator[Finding]:
    """Rows whose elements no 32-bit number counts; the last of them alone are known by a small call."""
    rows = (1 << 31) // 320 + 1000
    needed = 8 * rows * 320 * 2  # bytes: the context, the hidden activations of two streams, and both results
    free = 0 if session.rehearsed else torch.cuda.mem_get_info()[0]
    if free < needed:
        note = f"needs {needed / 1e9:.0f} GB of free memory" + ("" if session.rehearsed else f", not {free / 1e9:.0f}")
        yield Finding(PHASE, "more than 2^31 elements", SKIPPED, note=note)
        return
    with session.environment.device, torch.no_grad():
        mlps = [make_mlp(320, activation="relu", std=320**-0.5).half() for _ in "kv"]
        w = [torch.randn(320, 320).half() / 18 for _ in "kv"]
        x = torch.randn(1, 1024, 320).half().repeat(1, -(-rows // 1024), 1)
        results = [t[:, -1024:] for t in hn.hyper_kv(x, *mlps, *w, backend="triton")]
        few = hn.hyper_kv(x[:, -1024:].contiguous(), *mlps, *w, backend="triton")
    yield _near("more than 2^31 elements", results, few, 1e-3)
