"""Merging into pipeline folders and single files; what is written is loaded by stock diffusers."""

import json
import os
import shutil
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.checkpoint.archive import ENTRY
from hnkernels.convert.merging import ORIGINAL_PREFIX
from hnkernels.convert.model_files import merge_files, read_unet
from tests.models import FORWARD_TOLERANCE, denoise, make_net, relative_error, tiny_unet

pytest.importorskip("diffusers")

NAME = "diffusion_pytorch_model"
TINY_SD_WIDTHS = (48, 80, 96)


@pytest.fixture
def nets():
    return [make_net(TINY_SD_WIDTHS, std=0.02, activation=None) for _ in range(2)]


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded pipeline, its UNet without weights."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_SD, folder)
    (folder / "unet" / f"{NAME}.safetensors").unlink()
    return folder


def state_of(file):
    return safetensors.torch.load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def weights():
    """The embedded UNet's tensors."""
    return state_of(TINY_SD / "unet" / f"{NAME}.safetensors")


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def unet_of(folder, **options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True, **options)


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_an_fp32_pipeline_gives_what_the_attached_networks_give(model, nets, tmp_path):
    state = {key: tensor.float() for key, tensor in weights().items()}
    safetensors.torch.save_file(state, model / "unet" / f"{NAME}.safetensors", metadata={"format": "pt"})
    merge_files(model, tmp_path / "merged", nets, (0.7, 0.3))
    assert files_below(tmp_path / "merged") == files_below(model)
    unet, merged = unet_of(model), unet_of(tmp_path / "merged")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 96)
    exact = nn.Module.to(unet_of(model), torch.float64)
    for net, strength in zip(nets, (0.7, 0.3), strict=True):
        hn.attach(unet, net, strength)
        hn.attach(exact, net, strength)
    with torch.no_grad():
        expected = denoise(exact, x.double(), text.double())
        errors = [relative_error(denoise(unet_, x, text), expected) for unet_ in (merged, unet)]
    # Both are fp32 computations of the same thing; some fifty layers one after another.
    assert max(errors) < 10 * FORWARD_TOLERANCE


def test_the_embedded_pipeline_stays_fp16_and_loads_whole(nets, tmp_path):
    from diffusers import StableDiffusionPipeline

    merge_files(TINY_SD, tmp_path / "merged", nets)
    assert files_below(tmp_path / "merged") == files_below(TINY_SD)
    exact = hn.merge_state_dict({key: tensor.double() for key, tensor in weights().items()}, nets)
    merged = state_of(tmp_path / "merged" / "unet" / f"{NAME}.safetensors")
    assert equal(merged, {key: tensor.half() for key, tensor in exact.items()})
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "np"}
    picture = pipe("digit one", generator=torch.Generator().manual_seed(0), **options).images
    base = StableDiffusionPipeline.from_pretrained(TINY_SD, local_files_only=True)
    base.set_progress_bar_config(disable=True)
    for net in nets:
        hn.attach(base, net)
    attached = base("digit one", generator=torch.Generator().manual_seed(0), **options).images
    assert abs(picture - attached).max() < 0.02  # the weights were rounded to fp16 once more


def save_variants(unet):
    safetensors.torch.save_file(weights(), unet / f"{NAME}.fp16.safetensors")
    torch.save(OrderedDict((k, t.float()) for k, t in weights().items()), unet / f"{NAME}.bin")


def save_shards(unet, extension=".safetensors", save=safetensors.torch.save_file):
    keys, state = sorted(weights()), weights()
    halves = {f"{NAME}-0000{i + 1}-of-00002{extension}": keys[i::2] for i in range(2)}
    for name, part in halves.items():
        save({key: state[key] for key in part}, unet / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in halves.items() for key in part}}
    (unet / f"{NAME}{extension}.index.json").write_text(json.dumps(index))


def save_bin_shards(unet):
    save_shards(unet, ".bin", torch.save)


def test_every_variant_is_merged_in_its_own_format_and_dtype(model, nets, tmp_path):
    save_variants(model / "unet")
    merge_files(model, tmp_path / "merged", nets)
    assert files_below(tmp_path / "merged") == files_below(model)
    folder = tmp_path / "merged" / "unet"
    assert equal(state_of(folder / f"{NAME}.fp16.safetensors"), hn.merge_state_dict(weights(), nets))
    single = {key: tensor.float() for key, tensor in weights().items()}
    assert equal(state_of(folder / f"{NAME}.bin"), hn.merge_state_dict(single, nets))


