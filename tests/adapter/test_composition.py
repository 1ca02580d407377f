"""A hypernetwork in whole pipelines and beside their other parts: ControlNet, IP-Adapter, processors, quantisation."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import XFormersAttnProcessor
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hnkernels as hn
from hnkernels.adapter.host import Host
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from tests.adapter.hosts import JOINT_ATTENTION, by_hand, run
from tests.models import (
    GRADIENT_TOLERANCE,
    TEXT_WIDTH,
    UNET_TOLERANCE,
    attention_layers,
    copied,
    denoise,
    make_net,
    randomise,
    relative_error,
    tiny_unet,
)

STEPS = 2
# Of whole pipelines; each step goes on from the last one's rounding, and guidance multiplies it.
PIPELINE_TOLERANCE = 10 * UNET_TOLERANCE


@pytest.fixture(scope="module")
def loaded():
    return load_pipeline(TINY_SD)


@pytest.fixture
def pipe(loaded):
    """A copy of the embedded pipeline, with weights in float32."""
    pipe = copy.deepcopy(loaded)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.requires_grad_(False)
    return pipe


@pytest.fixture
def pipe_net():
    return make_net((48, 80, 96), std=0.1)


def draw(pipe, **options):
    """The latent picture that the pipeline makes of a prompt."""
    options = {"prompt": "digit seven", "num_inference_steps": STEPS, "output_type": "latent", **options}
    return pipe(generator=torch.Generator().manual_seed(1), **options).images


def with_unet(pipe, unet):
    """The same pipeline around another UNet."""
    return type(pipe)(**{**pipe.components, "unet": unet})


@pytest.fixture(params=["relu", None], ids=["relu", "affine and fused"])
def net(request):
    return make_net(activation=request.param)


def attach(unet, net):
    adapter = hn.attach(unet, net)
    return adapter if net.config.activation else adapter.fuse()


def in_float64(model):
    return nn.Module.to(copied(model), torch.float64)


def exactly(unet, *nets, x, text):
    """The output of a float64 copy with the reference's MLPs in front of the projections."""
    with torch.no_grad():
        return denoise(by_hand(in_float64(unet), *nets), x.double(), text.double())


def test_a_pipeline_draws_what_it_draws_with_the_mlps_by_hand(pipe, pipe_net):
    by_hand_pipe = with_unet(pipe, by_hand(pipe.unet, pipe_net))
    base, expected = draw(pipe), draw(by_hand_pipe)
    assert relative_error(base, expected) > 100 * PIPELINE_TOLERANCE
    with hn.attach(pipe, pipe_net) as adapter:
        assert relative_error(draw(pipe), expected) < PIPELINE_TOLERANCE
        two = {"num_images_per_prompt": 2, "guidance_scale": 3.0}
        assert relative_error(draw(pipe, **two), draw(by_hand_pipe, **two)) < PIPELINE_TOLERANCE
        adapter.strength = 0
        assert torch.equal(draw(pipe), base)
    assert torch.equal(draw(pipe), base)


def test_the_same_prompt_embeddings_are_drawn_alike_however_often(pipe, pipe_net):
    hn.attach(pipe, pipe_net)
    embeddings, negative = pipe.encode_prompt("digit seven", "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": embeddings, "negative_prompt_embeds": negative}
    assert torch.equal(draw(pipe, **given), draw(pipe))
    assert torch.equal(draw(pipe, **given), draw(pipe, **given))


def test_a_copy_of_a_pipeline_has_an_adapter_of_its_own(pipe, pipe_net):
    base = draw(pipe)
    adapter = hn.attach(pipe, pipe_net)
    changed = draw(pipe)
    twin = copy.deepcopy(pipe)
    assert torch.equal(draw(twin), changed)
    (its_own,) = Host.of(twin.unet).adapters
    assert its_own is not adapter
    assert its_own.net is not pipe_net
    adapter.detach()
    assert torch.equal(draw(pipe), base)
    assert torch.equal(draw(twin), changed)
    randomise(pipe_net)
    assert torch.equal(draw(twin), changed)
    its_own.detach()
    assert torch.equal(draw(twin), base)


