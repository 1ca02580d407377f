"""The tests' own helpers."""

import copy

import pytest
import torch

from tests.models import copied, make_net

pytest.importorskip("diffusers", reason="the models are those of diffusers")

from tests.adapter.hosts import CROSS_ATTENTION, by_hand, run


@pytest.mark.parametrize("case", CROSS_ATTENTION.values(), ids=CROSS_ATTENTION)
def test_a_copied_model_is_what_a_deep_copy_is(case):
    model, call = case.model(torch.float32), case.call(torch.float32)
    twin, expected = copied(model), copy.deepcopy(model)
    assert repr(twin) == repr(expected)
    for ours, theirs, own in zip(twin.modules(), expected.modules(), model.modules(), strict=True):
        assert list(vars(ours)) == list(vars(theirs))
        assert not {id(v) for v in vars(ours).values() if isinstance(v, dict)} & {id(v) for v in vars(own).values()}
    before = [t.clone() for t in (*model.parameters(), *model.buffers())]
    with torch.no_grad():
        assert torch.equal(run(twin, call), run(model, call))
        for t in (*twin.parameters(), *twin.buffers()):
            t.zero_()
    assert all(map(torch.equal, (*model.parameters(), *model.buffers()), before))


def test_a_copied_model_keeps_its_hooks():
    case = CROSS_ATTENTION["sd1"]
    call, hooked = case.call(torch.float32), by_hand(case.model(torch.float32), make_net(tuple(case.widths)))
    with torch.no_grad():
        assert torch.equal(run(copied(hooked), call), run(hooked, call))
