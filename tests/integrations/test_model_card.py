"""Model cards: their metadata as the hub reads it, and the snippet as a reader would run it."""

import re

import pytest
import torch
import yaml

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.integrations.model_card import model_card
from hnkernels.training.config import TrainingConfig
from hnkernels.training.persistence.origin import describe_training


@pytest.fixture
def net():
    net = hn.Hypernetwork((48, 80, 96), activation="silu", init="identity", name="my style").eval()
    net.provenance.step = 30
    describe_training(net, TrainingConfig(learning_rate=1e-3), steps=30, end=30, base_version="sd_v1")
    return net


def metadata(card):
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", str(card), flags=re.DOTALL)[1])


def test_the_metadata_is_what_the_hub_asks_for(net):
    card = model_card(net, base_model="owner/model", file="style.safetensors", tags=["ink", "hypernetwork"])
    assert metadata(card) == {
        "base_model": "owner/model",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "hypernetwork", "hnkernels", "text-to-image", "ink"],
    }


def test_the_licence_is_the_users(net):
    card = model_card(net, base_model="owner/model", file="style.safetensors", license="apache-2.0")
    assert metadata(card)["license"] == "apache-2.0"


def test_pictures_become_the_gallery(net):
    card = model_card(net, base_model="owner/model", file="a.pt", images=[("images/0.png", "a: castle\nat night")])
    assert metadata(card)["widget"] == [{"text": "a: castle\nat night", "output": {"url": "images/0.png"}}]
    assert "<Gallery />" in card.text
    assert "<Gallery />" not in model_card(net, base_model="owner/model", file="a.pt").text


def test_the_settings_are_those_of_the_file(net, tmp_path):
    hn.save_hypernetwork(net, tmp_path / "style.safetensors")
    loaded = hn.load_hypernetwork(tmp_path / "style.safetensors")
    text = model_card(loaded, base_model="owner/model", file="style.safetensors").text
    assert "trained for 30 steps" in text
    assert "| learning rate | 0.001 |" in text
    assert "Min-SNR" not in text  # was not used
    assert "| context widths | 48, 80, 96 |" in text


def test_a_network_of_which_nothing_is_known_has_a_card_too():
    text = model_card(hn.Hypernetwork((48,)), base_model="owner/model", file="a.pt").text
    assert "## Training" not in text
    assert "## Network" in text


def test_a_name_cannot_change_the_card(net):
    net.provenance.name = "a\n---\nlicense: mit\n|b"
    card = model_card(net, base_model="owner/model", file="a.pt")
    assert "license" not in metadata(card)
    assert "# a --- license: mit \\|b\n" in card.text


def test_the_card_is_read_back_by_the_hubs_own_reader(net, tmp_path):
    from huggingface_hub import ModelCard

    model_card(net, base_model="owner/model", file="style.safetensors").save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "owner/model"


@pytest.mark.parametrize("kind", ["context", "text", "style"])
def test_the_snippet_runs(net, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind == "context":
        hn.save_hypernetwork(net, "style.safetensors")
    else:
        from diffusers import StableDiffusionPipeline

        unet = StableDiffusionPipeline.from_pretrained(TINY_SD).unet
        styles = ("ink", "oil") if kind == "style" else ()
        net = hn.WeightHypernetwork(["attn2"], 96, 16, styles=styles, model=unet).eval()
        net.save("style.safetensors")
    card = model_card(net, base_model=TINY_SD, file="style.safetensors", prompt='digit "seven"')
    snippet = re.search(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[1]
    variables: dict = {}
    with torch.no_grad():
        exec(snippet.replace("pipe(prompt)", "pipe(prompt, num_inference_steps=1)"), variables)
    assert variables["image"].size == (32, 32)
