"""What is refused before the pictures are encoded."""

from collections import namedtuple

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from hnkernels.training import Example, Reconstruction
from tests.training.families import pipelines
from tests.training.nets import make_net, make_rows, make_unet

PICTURES = [(Image.new("RGB", (32, 32)), "digit one")] * 3


@pytest.fixture
def pipe(monkeypatch):
    """The embedded pipeline, which fails when a picture is encoded."""
    pipe = load_pipeline(TINY_SD)

    def encode(*args, **kwargs):
        raise AssertionError("a picture was encoded")

    monkeypatch.setattr(pipe.vae, "encode", encode)
    return pipe


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures with others for prior preservation in a folder inside."""
    root = tmp_path_factory.mktemp("data")
    for name in ("a.png", "reg/b.png", "apart/c.png", "wide/d.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 32) if "wide" in name else (32, 32)).save(root / name)
    (root / "none").mkdir()
    (root / "table").mkdir()
    Image.new("RGB", (32, 32)).save(root / "table/e.png")
    return root


def trainer(pipe, out, data=PICTURES, net=None, **config):
    net = net or hn.Hypernetwork((48, 80, 96), init="identity")
    return hn.HypernetworkTrainer(net, pipe, {"output_dir": str(out), "progress": False, **config}, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 5}, r"UNet2DConditionModel \(in_channels 5, out_channels 4\); it is for Stable Diffusion 1"),
        ({"in_channels": 8, "out_channels": 8}, "denoises 8 channels, where the latents of its VAE have 4"),
        ({"out_channels": 8}, "in_channels 4, out_channels 8"),
        ({"num_class_embeds": 4}, "num_class_embeds 4"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 96}, "'text_image_proj'"),
    ],
    ids=str,
)
def test_a_unet_of_no_known_family_is_refused(pipe, tmp_path, change, message):
    with torch.device("meta"):
        pipe.unet = UNet2DConditionModel.from_config({**pipe.unet.config, **change})
    with pytest.raises(ValueError, match=message):
        trainer(pipe, tmp_path)


def test_a_loss_that_does_not_denoise_asks_for_no_such_unet(tmp_path):
    unet = UNet2DConditionModel.from_config({**make_unet().config, "in_channels": 5})
    gen = hn.WeightHypernetwork(embedding_dim=8, hidden_dim=8, model=unet, styles=("ink",))
    hn.HypernetworkTrainer(gen, unet, {"output_dir": str(tmp_path)}, loss=Reconstruction())
    with pytest.raises(ValueError, match="in_channels 5"):
        hn.HypernetworkTrainer(gen, unet, {"output_dir": str(tmp_path)})


def test_what_the_model_predicts_must_be_known(pipe, tmp_path):
    pipe.scheduler.register_to_config(prediction_type="sigma")
    with pytest.raises(ValueError, match="prediction_type 'sigma'; accepted are epsilon, v_pred"):
        trainer(pipe, tmp_path)


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        (PICTURES, {"resolution": 33}, "multiple of 4"),
        ([], {}, "data is empty"),
        ([("none.png", "digit")], {}, "cannot read the image none.png"),
        ([Example(PICTURES[0][0], "a", "ink"), Example(PICTURES[0][0], "a")], {}, "a condition of one kind"),
        (PICTURES, {"bucketing": True}, "multiples of 64 pixels fits into the area of resolution 32"),
        (PICTURES, {"masked_loss": True}, "masked_loss has no effect, as no picture has an alpha channel"),
        (PICTURES, {"clip_skip": 9}, "clip_skip is 9, and the text encoder has [0-9]+ layers"),
        (PICTURES, {"mask_data": "masks"}, "give each Example its mask"),
        (
            [Example(*PICTURES[0], mask=PICTURES[0][0])],
            {"mask_data": "x"},
            "no effect on Stable .* without masked_loss",
        ),
        (PICTURES, {"validation_split": 3}, "validation_split holds out 3 of 3 pictures"),
        (PICTURES, {"preview_every": 1, "preview_prompts": "a", "preview_inference_steps": 2000}, "1000 at most"),
    ],
)
def test_data_and_settings_are_checked_together(pipe, tmp_path, data, config, message):
    with pytest.raises(ValueError, match=message):
        trainer(pipe, tmp_path / "out", data, **config).train()


def test_what_is_refused_early_leaves_no_folder(pipe, tmp_path):
    for config in ({"bucketing": True}, {"masked_loss": True}, {"validation_split": 3}):
        with pytest.raises(ValueError):
            trainer(pipe, tmp_path / "out", **config).train()
    assert not list(tmp_path.iterdir())


def test_an_alpha_channel_in_one_picture_or_one_mask_is_enough_for_masked_loss(pipe, tmp_path):
    plain, clear = PICTURES[0][0], PICTURES[0][0].convert("RGBA")
    for some in (Example(clear, "a"), Example(plain, "a", mask=plain)):
        with pytest.raises((AssertionError, ValueError), match=r"a picture was encoded|black all over"):
            trainer(pipe, tmp_path / "out", [Example(plain, "a"), some], masked_loss=True).train()


def test_models_that_edit_need_the_picture_to_be_edited(tmp_path):
    data = [Example(*PICTURES[0], source=PICTURES[0][0]), Example(*PICTURES[0])]
    net = hn.Hypernetwork((8, 16), init="identity")
    with pytest.raises(
        ValueError, match=r"InstructPix2Pix needs .* \(1 in all\); name it in the column source_file_name"
    ):
        trainer(pipelines.edits(), tmp_path / "out", data, net, resolution=16).train()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        ("reg", {"regularization_data": "reg"}, "is the folder of the pictures and regularization_data at once"),
        ("none", {}, "none holds no images"),
        ("apart", {"regularization_data": "none"}, "none holds no images"),
        ("apart", {"regularization_data": "missing"}, "missing is not a folder"),
        (
            "apart",
            {"regularization_data": "wide", "bucketing": True, "bucket_step": 8},
            r"no picture of regularization_data has a size in common .*\(40 x 24 against 32 x 32\)",
        ),
    ],
    ids=str,
)
def test_pictures_for_prior_preservation_are_checked(pipe, folders, tmp_path, data, config, message):
    config = {**config, "regularization_data": str(folders / config.get("regularization_data", "reg"))}
    with pytest.raises(ValueError, match=message):
        trainer(pipe, tmp_path / "out", folders / data, **config).train()


def test_pictures_given_one_by_one_may_not_be_for_prior_preservation_too(pipe, folders, tmp_path):
    data = [(folders / "a.png", "a"), (folders / "reg" / "." / "b.png", "b")]
    with pytest.raises(ValueError, match=r"b\.png \(1 in all\) would be trained on and be regularization_data at once"):
        trainer(pipe, tmp_path, data, regularization_data=str(folders / "reg")).train()


def test_conditions_are_of_one_kind_with_those_for_prior_preservation(pipe, folders, tmp_path):
    gen = hn.WeightHypernetwork(embedding_dim=96, hidden_dim=8, model=pipe, styles=("ink",))
    data = [Example(*PICTURES[0], "ink")]
    with pytest.raises(ValueError, match="all examples need a condition of one kind"):
        trainer(pipe, tmp_path, data, gen, regularization_data=str(folders / "reg")).train()


def test_validation_is_for_losses_that_denoise(tmp_path):
    unet = make_unet()
    gen = hn.WeightHypernetwork(embedding_dim=8, hidden_dim=8, model=unet, styles=("ink",))
    with pytest.raises(ValueError, match="validation_split is for losses that denoise"):
        hn.HypernetworkTrainer(gen, unet, {"output_dir": str(tmp_path), "validation_split": 1}, loss=Reconstruction())


@pytest.mark.parametrize(
    ("conditions", "options", "message"),
    [
        (["ink", "chalk", "ink"], {}, "the data's conditions cannot be used: there is no style 'chalk'"),
        ([{"ink": 1}, {}, {"ink": 1}], {}, "the data's conditions cannot be used: a mixture of styles"),
        ([torch.zeros(5)] * 3, {}, "the data's conditions cannot be used: .*accepts 96"),
        ([None] * 3, {"embedding_dim": 8}, "the text, .* cannot be used: .*accepts 8"),
    ],
)
def test_conditions_are_checked_against_the_network(pipe, tmp_path, conditions, options, message):
    gen = hn.WeightHypernetwork(**{"embedding_dim": 96, "hidden_dim": 8, "model": pipe, "styles": ("ink",), **options})
    data = [Example(PICTURES[0][0], "digit one", condition) for condition in conditions]
    with pytest.raises(ValueError, match=message):
        trainer(pipe, tmp_path, data, gen).train()


def test_preview_conditions_are_checked_against_the_network(pipe, tmp_path):
    gen = hn.WeightHypernetwork(embedding_dim=96, hidden_dim=8, model=pipe, styles=("ink",))
    previews = {"preview_every": 1, "preview_prompts": "a", "preview_conditions": ["chalk"]}
    with pytest.raises(ValueError, match="preview_conditions cannot be used: there is no style 'chalk'"):
        trainer(pipe, tmp_path, net=gen, **previews)


def test_a_disk_that_is_too_small_is_refused(pipe, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    net = hn.Hypernetwork((48,))
    network = 4 * sum(p.numel() for p in net.parameters())
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 17 * network))
    with pytest.raises(ValueError, match=r"4 checkpoints need .* MiB left; make room, or raise checkpoint_every"):
        trainer(pipe, tmp_path, net=net, max_steps=30, checkpoint_every=10).train()
    with pytest.raises(AssertionError, match="a picture was encoded"):
        trainer(pipe, tmp_path, net=net, max_steps=30, checkpoint_every=20).train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(9, 4, 4)}, r"latents of row 4 must be a tensor \[4, h, w\], not \[9, 4, 4\]"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, "latents of row 4"),
        ({"latents": "x"}, "not a str"),
        (
            {"encoder_hidden_states": torch.zeros(7, 13)},
            r"encoder_hidden_states of row 4 .*\[tokens, 12\], not \[7, 13\]",
        ),
    ],
)
def test_encoded_data_is_checked_against_the_unet(tmp_path, change, message):
    rows = make_rows()
    rows[4] |= change
    config = {"output_dir": str(tmp_path / "out"), "batch_size": 2, "progress": False}
    with pytest.raises(ValueError, match=message):
        hn.HypernetworkTrainer(make_net(), make_unet(), config, rows).train()
    assert not (tmp_path / "out").exists()


def test_rows_of_one_size_make_a_batch(tmp_path):
    rows = [*make_rows(3), *({**row, "latents": torch.zeros(4, 8, 8)} for row in make_rows(2))]
    config = {"output_dir": str(tmp_path), "max_epochs": 1, "batch_size": 2, "progress": False}
    assert hn.HypernetworkTrainer(make_net(), make_unet(), config, rows).train().step == 3
