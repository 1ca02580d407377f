"""Kept values: current for as long as their tensors are, and never a moment longer."""

import copy
import gc
import pickle
import sys
import threading
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from hnkernels.ops.memo import Memo, Snapshot


class Counted:
    """``Memo.get`` of the sum of some tensors, counting how often it is computed."""

    def __init__(self, *tensors: torch.Tensor):
        self.memo: Memo[torch.Tensor] = Memo()
        self.tensors = list(tensors)
        self.times = 0

    def compute(self) -> torch.Tensor:
        self.times += 1
        return sum(t.detach().sum() for t in self.tensors)

    def get(self, extra=None) -> torch.Tensor:
        return self.memo.get(self.tensors, self.compute, extra)

    def is_right(self, extra=None) -> bool:
        return bool(torch.equal(self.get(extra), sum(t.detach().sum() for t in self.tensors)))


def test_a_value_is_computed_once():
    counted = Counted(torch.randn(3), torch.randn(2))
    assert counted.get() is counted.get()
    assert counted.times == 1


def add_one(t):
    t.detach().add_(1)


def write_a_view(t):
    t.detach()[:1].fill_(5)


@torch.no_grad()
def write_by_index(t):
    t[0] = 7


@pytest.mark.parametrize("change", [add_one, write_a_view, write_by_index])
def test_an_inplace_change_is_seen(change):
    counted = Counted(torch.randn(3))
    counted.get()
    change(counted.tensors[0])
    assert counted.is_right()
    assert counted.times == 2


OPTIMIZERS = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.RMSprop, {}),
]


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_an_optimizer_step_is_seen(optimizer, options):
    parameter = nn.Parameter(torch.randn(3))
    counted = Counted(parameter)
    step = optimizer([parameter], lr=0.1, **options)
    for times in range(1, 4):
        assert counted.is_right()
        assert counted.times == times
        parameter.grad = torch.ones(3)
        step.step()


def test_load_state_dict_is_seen():
    linear, other = nn.Linear(3, 2), nn.Linear(3, 2)
    counted = Counted(*linear.parameters())
    counted.get()
    linear.load_state_dict(other.state_dict())
    assert counted.is_right()
    assert counted.times == 2


def test_load_state_dict_that_assigns_is_seen():
    linear, other = nn.Linear(3, 2), nn.Linear(3, 2)
    memo: Memo[torch.Tensor] = Memo()
    memo.get([linear.weight], lambda: linear.weight.detach().clone())
    linear.load_state_dict(other.state_dict(), assign=True)
    kept = memo.get([linear.weight], lambda: linear.weight.detach().clone())
    assert torch.equal(kept, other.weight)


def test_another_tensor_with_the_same_values_is_another_tensor():
    counted = Counted(torch.ones(3))
    counted.get()
    counted.tensors = [torch.ones(3)]
    counted.get()
    assert counted.times == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_change_of_dtype_is_seen(dtype):
    linear = nn.Linear(3, 2)
    counted = Counted(linear.weight)
    counted.get()
    linear.to(dtype)
    counted.get()
    assert counted.times == 2


def test_a_round_trip_through_another_dtype_is_seen():
    # The second conversion tends to get the first storage's address back, with values that have been rounded.
    linear = nn.Linear(64, 64)
    counted = Counted(linear.weight)
    for _ in range(10):
        assert counted.is_right()
        nn.init.normal_(linear.weight)
        counted.get()
        linear.half().float()
        assert counted.is_right()


def test_a_flip_of_requires_grad_is_seen():
    parameter = nn.Parameter(torch.randn(3))
    counted = Counted(parameter)
    counted.get()
    parameter.requires_grad_(False)
    counted.get()
    assert counted.times == 2


def test_another_number_of_tensors_or_another_extra_is_seen():
    a, b = torch.randn(3), torch.randn(3)
    counted = Counted(a)
    counted.get("x")
    counted.get("y")
    counted.tensors = [a, b]
    counted.get("y")
    assert counted.times == 3


def test_inference_tensors_are_never_current():
    with torch.inference_mode():
        t = torch.randn(3)
    assert not Snapshot([t]).is_current([t])
    counted = Counted(t)
    counted.get()
    with torch.inference_mode():
        t.add_(1)
    assert counted.is_right()


def test_a_tensor_at_the_address_of_a_dead_one_is_not_taken_for_it():
    memo: Memo[float] = Memo()
    for i in range(200):
        t = torch.full((4,), float(i))
        assert memo.get([t], lambda t=t: t.sum().item()) == 4.0 * i
        del t


def test_neither_the_tensors_nor_a_cleared_value_are_kept_alive():
    tensor = torch.randn(3)
    memo: Memo[torch.Tensor] = Memo()
    value = weakref.ref(memo.get([tensor], partial(torch.mul, tensor, 2)))
    source = weakref.ref(tensor)
    del tensor
    memo.clear()
    gc.collect()
    assert value() is None
    assert source() is None


def test_a_value_that_its_receiver_wrote_into_is_made_anew():
    counted = Counted(torch.randn(3))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            counted.get().mul_(3)
            assert counted.is_right()


def test_a_value_made_in_inference_mode_serves_autograd():
    weight = torch.randn(3)
    memo: Memo[torch.Tensor] = Memo()
    with torch.inference_mode():
        assert not memo.get([weight], lambda: weight * 2).is_inference()
    x = torch.randn(3, requires_grad=True)
    (memo.get([weight], lambda: weight * 2) * x).sum().backward()
    assert torch.equal(x.grad, weight * 2)


def test_a_failed_computation_leaves_no_value_behind():
    t = torch.ones(2)
    memo: Memo[float] = Memo()
    assert memo.get([t], lambda: 1.0) == 1.0
    t.add_(1)
    with pytest.raises(ZeroDivisionError):
        memo.get([t], lambda: 1 / 0)
    assert memo.get([t], lambda: 2.0) == 2.0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_starts_empty(duplicate):
    counted = Counted(torch.randn(3))
    counted.get()
    counted.memo = duplicate(counted.memo)
    counted.get()
    assert counted.times == 2


def test_threads_with_values_of_their_own_get_no_other():
    memo, t, wrong = Memo(), torch.zeros(1), []

    def ask(own):
        for _ in range(2000):
            if memo.get([t], lambda: own, extra=own) != own:
                wrong.append(own)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=ask, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert not wrong
