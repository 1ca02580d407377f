"""The command line: what a user types, and the mistakes they make."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from hnkernels.training.recipes import recipe_named

WIDTHS_OF_TINY_SD = [["48", "attn1", "3"], ["80", "attn1", "4"], ["96", "attn2", "7"]]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (32, 32), (80 * index, 0, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("digit one")
    return folder


def test_info_shows_a_models_widths(cli, style, tmp_path):
    code, out, _ = cli("info", "--model", TINY_SD)
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:]] == WIDTHS_OF_TINY_SD
    code, out, _ = cli("info", style, "--model", TINY_SD / "unet")
    assert code == 0
    assert "relu" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[:3] for row in rows if row[-1] == "yes"] == WIDTHS_OF_TINY_SD
    hn.save_hypernetwork(hn.Hypernetwork((48,)), tmp_path / "narrow.pt")
    out = cli("info", tmp_path / "narrow.pt", "--model", TINY_SD)[1]
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["yes", "no", "no"]


@pytest.mark.parametrize("extension", ["safetensors", "ckpt"])
def test_info_shows_the_widths_of_a_checkpoint_in_one_file(cli, tmp_path, extension):
    unet = StableDiffusionPipeline.from_pretrained(TINY_SD).unet
    state = {f"model.diffusion_model.{k}": v.contiguous() for k, v in unet.state_dict().items()}
    file = tmp_path / f"model.{extension}"
    if extension == "ckpt":
        torch.save({"state_dict": state, "global_step": 3}, file)
    else:
        safetensors.torch.save_file(state, file)
    code, out, _ = cli("info", "--model", file)
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:]] == WIDTHS_OF_TINY_SD


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folder", None, "not a diffusers model: there is no config.json in it"),
        ("x.txt", "x", "is not a model; give a diffusers folder, or a checkpoint"),
        ("x.safetensors", "not one", "is damaged"),
        ("x.ckpt", "not one", "x.ckpt"),
        ("unet/config.json", "{}", "describes no model that this version of diffusers can build"),
        ("unet/config.json", '{"_class_name": "NoSuchModel"}', "NoSuchModel"),
    ],
)
def test_info_of_what_is_not_a_model(cli, tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if content is None else path.write_text(content)
    code, _, err = cli("info", "--model", path.parent if name.endswith(".json") else path)
    assert code == 1
    assert message in err


def test_info_of_nothing(cli):
    code, _, err = cli("info")
    assert code == 1
    assert "give a hypernetwork file, or a model with --model" in err


def test_info_shows_what_a_file_says_of_training(cli, tmp_path):
    net = hn.Hypernetwork((8,), name="[/red]\x1b[2J")
    net.provenance.training = {"ss_steps": "90", "ss_x": "[bold]\x1b]0;x\x07", "ss_tag_frequency": "cat " * 10**5}
    hn.save_hypernetwork(net, tmp_path / "a.safetensors")
    code, out, _ = cli("info", tmp_path / "a.safetensors")
    assert code == 0
    assert ["ss_steps", "90"] in [line.split() for line in out.splitlines()]
    assert "[/red]" in out
    assert "[bold]" in out
    assert "\x1b" not in out
    assert len(out) < 5000


def test_info_shows_what_files_of_weight_hypernetworks_hold(cli, tmp_path):
    gen = hn.WeightHypernetwork("attn2.v", embedding_dim=8, hidden_dim=8, rank=2, styles=("ink", "oil"), name="wash")
    gen.save(tmp_path / "gen.safetensors")
    gen("ink").save(tmp_path / "weights.safetensors")
    code, out, _ = cli("info", tmp_path / "gen.safetensors")
    assert code == 0
    for words in ("weight hypernetwork", "wash", "ink, oil", "lora", "attn2.v", "ranks          2", "float32"):
        assert words in out
    code, out, _ = cli("info", tmp_path / "weights.safetensors")
    assert code == 0
    assert "generated weights" in out
    code, _, err = cli("info", tmp_path / "gen.safetensors", "--model", TINY_SD)
    assert code == 1
    assert "says itself which layers it is for" in err
    code, _, err = cli("convert", tmp_path / "gen.safetensors", tmp_path / "gen.pt")
    assert code == 1
    assert "holds no context hypernetwork but 'weight hypernetwork'; load it with WeightHypernetwork.load" in err


def test_info_shows_what_a_file_holds(cli, style):
    code, out, _ = cli("info", style)
    assert code == 0
    said = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in out.splitlines()}
    assert (said["name"], said["dtype"]) == ("style", "float32")
    assert (said["sizes"], said["layer_structure"]) == ("48, 80, 96", "1, 2, 1")
    assert (said["activation"], said["layer_norm"], said["dropout_structure"]) == ("relu", "no", "–")


def test_convert_there_and_back_loses_nothing(cli, style, tmp_path):
    assert cli("convert", style, tmp_path / "b.safetensors")[0] == 0
    assert cli("convert", tmp_path / "b.safetensors", tmp_path / "c.pt")[0] == 0
    assert (tmp_path / "c.pt").read_bytes() == style.read_bytes()


def test_convert_overwrites_only_when_told_to(cli, style, tmp_path):
    target = tmp_path / "b.safetensors"
    target.write_text("precious")
    code, _, err = cli("convert", style, target)
    assert (code, target.read_text()) == (1, "precious")
    assert "--force" in err
    assert cli("convert", style, target, "--force")[0] == 0
    assert hn.load_hypernetwork(target).provenance.name == "style"


def test_interpolate_writes_the_network_between_two(cli, affine, tmp_path):
    a, b = affine
    out = tmp_path / "c.safetensors"
    code, _, err = cli("interpolate", a, b, out, "--t", "0.25")
    assert code == 0, err
    expected = hn.interpolate(hn.load_hypernetwork(a), hn.load_hypernetwork(b), 0.25)
    assert all(map(torch.equal, hn.load_hypernetwork(out).parameters(), expected.parameters()))
    assert "--force" in cli("interpolate", a, b, out)[2]
    assert cli("interpolate", a, b, out, "--force")[0] == 0


@pytest.fixture
def affine(tmp_path):
    """Two affine networks for the embedded model."""
    for name in "ab":
        net = hn.Hypernetwork((48, 80, 96), activation=None, name=name)
        hn.save_hypernetwork(net, tmp_path / f"{name}.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


def test_merge_writes_a_pipeline_that_needs_no_hypernetwork(cli, affine, tmp_path):
    a, b = affine
    out = tmp_path / "merged"
    words = ("--hypernetwork", a, "--strength", "0.7", "--hypernetwork", b, "--strength", "0.3")
    code, printed, err = cli("merge", "tiny-sd", out, *words)
    assert code == 0, err
    assert f"wrote {out}" in printed.replace("\n", "")
    unet = StableDiffusionPipeline.from_pretrained(out, local_files_only=True).unet
    expected = StableDiffusionPipeline.from_pretrained(TINY_SD, local_files_only=True).unet
    hn.merge(expected, [hn.load_hypernetwork(a), hn.load_hypernetwork(b)], [0.7, 0.3])
    # The file is fp16.
    assert all(torch.equal(t.half().float(), unet.state_dict()[key]) for key, t in expected.state_dict().items())
    assert cli("merge", TINY_SD, out, "--hypernetwork", a)[0] == 1  # it is there already
    assert cli("merge", TINY_SD, out, "--hypernetwork", a, "--force")[0] == 0
    assert cli("sample", out, "digit one", "--out", tmp_path / "one.png", "--steps", 1)[0] == 0


def test_export_lora_writes_the_lora_and_prints_how_close_it_comes(cli, affine, tmp_path):
    out = tmp_path / "lora.safetensors"
    code, printed, err = cli("export-lora", affine[0], TINY_SD, out, "--rank", 4, "--strength", 0.5)
    assert code == 0, err
    unet = StableDiffusionPipeline.from_pretrained(TINY_SD, local_files_only=True).unet
    state, report = hn.to_lora(hn.load_hypernetwork(affine[0]), unet, 4, 0.5)
    written = safetensors.torch.load_file(out)
    assert written.keys() == state.keys()
    for key in (k for k in state if ".lora_B." in k):  # the factors themselves may differ by what LAPACK rounds
        ours, theirs = (s[key] @ s[key.replace(".lora_B.", ".lora_A.")] for s in (written, state))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for words in ("rank 4", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "worst", f"{report.mean:.2%}"):
        assert words in printed
    assert "--force" in cli("export-lora", affine[0], TINY_SD, out)[2]
    assert cli("export-lora", affine[0], TINY_SD, out, "--biases", "--force")[0] == 0
    assert any(key.endswith("lora_B.bias") for key in safetensors.torch.load_file(out))


def test_merge_without_a_hypernetwork_is_a_usage_error(cli):
    assert cli("merge", TINY_SD, "out")[0] == 2


def test_train_then_sample(cli, images, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {"training": {"max_steps": 2, "batch_size": 2, "progress": False}, "network": {"activation": "silu"}}
        )
    )
    out = tmp_path / "run"
    code, printed, err = cli("train", TINY_SD, images, "--config", config, "--output-dir", out, "--name", "red")
    assert code == 0, err
    assert "2 steps" in printed
    assert "settings that the config leaves out come from the recipe style" in printed
    net = hn.load_hypernetwork(out / "red.pt")
    assert (net.sizes, net.config.activation, net.provenance.step) == ((48, 80), "silu", 2)  # of self-attention
    picture = tmp_path / "a" / "b.png"
    hypernetwork = ("--hypernetwork", out / "red.pt", "--strength", "0.5")
    code, _, err = cli("sample", TINY_SD, "digit one", "--out", picture, "--steps", 2, *hypernetwork)
    assert code == 0, err
    assert Image.open(picture).size == (32, 32)


def test_the_plain_defaults_are_not_a_recipe(cli, images, tmp_path):
    config, out = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps({"training": {"max_steps": 1, "progress": False}}))
    code, printed, err = cli("train", TINY_SD, images, "--config", config, "--recipe", "none", "--output-dir", out)
    assert code == 0, err
    assert "recipe" not in printed
    net = hn.load_hypernetwork(out / "hypernetwork.pt")
    assert (net.sizes, net.config.activation) == ((48, 80, 96), "relu")


def test_a_recipe_is_what_the_config_does_not_say(cli, images, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"training": {"max_steps": 1, "progress": False}, "network": {"activation": "tanh"}}))
    out = tmp_path / "run"
    words = ("--config", config, "--recipe", "subject", "--output-dir", out, "--name", "red")
    code, printed, err = cli("train", TINY_SD, images, *words)
    assert code == 0, err
    assert "1 steps" in printed
    net = hn.load_hypernetwork(out / "red.pt")
    recipe = recipe_named("subject")
    assert net.config.activation == "tanh"
    assert net.config.layer_structure == tuple(recipe.network["layer_structure"])


def test_a_tag_in_the_prompt_sets_the_strength(cli, style, tmp_path):
    net = hn.load_hypernetwork(style)
    torch.nn.init.normal_(net[96][1].linear[2].weight, std=0.3)
    hn.save_hypernetwork(net, style)

    def draw(prompt, *options):
        file = tmp_path / "picture.png"
        code, _, err = cli("sample", TINY_SD, prompt, "--out", file, "--steps", 2, *options)
        assert code == 0, err
        return Image.open(file).tobytes()

    hypernetwork = ("--hypernetwork", style)
    off, whole, half = (draw("digit one", *hypernetwork, "--strength", s) for s in (0, 1, 0.5))
    assert len({off, whole, half}) == 3
    assert draw("digit <hypernet:style:0.5> one", *hypernetwork) == half
    assert draw("digit one <hypernet:style>", *hypernetwork, "--strength", 0) == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "none.pt"], "none.pt: does not exist"),
        (["info", "."], "is a folder"),
        (["convert", "{style}", "b.ckpt"], "'.ckpt' is not accepted"),
        (["train", "{images}", "{images}"], "is not a diffusers pipeline"),
        (["train", "{model}", "none"], "is not a folder"),
        (["train", "{model}", "{images}", "--config", "{bad}"], "did you mean 'batch_size'"),
        (["train", "{model}", "{images}", "--config", "none.json"], "none.json: there is no such file"),
        (["train", "{model}", "{images}", "--config", "{style}"], "style.pt is not UTF-8 text"),
        (["train", "{model}", "{images}", "--config", "{empty}"], "it is not JSON (Expecting value"),
        (["train", "{model}", "{images}", "--resume"], "start a run without resume (--resume)"),
        (["demo", "--data", "{images}"], "exists already; name a new folder"),
        (["generate", "{style}", "lora.safetensors", "--style", "ink"], "the only format of weight hypernetworks"),
        (
            ["sample", "{nameless}", "x"],
            "model_index.json does not name the class of a pipeline; write the folder again",
        ),
        (["train", "{model}", "{images}", "--recipe", "stile"], "no recipe 'stile'; did you mean 'style'"),
        (["study", "--questions", "rates"], "the study has no question 'rates'; did you mean 'rate'"),
        (["study", "--minutes", "0"], "minutes must be a number above 0, not 0.0"),
        (["study", "--out", "{style}"], "is not a folder; name another place for the study"),
        (["sample", "{model}", "x", "--out", "x.gif"], "must end in .png"),
        (["sample", "{model}", "x", "--strength", "1"], "give one each"),
        (["sample", "{model}", "x <hypernet:ink>"], "the prompt names the hypernetwork ink; give its file"),
        (["sample", "{model}", "x <hypernet:ink:>"], "is not a hypernetwork tag"),
        (["sample", "{model}", "x", *["--hypernetwork", "{style}"] * 2], "style.pt are both named 'style'; give one"),
        (["interpolate", "{style}", "{foreign}", "c.pt"], "has sizes (48, 80, 96) and 'hypernetwork' has (768,)"),
        (["interpolate", "{style}", "{style}", "c.pt", "--t", "nan"], "t must be a finite number, not nan"),
        (["merge", "{model}", "out", "--hypernetwork", "{style}"], "has activation 'relu'; attach it instead"),
        (["merge", "{model}", "{style}", "--hypernetwork", "{style}"], "overwrite it with --force"),
        (
            ["merge", "{model}", "out", "--hypernetwork", "{style}", "--strength", "1", "--strength", "2"],
            "give one each",
        ),
        (["export-lora", "{style}", "{model}", "lora.safetensors"], "has activation 'relu'; attach it instead"),
        (["export-lora", "{style}", "{model}", "lora.pt"], "a LoRA is written as .safetensors, not 'lora.pt'"),
        (["export-lora", "{style}", "{images}", "lora.safetensors"], "is not a diffusers pipeline"),
        (["merge", "{images}", "out", "--hypernetwork", "{style}"], "is not a diffusers pipeline"),
        (["sample", "{model}", "x", "--hypernetwork", "{foreign}"], "for another model"),
    ],
)
def test_a_mistake_ends_in_one_clear_line(cli, style, images, tmp_path, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.json"
    bad.write_text('{"training": {"batchsize": 2}}')
    foreign = tmp_path / "foreign.pt"
    hn.save_hypernetwork(hn.Hypernetwork((768,), layer_structure=(1, 0.01, 1)), foreign)
    (tmp_path / "empty.json").touch()
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "model_index.json").write_text("{}")
    names = {
        "style": style,
        "images": images,
        "model": TINY_SD,
        "bad": bad,
        "foreign": foreign,
        "empty": tmp_path / "empty.json",
        "nameless": tmp_path / "nameless",
    }
    code, _, err = cli(*(word.format(**names) for word in words))
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["train", "tiny-sd", "{images}"], ["info", "--model", "tiny-sd"]], ids=lambda words: words[0]
)
def test_a_package_that_is_missing_is_one_line_with_one_remedy(images, words):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('diffusers', 'tqdm')); sys.argv[0] = 'hnkernels'; "
        "from hnkernels.cli import main; main()"
    )
    command = [sys.executable, "-c", code, *(word.format(images=images) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.count("pip install 'hnkernels[train]'") == 1


@pytest.fixture
def no_model(monkeypatch):
    """A model that is loaded is a mistake that was found too late."""

    def load(folder):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("hnkernels.pipeline.load_pipeline", load)


@pytest.mark.parametrize(
    ("training", "network", "words", "message"),
    [
        ({}, {}, ["--resume"], "there is no checkpoint to resume in"),
        ({"learning_rate": "1e-3:2, soon"}, {}, [], "cannot read 'soon' in the schedule"),
        ({"gradient_clip": "1:2, soon"}, {}, [], "cannot read 'soon' in the schedule"),
        ({}, {"activation": "no such"}, [], "no such"),
        ({}, {"sizes": [999]}, [], "for another model"),
        ({}, {"name": ""}, [], "makes no file name"),
        ({}, {}, ["--name", "x" * 300], "shorten the name"),
        ({}, {}, ["--init-from", "none.pt"], "none.pt: does not exist"),
        ({}, {}, ["--init-from", "{foreign}"], "for another model"),
        ({}, {}, ["--output-dir", "{style}"], "cannot be written to: File exists; name another output_dir"),
        ({}, {}, ["--output-dir", "{run}"], "holds a run already"),
        ({}, {}, ["--output-dir", "."], "holds style.pt, which the run would overwrite"),
    ],
)
def test_train_is_checked_before_the_model_is_loaded(
    cli, style, images, tmp_path, monkeypatch, no_model, training, network, words, message
):
    monkeypatch.chdir(tmp_path)
    foreign = tmp_path / "foreign.pt"
    hn.save_hypernetwork(hn.Hypernetwork((768,), layer_structure=(1, 0.01, 1)), foreign)
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"training": training, "network": network}))
    words = [word.format(style=style, foreign=foreign, run=tmp_path / "run") for word in words]
    words = words if "--name" in words else ["--name", "style", *words]
    code, _, err = cli("train", TINY_SD, images, "--config", "config.json", *words)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_train_on_a_model_of_no_known_family_is_refused_before_it_is_loaded(cli, images, tmp_path, no_model):
    shutil.copytree(TINY_SD, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 5}))
    code, _, err = cli("train", tmp_path / "model", images, "--output-dir", tmp_path / "run")
    assert code == 1
    assert "in_channels 5" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hypernetwork", "{style}", "--hypernetwork", "{other}"], "are both named 'style'; give one of the files"),
        (["--hypernetwork", "{foreign}"], "for another model"),
        (["--hypernetwork", "{styles}", "--style", "chalk"], "--style cannot be used: there is no style 'chalk'"),
        (["--hypernetwork", "{style}", "--strength", "nan"], "--strength must be a finite number, not nan"),
        (["--guidance", "inf"], "--guidance must be a finite number, not inf"),
        (["--out", "{images}.png/x.png"], "is not a folder"),
        (["--out", "folder.png"], "is a folder; name a file inside it"),
        (["--out", "x" * 300 + ".png"], "File name too long"),
    ],
)
def test_sample_is_checked_before_the_model_is_loaded(
    cli, style, styles, images, tmp_path, monkeypatch, no_model, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "images.png").touch()
    other = tmp_path / "other" / "style.safetensors"
    other.parent.mkdir()
    hn.save_hypernetwork(hn.load_hypernetwork(style), other)
    foreign = tmp_path / "foreign.pt"
    hn.save_hypernetwork(hn.Hypernetwork((768,), layer_structure=(1, 0.01, 1)), foreign)
    names = {"style": style, "styles": styles, "images": images, "other": other, "foreign": foreign}
    code, _, err = cli("sample", TINY_SD, "digit", *(word.format(**names) for word in words))
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "{style}", "no/such/b.pt"], "no/such is not a folder; create it first"),
        (["convert", "{style}", "b.ckpt"], "'.ckpt' is not accepted"),
        (["interpolate", "{style}", "{style}", "no/such/b.pt"], "is not a folder; create it first"),
        (["merge", "{model}", "no/such/b", "--hypernetwork", "{style}"], "is not a folder; create it first"),
        (["export-lora", "{style}", "{model}", "no/b.safetensors"], "is not a folder; create it first"),
        (["generate", "{style}", "no/b.safetensors", "--style", "ink"], "is not a folder; create it first"),
    ],
)
def test_outputs_are_checked_before_anything_is_read(cli, style, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    style.write_text("not read")
    code, _, err = cli(*(word.format(style=style, model=TINY_SD) for word in words))
    assert code == 1
    assert message in err


@pytest.mark.parametrize(
    "options",
    [("--model-dtype", "fp16"), ("--model-dtype", "bf16"), ("--model-dtype", "fp8"), ("--offload",)],
    ids=" ".join,
)
def test_train_takes_the_base_model_in_other_forms(cli, images, tmp_path, options):
    config, losses = tmp_path / "config.json", []
    config.write_text(json.dumps({"training": {"max_steps": 2, "progress": False}}))
    for name, more in (("plain", ()), ("other", options)):
        words = ("train", TINY_SD, images, "--config", config, "--output-dir", tmp_path / name)
        code, out, _ = cli(*words, *more)
        assert code == 0
        losses.append(float(re.search(r"mean loss ([\d.]+)", out)[1]))
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_train_makes_networks_that_generate_weights_for_the_styles_of_the_data(cli, images, tmp_path):
    lines = [{"file_name": f"{i}.png", "text": "digit", "condition": ("ink", {"oil": 0.5})[i % 2]} for i in range(3)]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*lines[::2], *lines[1::2]])))
    config = tmp_path / "config.json"
    training = {"max_steps": 1, "progress": False}
    config.write_text(json.dumps({"training": training, "network": {"hidden_dim": 8}}))
    words = ("train", TINY_SD, images, "--config", config, "--kind", "weights", "--output-dir")
    code, _, err = cli(*words, tmp_path / "run")
    assert code == 1
    assert "a condition of one kind" in err
    for i in range(3):
        lines[i]["condition"] = ("ink", "oil")[i % 2]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert cli(*words, tmp_path / "run")[0] == 0
    net = hn.WeightHypernetwork.load(tmp_path / "run" / "hypernetwork.safetensors")
    assert net.encoder.styles == ("ink", "oil")
    code, *_ = cli(
        *words[:-3], "--output-dir", tmp_path / "more", "--init-from", tmp_path / "run/hypernetwork.safetensors"
    )
    assert code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model-dtype", "int8"), "--model-dtype must be one of fp32, fp16, bf16, fp8, not 'int8'"),
        (("--kind", "lora"), "a network's kind must be one of context, weights, not 'lora'"),
    ],
)
def test_train_names_what_it_takes(cli, images, tmp_path, no_model, words, message):
    code, _, err = cli("train", TINY_SD, images, "--output-dir", tmp_path / "run", *words)
    assert (code, message in err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_train_goes_on_from_the_optimizer_beside_an_a1111_file(cli, images, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"training": {"max_steps": 2, "progress": False, "learning_rate": 1e-3}}))
    words = ("train", TINY_SD, images, "--config", config, "--output-dir")
    assert cli(*words, tmp_path / "first")[0] == 0
    assert cli(*words, tmp_path / "second", "--init-from", tmp_path / "first" / "hypernetwork.pt")[0] == 0
    state = hn.checkpoint.load_optimizer_state(tmp_path / "second" / "hypernetwork.pt").state_dict["state"]
    assert {int(entry["step"]) for entry in state.values()} == {4}


def test_train_resumes_with_changes_when_told_to(cli, images, tmp_path):
    config, out = tmp_path / "config.json", tmp_path / "run"
    words = ("train", TINY_SD, images, "--config", config, "--recipe", "none", "--output-dir", out)

    def write(**training):
        config.write_text(json.dumps({"training": {"batch_size": 3, "progress": False, **training}}))

    write(max_steps=1)
    assert cli(*words, "--name", "red")[0] == 0
    write(max_steps=2, learning_rate=1e-3)
    code, _, err = cli(*words, "--resume")
    assert code == 1
    assert "learning_rate (1e-05 then, 0.001 now); go on with" in err
    code, _, err = cli(*words, "--resume", "--allow-changes")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "learning_rate" in line]
    assert line.startswith("warning: ")
    assert hn.load_hypernetwork(out / "red.pt").provenance.step == 2


def test_a_run_that_is_resumed_has_the_name_that_it_began_with(cli, images, tmp_path):
    config, whole, resumed = tmp_path / "config.json", tmp_path / "whole", tmp_path / "resumed"
    training = {"max_steps": 2, "checkpoint_every": 1, "caption_template": "[name], [filewords]", "progress": False}
    config.write_text(json.dumps({"training": {"learning_rate": 0.01, **training}}))
    words = ("train", TINY_SD, images, "--config", config, "--recipe", "none", "--output-dir")
    assert cli(*words, whole, "--name", "red")[0] == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000002")
    for file in resumed.glob("red*"):
        file.unlink()
    assert cli(*words, resumed, "--resume")[0] == 0
    expected, actual = (hn.load_hypernetwork(out / "red.pt").state_dict() for out in (whole, resumed))
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_train_begins_with_a_network_as_it_is(cli, style, images, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"training": {"max_steps": 1, "progress": False}, "network": {"activation": "tanh"}}))
    words = ("train", TINY_SD, images, "--config", config, "--init-from", style, "--output-dir", tmp_path / "run")
    code, _, err = cli(*words, "--kind", "weights")
    assert code == 1
    assert "--init-from takes the network as it is; leave out --kind weights" in err
    code, out, _ = cli(*words, "--name", "other")
    assert code == 0
    assert f"the config's 'network' is left aside: {style} is taken as it is" in out
    assert hn.load_hypernetwork(tmp_path / "run" / "other.pt").config.activation == "relu"


def test_a_picture_is_written_whole_or_not_at_all(cli, tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    file.write_bytes(b"before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = cli("sample", TINY_SD, "digit one", "--out", file, "--steps", 1)
    assert code == 1
    assert f"{file}: the system reports 'No space left on device'" in err
    assert file.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_style_is_given_once(cli, tmp_path):
    net = tmp_path / "net.safetensors"
    hn.WeightHypernetwork("attn2.v", embedding_dim=8, hidden_dim=8, rank=2, styles=("ink", "oil")).save(net)
    code, _, err = cli("generate", net, tmp_path / "out.safetensors", "--style", "ink:0.5", "--style", "ink:0.2")
    assert code == 1
    assert "--style ink is given twice; give it once, with its weight" in err


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory):
    """The embedded pipeline with weights of the variant fp16 alone."""
    folder = tmp_path_factory.mktemp("model")
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD)
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def test_a_folder_of_one_variant_is_loaded(half_precision, tmp_path):
    pipe = load_pipeline(half_precision)
    whole = load_pipeline(TINY_SD)
    for part in ("unet", "vae", "text_encoder"):
        parameters = zip(getattr(pipe, part).parameters(), getattr(whole, part).parameters(), strict=True)
        assert all(torch.equal(a, b.half().float()) for a, b in parameters)
    mixed = tmp_path / "mixed"  # one part in a variant, the others plain
    shutil.copytree(TINY_SD, mixed)
    shutil.rmtree(mixed / "unet")
    shutil.copytree(half_precision / "unet", mixed / "unet")
    assert torch.equal(next(load_pipeline(mixed).unet.parameters()), next(pipe.unet.parameters()))
    assert torch.equal(next(load_pipeline(mixed).vae.parameters()), next(whole.vae.parameters()))


def test_parts_in_different_variants_are_refused(half_precision, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(half_precision, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    weights.rename(folder / "vae" / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(ValueError, match=r"different variants \(.*unet has fp16; vae has bf16\)"):
        load_pipeline(folder)


def test_a_tag_may_have_the_hash_of_old_prompts(cli, style, tmp_path):
    words = ("--hypernetwork", style, "--steps", 1, "--out", tmp_path / "o.png")
    code, _, err = cli("sample", TINY_SD, "digit <hypernet:style(1a2b3c4d):0.5>", *words)
    assert code == 0, err
    code, _, err = cli("sample", TINY_SD, "digit <hypernet:style(1a2b3c4d)> <hypernet:style>", *words)
    assert code == 1
    assert "names a hypernetwork twice" in err


@pytest.mark.parametrize(
    ("words", "job", "folder"),
    [
        ((), "run.run_demo", "runs/demo"),
        (("--kind", "weight"), "styles.run_styles_demo", "runs/demo-weight"),
        (("--kind", "weight", "--out", "here"), "styles.run_styles_demo", "here"),
    ],
)
def test_demo_runs_the_job_of_its_kind(cli, monkeypatch, words, job, folder):
    calls = []
    monkeypatch.setattr(f"hnkernels.demo.{job}", lambda out, seed: calls.append((str(out), seed)))
    assert cli("demo", *words, "--seed", 3)[0] == 0
    assert calls == [(folder, 3)]


def test_demo_of_another_kind(cli):
    code, _, printed = cli("demo", "--kind", "dense")
    assert code == 1
    assert "--kind must be context or weight, not 'dense'" in printed


def test_a_wrong_option_is_a_usage_error(cli):
    code, _, err = cli("convert")
    assert code == 2
    assert "Usage: hnkernels convert" in err


def test_interrupting_ends_with_130(cli, style, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hnkernels.checkpoint.describe", interrupt)
    assert cli("info", style)[0] == 130


def test_a_hostile_file_is_refused_without_running_it(cli, tmp_path):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({768: Hostile()}, tmp_path / "hostile.pt")
    code, _, err = cli("info", tmp_path / "hostile.pt")
    assert code == 1
    assert "refused" in err
    assert not marker.exists()


@pytest.fixture
def styles(tmp_path):
    """A weight hypernetwork for the embedded pipeline."""
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD)
    width = pipe.unet.config.cross_attention_dim
    gen = hn.WeightHypernetwork("attn2", embedding_dim=width, hidden_dim=8, styles=("ink", "oil"), model=pipe)
    for parameter in gen.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gen.save(tmp_path / "styles.safetensors")
    return tmp_path / "styles.safetensors"


def test_generate_writes_a_lora(cli, styles, tmp_path):
    out = tmp_path / "lora.safetensors"
    code, text, _ = cli("generate", styles, out, "--style", "ink:0.25", "--style", "oil", "--strength", "0.5")
    assert code == 0
    assert f"wrote {out}" in text.replace("\n", "")
    gen = hn.WeightHypernetwork.load(styles)
    expected = gen({"ink": 0.25, "oil": 1.0}).scaled(0.5).to_lora_state_dict()
    written = safetensors.torch.load_file(out)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in written)
    code, _, err = cli("generate", styles, out, "--style", "ink")
    assert code == 1
    assert "overwrite it with --force" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "chalk"], "there is no style 'chalk'"),
        (["--style", "ink:much"], "--style must be STYLE or STYLE:WEIGHT, not 'ink:much'"),
    ],
)
def test_generate_of_what_there_is_not(cli, styles, tmp_path, arguments, message):
    code, _, err = cli("generate", styles, tmp_path / "lora.safetensors", *arguments)
    assert code == 1
    assert message in err
    assert not (tmp_path / "lora.safetensors").exists()


def test_sample_with_a_weight_hypernetwork(cli, styles, style, tmp_path):
    files = []
    for number, options in enumerate(([], ["--style", "ink"], ["--style", "ink:0.5", "--style", "oil:0.5"], None)):
        out = tmp_path / f"{number}.png"
        network = [] if options is None else ["--hypernetwork", styles, *options]
        code, _, err = cli("sample", TINY_SD, "digit one", "--steps", 2, "--out", out, *network)
        assert code == 0, err
        files.append(out.read_bytes())
    assert len(set(files)) == 4
    code, _, err = cli("sample", TINY_SD, "digit one", "--hypernetwork", style, "--style", "ink")
    assert code == 1
    assert "--style is for weight hypernetworks" in err
