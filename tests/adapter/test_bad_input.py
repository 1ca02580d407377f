"""What cannot work is said in plain words, and leaves the model as it was."""

import types

import pytest
import torch
from torch import nn

import hnkernels as hn
from tests.adapter.hosts import by_hand
from tests.adapter.test_attach import fingerprint
from tests.models import (
    TEXT_WIDTH,
    UNET_TOLERANCE,
    WIDTHS,
    attention_layers,
    copied,
    denoise,
    make_net,
    relative_error,
    tiny_unet,
)


def test_a_network_for_another_family_is_refused(unet):
    before = fingerprint(unet)
    with pytest.raises(hn.AdapterError, match=r"widths \[8, 12, 16\].*is for \[640, 1280, 2048\].*another model"):
        hn.attach(unet, make_net((640, 1280, 2048)))
    assert fingerprint(unet) == before


def test_a_network_that_fits_in_part_says_where_it_acts(unet):
    net = make_net((8, 320, 768))
    said = (
        r"for the widths \[8, 320, 768\], of which UNet2DConditionModel has none of \[320, 768\].* It acts on attn1 of "
        r"width 8 \(3 layers\), and not on attn1 of width 16 \(\d layers\), attn2 of width 12 \(\d layers\)"
    )
    with pytest.warns(UserWarning, match=said) as warned:
        adapter = hn.attach(unet, net)
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match=r"none of \[640\]"):
        adapter.net = make_net((8, 640))


def test_targets_that_leave_widths_out_are_not_a_reason_to_warn(unet, recwarn):
    hn.attach(unet, make_net(), targets="attn2")
    hn.attach(unet, make_net((8,)))
    assert not recwarn


def test_a_network_that_shares_some_widths_acts_there_and_says_where(unet, x, text):
    net = make_net((WIDTHS[0], 2048))
    expected = denoise(by_hand(unet, net), x, text)
    adapter = hn.attach(unet, net)
    assert adapter.sites() == [
        name for name, layer in attention_layers(unet, "attn1").items() if layer.to_k.in_features == WIDTHS[0]
    ]
    assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


@pytest.mark.parametrize("grad", [False, True])
def test_a_text_of_the_wrong_width_is_the_models_own_error(unet, x, grad):
    text = torch.randn(2, 7, WIDTHS[1])  # which the network knows, but of self-attention
    with torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError) as without:
            denoise(unet, x, text)
        hn.attach(unet, make_net())
        with pytest.raises((RuntimeError, ValueError)) as with_network:
            denoise(unet, x, text)
        right = torch.randn(2, 7, TEXT_WIDTH)
        assert denoise(unet, x, right).isfinite().all()  # and the next call works
    assert str(TEXT_WIDTH) in str(with_network.value)
    assert str(WIDTHS[1]) in str(with_network.value)
    assert str(without.value)


def test_detaching_twice_says_so_and_harms_nothing(unet, x, text):
    base = denoise(unet, x, text)
    first, second = hn.attach(unet, make_net()), hn.attach(unet, make_net())
    first.detach()
    changed = denoise(unet, x, text)
    with pytest.raises(hn.AdapterError, match="detached already"):
        first.detach()
    assert torch.equal(denoise(unet, x, text), changed)
    second.detach()
    assert torch.equal(denoise(unet, x, text), base)


def test_a_detached_network_takes_no_strength(unet):
    adapter = hn.attach(unet, make_net(), 0.5)
    step = adapter.schedule([0.5, 1.0])
    adapter.detach()
    for name, value in (("strength", 1.0), ("enabled", False)):
        with pytest.raises(hn.AdapterError, match="detached already; attach it again"):
            setattr(adapter, name, value)
    with pytest.raises(hn.AdapterError, match="detached already; attach it again"):
        adapter.schedule([1.0])
    assert (adapter.strength, adapter.enabled) == (0.5, True)
    tensors = {"latents": 1}
    assert step(types.SimpleNamespace(num_timesteps=2), 0, 1000, tensors) is tensors  # a pipeline goes on without it


def test_detached_generated_weights_take_no_condition(unet):
    gen = hn.WeightHypernetwork(["attn2"], embedding_dim=6, hidden_dim=8, rank=3, model=unet).eval()
    adapter = hn.attach(unet, gen)
    with adapter.condition(torch.randn(2, 6)):
        adapter.detach()  # leaving the with is no fault
    with (
        pytest.raises(hn.AdapterError, match="detached already; attach it again"),
        adapter.condition(torch.randn(2, 6)),
    ):
        pass


