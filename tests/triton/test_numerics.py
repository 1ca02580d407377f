"""Half precision where it is hard: LayerNorm with A1111's small γ, and rows whose mean dwarfs their deviation."""

from __future__ import annotations

import pytest
import torch

from tests.accuracy import Call, check_half

pytestmark = pytest.mark.on_device


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("activation", "last"), [("relu", False), ("silu", False), ("gelu", True)])
@pytest.mark.parametrize("mean", [0.0, 50.0])  # of what enters a LayerNorm, in units of its deviation
def test_layer_norm_errs_no_more_than_eager(dtype, activation, last, mean):
    def make() -> Call:
        case = Call.make(
            dim=64, shape=(4, 32), n=(40, 48), dtype=dtype, activation=activation, layer_norm=True, activate_output=last
        )
        for mlp in (*case.mlps_k, *case.mlps_v):
            mlp.reset_parameters()  # γ ~ N(0, 0.01), as A1111 draws it
            for layer in mlp.layers():
                torch.nn.init.normal_(layer.linear.weight, std=layer.linear.in_features**-0.5)
                torch.nn.init.normal_(layer.linear.bias, mean=mean, std=0.1)
        return case

    check_half(make, lambda case: case.expected(dtype))
