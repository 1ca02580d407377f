"""What tells the weights of a model from those of another."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from hnkernels.training.data.fingerprint import fingerprint_of
from tests.training.families import pipelines


@pytest.fixture
def vae():
    return copy.deepcopy(pipelines.velocity().vae)


def test_a_model_loaded_from_elsewhere_is_the_same(tmp_path, vae):
    found = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        vae.save_pretrained(folder / "vae")
        pipelines.velocity().text_encoder.save_pretrained(folder / "text")
        parts = AutoencoderKL.from_pretrained(folder / "vae"), CLIPTextModel.from_pretrained(folder / "text")
        found.add(fingerprint_of(parts))
    assert len(found) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: next(vae.parameters()).view(-1)[:1].add_(1e-6),
        lambda vae: vae.to(torch.bfloat16),
        lambda vae: vae.register_to_config(scaling_factor=0.3),
        lambda vae: vae.register_buffer("further", torch.ones(())),
    ],
    ids=["weight", "dtype", "setting", "buffer"],
)
def test_whatever_changes_what_a_model_makes_is_seen(vae, change):
    before = fingerprint_of([vae])
    assert fingerprint_of([vae]) == before
    change(vae)
    assert fingerprint_of([vae]) != before


def test_tokenisers_are_told_apart_and_so_is_what_is_not_there():
    one, other = pipelines.clip_tokenizer(), pipelines.clip_tokenizer("!")
    more = pipelines.clip_tokenizer()
    more.add_tokens(["<mine>"])
    found = [fingerprint_of(parts) for parts in ([one], [other], [more], [one, None], [None, one], [])]
    assert len(set(found)) == 6
    assert fingerprint_of([pipelines.clip_tokenizer()]) == found[0]


def test_tensors_of_any_form_have_a_fingerprint():
    module = torch.nn.Module()
    values = torch.arange(6.0).reshape(2, 3)
    for name, tensor in {"a": values.T, "b": values.bool(), "c": values.half()[0, 0], "d": values[:0]}.items():
        module.register_buffer(name, tensor)
    assert fingerprint_of([module]) == fingerprint_of([copy.deepcopy(module)])


def test_weights_that_are_not_in_memory_are_said(vae):
    with pytest.raises(ValueError, match=r"weights of AutoencoderKL are not in memory, .* train without cache_dir"):
        fingerprint_of([vae.to("meta")])