def test_attaching_reads_no_weight(x, text):
    net = make_net()
    with torch.device("meta"):
        empty = tiny_unet()
    adapter = hn.attach(empty, net)
    assert len(adapter.sites()) == 14
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    full = tiny_unet()
    expected = denoise(by_hand(full, net), x, text)
    empty.load_state_dict(full.state_dict(), assign=True)
    assert relative_error(denoise(empty, x, text), expected) < UNET_TOLERANCE
    adapter.detach()
    assert torch.equal(denoise(empty, x, text), denoise(full, x, text))


@pytest.mark.parametrize("grad", [False, True])
def test_a_model_that_changes_its_dtype_takes_the_network_along(unet, x, text, grad):
    net = make_net()
    hn.attach(unet, net)
    with torch.set_grad_enabled(grad):
        denoise(unet, x, text)
        for dtype in (torch.float64, torch.bfloat16, torch.float32):
            nn.Module.to(unet, dtype)
            assert denoise(unet, x.to(dtype), text.to(dtype)).dtype == dtype
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_a_float64_network_on_a_float32_model(unet, x, text):
    net = make_net().double()
    expected = denoise(by_hand(nn.Module.to(copied(unet), torch.float64), net), x.double(), text.double())
    hn.attach(unet, net)
    assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


class Stubborn(nn.Linear):
    """A linear whose forward nobody may replace."""

    def __setattr__(self, name, value):
        if name == "forward":
            raise AttributeError("forward is read-only")
        super().__setattr__(name, value)


def make_stubborn(unet, projection):
    last = list(attention_layers(unet).values())[-1]
    old = getattr(last, projection)
    new = Stubborn(old.in_features, old.out_features, old.bias is not None)
    new.load_state_dict(old.state_dict())
    setattr(last, projection, new.requires_grad_(False))


@pytest.mark.parametrize("projection", ["to_k", "to_v"])
def test_attaching_that_fails_half_way_leaves_nothing_behind(unet, x, text, projection):
    make_stubborn(unet, projection)
    before, base = fingerprint(unet), denoise(unet, x, text)
    with pytest.raises((hn.AdapterError, AttributeError), match="read-only"):
        hn.attach(unet, make_net())
    assert fingerprint(unet) == before
    assert torch.equal(denoise(unet, x, text), base)


def test_a_second_network_that_fails_leaves_the_first_in_force(unet, x, text):
    first = hn.attach(unet, make_net())
    changed, before = denoise(unet, x, text), fingerprint(unet)
    with pytest.raises(hn.AdapterError, match="another model"):
        hn.attach(unet, make_net((99,)))
    with pytest.raises(ValueError, match="strength"):
        hn.attach(unet, make_net(), strength="1")
    assert fingerprint(unet) == before
    assert torch.equal(denoise(unet, x, text), changed)
    assert first.attached


def test_a_projection_that_becomes_untappable_is_an_error_and_not_ignored(unet, x, text):
    adapter = hn.attach(unet, make_net())
    make_stubborn(unet, "to_v")
    base = tiny_unet()
    base.load_state_dict(unet.state_dict())
    with pytest.raises((hn.AdapterError, AttributeError), match=r"to_v|read-only"):
        denoise(unet, x, text)
    adapter.detach()
    assert torch.equal(denoise(unet, x, text), denoise(base, x, text))


def test_a_pipeline_without_a_denoiser_is_refused():
    pipeline = types.SimpleNamespace(unet=None, transformer=None, vae=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model must be a diffusers pipeline or a torch module, not SimpleNamespace"):
        hn.attach(pipeline, make_net())


def test_a_call_without_a_text_is_the_models_own_error_and_the_next_one_works(unet, x, text):
    hn.attach(unet, make_net())
    with pytest.raises((RuntimeError, ValueError), match=str(TEXT_WIDTH)):
        denoise(unet, x, None)
    assert denoise(unet, x, text).isfinite().all()


def test_an_empty_batch_is_what_it_is_without_a_network(unet):
    hn.attach(unet, make_net((TEXT_WIDTH,)))
    assert output_or_error(unet) == output_or_error(tiny_unet())


def output_or_error(unet):
    try:
        return denoise(unet, torch.randn(0, 4, 4, 4), torch.randn(0, 7, TEXT_WIDTH)).shape
    except RuntimeError as error:
        return str(error)
