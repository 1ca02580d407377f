"""The network module for kohya's trainers, called as they call it."""

import subprocess
import sys

import pytest
import torch

import hnkernels as hn
from hnkernels.integrations import kohya
from tests.adapter.hosts import OriginalUNet
from tests.integrations.kohya import trainer as kohya_trainer
from tests.integrations.kohya.trainer import (
    KINDS,
    SDXLNames,
    call,
    gradients,
    start,
    step,
)
from tests.models import FORWARD_TOLERANCE, denoise, noise, prompt, randomise, relative_error, tiny_unet


def test_training_changes_the_network_and_nothing_else(unet, x, text, arguments):
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    base = call(unet, x, text)
    network, groups = start(kohya, unet, *arguments)
    assert relative_error(call(unet, x, text), base) < FORWARD_TOLERANCE  # it starts at the base model
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(20):
        losses.append(step(network, unet, x, text).item())
        torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())


def test_the_learning_rate_is_the_unets_own_if_it_has_one(unet):
    network = kohya.create_network(1.0, None, 1, None, None, unet)
    assert network.prepare_optimizer_params([1e-5], 2e-4, 1e-4)[0][0]["lr"] == 2e-4
    assert network.prepare_optimizer_params(None, None, 1e-4)[0][0]["lr"] == 1e-4
    assert "lr" not in network.prepare_optimizer_params(None, None)[0][0]  # older trainers name no default


@pytest.mark.parametrize("prior", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(x, text, arguments, prior, monkeypatch):
    monkeypatch.setattr(kohya_trainer, "USE_REENTRANT", True)
    torch.manual_seed(0)
    unet = SDXLNames().double()
    network, _ = start(kohya, unet, *arguments)
    randomise(network.double(), 0.1)
    x, text = x.double(), text.double()
    step(network, unet, x, text)
    plain = gradients(network)
    unet.enable_gradient_checkpointing()
    step(network, unet, x, text, prior)
    assert relative_error(gradients(network), plain) < 1e-12
    assert not kohya_trainer.USE_REENTRANT  # each block would go through the network in a backward pass of its own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_trains_under_autocast_on_a_model_of_half_precision(unet, x, text, arguments, dtype):
    network, _ = start(kohya, unet.to(dtype), *arguments)
    randomise(network, 0.1)
    with torch.autocast("cpu", dtype):
        step(network, unet, x.to(dtype), text.to(dtype))
    assert all(p.dtype == torch.float32 for p in network.parameters())
    found = gradients(network)
    assert found.isfinite().all()
    assert found.any()


def test_a_prior_is_the_base_models(unet, x, text, arguments):
    base = call(unet, x, text)
    network, _ = start(kohya, unet, *arguments)
    randomise(network, 0.1)
    own = call(unet, x, text)
    assert not torch.equal(own, base)
    network.set_multiplier(0.0)
    assert torch.equal(call(unet, x, text), base)
    network.set_multiplier(1.0)
    assert torch.equal(call(unet, x, text), own)


def test_a_weight_hypernetwork_is_conditioned_on_the_text(unet, x, text):
    network, _ = start(kohya, unet, *KINDS["weights"])
    randomise(network, 0.1)
    network.eval()
    own = call(unet, x, text)
    network.adapter.detach()
    unet._forward_pre_hooks.clear()
    with hn.attach(unet, network.net) as adapter, adapter.condition(text):
        assert torch.equal(call(unet, x, text), own)


def test_a_sampling_pipeline_s_negative_half_runs_the_base_model(unet, x, text):
    base = call(unet, x, text)
    network, _ = start(kohya, unet, *KINDS["weights"])
    randomise(network, 0.1)

    class Pipeline:  # what a pipeline of the trainers has among its variables while it samples
        def __call__(self):
            do_classifier_free_guidance = True
            assert do_classifier_free_guidance
            return call(unet, x, text)

    sampled = Pipeline()()
    assert torch.equal(sampled[:1], base[:1])
    assert relative_error(sampled[1:], call(unet, x, text)[1:]) < FORWARD_TOLERANCE


def test_a_weight_hypernetwork_is_conditioned_on_one_style_of_several(unet, x, text):
    network, _ = start(kohya, unet, "kind=weights", "hidden_dim=16", "styles=ink, oil", "style=oil", dim=2)
    randomise(network, 0.1)
    step(network, unet, x, text)
    gradient = network.net.encoder.style_table.grad
    assert not gradient[0].any()
    assert gradient[1].any()
    assert {layer.rank for layer in network.net.layers} == {2}


@pytest.mark.parametrize(("text_encoder", "unet_too"), [(True, True), (True, False), (False, False)])
def test_training_the_text_encoder_is_refused(unet, text_encoder, unet_too):
    network = kohya.create_network(1.0, None, 1, None, None, unet)
    with pytest.raises(ValueError, match="--network_train_unet_only"):
        network.apply_to(object(), unet, text_encoder, unet_too)


def test_dropout_is_that_of_hidden_units_or_of_ranks(unet):
    network, _ = start(kohya, unet, "layer_structure=1,2,2,1", dropout=0.25)
    assert network.net.config.dropout_structure == (0, 0.25, 0.25, 0)
    network, _ = start(kohya, OriginalUNet(), "kind=weights", "hidden_dim=8", "dropout=0.5", dropout=0.25)
    assert network.net.decoder.rank_dropout == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activaton": "relu"}, "did you mean 'activation'"),
        ({"kind": "lora"}, "must be one of context, weights"),
        ({"layer_structure": "1,x,1"}, "such as 1,2,1"),
        ({"layer_norm": "maybe"}, "must be true or false"),
        ({"layer_structure": "1,2"}, "start and end with 1"),
        ({"dropout": "0.1", "dropout_structure": "0,0.1,0"}, "give one of them"),
        ({"target_layers": "attn3"}, "attn1"),
        ({"kind": "weights", "activation": "relu"}, "not known for kind=weights"),
        ({"kind": "weights", "hidden_dim": "many"}, "must be an integer"),
        ({"kind": "weights", "styles": "ink,oil"}, "style=ink"),
        ({"kind": "weights", "style": "ink"}, r"build it with styles="),
        ({"kind": "weights", "styles": "ink,oil", "style": "inc"}, "did you mean 'ink'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_cannot_be_is_refused(unet, arguments, message):
    with pytest.raises(ValueError, match=message):
        kohya.create_network(1.0, None, 1, None, None, unet, **arguments)


def test_a_rank_for_a_network_that_has_none_is_named(unet):
    with pytest.warns(UserWarning, match="--network_dim 8 has no effect"):
        start(kohya, unet, dim=8)


def test_a_diffusers_unet_serves_too(arguments):
    torch.manual_seed(0)
    unet = tiny_unet()
    network, _ = start(kohya, unet, *arguments)
    randomise(network, 0.1)
    denoise(unet, noise(), prompt()).square().mean().backward()
    assert gradients(network).any()


def test_it_needs_nothing_that_the_trainers_pin_in_another_version():
    blocked = ["diffusers", "transformers", "accelerate", "huggingface_hub", "typer", "rich", "PIL", "tqdm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import hnkernels.integrations.kohya"
    subprocess.run([sys.executable, "-c", code], check=True)
