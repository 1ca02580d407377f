"""What ``explain`` says is what happens."""

from __future__ import annotations

import pytest
import torch

from hnkernels import explain, hyper_kv, hyper_qkv
from hnkernels.triton import target
from hnkernels.triton.launch import recording
from tests.models import make_mlp

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
def test_explain_tells_the_launches_that_happen(options, query, training):
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
