"""Accounts of eager PyTorch, against what one counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import reference
from hnkernels.accounting.eager import Account, Counting, inference, saved_bytes, training, unique_bytes

DEVICES = pytest.mark.parametrize("device", ["meta", "cpu"])


def account_of(run) -> Account:
    with Counting() as counting:
        alive = run()
    del alive
    return counting.account


@DEVICES
def test_a_linear_reads_its_inputs_and_writes_its_output_once(device):
    x, w, b = torch.ones(7, 5, device=device), torch.ones(3, 5, device=device), torch.ones(3, device=device)
    account = account_of(lambda: F.linear(x, w, b))
    (launch,) = account.launches
    assert launch.flops == 2 * 7 * 5 * 3
    assert launch.bytes_read == 4 * (7 * 5 + 3 * 5 + 3)
    assert launch.bytes_written == 4 * 7 * 3
    assert account.peak == 4 * 7 * 3


@DEVICES
def test_products_in_place_and_with_a_vector_are_counted(device):
    out, a, b, v = (torch.ones(*shape, device=device) for shape in ((4, 6), (4, 5), (5, 6), (5,)))
    assert account_of(lambda: out.addmm_(a, b)).flops == 2 * 4 * 5 * 6
    assert account_of(lambda: torch.mv(a, v)).flops == 2 * 4 * 5
    assert account_of(lambda: torch.addmv(out[:, 0], a, v)).flops == 2 * 4 * 5


@DEVICES
def test_an_operation_in_place_reads_and_writes_its_tensor(device):
    x = torch.ones(10, device=device)
    (launch,) = account_of(lambda: x.relu_()).launches
    assert (launch.bytes_read, launch.bytes_written) == (40, 40)
    (launch,) = account_of(lambda: x.zero_()).launches
    assert (launch.bytes_read, launch.bytes_written) == (0, 40)
    (launch,) = account_of(lambda: x.copy_(torch.empty(10, device=device))).launches
    assert (launch.bytes_read, launch.bytes_written) == (40, 40)
    (launch,) = account_of(lambda: torch.mul(x, 2, out=torch.empty(10, device=device))).launches
    assert (launch.bytes_read, launch.bytes_written) == (40, 40)


@DEVICES
def test_views_and_bare_allocations_are_not_launches(device):
    x = torch.ones(4, 6, device=device)
    account = account_of(lambda: (x.T, x[1:], x.view(24), x.squeeze_(0), x.detach(), torch.empty(8, device=device)))
    assert account.operations == []
    assert account.peak == 32


@DEVICES
def test_what_is_expanded_or_given_twice_is_read_once(device):
    row = torch.ones(1, 6, device=device)
    (launch,) = account_of(lambda: row.expand(100, 6) * 2).launches
    assert (launch.bytes_read, launch.bytes_written) == (24, 2400)
    x = torch.ones(4, 4, device=device)
    (launch,) = account_of(lambda: x + x).launches
    assert launch.bytes_read == 64
    (launch,) = account_of(lambda: x @ x.T).launches
    assert launch.bytes_read == 64


def test_overlapping_parts_of_a_storage_count_once():
    x = torch.empty(10, 4)
    assert unique_bytes([x[:6], x[4:]]) == 160
    assert unique_bytes([x[:2], x[8:]]) == 64
    assert unique_bytes([x[:, :1]]) == 40
    assert unique_bytes([x, x[3], x.T]) == 160
    assert unique_bytes([x[:0]]) == 0


@DEVICES
def test_the_peak_of_a_chain_is_two_links(device):
    x = torch.ones(100, device=device)

    def chain():
        y = x
        for _ in range(5):
            y = y + 1
        return y

    assert account_of(chain).peak == 800
    assert account_of(lambda: [x + 1 for _ in range(5)]).peak == 2000


@DEVICES
def test_autograd_keeps_of_a_relu_mlp_its_input_and_its_activations(device):
    mlp = reference.MLP(6, (1, 2, 1), "relu").to(device)
    x = torch.ones(5, 6, device=device, requires_grad=True)
    assert saved_bytes(lambda: mlp(x), mlp.parameters()) == 4 * 5 * (6 + 12)
    accounts = training(lambda: [mlp(x)], [x], list(mlp.parameters()))
    assert accounts["forward"].saved == 4 * 5 * (6 + 12)


@DEVICES
def test_a_training_step_is_its_two_passes(device):
    mlp = reference.MLP(6, (1, 2, 1), "silu", True).to(device)
    x = torch.ones(5, 6, device=device, requires_grad=True)
    first, second = (training(lambda: [mlp(x)], [x], list(mlp.parameters())) for _ in range(2))
    assert first == second
    forward, backward, both = (first[mode] for mode in ("forward", "backward", "forward + backward"))
    assert forward.flops == 2 * 5 * 6 * 12 * 2
    assert backward.flops == 2 * forward.flops
    assert both.operations == forward.operations + backward.operations
    assert both.peak == max(forward.peak, backward.peak)
    assert backward.peak >= forward.saved - 4 * 5 * 6


def test_inference_counts_what_a_second_call_does():
    kept = {}

    def run():
        if "w" not in kept:
            kept["w"] = torch.ones(3) * 2
        return kept["w"] + 1

    assert inference(run).operations == ["aten.add.Tensor"]


def test_meta_and_cpu_tensors_give_the_same_account():
    accounts = []
    for device in ("meta", "cpu"):
        mlp = reference.MLP(6, (1, 2, 1), "relu", True).to(device)
        x = torch.ones(5, 6, device=device, requires_grad=True)
        accounts.append(training(lambda mlp=mlp, x=x: [mlp(x)], [x], list(mlp.parameters())))
    assert accounts[0]["forward"] == accounts[1]["forward"]
    assert accounts[0]["backward"].flops == accounts[1]["backward"].flops