@pytest.mark.parametrize("save", [save_shards, save_bin_shards])
def test_shards_are_merged_as_one_and_stay_as_they_were_cut(model, nets, tmp_path, save):
    save(model / "unet")  # to_k and the to_out of its layer lie in different shards
    merge_files(model, tmp_path / "merged", nets)
    assert files_below(tmp_path / "merged") == files_below(model)
    assert equal(read_unet(tmp_path / "merged"), hn.merge_state_dict(weights(), nets))
    loaded = unet_of(tmp_path / "merged", use_safetensors=save is save_shards)
    assert equal(loaded.state_dict(), {k: t.float() for k, t in hn.merge_state_dict(weights(), nets).items()})


def test_weights_of_other_formats_and_hidden_files_are_not_carried_along(model, nets, tmp_path):
    safetensors.torch.save_file(weights(), model / "unet" / f"{NAME}.safetensors")
    for name in ("unet/flax_model.msgpack", "unet/model.onnx", "v1-5-pruned.ckpt", ".cache"):
        (model / name).write_text("not merged")
    (model / "README.md").write_text("about it")
    merge_files(model, tmp_path / "merged", nets)
    extra = set(files_below(model)) - set(files_below(tmp_path / "merged"))
    assert extra == {"unet/flax_model.msgpack", "unet/model.onnx", "v1-5-pruned.ckpt", ".cache"}


def test_reading_for_export_prefers_plain_safetensors(model):
    save_variants(model / "unet")
    assert next(iter(read_unet(model).values())).dtype == torch.float16  # rather the variant than the .bin
    state = {key: tensor.double() for key, tensor in weights().items()}
    safetensors.torch.save_file(state, model / "unet" / f"{NAME}.safetensors")
    assert next(iter(read_unet(model).values())).dtype == torch.float64


@pytest.fixture
def single():
    """A checkpoint in one file, with the original repositories' names where merging looks at them."""
    state = {ORIGINAL_PREFIX + key: tensor for key, tensor in tiny_unet(torch.float16).state_dict().items()}
    return state | {"first_stage_model.conv.weight": torch.randn(3), "cond_stage_model.position_ids": torch.arange(4)}


@pytest.mark.parametrize("target", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("source", [".safetensors", ".ckpt"])
def test_a_checkpoint_in_one_file(single, source, target, tmp_path):
    if source == ".ckpt":
        torch.save({"state_dict": OrderedDict(single), "global_step": 3}, tmp_path / "a.ckpt")
    else:
        safetensors.torch.save_file(single, tmp_path / "a.safetensors", metadata={"modelspec.title": "a"})
    net = make_net(activation=None)
    merge_files(tmp_path / f"a{source}", tmp_path / f"b{target}", net, 0.7)
    merged = state_of(tmp_path / f"b{target}")
    assert equal(merged["state_dict"] if target == ".ckpt" else merged, hn.merge_state_dict(single, net, 0.7))
    if target == ".ckpt":  # A1111 refuses a file with other entries
        with zipfile.ZipFile(tmp_path / f"b{target}") as archive:
            assert all(ENTRY.fullmatch(name) for name in archive.namelist())
    if source == target == ".safetensors":
        with safetensors.safe_open(tmp_path / "b.safetensors", framework="pt") as file:
            assert file.metadata() == {"modelspec.title": "a"}


def test_tensors_that_share_memory_in_a_ckpt_are_written_apart(single, tmp_path):
    single |= {"a": single["first_stage_model.conv.weight"], "b": torch.randn(4, 4).t()}
    torch.save(single, tmp_path / "a.ckpt")  # without the state_dict around it, as some are
    merge_files(tmp_path / "a.ckpt", tmp_path / "b.safetensors", make_net(activation=None))
    merged = state_of(tmp_path / "b.safetensors")
    assert merged.keys() == single.keys()
    assert torch.equal(merged["a"], single["a"])
    assert torch.equal(merged["b"], single["b"])


def test_a_model_may_take_its_own_place(single, nets, tmp_path):
    safetensors.torch.save_file(single, tmp_path / "a.safetensors")
    net = make_net(activation=None)
    merge_files(tmp_path / "a.safetensors", tmp_path / "a.safetensors", net)
    assert equal(state_of(tmp_path / "a.safetensors"), hn.merge_state_dict(single, net))
    shutil.copytree(TINY_SD, tmp_path / "model")
    merge_files(tmp_path / "model", tmp_path / "model", nets)
    assert equal(read_unet(tmp_path / "model"), hn.merge_state_dict(weights(), nets))
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "model"]