def test_the_adapter_stays_when_another_pipeline_is_made_of_the_parts(pipe, pipe_net):
    from diffusers import StableDiffusionImg2ImgPipeline

    adapter = hn.attach(pipe, pipe_net)
    other = StableDiffusionImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    given = {"image": torch.rand(1, 3, 32, 32), "strength": 0.9}
    changed = draw(other, **given)
    adapter.strength = 0
    assert relative_error(draw(other, **given), changed) > PIPELINE_TOLERANCE


@pytest.mark.parametrize("guess_mode", [False, True])
def test_a_controlnet_with_and_without_a_hypernetwork_of_its_own(pipe, pipe_net, guess_mode):
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 32))
    for conv in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        randomise(conv, 0.1)  # they start at zero
    together = StableDiffusionControlNetPipeline(**pipe.components, controlnet=control.requires_grad_(False))
    together.set_progress_bar_config(disable=True)
    given = {"image": torch.rand(1, 3, 32, 32), "guess_mode": guess_mode}

    def expected(unet, controlnet):
        parts = {**together.components, "unet": unet, "controlnet": controlnet}
        by_hand_pipe = StableDiffusionControlNetPipeline(**parts)
        by_hand_pipe.set_progress_bar_config(disable=True)
        return draw(by_hand_pipe, **given)

    of_unet = expected(by_hand(pipe.unet, pipe_net), control)
    of_both = expected(by_hand(pipe.unet, pipe_net), by_hand(control, pipe_net))
    assert relative_error(of_unet, of_both) > 10 * PIPELINE_TOLERANCE
    hn.attach(together, pipe_net)
    assert relative_error(draw(together, **given), of_unet) < PIPELINE_TOLERANCE
    with hn.attach(control, pipe_net):
        assert relative_error(draw(together, **given), of_both) < PIPELINE_TOLERANCE
    assert relative_error(draw(together, **given), of_unet) < PIPELINE_TOLERANCE


def ip_adapter(unet, image_width=6, tokens=4):
    """A file for the UNet: an image projection, and a pair of projections per cross-attention layer."""
    pairs = {}
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(layers):
        to_k = unet.get_submodule(name.removesuffix(".processor")).to_k
        pairs[f"{2 * i + 1}.to_k_ip.weight"] = torch.randn(to_k.out_features, to_k.in_features) * 0.3
        pairs[f"{2 * i + 1}.to_v_ip.weight"] = torch.randn(to_k.out_features, to_k.in_features) * 0.3
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(tokens * width, image_width),
        "proj.bias": torch.randn(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": pairs}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_ip_adapter(unet, x, text, net, order, grad):
    weights, image = ip_adapter(unet), torch.randn(2, 1, 6)
    text_only = exactly(unet, net, x=x, text=text)
    pure = copied(unet)
    pure._load_ip_adapter_weights([copy.deepcopy(weights)])

    def call(model, dtype=torch.float32):
        given = {"added_cond_kwargs": {"image_embeds": [image.to(dtype)]}}
        return model(x.to(dtype), torch.tensor(10), text.to(dtype), **given).sample

    expected = call(by_hand(in_float64(pure), net), torch.float64)
    with torch.set_grad_enabled(grad):
        if order == "before":
            unet._load_ip_adapter_weights([weights])
        adapter = attach(unet, net)
        if order == "after":
            assert relative_error(denoise(unet, x, text), text_only) < UNET_TOLERANCE
            unet._load_ip_adapter_weights([weights])
        assert relative_error(expected, text_only) > 100 * UNET_TOLERANCE
        for _ in range(2):
            assert relative_error(call(unet), expected) < UNET_TOLERANCE
        if order == "after":  # and unloaded again, as a pipeline does it
            unet.encoder_hid_proj = None
            unet.config.encoder_hid_dim_type = None
            unet.set_default_attn_processor()
            assert relative_error(denoise(unet, x, text), text_only) < UNET_TOLERANCE
            return
        adapter.detach()
        assert torch.equal(call(unet), call(pure))


def test_an_ip_adapter_comes_to_a_pipeline_and_goes(pipe, pipe_net):
    weights, image = ip_adapter(pipe.unet), torch.randn(2, 1, 6)  # the first row for the negative prompt
    given = {"ip_adapter_image_embeds": [image]}
    by_hand_pipe = with_unet(pipe, by_hand(pipe.unet, pipe_net))
    text_only = draw(by_hand_pipe)
    by_hand_pipe.unet._load_ip_adapter_weights([copy.deepcopy(weights)])
    expected = draw(by_hand_pipe, **given)
    hn.attach(pipe, pipe_net)
    assert relative_error(draw(pipe), text_only) < PIPELINE_TOLERANCE
    pipe.unet._load_ip_adapter_weights([weights])
    assert relative_error(draw(pipe, **given), expected) < PIPELINE_TOLERANCE
    pipe.unload_ip_adapter()
    assert relative_error(draw(pipe), text_only) < PIPELINE_TOLERANCE


@pytest.mark.parametrize("grad", [False, True])
def test_xformers_attention(unet, x, text, net, monkeypatch, grad):
    calls = []

    def memory_efficient_attention(q, k, v, attn_bias=None, op=None, scale=None):  # [batch · heads, tokens, width]
        calls.append(k.shape)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)

    ops = types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setattr("diffusers.models.attention_processor.xformers", types.SimpleNamespace(ops=ops))
    expected = exactly(unet, net, x=x, text=text)
    with torch.set_grad_enabled(grad):
        attach(unet, net)
        denoise(unet, x, text)
        unet.set_attn_processor(XFormersAttnProcessor())
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
    assert len(calls) == 14


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_fused_projections_of_joint_attention_are_refused(name):
    case = JOINT_ATTENTION[name]
    model, call = case.model(torch.float32), case.call(torch.float32)
    hn.attach(model, make_net(tuple(case.widths)))
    with torch.no_grad():
        expected = run(model, call)
        model.fuse_qkv_projections()
        with pytest.raises(hn.AdapterError, match=r"unfuse_qkv_projections\(\)"):
            run(model, call)
        model.unfuse_qkv_projections()
        if name == "sd3":
            model.set_attn_processor(type(JOINT_ATTENTION[name].build().transformer_blocks[0].attn.processor)())
        assert torch.equal(run(model, call), expected)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float8_e4m3fn])
