"""A hypernetwork on a model whose weights are elsewhere between calls, and on a model that comes to its inputs."""

import contextlib

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import apply_group_offloading
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hnkernels as hn
from tests.adapter.hosts import OriginalUNet, by_hand
from tests.models import (
    UNET_TOLERANCE,
    copied,
    denoise,
    make_net,
    relative_error,
)


@pytest.fixture(params=["relu", None], ids=["relu", "affine and fused"])
def net(request):
    return make_net(activation=request.param)


def attach(unet, net):
    adapter = hn.attach(unet, net)
    return adapter if net.config.activation else adapter.fuse()


@contextlib.contextmanager
def memory_that_comes_as_nan():
    """What is allocated and not written shows as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def accelerate_(unet, _):
    accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
    assert {p.device.type for p in unet.parameters()} == {"meta"}


def by_blocks(unet, folder):
    group_offload(unet, folder, offload_type="block_level", num_blocks_per_group=1)


def by_leaves(unet, folder):
    group_offload(unet, folder, offload_type="leaf_level")


def group_offload(unet, folder, **options):
    # To disk, since between one CPU and itself nothing would be offloaded.
    cpu = torch.device("cpu")
    try:
        apply_group_offloading(unet, cpu, cpu, offload_to_disk_path=str(folder), **options)
    except RuntimeError as error:
        if "Cannot access accelerator device" not in str(error):
            raise
        pytest.skip("this PyTorch is made for accelerators, which diffusers asks for, and there is none")
    assert any(p.isnan().any() for p in unet.parameters())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("offload", [accelerate_, by_blocks, by_leaves])
def test_weights_that_are_there_during_a_call_only(unet, x, text, net, offload, order, grad, tmp_path):
    pure = nn.Module.to(copied(unet), torch.float64)
    base = denoise(pure, x.double(), text.double())
    expected = denoise(by_hand(pure, net), x.double(), text.double())
    with memory_that_comes_as_nan(), torch.set_grad_enabled(grad):
        if order == "before":
            offload(unet, tmp_path)
        adapter = attach(unet, net)
        if order == "after":
            offload(unet, tmp_path)
        for _ in range(2):
            assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
        adapter.strength = 0
        assert relative_error(denoise(unet, x, text), base) < UNET_TOLERANCE
        adapter.detach()
        assert relative_error(denoise(unet, x, text), base) < UNET_TOLERANCE


def test_accelerates_hooks_go_and_the_hypernetwork_stays(unet, x, text, net):
    expected = denoise(by_hand(unet, net), x, text)
    attach(unet, net)
    accelerate_(unet, None)
    denoise(unet, x, text)
    remove_hook_from_submodules(unet)
    assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_model_is_moved_by_its_forward_and_back_by_the_next_ones(unet, x, text, net, order):
    # The hook order of enable_model_cpu_offload: ours, which come before the call, run before the model has moved.
    expected = denoise(by_hand(unet, net), x, text)
    if order == "after":
        attach(unet, net)
    unet, hook = accelerate.cpu_offload_with_hook(unet, execution_device=torch.device("cpu"))
    if order == "before":
        attach(unet, net)
    for _ in range(2):
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
        hook.offload()


@pytest.fixture
def gpu(monkeypatch):
    """A device that no machine needs to have: tensors without values, which know where they would be."""
    monkeypatch.setattr("hnkernels.triton.support.HAS_TRITON", False)  # it would ask the driver
    monkeypatch.setattr(nn.Module, "_apply", with_new_tensors)
    # Nothing may be recorded: autograd asks the driver for its streams.
    with FakeTensorMode(), torch.no_grad():
        yield torch.device("cuda", 0)


def with_new_tensors(self, fn, recurse=True):
    """``Module._apply`` for tensors without values, which cannot change in place."""
    for module in self.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(fn(parameter), parameter.requires_grad)
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else fn(buffer)
    return self


def devices(module):
    return {p.device.type for p in module.parameters()}


def small_unet():
    """Not diffusers' own, which indexes tensors: that asks the driver too."""
    return OriginalUNet().requires_grad_(False)


def call(unet, device):
    return unet(torch.randn(2, 4, 2, 2, device=device), context=torch.randn(2, 7, 12, device=device))


def test_the_network_follows_the_model_to_its_device_and_back(gpu):
    unet, net = small_unet(), make_net((8, 12)).requires_grad_(False)
    hn.attach(unet, net)
    for device in (torch.device("cpu"), gpu, torch.device("cpu")):
        nn.Module.to(unet, device)
        out = call(unet, device)
        assert out.device == device
        assert devices(net) == {device.type}


def test_the_network_follows_the_inputs_of_a_model_that_its_own_forward_moves(gpu):
    unet, net = small_unet(), make_net((8, 12)).requires_grad_(False)
    hn.attach(unet, net)
    accelerate.cpu_offload_with_hook(unet, execution_device=gpu)
    assert devices(unet) == {"cpu"}
    assert call(unet, gpu).device == gpu
    assert devices(net) == {"cuda"}


def test_the_network_follows_a_model_whose_inputs_its_own_forward_moves(gpu):
    unet, net = small_unet(), make_net((8, 12)).requires_grad_(False)
    hn.attach(unet, net)
    accelerate.cpu_offload_with_hook(unet, execution_device=gpu)
    assert call(unet, torch.device("cpu")).device == gpu
    assert devices(net) == {"cuda"}


def test_the_network_goes_neither_to_meta_nor_away_from_it():
    for place, other in (("meta", "cpu"), ("cpu", "meta")):
        unet, net = nn.Module.to(small_unet(), place), make_net((8, 12)).to(other)
        hn.attach(unet, net)
        with torch.no_grad(), pytest.raises((ValueError, RuntimeError), match="meta"):
            call(unet, place)
        assert devices(net) == {other}
