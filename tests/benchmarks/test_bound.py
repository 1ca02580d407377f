"""The compulsory lower bound: by hand, and below everything that is counted."""

from __future__ import annotations

import shutil

import pytest
import torch._inductor.config as inductor_config

from benchmarks import accounting
from benchmarks.accounting import COUNTED, bounds, count, markdown, named, quantities
from benchmarks.counting import accounts, providers
from benchmarks.shapes import AFFINE, RELU, SDXL_TEXT, Layers, Network, Samples, Shape


def small(network: Network = RELU, text: bool = False, outs: tuple[int, ...] = (24,)) -> Layers:
    return Layers(32, 48, outs, network, text)


SMALL: list[Shape] = [
    *(small(Network(a, norm), text) for a in ("relu", "silu") for norm in (False, True) for text in (False, True)),
    small(AFFINE),
    small(outs=(24, 40, 40)),
    Samples(32, 16, (24, 32), samples=3, rank=2),
]

QUICK = [shape for shape in COUNTED if shape != SDXL_TEXT]
"""The eager way of that one is thousands of operations, and takes seconds."""


@pytest.mark.parametrize("shape", [*SMALL, *QUICK], ids=lambda shape: ", ".join(named(shape)))
def test_nobody_goes_below_it(shape):
    least_of = bounds(shape)
    for provider in providers(shape):
        for mode, account in accounts(shape, provider, recompute=True).items():
            least = quantities(least_of[mode], mode)
            for name, figure in quantities(account, mode).items():
                assert figure >= least[name], (provider, mode, name)


def test_it_is_what_one_counts_by_hand():
    m, d, h, n = 10, 4, 8, 6
    found = accounting.projections(m, d, h, (n,))
    parameters = 2 * (d * h + h + h * d + d)
    inference, step = found["inference"], found["forward + backward"]
    assert inference.flops == 2 * (2 * m * d * h + 2 * m * h * d + 2 * m * d * n)
    assert inference.bytes_moved == 2 * (m * d + parameters + 2 * n * d + 2 * m * n)
    assert step.bytes_moved == 2 * (m * d + parameters + 2 * n * d + 2 * m * n + 2 * m * n + parameters + m * d)
    assert step.flops == found["forward"].flops + found["backward"].flops
    assert step.saved == 2 * m * d


def test_composing_lowers_it_where_a_projection_is_narrow():
    wide, narrow = (accounting.projections(10, 8, 16, (n,)) for n in (8, 4))
    assert wide["inference"].flops == wide["forward"].flops
    assert narrow["inference"].flops < narrow["forward"].flops
    normed = accounting.projections(10, 8, 16, (4,), layer_norm=True)
    assert normed["inference"].flops == normed["forward"].flops


def test_an_affine_network_leaves_the_projections_alone():
    assert accounting.projections(10, 8, 16, (4,), affine=True)["inference"].flops == 4 * 10 * 8 * 4


def test_low_rank_weights_are_added_or_written_into_the_weight_whichever_is_less():
    few, many = (accounting.lowrank(2, tokens, 32, (32,), 4)["forward"].flops for tokens in (4, 400))
    assert few == 2 * 2 * 4 * 32 * 32 + 2 * 2 * 4 * 4 * (32 + 32)
    assert many == 2 * 2 * 400 * 32 * 32 + 2 * 2 * 4 * 32 * 32


def test_counting_twice_gives_the_same_rows_and_a_table_of_them():
    chosen = [small(), Samples(32, 16, (24,), samples=3, rank=2)]
    rows = count(chosen, compiled=False)
    assert rows == count(chosen, compiled=False)
    text = "\n".join(markdown(rows))
    assert "not measured" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| 32 x 48 | inference | triton |")]
    assert line.split("|")[4].strip() == "2 (2.00)"
    assert {row.provider for row in rows} == {
        "reference",
        "eager",
        "portable",
        "triton",
        "bound",
        *providers(chosen[1]),
    }


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(not hasattr(inductor_config, "_post_fusion_custom_pass"), reason="this inductor shows no launches")
def test_the_compiled_reference_takes_fewer_launches_for_the_same_products():
    eager, compiled, least = accounts(small(), "reference"), accounts(small(), "compile"), bounds(small())
    for mode, account in compiled.items():
        assert account.flops == eager[mode].flops
        assert len(account.launches) < len(eager[mode].launches)
        assert least[mode].bytes_moved <= account.bytes_moved < eager[mode].bytes_moved
        assert account.saved <= eager[mode].saved


def test_without_a_compiler_there_is_a_warning_and_no_figure(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.warns(UserWarning, match=r"g\+\+ is not installed"):
        assert accounts(small(), "compile") == {}