def test_layerwise_casting(unet, x, text, net, storage, order):
    twins = copied(unet), by_hand(unet, net)
    for twin in twins:
        twin.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    with torch.no_grad():
        base, expected = (denoise(twin, x, text) for twin in twins)
        assert relative_error(base, expected) > 100 * UNET_TOLERANCE
        if order == "before":
            unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        adapter = attach(unet, net)
        if order == "after":
            denoise(unet, x, text)
            unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        for _ in range(2):
            assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        adapter.detach()
        assert torch.equal(denoise(unet, x, text), base)


class Int8Linear(nn.Linear):
    """A weight in eight bits with a scale per row, as quantisation libraries have it: a linear by class alone."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale, self.bias = nn.Parameter(scale, requires_grad=False), linear.bias

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def in_int8(unet):
    for layer in attention_layers(unet).values():
        for name in ("to_q", "to_k", "to_v"):
            setattr(layer, name, Int8Linear(getattr(layer, name)))


def dynamically(unet):
    torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, dtype=torch.qint8, inplace=True)


def by_torchao(unet):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not among what the tests install")

    def attention(module, name):
        return isinstance(module, nn.Linear) and ".attn" in name

    quantization.quantize_(unet, quantization.Int8WeightOnlyConfig(), filter_fn=attention)


# Two computations of a context differ in the last bit. Where that makes eight bits of an activation round the other
# way, one element in thousands changes by 1/127 of the largest.
QUANTIZED = [(in_int8, UNET_TOLERANCE), (dynamically, 5e-3), (by_torchao, UNET_TOLERANCE)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantiz.*")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(("quantize", "tolerance"), QUANTIZED, ids=[q.__name__ for q, _ in QUANTIZED])
def test_quantized_projections(unet, x, text, net, quantize, tolerance, order):
    twin = copied(unet)
    quantize(twin)
    with torch.no_grad():
        base, expected = denoise(twin, x, text), denoise(by_hand(twin, net, dtype=x.dtype), x, text)
        assert relative_error(base, expected) > 10 * tolerance
        assert relative_error(exactly(unet, net, x=x, text=text), expected) > UNET_TOLERANCE  # it is quantised
        if order == "before":
            quantize(unet)
        adapter = attach(unet, net)
        if order == "after":
            denoise(unet, x, text)
            quantize(unet)
        assert len(adapter.sites()) == 14
        for _ in range(2):
            assert relative_error(denoise(unet, x, text), expected) < tolerance
        adapter.strength = 0.5
        assert relative_error(denoise(unet, x, text), expected) > 2 * tolerance
        adapter.detach()
        assert torch.equal(denoise(unet, x, text), base)


@pytest.mark.parametrize("grad", [False, True])
def test_channels_last(unet, x, text, net, grad):
    expected = exactly(unet, net, x=x, text=text)
    attach(unet, net)
    with torch.set_grad_enabled(grad):
        denoise(unet, x, text)
        nn.Module.to(unet, memory_format=torch.channels_last)
        out = denoise(unet, x.to(memory_format=torch.channels_last), text)
    assert relative_error(out, expected) < UNET_TOLERANCE


def test_forward_chunking_and_free_u(unet, x, text, net):
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    expected = exactly(unet, net, x=x, text=text)
    attach(unet, net)
    with torch.no_grad():
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


def test_a_mask_over_the_text(unet, x, text, net):
    mask = torch.ones(2, text.shape[1], dtype=torch.bool)
    mask[1, 3:] = False
    twin = by_hand(in_float64(unet), net)
    expected = twin(x.double(), torch.tensor(10), text.double(), encoder_attention_mask=mask).sample
    attach(unet, net)
    with torch.no_grad():
        out = unet(x, torch.tensor(10), text, encoder_attention_mask=mask).sample
        assert relative_error(out, expected) < UNET_TOLERANCE
        assert relative_error(denoise(unet, x, text), expected) > UNET_TOLERANCE


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("where", ["before wrapping", "inside the wrapper", "to the wrapper"])
def test_distributed_data_parallel(unet, x, text, process_group, where):
    net = make_net().train()
    unet.conv_in.requires_grad_()  # it refuses models without a gradient
    twin = by_hand(in_float64(unet), net)
    denoise(twin, x.double(), text.double()).square().sum().backward()
    base = denoise(unet, x, text)
    if where == "before wrapping":
        adapter = hn.attach(unet, net)
    wrapped = DistributedDataParallel(unet)
    if where != "before wrapping":
        adapter = hn.attach(wrapped if where == "to the wrapper" else wrapped.module, net)
    assert len(adapter.sites()) == 14
    out = denoise(wrapped, x, text)
    out.square().sum().backward()
    assert relative_error(out, denoise(twin, x.double(), text.double())) < UNET_TOLERANCE
    assert unet.conv_in.weight.grad is not None
    for mlp, reference in twin.by_hand.items():
        ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (mlp, reference))
        assert relative_error(ours, theirs) < 10 * GRADIENT_TOLERANCE  # through a whole UNet
    adapter.detach()
    assert torch.equal(denoise(wrapped, x, text), base)
    assert torch.equal(denoise(unet, x, text), base)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_attached_to_the_wrapper_the_text_is_still_rewritten_once(unet, x, text, process_group, evaluations):
    unet.conv_in.requires_grad_()
    wrapped = DistributedDataParallel(unet)
    hn.attach(wrapped, make_net((TEXT_WIDTH,)).train())
    denoise(wrapped, x, text)
    assert evaluations.of_text() == 2


def test_two_models_share_a_network(x, text, net):
    unets = [tiny_unet(), tiny_unet()]
    expected = [exactly(unet, net, x=x, text=text) for unet in unets]
    adapters = [attach(unet, net) for unet in unets]
    with torch.no_grad():
        for _ in range(2):
            for unet, result in zip(unets, expected, strict=True):
                assert relative_error(denoise(unet, x, text), result) < UNET_TOLERANCE
        adapters[0].detach()
        assert relative_error(denoise(unets[1], x, text), expected[1]) < UNET_TOLERANCE
