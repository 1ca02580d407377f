"""What every command does alike: JSON, exit codes, colours, the shell's completion."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("rich")
pytest.importorskip("typer")

import hnkernels as hn
from hnkernels.assets import TINY_SD


def shell(*words, **environment):
    """A command in a process of its own, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "hnkernels", *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


def test_info_prints_json(cli, style):
    code, out, _ = cli("info", style, "--model", "tiny-sd", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["file"] == str(style)
    assert found["model"] == str(TINY_SD)
    assert found["attention"][0] == {"width": 48, "attention": "attn1", "layers": 3, "acts": True}


def test_export_lora_prints_json(cli, tmp_path):
    hn.save_hypernetwork(hn.Hypernetwork((48, 80, 96), activation=None), tmp_path / "affine.pt")
    code, out, _ = cli("export-lora", tmp_path / "affine.pt", "tiny-sd", tmp_path / "lora.safetensors", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["rank"] == 16
    assert found["worst"] == max(layer["error"] for layer in found["layers"])


def test_a_folder_called_tiny_sd_is_taken_at_its_word(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-sd").mkdir()
    code, _, err = cli("info", "--model", "tiny-sd")
    assert code == 1
    assert "tiny-sd is not a diffusers model" in err


def test_exit_codes(cli, style, tmp_path):
    assert cli("info", style)[0] == 0
    assert cli("info", tmp_path / "missing.pt")[0] == 1
    assert cli("nonsense")[0] == 2
    assert cli("info", "--nonsense")[0] == 2
    for words, code in ((("--help",), 0), (("info", tmp_path / "missing.pt"), 1), (("nonsense",), 2)):
        done = shell(*words)
        assert done.returncode == code
        assert "\x1b" not in done.stdout + done.stderr  # no terminal, no colours


@pytest.mark.parametrize("words", [("info", "style.pt"), ("info", "missing.pt"), ("--help",)], ids=" ".join)
def test_without_a_terminal_there_are_no_control_characters(cli, style, words, monkeypatch):
    monkeypatch.chdir(style.parent)
    _, out, err = cli(*words)
    assert out + err
    assert "\x1b" not in out + err


def test_no_color_is_obeyed_where_colour_is_forced(tmp_path):
    colourful = shell("info", tmp_path / "missing.pt", FORCE_COLOR="1", TERM="xterm")
    plain = shell("info", tmp_path / "missing.pt", FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert "\x1b[31m" in colourful.stderr
    assert "\x1b[31m" not in plain.stderr


@pytest.mark.parametrize("name", [":x:", "[b]", "[red]", "a" * 90], ids=["emoji", "bold", "red", "long"])
def test_names_are_shown_as_they_are(tmp_path, name):
    missing, target = tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors"
    assert shell("info", missing, COLUMNS="80").stderr == f"error: {missing}: does not exist; check the path\n"
    hn.save_hypernetwork(hn.Hypernetwork((4,), name=name), missing)
    assert shell("convert", missing, target, COLUMNS="80").stdout == f"wrote {target}\n"
    assert name in shell("info", target, COLUMNS="20").stdout


def test_a_name_that_the_terminal_cannot_write_is_no_fault(tmp_path):
    source, target = tmp_path / "a.pt", tmp_path / "\N{CJK UNIFIED IDEOGRAPH-6F22}.safetensors"
    hn.save_hypernetwork(hn.Hypernetwork((4,)), source)
    done = shell("convert", source, target, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path}/\\u6f22.safetensors\n"
    assert target.exists()


def test_a_folder_in_the_place_of_a_file_is_called_one(cli, tmp_path):
    code, _, err = cli("info", tmp_path)
    assert code == 1
    assert f"{tmp_path}: is a folder; use a file in one of the formats .pt, .safetensors" in err


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(name):
    done = shell(_HNKERNELS_COMPLETE=f"source_{name}")
    assert done.returncode == 0
    assert "_HNKERNELS_COMPLETE" in done.stdout


def test_the_demo_writes_its_pictures_alone(cli, tmp_path):
    code, _, _ = cli("demo", "--data", tmp_path / "digits")
    assert code == 0
    assert len(list((tmp_path / "digits").glob("*.png"))) == 256
    assert (tmp_path / "digits" / "0000.txt").read_text().startswith("digit ")
    code, _, err = cli("demo", "--data", tmp_path / "digits")
    assert code == 1
    assert "exists already" in err
