"""Values and all gradients against the reference in float64, for every pair of options."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.accuracy import check_fp32, check_half
from tests.triton.cases import CASES, VALUES, Case, all_pairs, pairs_of

pytestmark = pytest.mark.on_device


def test_the_cases_meet_every_pair_of_values():
    met = {pair for case in CASES for pair in pairs_of(dataclasses.asdict(case))}
    assert set(VALUES) == {f.name for f in dataclasses.fields(Case)}
    assert met >= set(all_pairs())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_all_gradients(case: Case):
    if case.dtype == torch.float32:
        check_fp32(case.draw)
    else:
        check_half(case.draw, lambda call: call.expected(case.dtype))
