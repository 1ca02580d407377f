"""A pipeline that has hypernetworks among its own methods."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.integrations.diffusers_mixin import HypernetworkLoaderMixin
from tests.models import randomise


class Pipeline(HypernetworkLoaderMixin, StableDiffusionPipeline):
    """As a user would write it."""


@pytest.fixture
def pipe():
    pipe = Pipeline.from_pretrained(TINY_SD)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def files(tmp_path):
    for name in ("ink", "oil"):
        net = hn.Hypernetwork((48, 80, 96), name=name).eval()
        randomise(net, 0.05)
        hn.save_hypernetwork(net, tmp_path / f"{name}.pt")
    return tmp_path


def drawn(pipe):
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("digit seven", num_inference_steps=2, generator=generator, output_type="np").images)


def test_files_are_loaded_chosen_and_unloaded(pipe, files):
    base = drawn(pipe)
    assert isinstance(pipe.load_hypernetwork(files / "ink.pt"), hn.Adapter)
    pipe.load_hypernetwork(files / "oil.pt", adapter_name="wash", strength=0.5, targets=["attn2"])
    assert pipe.get_list_hypernetworks() == ["ink", "wash"]
    assert hn.adapters(pipe)["wash"].strength == 0.5
    both = drawn(pipe)
    pipe.set_hypernetworks("ink", 0.3)
    assert pipe.get_active_hypernetworks() == ["ink"]
    assert not torch.equal(drawn(pipe), both)
    pipe.set_hypernetworks(["ink", "wash"], [1.0, 0.5])
    assert torch.equal(drawn(pipe), both)
    pipe.disable_hypernetworks()
    assert torch.equal(drawn(pipe), base)
    pipe.enable_hypernetworks()
    assert torch.equal(drawn(pipe), both)
    pipe.delete_hypernetworks("wash")
    assert pipe.get_list_hypernetworks() == ["ink"]
    pipe.unload_hypernetworks()
    assert pipe.get_list_hypernetworks() == []
    assert torch.equal(drawn(pipe), base)
    pipe.unload_hypernetworks()  # as diffusers' own: nothing to do is not an error


def test_weight_hypernetworks_and_generated_weights_load_likewise(pipe, tmp_path):
    gen = hn.WeightHypernetwork(["attn2"], 96, 16, styles=("ink",), model=pipe).eval()
    gen.save(tmp_path / "gen.safetensors")
    assert isinstance(pipe.load_hypernetwork(tmp_path / "gen.safetensors").net, hn.WeightHypernetwork)
    with torch.no_grad():
        gen.generate_weights("ink").save(tmp_path / "ink.safetensors")
    assert pipe.load_hypernetwork(tmp_path / "ink.safetensors", "ink").weights is not None


def test_the_saved_pipeline_is_that_of_its_base_class(pipe, files, tmp_path):
    pipe.load_hypernetwork(files / "ink.pt")
    pipe.save_pretrained(tmp_path / "pipe")
    reloaded = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe").unet.state_dict()
    pipe.unload_hypernetworks()
    assert all(torch.equal(value, reloaded[key]) for key, value in pipe.unet.state_dict().items())


def test_a_missing_file_and_an_unknown_name_are_named(pipe, tmp_path):
    with pytest.raises(hn.CheckpointError, match="does not exist"):
        pipe.load_hypernetwork(tmp_path / "none.pt")
    with pytest.raises(hn.AdapterError, match="no adapter named"):
        pipe.set_hypernetworks("none")