@pytest.mark.parametrize("extension", [".safetensors", ".ckpt"])
def test_a_new_file_has_the_permissions_of_any_new_file(single, extension, tmp_path):
    safetensors.torch.save_file(single, tmp_path / "a.safetensors")
    old = os.umask(0o027)
    try:
        merge_files(tmp_path / "a.safetensors", tmp_path / f"b{extension}", make_net(activation=None))
    finally:
        os.umask(old)
    assert (tmp_path / f"b{extension}").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failing", ["os.fsync", "os.rename", "shutil.copytree"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_everything_as_it_was(nets, tmp_path, monkeypatch, failing, error):
    out = tmp_path / "out"
    shutil.copytree(TINY_SD, out)
    calls = []

    def fail(*_, **__):
        calls.append(1)
        if failing != "os.rename" or len(calls) == 2:  # the second brings the new folder to its place
            raise error
        return rename(*_)

    rename = os.rename
    monkeypatch.setattr(failing, fail)
    with pytest.raises(hn.CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        merge_files(TINY_SD, out, nets)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["out"]
    assert equal(read_unet(out), weights())


def remove_index(folder):
    (folder / "model_index.json").unlink()


def remove_unet(folder):
    shutil.rmtree(folder / "unet")


def remove_nothing(folder):
    """The UNet has no weights."""


def remove_a_shard(folder):
    save_shards(folder / "unet")
    (folder / "unet" / f"{NAME}-00002-of-00002.safetensors").unlink()


def damage(folder):
    (folder / "unet" / f"{NAME}.safetensors").write_text("not tensors")


def make_hostile(folder):
    class Hostile:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    torch.save({"a": Hostile()}, folder / "unet" / f"{NAME}.bin")


@pytest.mark.parametrize(
    ("breaking", "error", "message"),
    [
        (remove_index, ValueError, "is not a diffusers pipeline: there is no model_index.json"),
        (remove_unet, ValueError, "without a UNet"),
        (remove_nothing, hn.CheckpointError, "unet: holds no diffusion_pytorch_model"),
        (remove_a_shard, hn.CheckpointError, "holds 1 of the 2 shards"),
        (damage, hn.CheckpointError, f"{NAME}.safetensors: is damaged"),
        (make_hostile, hn.CheckpointError, f"{NAME}.bin: .*refused"),
    ],
)
def test_a_folder_that_cannot_be_merged_is_refused(model, nets, tmp_path, breaking, error, message):
    breaking(model)
    with pytest.raises(error, match=message):
        merge_files(model, tmp_path / "merged", nets)
    assert os.listdir(tmp_path) == ["model"]
    assert not (model / "ran").exists()


@pytest.mark.parametrize(
    ("model", "out", "error", "message"),
    [
        ("a.safetensors", "b.bin", ValueError, "b.bin is neither a pipeline folder.* end in .safetensors or .ckpt"),
        ("a.pt", "b.ckpt", ValueError, "a.pt is neither"),
        ("none.safetensors", "b.safetensors", hn.CheckpointError, "none.safetensors: does not exist"),
        ("a.safetensors", "no/b.safetensors", hn.CheckpointError, "create the folder first"),
        ("a.safetensors", "folder.ckpt", ValueError, "folder.ckpt is a folder"),
        ("sd", "sd/out", ValueError, "lie inside one another"),
        ("sd/inner", "sd", ValueError, "lie inside one another"),
        ("sd", "folder.ckpt", ValueError, "is not a diffusers pipeline, so it is not replaced"),
        ("sd", "a.safetensors", ValueError, "is not a diffusers pipeline, so it is not replaced"),
        ("list.ckpt", "b.ckpt", hn.CheckpointError, "holds no state dict"),
        ("net.ckpt", "b.ckpt", hn.AdapterError, "attention contexts of the widths none"),
    ],
)
def test_impossible_files_are_refused(single, tmp_path, model, out, error, message):
    safetensors.torch.save_file(single, tmp_path / "a.safetensors")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({320: ({}, {})}, tmp_path / "net.ckpt")
    shutil.copytree(TINY_SD, tmp_path / "sd")
    (tmp_path / "sd" / "inner").mkdir()
    (tmp_path / "folder.ckpt").mkdir()
    before = files_below(tmp_path)
    with pytest.raises(error, match=message):
        merge_files(tmp_path / model, tmp_path / out, make_net((8, 48), activation=None))
    assert files_below(tmp_path) == before
